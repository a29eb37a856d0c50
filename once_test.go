package eventbus_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/redistest"
)

// What several channels of a subscription have comes once, also where one of their logs is lost
// or goes back.

// TestOneShardGoesBack: a failover loses the newest entry of the project's log, while the
// agent's, on another node, keeps the event and notes where it was. Nobody misses it.
func TestOneShardGoesBack(t *testing.T) {
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	// Plain messages could come late, from before.
	sharded := eventbus.WithShardedPubSub()
	bus, ctx, project := newBus(t, rdb, sharded), deadline(t), uuid.New()
	agent, channel := eventbus.AgentChannel(uuid.New()), eventbus.ProjectChannel(project)
	sub := now(t, bus, channel, agent)
	require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
	require.NoError(t, bus.Publish(ctx, message(t, project, "1"), agent))
	goBack(t, rdb, channel, 1)
	early := follow(t, newBus(t, rdb, sharded, fresh), sub)
	early.count(2)
	other := newBus(t, rdb, sharded)
	require.NoError(t, other.Publish(ctx, message(t, project, "2")))
	f := follow(t, other, sub)
	f.count(3)
	f.exactly(countTo(0, 3), 0)
	early.count(3)
	early.exactly(countTo(0, 3), 0)
}

// goBack takes from a channel's log what its node lost, all but the first n entries.
func goBack(t *testing.T, rdb redis.UniversalClient, channel eventbus.Channel, n int) {
	t.Helper()
	ctx, key := deadline(t), logKey(channel)
	entries := rdb.XRange(ctx, key, "-", "+").Val()
	for _, e := range entries[n:] {
		require.NoError(t, rdb.XDel(ctx, key, e.ID).Err())
	}
	require.NoError(t, rdb.Do(ctx, "XSETID", key, entries[n-1].ID).Err())
}

// TestResumeWhereOneShardWentBack: the node of one channel lacks the event that a reader was given
// from it last. Another channel has that event too, but has yet to bring it: it does not come again.
func TestResumeWhereOneShardWentBack(t *testing.T) {
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	sharded := eventbus.WithShardedPubSub() // as in TestOneShardGoesBack
	for _, reused := range []bool{false, true} {
		t.Run(fmt.Sprintf("number given again %v", reused), func(t *testing.T) {
			bus, ctx, project := newBus(t, rdb, sharded), deadline(t), uuid.New()
			agent, channel := eventbus.AgentChannel(uuid.New()), eventbus.ProjectChannel(project)
			sub := now(t, bus, channel, agent)
			for i := range 3 {
				ev := message(t, project, fmt.Sprint(i))
				ev.Timestamp = time.UnixMilli(int64(i)) // the older event comes first
				require.NoError(t, bus.Publish(ctx, ev, agent))
			}
			for i := range 3 {
				got, gaps := resumeOnce(t, newBus(t, rdb, sharded), &sub)
				require.Equal(t, fmt.Sprint(i), got)
				require.Zero(t, gaps)
			}
			goBack(t, rdb, channel, 2)
			if reused {
				require.NoError(t, newBus(t, rdb, sharded).Publish(ctx, message(t, project, "in the gap")))
			}
			f := follow(t, newBus(t, rdb, sharded), sub)
			f.until("the gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) == 1 })
			require.NoError(t, newBus(t, rdb, sharded).Publish(ctx, message(t, project, "3"), agent))
			f.count(1)
			f.exactly([]string{"3"}, 1)
			require.Equal(t, eventbus.GapRewound, f.gaps[0].Reason)
		})
	}
}

// TestOneShardGoesBackTwice: the second time, it loses an event under a number that a reader had
// before the first. Another channel has it.
func TestOneShardGoesBackTwice(t *testing.T) {
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	sharded := eventbus.WithShardedPubSub()
	bus, ctx, project := newBus(t, rdb, sharded), deadline(t), uuid.New()
	agent, channel := eventbus.AgentChannel(uuid.New()), eventbus.ProjectChannel(project)
	sub := now(t, bus, channel, agent)
	for i := range 4 {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i)), agent))
	}
	f := follow(t, newBus(t, rdb, sharded), sub)
	f.count(4)
	f.end()
	sub.After = f.cursor
	goBack(t, rdb, channel, 2)
	f = follow(t, newBus(t, rdb, sharded), sub)
	f.until("the gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) == 1 })
	f.end()
	sub.After = f.cursor
	for _, text := range countTo(4, 6) {
		require.NoError(t, newBus(t, rdb, sharded).Publish(ctx, message(t, project, text), agent))
		goBack(t, rdb, channel, 2)
	}
	require.NoError(t, newBus(t, rdb, sharded).Publish(ctx, message(t, project, "6"), agent))
	f = follow(t, newBus(t, rdb, sharded), sub)
	f.until("the last", func(texts []string, _ []*eventbus.GapError) bool { return slices.Contains(texts, "6") })
	f.end()
	for _, text := range countTo(4, 7) {
		require.Equal(t, 1, strings.Count(strings.Join(f.texts, ""), text), "%s in %v", text, f.texts)
	}
}

// TestGapBeforeAShardWentBack: what a reader passed over has numbers that are given again. It gets
// the new events once, also where it resumes after each.
func TestGapBeforeAShardWentBack(t *testing.T) {
	for name, rdb := range map[string]redis.UniversalClient{
		"lone": redistest.Start(t).Client(t), "cluster": redistest.StartCluster(t, 3, false).Client(t),
	} {
		t.Run(name, func(t *testing.T) {
			bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
			agent, channel := eventbus.AgentChannel(uuid.New()), eventbus.ProjectChannel(project)
			sub := now(t, bus, agent)
			for i := range 7 {
				require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint("old ", i))))
			}
			require.NoError(t, bus.Publish(ctx, message(t, uuid.New(), "0"), agent))
			sub.Channels = []eventbus.Channel{channel, agent} // of the first, the cursor says nothing
			got, gaps := resumeOnce(t, newBus(t, rdb), &sub)
			require.Equal(t, "0", got)
			goBack(t, rdb, channel, 5)
			f := follow(t, newBus(t, rdb), sub)
			f.until("the gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) == 1 })
			f.end()
			sub.After = f.cursor
			for _, text := range countTo(1, 4) {
				require.NoError(t, newBus(t, rdb).Publish(ctx, message(t, project, text), agent))
			}
			for _, text := range countTo(1, 4) {
				got, told := resumeOnce(t, newBus(t, rdb), &sub)
				require.Equal(t, text, got)
				gaps += told
			}
			require.Zero(t, gaps)
		})
	}
}

// TestNotesOfALostEnd: agents' logs note where the project's had their events, whose end is
// lost. Who reads them all waits for no answer that never comes.
func TestNotesOfALostEnd(t *testing.T) {
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New()), eventbus.AgentChannel(uuid.New())}
	const n = 100
	for i := range n {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i)), channels[1+i%2]))
	}
	goBack(t, rdb, channels[0], 1)
	f := follow(t, newBus(t, rdb), eventbus.Subscription{Channels: channels, Oldest: true})
	f.count(n)
	f.end()
	require.ElementsMatch(t, countTo(0, n), f.texts) // which channel is first is not promised
	require.Empty(t, f.gaps)
}

// TestResumeWithoutTheProjectInACluster: an agent's and a user's channel have the same
// events, on different nodes.
func TestResumeWithoutTheProjectInACluster(t *testing.T) {
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	channels := []eventbus.Channel{eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New())}
	sub := now(t, bus, channels...)
	const n = 20
	for i := range n {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i)), channels...))
	}
	for i := range n {
		for ev, err := range bus.SubscribeWith(ctx, sub) {
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(i), text(t, ev))
			sub.After = ev.Cursor
			break
		}
	}
}

// resumeOnce goes on with a subscription until it gives an event, and gives its text and how
// many gaps came before it.
func resumeOnce(t *testing.T, bus *eventbus.Bus, sub *eventbus.Subscription) (got string, gaps int) {
	t.Helper()
	for ev, err := range bus.SubscribeWith(deadline(t), *sub) {
		var gap *eventbus.GapError
		if errors.As(err, &gap) {
			gaps++
			sub.After = gap.Cursor
			continue
		}
		require.NoError(t, err)
		sub.After = ev.Cursor
		return text(t, ev), gaps
	}
	return "", gaps
}

// TestOneLogOfSeveralIsLost: an agent's log is lost while a reader is away that has had some of
// it. The user's log, on another node, has the rest.
func TestOneLogOfSeveralIsLost(t *testing.T) {
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	channels := []eventbus.Channel{eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New())}
	sub := now(t, bus, channels...)
	const n, seen = 10, 3
	for i := range n {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i)), channels...))
	}
	var texts []string
	gaps := 0
	for len(texts) < n {
		if len(texts) == seen {
			require.NoError(t, rdb.Del(ctx, logKey(channels[0])).Err())
		}
		got, told := resumeOnce(t, newBus(t, rdb), &sub)
		texts, gaps = append(texts, got), gaps+told
	}
	require.Equal(t, countTo(0, n), texts)
	require.Equal(t, 1, gaps)
}

// TestPublishedAgainAfterOneLogWasLost: one of an event's logs is lost, and the event is
// published again. The other logs still have it, and note places that are no more. Who has had
// some of the events and resumes gets the others, each once.
func TestPublishedAgainAfterOneLogWasLost(t *testing.T) {
	for name, rdb := range map[string]redis.UniversalClient{
		"lone": redistest.Start(t).Client(t), "cluster": redistest.StartCluster(t, 3, false).Client(t),
	} {
		bus, other := newBus(t, rdb), newBus(t, rdb)
		for lost, which := range []string{"project", "agent", "user"} {
			for _, seen := range []int{0, 3} {
				for _, reads := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2}, {0, 2}} {
					t.Run(fmt.Sprintf("%s/%s lost after %d/reads %v", name, which, seen, reads), func(t *testing.T) {
						t.Parallel()
						ctx, project := deadline(t), uuid.New()
						channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New())}
						var read []eventbus.Channel
						for _, i := range reads {
							read = append(read, channels[i])
						}
						follow(t, bus, now(t, bus, read...)) // so that both processes listen
						follow(t, other, now(t, bus, read...))
						sub, events := now(t, bus, read...), make([]eventbus.Event, 8)
						for i := range events {
							events[i] = message(t, project, fmt.Sprint(i))
							require.NoError(t, bus.Publish(ctx, events[i], channels...))
						}
						var texts []string
						next := func(bus *eventbus.Bus) {
							got, _ := resumeOnce(t, bus, &sub)
							texts = append(texts, got)
						}
						for range seen {
							next(bus)
						}
						require.NoError(t, rdb.Del(ctx, logKey(channels[lost])).Err())
						slices.Reverse(channels[1:])
						for _, ev := range events {
							_, err := other.PublishWith(ctx, ev, eventbus.PublishOptions{Channels: channels, Idempotent: true})
							require.NoError(t, err)
						}
						for i := seen; i < len(events); i++ {
							next([]*eventbus.Bus{bus, other}[i%2])
						}
						require.NoError(t, bus.Publish(ctx, message(t, project, "end"), channels...))
						next(bus)
						require.Equal(t, append(countTo(0, len(events)), "end"), texts)
					})
				}
			}
		}
	}
}

// TestPublishedAgainLongAfterAGap: a reader has had an event from a log that is lost, was told of
// that, and has resumed and read on since. The event does not come again.
func TestPublishedAgainLongAfterAGap(t *testing.T) {
	for name, rdb := range map[string]redis.UniversalClient{
		"lone": redistest.Start(t).Client(t), "cluster": redistest.StartCluster(t, 3, false).Client(t),
	} {
		t.Run(name, func(t *testing.T) {
			bus, publisher, ctx, project := newBus(t, rdb), newBus(t, rdb), deadline(t), uuid.New()
			agent, channels := eventbus.AgentChannel(uuid.New()), []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.UserChannel(uuid.New())}
			sub, ev := now(t, bus, channels...), message(t, project, "0")
			require.NoError(t, publisher.Publish(ctx, ev, agent))
			got, gaps := resumeOnce(t, bus, &sub)
			require.Equal(t, "0", got)
			require.NoError(t, rdb.Del(ctx, logKey(channels[0])).Err())
			for i := range 20 {
				require.NoError(t, publisher.Publish(ctx, message(t, project, fmt.Sprint(1+i)), channels[i%2:]...))
				got, told := resumeOnce(t, newBus(t, rdb), &sub)
				require.Equal(t, fmt.Sprint(1+i), got)
				gaps += told
			}
			_, err := publisher.PublishWith(ctx, ev, eventbus.PublishOptions{Channels: append(channels[1:], agent), Idempotent: true})
			require.NoError(t, err)
			require.NoError(t, publisher.Publish(ctx, message(t, project, "end"), channels...))
			got, told := resumeOnce(t, newBus(t, rdb), &sub)
			require.Equal(t, "end", got)
			require.Equal(t, 1, gaps+told)
		})
	}
}

// TestPublishedAgainToMoreChannels: who had an event from one channel, and has resumed since, does
// not get it from another that it is put into later; not even where the log that had it is lost,
// and only one that the subscription does not have tells of that.
func TestPublishedAgainToMoreChannels(t *testing.T) {
	for name, rdb := range map[string]redis.UniversalClient{
		"lone": redistest.Start(t).Client(t), "cluster": redistest.StartCluster(t, 3, false).Client(t),
	} {
		for _, tc := range []struct {
			name string
			read []int // of the project's, the agent's and the user's channel
			lost bool  // the project's log
		}{{"live", []int{1, 2}, false}, {"lost", []int{0, 2}, true}} {
			t.Run(name+"/"+tc.name, func(t *testing.T) {
				bus, publisher, ctx, project := newBus(t, rdb), newBus(t, rdb), deadline(t), uuid.New()
				channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New())}
				var read []eventbus.Channel
				for _, i := range tc.read {
					read = append(read, channels[i])
				}
				sub, ev := now(t, bus, read...), message(t, project, "0")
				require.NoError(t, publisher.Publish(ctx, ev, channels[1]))
				f := follow(t, bus, sub)
				f.count(1)
				f.end()
				sub.After = f.cursor
				gaps := 0
				if tc.lost {
					require.NoError(t, rdb.Del(ctx, logKey(channels[0])).Err())
					gaps = 1
				}
				f = follow(t, bus, sub)
				require.NoError(t, publisher.Publish(ctx, message(t, project, "1"), channels[1:]...))
				f.count(1)
				_, err := publisher.PublishWith(ctx, ev, eventbus.PublishOptions{Channels: channels[1:], Idempotent: true})
				require.NoError(t, err)
				require.NoError(t, publisher.Publish(ctx, message(t, project, "2"), channels[1:]...))
				f.count(2)
				f.exactly(countTo(1, 3), gaps)
			})
		}
	}
}
