package redislog

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/syndarix/eventbus/internal/position"
)

// A Client is what the log needs of a go-redis client.
type Client interface {
	Process(ctx context.Context, cmd redis.Cmder) error
	Pipeline() redis.Pipeliner
	Subscribe(ctx context.Context, channels ...string) *redis.PubSub
}

// A shardedClient can listen to sharded Pub/Sub.
type shardedClient interface {
	SSubscribe(ctx context.Context, channels ...string) *redis.PubSub
}

// A clusterClient knows which node has a key.
type clusterClient interface {
	MasterForKey(ctx context.Context, key string) (*redis.Client, error)
	ReloadState(ctx context.Context)
}

// A Log is the Redis side of all logs: it appends, reads and searches, and
// knows nothing of who asks. It is safe for concurrent use.
type Log struct {
	client    Client
	prefix    string
	retention func(kind string) (events int, age time.Duration)
	// PerChannel says that logs of several channels cannot share a call,
	// because a cluster keeps them in different slots.
	PerChannel bool
	cluster    clusterClient // nil where there is none
	Sharded    bool          // SPUBLISH and SSUBSCRIBE take the place of PUBLISH and SUBSCRIBE

	mu     sync.RWMutex     // guards following
	epochs map[string]int64 // the last epoch that this process has seen, by channel
}

// New makes the Redis side. A log of a kind keeps so many events, 0 for all, for this time after its
// last use, 0 for ever.
func New(client Client, prefix string, sharded bool, retention func(kind string) (events int, age time.Duration)) *Log {
	return &Log{client: client, prefix: prefix, Sharded: sharded, retention: retention, epochs: make(map[string]int64)}
}

// Reload says that the nodes of a cluster may have changed.
func (l *Log) Reload(ctx context.Context) {
	if l.cluster != nil {
		l.cluster.ReloadState(ctx)
	}
}

// maxEpochs bounds the epochs that are remembered.
const maxEpochs = 16384

// least is the least epoch of a log that begins now: a clock that has stepped back must not give one
// that was there before.
func (l *Log) least(channel string) int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if epoch, ok := l.epochs[channel]; ok {
		return epoch + 1
	}
	return 0
}

// saw remembers the epoch of a log.
func (l *Log) saw(channel string, p position.Position) {
	l.mu.RLock()
	have, ok := l.epochs[channel]
	l.mu.RUnlock()
	if ok && have >= p.Epoch || p.IsZero() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ok && len(l.epochs) >= maxEpochs {
		for name := range l.epochs { // any one will do
			delete(l.epochs, name)
			break
		}
	}
	l.epochs[channel] = max(l.epochs[channel], p.Epoch)
}

// master gives the node of a cluster that has a channel and its log.
func (l *Log) master(ctx context.Context, name string) (*redis.Client, error) {
	// Without a name, a random one would be given.
	return l.cluster.MasterForKey(ctx, cmp.Or(name, "eventbus"))
}

// Node is the address of the node that has a log, "" where there is but one or it is
// not known.
func (l *Log) Node(ctx context.Context, name string) string {
	if l.cluster == nil {
		return ""
	}
	client, err := l.master(ctx, name)
	if err != nil {
		return ""
	}
	return client.Options().Addr
}

// Carrier gives the node over whose connections a channel comes, and the client for
// them. The messages of plain Pub/Sub come over any.
func (l *Log) Carrier(ctx context.Context, name string) (node string, client Client, err error) {
	if l.cluster == nil || !l.Sharded {
		return "", l.client, nil
	}
	master, err := l.master(ctx, name)
	if err != nil {
		return "", nil, err
	}
	return master.Options().Addr, master, nil
}

// PubSub makes a Pub/Sub connection, as yet without channels.
func (l *Log) PubSub(ctx context.Context, client Client) *redis.PubSub {
	if sharded, ok := client.(shardedClient); ok && l.Sharded {
		return sharded.SSubscribe(ctx)
	}
	return client.Subscribe(ctx)
}

// Name is the channel's name in Redis.
func (l *Log) Name(channel string) string { return l.prefix + channel }

// publish is the command that rings the doorbell.
func (l *Log) publish() string {
	if l.Sharded {
		return "SPUBLISH"
	}
	return "PUBLISH"
}

// kind is the kind of a channel.
func kind(channel string) string {
	kind, _, _ := strings.Cut(channel, ":")
	return kind
}

func logKey(name string) string        { return "eventbus:log:{" + name + "}" }
func producersKey(name string) string  { return "eventbus:producers:{" + name + "}" }
func markerKey(name, id string) string { return "eventbus:id:{" + name + "}:" + id }

// replyError makes an error of what a command inside a script answered.
func replyError(reply string) error {
	if temporaryReply(reply) {
		return fmt.Errorf("%w: %s", ErrUnavailable, reply)
	}
	return errors.New(reply)
}

// unavailable marks temporary errors as such. A cluster may have another master by now,
// which go-redis would find out within a minute if it were not told.
func (l *Log) unavailable(err error) error {
	err = WithoutArguments(err)
	if err == nil || errors.Is(err, ErrUnavailable) || !temporary(err) {
		return err
	}
	l.Reload(context.Background())
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// A search for an event looks at so many entries and bytes, in steps that do not hold Redis up.
const (
	findEntries, findBytes         = 10_000, 64 << 20
	findStepEntries, findStepBytes = 200, 1 << 20
)

// Find searches a log from its newest entry back for the event with this id.
func (l *Log) Find(ctx context.Context, channel, id string) (position.Position, bool, error) {
	name := l.Name(channel)
	from, bytes := "+", int64(0)
	for n := 0; from != "" && n < findEntries && bytes < findBytes; n += findStepEntries {
		reply, err := findScript.run(ctx, l.client, []string{logKey(name), producersKey(name)}, id, from, findStepEntries, findStepBytes)
		if err != nil {
			return position.Position{}, false, fmt.Errorf("search log of %s: %w", name, l.unavailable(err))
		}
		parts, ok := reply.([]any)
		if !ok || len(parts) != 3 {
			return position.Position{}, false, fmt.Errorf("unexpected reply %T to find", reply)
		}
		if at, _ := parts[0].(string); at != "" {
			pos, err := position.Parse(at)
			pos.Mark = position.Fingerprint(id)
			return pos, err == nil, err
		}
		from, _ = parts[1].(string)
		looked, _ := parts[2].(int64)
		bytes += looked
	}
	return position.Position{}, false, nil
}

// commands are those that the bus needs.
const commands = "EVAL, EVALSHA, XADD, XDEL, XRANGE, XREVRANGE, XINFO, EXISTS, HSET, HGET, HMGET, HDEL, HRANDFIELD, GET, SET, " +
	"PEXPIRE, PERSIST, PTTL, TIME, DEL, PING, PUBLISH, SUBSCRIBE and UNSUBSCRIBE"

//go:embed probe.lua
var probeSource string

// Probe tells, by trying, whether the server can do what the bus needs.
func (l *Log) Probe(ctx context.Context) error {
	key := func(tag string) string { return "eventbus:probe:{" + l.prefix + tag + "}" }
	s := newScript(probeSource)
	_, err := s.run(ctx, l.client, []string{key("a"), key("a") + "h", key("b")}, l.publish())
	if err != nil && strings.Contains(err.Error(), "CROSSSLOT") {
		l.PerChannel = true
		l.cluster, _ = l.client.(clusterClient)
		_, err = s.run(ctx, l.client, []string{key("a"), key("a") + "h"}, l.publish())
	}
	if _, ok := l.client.(shardedClient); err == nil && l.Sharded && (!ok || l.PerChannel && l.cluster == nil) {
		return fmt.Errorf("%w: sharded Pub/Sub needs a client with SSubscribe and, for a cluster, MasterForKey and ReloadState", ErrUnsupported)
	}
	if err == nil {
		return nil
	}
	err = WithoutArguments(err)
	var server redis.Error
	if !errors.As(err, &server) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	advice := ""
	switch text := err.Error(); {
	case strings.Contains(text, "READONLY"):
		advice = "the client sends writes to a replica; give it the master (no ReplicaOnly)"
	case strings.Contains(text, "NOPERM"), strings.Contains(text, "can't run this command"):
		advice = "the ACL user needs " + commands + " (sharded: SPUBLISH, SSUBSCRIBE and SUNSUBSCRIBE), on keys eventbus:* and on the channels"
	case strings.Contains(text, "Invalid stream ID"), strings.Contains(text, "wrong number of arguments"), strings.Contains(strings.ToLower(text), "position.Unknown redis command"), strings.Contains(text, "position.Unknown command"):
		advice = "Redis 7.0 or later is needed, for XADD with <ms>-*"
	case temporaryReply(text):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("%w: %s (%w)", ErrUnsupported, advice, err)
}
