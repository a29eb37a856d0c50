package redislog

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"errors"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrUnavailable is wrapped by errors that another attempt may mend.
	ErrUnavailable = errors.New("eventbus: redis is not available")
	// ErrEnded is the error of an event for a log that has ended. Nothing changes that.
	ErrEnded = errors.New("eventbus: the channel has ended")
	// ErrUnsupported is wrapped by errors of the probe that only a change of the server can mend.
	ErrUnsupported = errors.New("eventbus: redis cannot be used")
)

// Error makes an error of a kind, ErrUnavailable or ErrUnsupported, with a cause. Its text leaves the
// prefix of the kind to the error that a caller of the API gets.
func Error(kind, cause error) error { return kindError{kind, cause} }

type kindError struct{ kind, cause error }

func (e kindError) Error() string {
	return strings.TrimPrefix(e.kind.Error(), "eventbus: ") + ": " + e.cause.Error()
}

func (e kindError) Unwrap() []error { return []error{e.kind, e.cause} }

// A script is Lua that Redis keeps under the SHA-1 of its text.
type script struct{ source, sha string }

func newScript(source string) script {
	sum := sha1.Sum([]byte(source))
	return script{source, hex.EncodeToString(sum[:])}
}

var (
	//go:embed begin.lua
	beginSource string
	//go:embed append.lua
	appendSource string
	//go:embed foreign.lua
	foreignSource string
	//go:embed read.lua
	readSource string
	//go:embed find.lua
	findSource string

	appendScript  = newScript(beginSource + appendSource)
	foreignScript = newScript(beginSource + foreignSource)
	readScript    = newScript(beginSource + readSource)
	findScript    = newScript(beginSource + findSource)
)

// cmd is EVALSHA; with whole, EVAL with the whole text, for a server that does not have the script.
func (s script) cmd(ctx context.Context, whole bool, keys []string, args []any) *redis.Cmd {
	all := make([]any, 0, 3+len(keys)+len(args))
	if whole {
		all = append(all, "eval", s.source, len(keys))
	} else {
		all = append(all, "evalsha", s.sha, len(keys))
	}
	for _, k := range keys {
		all = append(all, k)
	}
	cmd := redis.NewCmd(ctx, append(all, args...)...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

// run calls the script. go-redis may repeat the call when a connection breaks.
func (s script) run(ctx context.Context, client Client, keys []string, args ...any) (any, error) {
	cmd := s.cmd(ctx, false, keys, args)
	err := client.Process(ctx, cmd)
	if isNoScript(err) {
		cmd = s.cmd(ctx, true, keys, args)
		err = client.Process(ctx, cmd)
	}
	return cmd.Val(), err
}

// A onceCmd is a command that go-redis does not repeat. Where a reply is lost, the producer decides
// about that, and has to know that the command may have run.
type onceCmd struct{ *redis.Cmd }

func (onceCmd) NoRetry() bool { return true }

// A scriptCall has the keys and arguments for a script.
type scriptCall struct {
	keys []string
	args []any
}

// runOnce makes calls in one round trip. Each runs once at most.
func (s script) runOnce(ctx context.Context, client Client, calls []scriptCall) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(calls))
	for _, whole := range []bool{false, true} {
		var pending []onceCmd
		for i, c := range calls {
			if whole && !isNoScript(cmds[i].Err()) {
				continue // The server has the script, or the call may have run.
			}
			cmds[i] = s.cmd(ctx, whole, c.keys, c.args)
			pending = append(pending, onceCmd{cmds[i]})
		}
		if len(pending) == 1 {
			pending[0].SetErr(client.Process(ctx, pending[0]))
		} else if len(pending) > 1 {
			pipe := client.Pipeline()
			for _, cmd := range pending {
				_ = pipe.Process(ctx, cmd) // This only queues.
			}
			_, _ = pipe.Exec(ctx) // Each command has its own error.
		}
	}
	return cmds
}

func isNoScript(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") }

// A serverError is the part of a server's error that may be shown.
type serverError string

func (e serverError) Error() string { return string(e) }

// RedisError makes it a [redis.Error].
func (serverError) RedisError() {}

// WithoutArguments shortens the error of a server that does not know a command. Such an error
// repeats the arguments: of AUTH, the password.
func WithoutArguments(err error) error {
	var server redis.Error
	if !errors.As(err, &server) {
		return err
	}
	if text, _, cut := strings.Cut(server.Error(), ", with args beginning with"); cut {
		return serverError(text)
	}
	return err
}

// temporary reports whether another attempt may help: the server could not be reached, did not
// answer, or says that it is not ready.
func temporary(err error) bool {
	var server redis.Error
	if !errors.As(err, &server) {
		return !errors.Is(err, context.Canceled) && !errors.Is(err, redis.ErrClosed)
	}
	return temporaryReply(server.Error())
}

// temporaryReply reports whether a server that answered this may be ready later.
func temporaryReply(reply string) bool {
	for _, prefix := range []string{"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "MOVED", "ASK", "NOREPLICAS", "OOM", "MISCONF"} {
		if strings.HasPrefix(reply, prefix) {
			return true
		}
	}
	return false
}

// movingReply reports whether a server refuses keys because a cluster moves their slot.
func movingReply(reply string) bool {
	return strings.HasPrefix(reply, "TRYAGAIN") || strings.HasPrefix(reply, "ASK") || strings.HasPrefix(reply, "MOVED")
}

// neverSent reports whether a command certainly did not reach the server.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrClosed) ||
		errors.As(err, &op) && op.Op == "dial"
}
