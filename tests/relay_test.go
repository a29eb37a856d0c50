package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// relay runs a relay until the test or the bus ends, whichever is first. stop ends it before that.
func relay(t testing.TB, bus *eventbus.Bus, kinds ...eventbus.ChannelKind) (stop func() error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bus.Relay(ctx, kinds...) }()
	stop = sync.OnceValue(func() error {
		cancel(errStopped)
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); !errors.Is(err, errStopped) {
			assert.ErrorIs(t, err, eventbus.ErrClosed)
		}
	})
	return stop
}

var errStopped = errors.New("the test has stopped it")

// TestRelayLogsWhatNobodyListensTo: it is there for whoever comes later.
func TestRelayLogsWhatNobodyListensTo(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, prefix := range []string{"", "a:", "a*[b]?^-:"} {
			ctx := deadline(t)
			bus := newBus(t, rdb, eventbus.WithForeignLog(), eventbus.WithPrefix(prefix), quiet())
			stop := relay(t, bus)
			stopRuns := relay(t, bus, "run", "run")
			require.Eventually(t, func() bool { return rdb.PubSubNumPat(ctx).Val() == 4 }, time.Minute, time.Millisecond)
			project := uuid.New()
			r, err := eventbus.NewChannel("run", "r_1.~-")
			require.NoError(t, err)
			channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New()), r}
			ev := message(t, project, "x")
			for _, name := range []string{"project:x", "project:" + "550E8400-E29B-41D4-A716-446655440000", "run:a b", "run:", "run:..", "agent:{a}"} {
				require.EqualValues(t, 1, rdb.Publish(ctx, prefix+name, foreign(t, ev)).Val(), name)
			}
			require.Zero(t, rdb.Publish(ctx, prefix+"walk:1", foreign(t, ev)).Val())
			require.Zero(t, rdb.Publish(ctx, prefix+"runner:1", foreign(t, ev)).Val())
			require.Zero(t, rdb.Publish(ctx, "aab-:project:"+project.String(), foreign(t, ev)).Val(), "a prefix is no pattern")
			for _, c := range channels {
				require.EqualValues(t, 1, rdb.Publish(ctx, prefix+c.String(), foreign(t, ev)).Val())
			}
			require.NoError(t, bus.Publish(ctx, message(t, project, "own"), channels[1:]...))
			require.EqualValues(t, 1, rdb.Publish(ctx, prefix+channels[3].String(), foreign(t, ev)).Val(), "again")
			for _, c := range channels {
				require.Eventually(t, func() bool { return rdb.XLen(ctx, "eventbus:log:{"+prefix+c.String()+"}").Val() == 2 }, time.Minute, time.Millisecond, c.String())
			}
			settle(t, bus, 6)
			require.EqualValues(t, 6, bus.Stats().Unreadable)
			later := newBus(t, rdb, eventbus.WithPrefix(prefix))
			f := follow(t, later, eventbus.Subscription{Channels: channels, Oldest: true})
			f.count(2)
			require.NoError(t, later.Publish(ctx, message(t, project, "end")))
			f.count(3)
			f.mu.Lock()
			require.ElementsMatch(t, []string{"x", "own", "end"}, f.texts)
			f.mu.Unlock()
			require.ErrorIs(t, stop(), errStopped)
			require.NoError(t, bus.Close())
			require.ErrorIs(t, stopRuns(), eventbus.ErrClosed)
			require.Eventually(t, func() bool { return rdb.PubSubNumPat(ctx).Val() == 0 }, time.Minute, time.Millisecond)
			require.NoError(t, rdb.FlushAll(ctx).Err())
		}
	})
}

// TestRelayRefusesAtOnce what it cannot do.
func TestRelayRefusesAtOnce(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	logs, ctx := eventbus.WithForeignLog(), deadline(t)
	bus := newBus(t, rdb, logs)
	for want, err := range map[string]error{
		"eventbus: relay: bus was made without WithForeignLog":                                                                                            newBus(t, rdb).Relay(ctx),
		"eventbus: relay: bus has sharded Pub/Sub, which foreign publishers do not use":                                                                   newBus(t, rdb, logs, eventbus.WithShardedPubSub()).Relay(ctx),
		`eventbus: relay: kinds[1] "eventbus" is a kind of the bus's own; kinds[2] "*" is not a lower-case letter and up to 31 more of a-z, 0-9, _ and -`: bus.Relay(ctx, "run", "eventbus", "*"),
	} {
		bad := &eventbus.ValidationError{}
		require.ErrorAs(t, err, &bad)
		require.EqualError(t, err, want)
	}
	ended, cancel := context.WithCancelCause(ctx)
	cancel(errStopped)
	require.ErrorIs(t, bus.Relay(ended), errStopped)
	require.NoError(t, bus.Close())
	require.ErrorIs(t, bus.Relay(ctx), eventbus.ErrClosed)
	require.Error(t, (&eventbus.Bus{}).Relay(ctx))
}

// TestRelayComesBack after its connection broke, and Health says when it cannot.
func TestRelayComesBack(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	rdb, r := s.Client(t), run(t)
	bus := newBus(t, split{rdb, p.Client(t)}, eventbus.WithForeignLog(), eventbus.WithFreshness(300*time.Millisecond), quiet())
	relay(t, bus, "run")
	for i := range 3 {
		shout(t, rdb, 1, r, foreign(t, message(t, uuid.New(), "x")))
		require.Eventually(t, func() bool { return rdb.XLen(deadline(t), logKey(r)).Val() == int64(i+1) }, time.Minute, time.Millisecond)
		switch i {
		case 0:
			p.Cut()
		case 1:
			p.Freeze()
			require.Eventually(t, func() bool { return bus.Health() != nil }, time.Minute, time.Millisecond)
			p.Thaw()
		}
		require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, time.Millisecond)
		require.Eventually(t, func() bool { return rdb.PubSubNumPat(deadline(t)).Val() == 1 }, time.Minute, time.Millisecond)
	}
}

// TestRelayWithoutThePermission says so in Health.
func TestRelayWithoutThePermission(t *testing.T) {
	admin := redistest.Start(t).Client(t)
	require.NoError(t, admin.Do(deadline(t), "ACL", "SETUSER", "bus", "on", ">pw", "~eventbus:*", "&*", "+@all", "-psubscribe").Err())
	options := *admin.Options()
	options.Username, options.Password = "bus", "pw"
	client := redis.NewClient(&options)
	t.Cleanup(func() { _ = client.Close() })
	bus := newBus(t, client, eventbus.WithForeignLog(), eventbus.WithFreshness(100*time.Millisecond), quiet())
	relay(t, bus)
	require.Eventually(t, func() bool {
		err := bus.Health()
		return err != nil && assert.ErrorContains(t, err, "NOPERM")
	}, time.Minute, time.Millisecond)
}

// TestForeignEventsOutliveBusesAndRelays: buses and relays come and go under load. Each event that
// somebody heard is in the log once, and comes once to each subscriber that stays, and to whoever reads
// the log later.
func TestForeignEventsOutliveBusesAndRelays(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, logs := deadline(t), eventbus.WithForeignLog()
		project := uuid.New()
		channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New())}
		stays := newBus(t, rdb, logs)
		sub := now(t, stays, channels...)
		all, one := follow(t, stays, sub), follow(t, stays, eventbus.Subscription{Channels: channels[1:2], After: sub.After})
		listened(t, rdb, 1, channels...)
		var over atomic.Bool
		var wg sync.WaitGroup
		come := func(i int) {
			bus, err := eventbus.New(rdb, logs, quiet())
			if !assert.NoError(t, err) {
				return
			}
			life, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(60))*time.Millisecond)
			defer cancel()
			if i < 2 {
				_ = bus.Relay(life)
			} else {
				for range bus.Subscribe(life, channels[rand.IntN(3):]...) {
				}
			}
			if rand.IntN(2) == 0 {
				_ = bus.Shutdown(ctx)
			}
			_ = bus.Close()
		}
		for i := range 5 {
			wg.Go(func() {
				for !over.Load() {
					come(i)
				}
			})
		}
		const publishers, n = 4, 100
		var senders sync.WaitGroup
		var mu sync.Mutex
		sent := make(map[eventbus.Channel][]string)
		var ids []string
		for k := range publishers {
			senders.Go(func() {
				for i := range n {
					ev := message(t, project, fmt.Sprint(k, " ", i))
					m := foreign(t, ev)
					mu.Lock()
					ids = append(ids, ev.ID)
					mu.Unlock()
					to := rand.Perm(3)[:1+rand.IntN(3)]
					for _, c := range to {
						mu.Lock()
						sent[channels[c]] = append(sent[channels[c]], ev.ID)
						mu.Unlock()
						for range 1 + rand.IntN(2) { // some say it twice
							assert.Positive(t, rdb.Publish(ctx, channels[c].String(), m).Val())
						}
					}
				}
			})
		}
		senders.Wait()
		over.Store(true)
		wg.Wait()
		all.count(publishers * n)
		for _, c := range channels {
			require.Eventually(t, func() bool { return rdb.XLen(ctx, logKey(c)).Val() >= int64(len(sent[c])) }, time.Minute, time.Millisecond)
			require.ElementsMatch(t, sent[c], logOfIDs(t, rdb, c))
		}
		require.NoError(t, stays.Publish(ctx, message(t, project, "end"), channels[1:]...))
		later := follow(t, newBus(t, rdb, logs), sub)
		for _, f := range []*follower{all, later} {
			f.until("the end", func(texts []string, _ []*eventbus.GapError) bool { return len(texts) > len(ids) })
			f.mu.Lock()
			require.Len(t, f.texts, len(ids)+1)
			seen := make(map[string]bool)
			for _, text := range f.texts {
				require.False(t, seen[text], text)
				seen[text] = true
			}
			require.Empty(t, f.gaps)
			f.mu.Unlock()
		}
		one.count(len(sent[channels[1]]) + 1)
		one.mu.Lock()
		require.Len(t, one.texts, len(sent[channels[1]])+1)
		one.mu.Unlock()
		require.Zero(t, stays.Stats().Unreadable)
	})
}
