package tests

import (
	"context"
	"errors"
	"fmt"
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

// eachMode runs a test with plain and with sharded Pub/Sub.
func eachMode(t *testing.T, test func(t *testing.T, mode ...any)) {
	t.Run("plain", func(t *testing.T) { test(t) })
	t.Run("sharded", func(t *testing.T) { test(t, eventbus.WithShardedPubSub()) })
}

// spread gives channels in slots of every node: a project's and some agents'.
func spread(project uuid.UUID, n int) []eventbus.Channel {
	channels := []eventbus.Channel{eventbus.ProjectChannel(project)}
	for range n - 1 {
		channels = append(channels, eventbus.AgentChannel(uuid.New()))
	}
	return channels
}

// insist publishes the same event until it is in every log, as a caller would.
func insist(t testing.TB, bus *eventbus.Bus, ev eventbus.Event, channels ...eventbus.Channel) {
	ctx := deadline(t)
	for {
		err := bus.Publish(ctx, ev, channels...)
		if err == nil {
			return
		}
		require.NoError(t, ctx.Err(), err)
	}
}

func slotOf(t testing.TB, rdb *redis.ClusterClient, c eventbus.Channel) int {
	slot, err := rdb.ClusterKeySlot(deadline(t), c.String()).Result()
	require.NoError(t, err)
	return int(slot)
}

// TestClusterCarriesEventsToEveryChannel publishes to channels in several slots, and
// resumes over all of them.
func TestClusterCarriesEventsToEveryChannel(t *testing.T) {
	t.Parallel()
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	eachMode(t, func(t *testing.T, mode ...any) {
		bus, ctx, project := newBus(t, rdb, mode...), deadline(t), uuid.New()
		channels := spread(project, 6)
		sub := now(t, bus, channels...)
		live := follow(t, bus, sub)
		const n = 100
		for i := range n {
			require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i)), channels[1:]...))
		}
		for _, c := range channels {
			require.EqualValues(t, n, rdb.XLen(ctx, logKey(c)).Val())
		}
		live.count(n)
		live.exactly(countTo(0, n), 0)
		resumed := follow(t, newBus(t, rdb, mode...), sub)
		resumed.count(n)
		resumed.exactly(countTo(0, n), 0)
		if len(mode) == 0 {
			raw, err := message(t, project, "foreign").MarshalJSON()
			require.NoError(t, err)
			require.NoError(t, rdb.Publish(ctx, channels[0].String(), raw).Err())
			live.count(n + 1)
		}
	})
}

// TestShardedMessagesStayOnTheirNode: that is what the mode is for.
func TestShardedMessagesStayOnTheirNode(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, false)
	rdb := c.Client(t)
	bus, project := newBus(t, rdb, eventbus.WithShardedPubSub()), uuid.New()
	channels := spread(project, 6)
	f := follow(t, bus, now(t, bus, channels...))
	require.NoError(t, bus.Publish(deadline(t), message(t, project, "0")))
	f.count(1)
	listened := map[string]int{}
	require.Eventually(t, func() bool {
		total := 0
		for _, s := range c.Masters {
			n := len(s.Client(t).PubSubShardChannels(deadline(t), "*").Val())
			listened[s.Addr] = n
			total += n
		}
		return total == len(channels)
	}, time.Minute, 10*time.Millisecond)
	for _, ch := range channels {
		owner := c.Owner(t, slotOf(t, rdb, ch))
		require.Contains(t, owner.Client(t).PubSubShardChannels(deadline(t), "*").Val(), ch.String())
	}
}

// TestShardedPubSubOnOneServer needs no cluster.
func TestShardedPubSubOnOneServer(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, project := newBus(t, rdb, eventbus.WithShardedPubSub()), uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	for i := range 10 {
		require.NoError(t, bus.Publish(deadline(t), message(t, project, fmt.Sprint(i))))
	}
	f.count(10)
	f.exactly(countTo(0, 10), 0)
	require.Equal(t, []string{"project:" + project.String()}, rdb.PubSubShardChannels(deadline(t), "*").Val())
}

// TestSlotsMoveUnderLoad moves the slots of all channels round the cluster while they are
// published to and read.
func TestSlotsMoveUnderLoad(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, false)
	rdb := c.Client(t)
	eachMode(t, func(t *testing.T, mode ...any) {
		opts := append(mode, eventbus.WithFreshness(time.Second))
		bus, publisher, project := newBus(t, rdb, opts...), newBus(t, c.Client(t), opts...), uuid.New()
		channels := spread(project, 4)
		sub := now(t, bus, channels...)
		var followers []*follower
		for range 5 {
			followers = append(followers, follow(t, bus, sub))
		}
		for _, ch := range channels {
			followers = append(followers, follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{ch}, After: sub.After}))
		}
		moved := make(chan struct{})
		go func() {
			defer close(moved)
			for round := range 3 {
				for i, ch := range channels {
					c.MoveSlot(t, slotOf(t, rdb, ch), c.Masters[(round+i)%3])
				}
			}
		}()
		n := 0
		for done := false; !done; n++ {
			select {
			case <-moved:
				done = true
			default:
			}
			insist(t, publisher, message(t, project, fmt.Sprint(n)), channels[1:]...)
		}
		for _, f := range followers {
			f.count(n)
			f.exactly(countTo(0, n), 0)
		}
		for _, ch := range channels {
			require.EqualValues(t, n, rdb.XLen(deadline(t), logKey(ch)).Val())
		}
		t.Logf("%d events to %d channels while slots moved 12 times; %d reconnects", n, len(channels), bus.Stats().Reconnects)
	})
}

// TestMasterOfAClusterIsKilledAndReplaced: its replica takes over. What the replica had
// not got yet is announced; everything else arrives.
func TestMasterOfAClusterIsKilledAndReplaced(t *testing.T) {
	t.Parallel()
	eachMode(t, func(t *testing.T, mode ...any) {
		c := redistest.StartCluster(t, 3, true)
		rdb := c.Client(t)
		opts := append(mode, eventbus.WithFreshness(time.Second))
		bus, publisher, project := newBus(t, rdb, opts...), newBus(t, c.Client(t), opts...), uuid.New()
		channel := eventbus.ProjectChannel(project)
		sub := now(t, bus, channel)
		f := follow(t, bus, sub)
		for i := range 50 {
			insist(t, publisher, message(t, project, fmt.Sprint(i)))
		}
		f.count(50)
		master := c.Owner(t, slotOf(t, rdb, channel))
		// Wait for the replicas, so that this is about the change of masters alone.
		require.NoError(t, rdb.Do(deadline(t), "set", "{"+channel.String()+"}", "x").Err())
		require.EqualValues(t, 1, master.Client(t).Do(deadline(t), "wait", 1, 10_000).Val())
		master.Kill()
		const n = 200
		for i := 50; i < n; i++ {
			insist(t, publisher, message(t, project, fmt.Sprint(i)))
		}
		f.count(n)
		f.exactly(countTo(0, n), 0)
		resumed := follow(t, newBus(t, c.Client(t), opts...), sub)
		resumed.count(n)
		resumed.exactly(countTo(0, n), 0)
		require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, 10*time.Millisecond)
		// The client may not know yet who the master is; the bus's own reads wait for that too.
		var length int64
		require.Eventually(t, func() (answered bool) {
			var err error
			length, err = rdb.XLen(deadline(t), logKey(channel)).Result()
			return err == nil
		}, time.Minute, 10*time.Millisecond)
		require.EqualValues(t, n, length)
		master.Restart(t) // as a replica, which stays one
		insist(t, publisher, message(t, project, fmt.Sprint(n)))
		f.count(n + 1)
	})
}

// TestOneShardIsDown freezes one of three masters: events for it fail with an error that
// says which logs have them, those for others go on, and publishing again completes.
func TestOneShardIsDown(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, false)
	rdb := c.Client(t)
	ctx := deadline(t)
	for _, s := range c.Masters {
		require.NoError(t, s.Client(t).ConfigSet(ctx, "cluster-require-full-coverage", "no").Err())
	}
	eachMode(t, func(t *testing.T, mode ...any) {
		bus, project := newBus(t, rdb, append(mode, eventbus.WithFreshness(time.Second))...), uuid.New()
		up := eventbus.ProjectChannel(project)
		down := eventbus.AgentChannel(uuid.New())
		for c.Owner(t, slotOf(t, rdb, down)) == c.Owner(t, slotOf(t, rdb, up)) {
			down = eventbus.AgentChannel(uuid.New())
		}
		f, both := follow(t, bus, now(t, bus, up)), follow(t, bus, now(t, bus, down, up))
		for i := range 10 {
			insist(t, bus, message(t, project, fmt.Sprint(i)), down)
		}
		dead := c.Owner(t, slotOf(t, rdb, down))
		dead.Freeze()
		defer dead.Thaw()
		ev := message(t, project, "10")
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := bus.Publish(short, ev, down)
		var failed *eventbus.PublishError
		require.ErrorAs(t, err, &failed)
		require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, eventbus.ErrUnavailable), err)
		require.Equal(t, []eventbus.Channel{up}, failed.Done)
		require.Equal(t, []eventbus.Channel{down}, append(failed.Unknown, failed.Missing...))
		// Nothing else waits for the dead one.
		for i := 11; i < 30; i++ {
			require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
		}
		f.count(30)
		f.exactly(countTo(0, 30), 0)
		dead.Thaw()
		insist(t, bus, ev, down)
		require.EqualValues(t, 30, rdb.XLen(ctx, logKey(up)).Val())
		require.EqualValues(t, 11, rdb.XLen(ctx, logKey(down)).Val())
		both.count(30)
		both.exactly(countTo(0, 30), 0)
	})
}

// TestChannelsOfANodeShareARoundTrip publishes to many channels at once, on nodes that
// have forgotten the script.
func TestChannelsOfANodeShareARoundTrip(t *testing.T) {
	c := redistest.StartCluster(t, 3, false)
	rdb := c.Client(t)
	eachMode(t, func(t *testing.T, mode ...any) {
		bus, ctx := newBus(t, rdb, mode...), deadline(t)
		for _, s := range c.Masters {
			require.NoError(t, s.Client(t).ScriptFlush(ctx).Err())
		}
		var sent, trips atomic.Int64
		rdb.AddHook(countingHook{&sent, &trips})
		projects := make([]uuid.UUID, 300)
		var wg sync.WaitGroup
		for i := range projects {
			projects[i] = uuid.New()
			wg.Go(func() {
				for n := range 3 {
					assert.NoError(t, bus.Publish(ctx, message(t, projects[i], fmt.Sprint(n))))
				}
			})
		}
		wg.Wait()
		for _, p := range projects {
			require.EqualValues(t, 3, rdb.XLen(ctx, logKey(eventbus.ProjectChannel(p))).Val())
		}
		require.Less(t, 2*trips.Load(), sent.Load(), "most calls have company")
	})
}
