// Package redislog is the Redis side of all logs. A log is a Redis Stream with a hash beside it,
// which has the log's epoch and its producers. Package commit appends what is published, package
// feed reads, and appends what it hears of foreign publishers, package reader searches, and the bus
// probes the server and reads where logs end.
//
// An append takes effect once, however often it is sent: Kafka's idempotent producer. A producer
// has a random id, numbers its calls, and has one on the wire at a time. The hash keeps the number
// of its last call and the answer. A call whose reply is lost is repeated unchanged and gets that
// answer. To publish, nothing is ever searched for, so a repeat costs no more than the first
// attempt.
//
// An error that another attempt may mend wraps ErrUnavailable: Redis does not answer, or it says
// that it is not ready. Every other error is lasting.
//
// The package starts no goroutines. Its one lock guards the epochs that a Log has seen; no other
// lock is taken under it.
//
//	log.go      Log: keys, nodes, epochs, the search, the probe
//	append.go   Call: an append and its answer
//	batch.go    Batch, Commit and Record: what a call appends, and what became of it
//	foreign.go  Foreign: an append of an event that a foreign publisher has sent
//	page.go     Request: reads of a log
//	script.go   how scripts are called; which errors are temporary
//	*.lua       one per job: append, foreign, read, find, probe; begin stands in front of the
//	            first four
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

// A Client is what a Log needs of a go-redis client.
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

// A Log appends to all logs, reads and searches them. It is safe for concurrent use.
type Log struct {
	client    Client
	prefix    string
	retention func(kind string) Retention
	// PerChannel says that the logs of several channels cannot share a call, because a cluster
	// keeps them in different slots.
	PerChannel bool
	cluster    clusterClient // nil outside a cluster
	Sharded    bool          // SPUBLISH and SSUBSCRIBE take the place of PUBLISH and SUBSCRIBE

	mu     sync.RWMutex     // guards following
	epochs map[string]int64 // the last epoch that this process has seen, by channel
}

// A Retention says what a log keeps.
type Retention struct {
	Events int           // the newest; 0: all
	Bytes  int           // of events, about; 0: all
	Age    time.Duration // how long the log lives after its last use; 0: for ever
}

// New makes a Log. retention is asked by kind of channel.
func New(client Client, prefix string, sharded bool, retention func(kind string) Retention) *Log {
	return &Log{client: client, prefix: prefix, Sharded: sharded, retention: retention, epochs: make(map[string]int64)}
}

// Reload makes the client of a cluster look for the nodes anew.
func (l *Log) Reload(ctx context.Context) {
	if l.cluster != nil {
		l.cluster.ReloadState(ctx)
	}
}

// maxEpochs bounds the epochs that are remembered.
const maxEpochs = 16384

// least is the least epoch that a log may begin with now. A clock that has stepped back must not
// give an epoch that was there before.
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
		for name := range l.epochs { // Any one may go.
			delete(l.epochs, name)
			break
		}
	}
	l.epochs[channel] = max(l.epochs[channel], p.Epoch)
}

// master gives the node of a cluster that has a channel and its log.
func (l *Log) master(ctx context.Context, name string) (*redis.Client, error) {
	// Without a name, go-redis would pick a node at random.
	return l.cluster.MasterForKey(ctx, cmp.Or(name, "eventbus"))
}

// Node is the address of the node that has a log. It is "" outside a cluster, and while the node is
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

// Carrier gives the node that the messages of a channel come from, and the client to listen with.
// The node is "" outside a cluster, and with plain Pub/Sub, whose messages come from any node.
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

// PubSub makes a Pub/Sub connection that has no channels yet.
func (l *Log) PubSub(ctx context.Context, client Client) *redis.PubSub {
	if sharded, ok := client.(shardedClient); ok && l.Sharded {
		return sharded.SSubscribe(ctx)
	}
	return client.Subscribe(ctx)
}

// Name is the channel's name in Redis.
func (l *Log) Name(channel string) string { return l.prefix + channel }

// publish is the command that brings a message to a channel.
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

// replyError makes a Go error of the error that a command in a script got.
func replyError(reply string) error {
	if channel, ended := strings.CutPrefix(reply, "ENDED "); ended {
		return fmt.Errorf("%w: %s", ErrEnded, strings.TrimSuffix(channel, " has ended"))
	}
	if temporaryReply(reply) {
		return Error(ErrUnavailable, errors.New(reply))
	}
	return errors.New(reply)
}

// unavailable wraps a temporary error in ErrUnavailable. It also makes the client of a cluster look
// for the nodes anew: there may be another master, and go-redis itself looks once a minute.
func (l *Log) unavailable(err error) error {
	err = WithoutArguments(err)
	if err == nil || errors.Is(err, ErrUnavailable) || !temporary(err) {
		return err
	}
	l.Reload(context.Background())
	return Error(ErrUnavailable, err)
}

// A search for an event ends after so many entries or bytes. Each step is a call that is too short
// to hold Redis up.
const (
	findEntries, findBytes         = 10_000, 64 << 20
	findStepEntries, findStepBytes = 200, 1 << 20
)

// Find searches a log from its newest entry back for the event with this id, and reports whether it
// was found.
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
			pos.Fingerprint = position.Fingerprint(id)
			return pos, err == nil, err
		}
		from, _ = parts[1].(string)
		looked, _ := parts[2].(int64)
		bytes += looked
	}
	return position.Position{}, false, nil
}

// commands are the ones that an ACL user needs for the bus.
const commands = "EVAL, EVALSHA, XADD, XDEL, XTRIM, XRANGE, XREVRANGE, XINFO, EXISTS, HSET, HGET, HMGET, HDEL, HRANDFIELD, GET, SET, " +
	"PEXPIRE, PERSIST, PTTL, TIME, DEL, PING, PUBLISH, SUBSCRIBE and UNSUBSCRIBE"

//go:embed probe.lua
var probeSource string

// Probe reports, by trying, whether the server can do what the bus needs, and enters whether it is
// a cluster. It takes no lock for that, so it must return before anything else is called.
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
		return Error(ErrUnsupported, errors.New("sharded Pub/Sub needs a client with SSubscribe and, for a cluster, MasterForKey and ReloadState"))
	}
	if err == nil {
		return nil
	}
	err = WithoutArguments(err)
	var server redis.Error
	if !errors.As(err, &server) {
		return Error(ErrUnavailable, err)
	}
	advice := ""
	switch text := err.Error(); {
	case strings.Contains(text, "READONLY"):
		advice = "the client sends writes to a replica; give it the master (no ReplicaOnly)"
	case strings.Contains(text, "NOPERM"), strings.Contains(text, "can't run this command"):
		advice = "the ACL user needs " + commands + " (sharded: SPUBLISH, SSUBSCRIBE and SUNSUBSCRIBE), on keys eventbus:* and on the channels"
	case strings.Contains(text, "Invalid stream ID"), strings.Contains(text, "wrong number of arguments"), strings.Contains(strings.ToLower(text), "unknown redis command"), strings.Contains(text, "unknown command"):
		advice = "Redis 7.0 or later is needed, for XADD with <ms>-*"
	case temporaryReply(text):
		return Error(ErrUnavailable, err)
	default:
		return Error(ErrUnsupported, err)
	}
	return Error(ErrUnsupported, fmt.Errorf("%s (%w)", advice, err))
}
