package tests

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
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// What several channels of a subscription have comes once, also where one of their logs is lost
// or goes back.

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
	// Plain messages could come late, from before.
	sharded := eventbus.WithShardedPubSub()
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
	f := follow(t, newBus(t, rdb, sharded), sub)
	f.until("the gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) == 1 })
	require.NoError(t, newBus(t, rdb, sharded).Publish(ctx, message(t, project, "3"), agent))
	f.count(1)
	f.exactly([]string{"3"}, 1)
	require.Equal(t, eventbus.GapRewound, f.gaps[0].Reason)
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
	t.Parallel()
	for name, rdb := range map[string]redis.UniversalClient{
		"lone": redistest.Start(t).Client(t), "cluster": redistest.StartCluster(t, 3, false).Client(t),
	} {
		t.Run(name, func(t *testing.T) {
			// Plain messages could come late, from before.
			newBus := func(t *testing.T, rdb redis.UniversalClient) *eventbus.Bus {
				return newBus(t, rdb, eventbus.WithShardedPubSub())
			}
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
	t.Parallel()
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

// TestPublishedAgainToMoreChannels: who had an event from one channel, and has resumed since, does
// not get it from another that it is put into later.
func TestPublishedAgainToMoreChannels(t *testing.T) {
	for name, rdb := range map[string]redis.UniversalClient{
		"lone": redistest.Start(t).Client(t), "cluster": redistest.StartCluster(t, 3, false).Client(t),
	} {
		t.Run(name, func(t *testing.T) {
			bus, publisher, ctx, project := newBus(t, rdb), newBus(t, rdb), deadline(t), uuid.New()
			channels := []eventbus.Channel{eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New())}
			sub, ev := now(t, bus, channels...), message(t, project, "0")
			publish := func(to []eventbus.Channel) {
				_, err := publisher.PublishWith(ctx, ev, eventbus.PublishOptions{Channels: to, Idempotent: true})
				require.NoError(t, err)
			}
			publish(channels[:1])
			f := follow(t, bus, sub)
			f.count(1)
			f.end()
			sub.After = f.cursor
			f = follow(t, bus, sub)
			require.NoError(t, publisher.Publish(ctx, message(t, project, "1"), channels...))
			f.count(1)
			publish(channels)
			require.NoError(t, publisher.Publish(ctx, message(t, project, "2"), channels...))
			f.count(2)
			f.exactly(countTo(1, 3), 0)
		})
	}
}
