package tests

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// fresh is an option for tests that wait for the comparing of tails with logs.
var fresh = eventbus.WithFreshness(500 * time.Millisecond)

// rewind takes the newest entries of a log away, as a replica that is promoted may lack
// them: it keeps the first ones.
func rewind(t testing.TB, rdb redis.UniversalClient, key string, keep int) {
	t.Helper()
	ctx := deadline(t)
	entries, err := rdb.XRange(ctx, key, "-", "+").Result()
	require.NoError(t, err)
	_, err = rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Del(ctx, key)
		for _, e := range entries[:keep] {
			var values []any
			for _, f := range []string{"event", "also"} {
				if v, ok := e.Values[f]; ok {
					values = append(values, f, v)
				}
			}
			p.XAdd(ctx, &redis.XAddArgs{Stream: key, ID: e.ID, Values: values})
		}
		return nil
	})
	require.NoError(t, err)
}

// quietly waits until a bus has compared its tails with their logs some more times:
// whatever was to come by itself has come.
func quietly(t testing.TB, bus *eventbus.Bus) {
	t.Helper()
	fills := bus.Stats().Fills
	require.Eventually(t, func() bool { return bus.Stats().Fills > fills+3 }, time.Minute, time.Millisecond)
}

// TestEpochNewerThanTheLogs: a publisher knew a log that began later, on a server that
// was master before.
func TestEpochNewerThanTheLogs(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project := newBus(t, rdb, fresh), deadline(t), uuid.New()
	c := eventbus.ProjectChannel(project)
	require.NoError(t, bus.Publish(ctx, message(t, project, "old")))
	ids, err := rdb.XRange(ctx, logKey(c), "-", "+").Result()
	require.NoError(t, err)
	pos, _, _ := strings.Cut(ids[0].ID, "-")
	var epoch int64
	_, err = fmt.Sscan(pos, &epoch)
	require.NoError(t, err)
	require.NoError(t, rdb.FlushDB(ctx).Err())
	for i := range 3 { // the new master's log began earlier
		raw, err := message(t, project, fmt.Sprint(i)).MarshalJSON()
		require.NoError(t, err)
		require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{
			Stream: logKey(c), ID: fmt.Sprintf("%d-%d", epoch-50, i+1), Values: []any{"event", raw},
		}).Err())
	}
	live := follow(t, newBus(t, rdb, fresh), eventbus.Subscription{Channels: []eventbus.Channel{c}, Oldest: true})
	live.count(3)
	for i := 3; i < 6; i++ {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
	}
	live.count(6)
	live.exactly(countTo(0, 6), 0)
}

// TestEntriesByOthersInALog: somebody adds to a log with numbers of Redis's own. That
// is no event of this bus, and readers do not run in circles over it.
func TestEntriesByOthersInALog(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb, fresh), deadline(t), uuid.New()
		c := eventbus.ProjectChannel(project)
		f := follow(t, bus, now(t, bus, c))
		require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
		f.count(1)
		for range 3 {
			require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: logKey(c), Values: []any{"event", "{}"}}).Err())
		}
		quietly(t, bus)
		require.NoError(t, bus.Publish(ctx, message(t, project, "1")))
		f.count(2)
		quietly(t, bus)
		f.until("few gaps", func(texts []string, gaps []*eventbus.GapError) bool { return len(texts) == 2 && len(gaps) <= 4 })
	})
}

// TestLogIsLostBeforeItsFirstReaderIsBack: a cursor of before the first event, events that are
// acknowledged, and a log that is lost. The reader is told, also where another log has begun.
func TestLogIsLostBeforeItsFirstReaderIsBack(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, lose := range map[string]func(ctx context.Context, c eventbus.Channel){
			"FLUSHALL": func(ctx context.Context, _ eventbus.Channel) { rdb.FlushAll(ctx) },
			"DEL":      func(ctx context.Context, c eventbus.Channel) { rdb.Del(ctx, logKey(c)) },
		} {
			for _, after := range []int{0, 2} {
				bus, ctx, id := newBus(t, rdb, fresh), deadline(t), uuid.New()
				c := eventbus.ProjectChannel(id)
				sub := now(t, bus, c)
				for i := range 5 {
					require.NoError(t, bus.Publish(ctx, message(t, id, fmt.Sprint("lost ", i))))
				}
				lose(ctx, c)
				for i := range after {
					require.NoError(t, newBus(t, rdb).Publish(ctx, message(t, id, fmt.Sprint(i))))
				}
				f := follow(t, newBus(t, rdb, fresh), sub)
				f.until("the gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) == 1 })
				f.count(after)
				require.Equal(t, eventbus.GapLost, f.gaps[0].Reason, name)
				f.exactly(countTo(0, after)[:after:after], 1)
			}
		}
	})
}

// TestRetentionsThatDiffer: a process keeps a log for a day, another only for as long as it may. A
// cursor of before the first event finds all of it.
func TestRetentionsThatDiffer(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		short := eventbus.WithRetention(eventbus.Retention{Events: 100, Age: 200 * time.Millisecond})
		long, brief, ctx, id := newBus(t, rdb), newBus(t, rdb, short, eventbus.WithFreshness(200*time.Millisecond)), deadline(t), uuid.New()
		c := eventbus.ProjectChannel(id)
		sub := now(t, brief, c)
		require.NoError(t, long.Publish(ctx, message(t, id, "0")))
		for i := 1; i < 5; i++ {
			require.NoError(t, brief.Publish(ctx, message(t, id, fmt.Sprint(i))))
		}
		require.Greater(t, rdb.PTTL(ctx, logKey(c)).Val(), time.Hour)
		f := follow(t, brief, sub)
		f.count(5)
		f.exactly(countTo(0, 5), 0)
	})
}

// TestErrorInMidScript: what is in a log is never reported as missing, nor what is not as being there.
func TestErrorInMidScript(t *testing.T) {
	for _, forbidden := range []string{"-persist", "-set", "-get", "-pexpire", "-hset", "-hmget", "-publish"} {
		t.Run(forbidden, func(t *testing.T) {
			s := redistest.Start(t)
			direct, ctx, project := s.Client(t), deadline(t), uuid.New()
			require.NoError(t, direct.Do(ctx, "ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all").Err())
			rdb := redis.NewClient(&redis.Options{Addr: s.Addr, Username: "u", Password: "p"})
			t.Cleanup(func() { _ = rdb.Close() })
			bus := newBus(t, rdb, eventbus.WithRetention(eventbus.Retention{Events: 100}))
			require.NoError(t, direct.Do(ctx, "ACL", "SETUSER", "u", forbidden).Err())
			_, err := bus.PublishWith(ctx, message(t, project, "0"), eventbus.PublishOptions{Idempotent: true})
			var failed *eventbus.PublishError
			in := int64(1)
			if errors.As(err, &failed) {
				require.Empty(t, failed.Unknown)
				in = int64(len(failed.Done))
			}
			require.Equal(t, in, direct.XLen(ctx, logKey(eventbus.ProjectChannel(project))).Val())
			// A bus that is made now is told at once.
			_, err = eventbus.New(rdb)
			require.ErrorIs(t, err, eventbus.ErrUnsupported)
		})
	}
}

// readScript is the text of the script that reads logs.
func readScript() []byte {
	begin, _ := os.ReadFile("../internal/redislog/begin.lua")
	read, _ := os.ReadFile("../internal/redislog/read.lua")
	return append(begin, read...)
}

// A switching client reads from a replica while on.
type switching struct {
	eventbus.Client
	stale eventbus.Client
	on    *atomic.Bool
}

func (s switching) Pipeline() redis.Pipeliner {
	if s.on.Load() {
		return s.stale.Pipeline()
	}
	return s.Client.Pipeline()
}

func (s switching) Process(ctx context.Context, cmd redis.Cmder) error {
	if args := cmd.Args(); s.on.Load() && len(args) > 1 && args[1] == fmt.Sprintf("%x", sha1.Sum(readScript())) {
		return s.stale.Process(ctx, cmd)
	}
	return s.Client.Process(ctx, cmd)
}

// TestReplicaIsNotRead: it lags, and looks complete.
func TestReplicaIsNotRead(t *testing.T) {
	t.Parallel()
	master, replica := redistest.Start(t), redistest.Start(t)
	link := redistest.StartProxy(t, master.Addr)
	a, b, ctx, project := master.Client(t), replica.Client(t), deadline(t), uuid.New()
	host, port, _ := net.SplitHostPort(link.Addr)
	require.NoError(t, b.ReplicaOf(ctx, host, port).Err())
	var on atomic.Bool
	bus := newBus(t, switching{a, b, &on}, fresh)
	c := eventbus.ProjectChannel(project)
	f := follow(t, bus, now(t, bus, c))
	for i := range 10 {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
	}
	require.Eventually(t, func() bool { return b.XLen(ctx, logKey(c)).Val() == 10 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, b.ScriptLoad(ctx, string(readScript())).Err())
	link.Freeze()
	for i := 10; i < 20; i++ {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
	}
	f.count(20)
	on.Store(true)
	quietly(t, bus)
	on.Store(false)
	quietly(t, bus)
	f.exactly(countTo(0, 20), 0)
}

// TestWhoBeginsAfterARewind misses nothing, and is told of nothing.
func TestWhoBeginsAfterARewind(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb, fresh), deadline(t), uuid.New()
		c := eventbus.ProjectChannel(project)
		for i := range 10 {
			require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint("old ", i))))
		}
		rewind(t, rdb, logKey(c), 5)
		require.NoError(t, bus.Publish(ctx, message(t, project, "after")))
		f := follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{c}})
		require.Eventually(t, func() bool { return bus.Stats().Active == 1 }, time.Minute, time.Millisecond)
		quietly(t, bus)
		for i := range 10 {
			require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
		}
		f.count(10)
		f.exactly(countTo(0, 10), 0)
	})
}

// TestRetryAfterARewind: the first attempt got a number that was given before.
func TestRetryAfterARewind(t *testing.T) {
	for _, keep := range []int{9, 5} {
		s := redistest.Start(t)
		p := redistest.StartProxy(t, s.Addr)
		bus, direct, ctx, project := newBus(t, p.Client(t)), s.Client(t), deadline(t), uuid.New()
		c := eventbus.ProjectChannel(project)
		for i := range 10 {
			require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
		}
		rewind(t, direct, logKey(c), keep)
		var cut atomic.Bool
		p.SetOnReply(func(asked, got []byte) bool {
			return !bytes.Contains(asked, []byte(c.String())) || !bytes.Contains(asked, []byte("evalsha")) || cut.Swap(true)
		})
		require.NoError(t, bus.Publish(ctx, message(t, project, "once")))
		require.True(t, cut.Load())
		require.EqualValues(t, keep+1, direct.XLen(ctx, logKey(c)).Val())
	}
}

// A gatedConn holds back what subscribes to a channel.
type gatedConn struct {
	net.Conn
	channel string
	gate    chan struct{}
}

func (c gatedConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("subscribe")) && bytes.Contains(b, []byte(c.channel)) {
		b = bytes.Clone(b)
		go func() { <-c.gate; _, _ = c.Conn.Write(b) }()
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// TestOnceAcrossAResumeWhileASubscriptionIsOnItsWay: the agent's channel is listened to,
// the project's not yet.
func TestOnceAcrossAResumeWhileASubscriptionIsOnItsWay(t *testing.T) {
	s := redistest.Start(t)
	ctx, id := deadline(t), uuid.New()
	project, agent := eventbus.ProjectChannel(id), eventbus.AgentChannel(uuid.New())
	gate := make(chan struct{})
	feed := redis.NewClient(&redis.Options{Addr: s.Addr, Dialer: func(_ context.Context, network, addr string) (net.Conn, error) {
		conn, err := net.Dial(network, addr)
		return gatedConn{conn, project.String(), gate}, err
	}})
	t.Cleanup(func() { _ = feed.Close() })
	rdb := s.Client(t)
	bus, other := newBus(t, split{rdb, feed}), newBus(t, rdb, fresh)
	defer close(gate)
	warm := follow(t, bus, now(t, bus, agent))
	require.Eventually(t, func() bool { return rdb.PubSubNumSub(ctx, agent.String()).Val()[agent.String()] == 1 }, time.Minute, time.Millisecond)
	both := follow(t, bus, now(t, bus, project, agent))
	require.Eventually(t, func() bool { return bus.Stats().Active == 2 && bus.Stats().Channels == 2 }, time.Minute, time.Millisecond)
	require.NoError(t, other.Publish(ctx, message(t, id, "0"), agent))
	warm.count(1)
	both.count(1)
	both.end()
	require.NoError(t, other.Publish(ctx, message(t, id, "1"), agent))
	resumed := follow(t, other, eventbus.Subscription{Channels: []eventbus.Channel{project, agent}, After: both.cursor})
	resumed.count(1)
	quietly(t, other)
	resumed.exactly([]string{"1"}, 0)
}

// TestNoSpinWhileTheLogIsGone: a reader at the beginning of a log that is not there, and
// a tail that does not know yet.
func TestNoSpinWhileTheLogIsGone(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	c := eventbus.ProjectChannel(project)
	live := follow(t, bus, now(t, bus, c))
	require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
	live.count(1)
	require.NoError(t, rdb.Del(ctx, logKey(c)).Err())
	before, fills := commandCalls(t, rdb, "evalsha"), bus.Stats().Fills
	_ = follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{c}, Oldest: true})
	require.Eventually(t, func() bool { return bus.Stats().Fills > fills }, time.Minute, time.Millisecond)
	require.Less(t, commandCalls(t, rdb, "evalsha")-before, 50)
}

// TestFeedThatOutlivesADemotion stays connected to a master that becomes a replica of one
// that has other events under its newest numbers, and hears only what follows those. Nothing
// in what it hears is out of line.
func TestFeedThatOutlivesADemotion(t *testing.T) {
	t.Parallel()
	one, two := redistest.Start(t), redistest.Start(t, "--repl-diskless-sync-delay", "0")
	a, b, ctx, project := one.Client(t), two.Client(t), deadline(t), uuid.New()
	follows := func(s, master *redistest.Server) {
		host, port, _ := net.SplitHostPort(master.Addr)
		require.NoError(t, s.Client(t).ReplicaOf(ctx, host, port).Err())
		require.Eventually(t, func() bool {
			return strings.Contains(s.Client(t).Info(ctx, "replication").Val(), "master_link_status:up")
		}, time.Minute, 10*time.Millisecond)
	}
	var rdb atomic.Pointer[redis.Client] // what a name resolves to
	rdb.Store(a)
	commands := redis.NewClient(&redis.Options{Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return net.Dial(network, rdb.Load().Options().Addr)
	}})
	t.Cleanup(func() { _ = commands.Close() })
	bus := newBus(t, split{commands, a}, eventbus.WithFreshness(2*time.Second))
	c := eventbus.ProjectChannel(project)
	follows(two, one)
	f := follow(t, bus, now(t, bus, c))
	publish := func(rdb *redis.Client, from, until int) {
		p := newBus(t, rdb)
		for i := from; i < until; i++ {
			require.NoError(t, p.Publish(ctx, message(t, project, fmt.Sprint(i))))
		}
	}
	publish(a, 0, 10)
	require.Eventually(t, func() bool { return b.XLen(ctx, logKey(c)).Val() == 10 }, time.Minute, 10*time.Millisecond)
	f.count(10)
	quietly(t, bus)
	require.NoError(t, b.ReplicaOf(ctx, "NO", "ONE").Err())
	publish(a, 10, 15) // nobody but this bus will ever have seen them
	f.count(15)
	publish(b, 100, 105)
	rdb.Store(b)
	follows(one, two)
	publish(b, 105, 106)
	f.until("the gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) > 0 })
	publish(b, 106, 110)
	f.until("what follows", func(texts []string, _ []*eventbus.GapError) bool { return texts[len(texts)-1] == "109" })
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Len(t, f.gaps, 1)
	require.Equal(t, eventbus.GapRewound, f.gaps[0].Reason)
}
