package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// has reports whether a log has the event.
func has(t testing.TB, rdb redis.UniversalClient, c eventbus.Channel, ev eventbus.Event) bool {
	for _, id := range logOfIDs(t, rdb, c) {
		if id == ev.ID {
			return true
		}
	}
	return false
}

// TestForeignEventsInACluster: two buses hear both channels, a third one only one of them. Each log
// has each event once. Where all buses that hear an event hear both, it comes once, too.
func TestForeignEventsInACluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, false)
	rdb, logs := c.Client(t), eventbus.WithForeignLog()
	publisher := c.Masters[1].Client(t) // as most programs do: one connection, to any node
	for name, partly := range map[string]bool{"all buses hear both channels": false, "one hears the agent only": true} {
		t.Run(name, func(t *testing.T) {
			bus, relays, third, ctx, project := newBus(t, rdb, logs), newBus(t, c.Client(t), logs), newBus(t, rdb, logs), deadline(t), uuid.New()
			p, a := eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New())
			for c.Owner(t, slotOf(t, rdb, a)) == c.Owner(t, slotOf(t, rdb, p)) {
				a = eventbus.AgentChannel(uuid.New())
			}
			relay(t, relays)
			sub := now(t, bus, p, a)
			f := follow(t, bus, sub)
			if partly {
				follow(t, third, now(t, third, a))
			}
			require.Eventually(t, func() bool { // they listen, each at some node
				ev := message(t, project, "begun")
				for _, c := range []eventbus.Channel{p, a} {
					require.NoError(t, publisher.Publish(ctx, c.String(), foreign(t, ev)).Err())
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				return len(f.texts) > 0 && has(t, rdb, a, ev) && has(t, rdb, p, ev)
			}, time.Minute, 50*time.Millisecond)
			const n = 300
			var sent []eventbus.Event
			for i := range n {
				ev := message(t, project, fmt.Sprint(i))
				sent = append(sent, ev)
				for _, c := range []eventbus.Channel{p, a} {
					require.NoError(t, publisher.Publish(ctx, c.String(), foreign(t, ev)).Err())
				}
			}
			for _, ch := range []eventbus.Channel{p, a} {
				require.Eventually(t, func() bool { return has(t, rdb, ch, sent[n-1]) }, time.Minute, 10*time.Millisecond)
				ids := logOfIDs(t, rdb, ch)
				for _, ev := range sent {
					require.Contains(t, ids, ev.ID)
				}
				seen := make(map[string]bool)
				for _, id := range ids {
					require.False(t, seen[id])
					seen[id] = true
				}
			}
			publish(t, bus, project, nil, "end")
			_, err := bus.PublishWith(ctx, message(t, project, "end"), eventbus.PublishOptions{Channels: []eventbus.Channel{a}, NoProject: true})
			require.NoError(t, err)
			for name, f := range map[string]*follower{"live": f, "replayed": follow(t, newBus(t, rdb, logs), sub)} {
				f.until(name, func(texts []string, _ []*eventbus.GapError) bool {
					ends := 0
					for _, text := range texts {
						if text == "end" {
							ends++
						}
					}
					return ends == 2
				})
				times := make(map[string]int)
				f.mu.Lock()
				for _, text := range f.texts {
					times[text]++
				}
				require.Empty(t, f.gaps)
				f.mu.Unlock()
				for _, text := range countTo(0, n) {
					require.Positive(t, times[text], "%s: %s", name, text)
					require.LessOrEqual(t, times[text], map[bool]int{false: 1, true: 2}[partly], "%s: %s", name, text)
				}
			}
		})
	}
}

// TestForeignEventsWhileAShardIsDown: those of the others go on, and those of the shard come when it is
// back.
func TestForeignEventsWhileAShardIsDown(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, false)
	rdb, ctx := c.Client(t), deadline(t)
	for _, s := range c.Masters {
		require.NoError(t, s.Client(t).ConfigSet(ctx, "cluster-require-full-coverage", "no").Err())
	}
	bus, project := newBus(t, rdb, eventbus.WithForeignLog(), eventbus.WithFreshness(time.Second), quiet()), uuid.New()
	up, down := eventbus.ProjectChannel(project), run(t)
	for c.Owner(t, slotOf(t, rdb, down)) == c.Owner(t, slotOf(t, rdb, up)) {
		down = run(t)
	}
	f, g := follow(t, bus, now(t, bus, up)), follow(t, bus, now(t, bus, down))
	publisher := c.Owner(t, slotOf(t, rdb, up)).Client(t)
	i := 0
	say := func() { // until it is heard: the connection may have been to the node that is down
		i++
		m, d := foreign(t, message(t, project, fmt.Sprint(i-1))), foreign(t, message(t, project, fmt.Sprint(i-1)))
		require.Eventually(t, func() bool {
			require.NoError(t, publisher.Publish(ctx, down.String(), d).Err())
			require.NoError(t, publisher.Publish(ctx, up.String(), m).Err())
			f.mu.Lock()
			defer f.mu.Unlock()
			return len(f.texts) == i
		}, time.Minute, 20*time.Millisecond)
	}
	say()
	g.count(1)
	dead := c.Owner(t, slotOf(t, rdb, down))
	dead.Freeze()
	defer dead.Thaw()
	for range 30 {
		say()
	}
	dead.Thaw()
	g.count(31)
	f.exactly(countTo(0, 31), 0)
	g.exactly(countTo(0, 31), 0)
}

// TestForeignEventsWhileSlotsMove are in their log once, in order.
func TestForeignEventsWhileSlotsMove(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, false)
	rdb, ctx, project := c.Client(t), deadline(t), uuid.New()
	buses := []*eventbus.Bus{newBus(t, rdb, eventbus.WithForeignLog(), quiet()), newBus(t, c.Client(t), eventbus.WithForeignLog(), quiet())}
	ch := eventbus.ProjectChannel(project)
	var followers []*follower
	for _, bus := range buses {
		followers = append(followers, follow(t, bus, now(t, bus, ch)))
	}
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		for round := range 4 {
			c.MoveSlot(t, slotOf(t, rdb, ch), c.Masters[round%3])
		}
	}()
	n := 0
	for done := false; !done; n++ {
		select {
		case <-moved:
			done = true
		default:
		}
		ev := message(t, project, fmt.Sprint(n))
		require.Eventually(t, func() bool { // somebody hears it
			require.NoError(t, c.Masters[0].Client(t).Publish(ctx, ch.String(), foreign(t, ev)).Err())
			followers[0].mu.Lock()
			defer followers[0].mu.Unlock()
			return len(followers[0].texts) == n+1
		}, time.Minute, 2*time.Millisecond)
	}
	for _, f := range followers {
		f.count(n)
		f.exactly(countTo(0, n), 0)
	}
	require.Eventually(t, func() bool { return rdb.XLen(ctx, logKey(ch)).Val() == int64(n) }, time.Minute, 10*time.Millisecond)
	t.Logf("%d events while a slot moved 4 times", n)
}

// TestForeignEventsOverShardedPubSub are those that somebody sends with SPUBLISH.
func TestForeignEventsOverShardedPubSub(t *testing.T) {
	rdb, project := redistest.Start(t).Client(t), uuid.New()
	bus := newBus(t, rdb, eventbus.WithForeignLog(), eventbus.WithShardedPubSub())
	c := eventbus.ProjectChannel(project)
	f := follow(t, bus, now(t, bus, c))
	publish(t, bus, project, nil, "0")
	f.count(1)
	require.EqualValues(t, 1, rdb.SPublish(deadline(t), c.String(), foreign(t, message(t, project, "1"))).Val())
	f.count(2)
	f.exactly(countTo(0, 2), 0)
	require.EqualValues(t, 2, rdb.XLen(deadline(t), logKey(c)).Val())
}
