package tests

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// away is for how long TestRedisIsAway keeps Redis away.
var away = flag.Duration("away", 3*time.Second, "for how long a test keeps Redis away")

// A split client sends commands one way and subscribes another, so that a test can
// break one of the two.
type split struct {
	eventbus.Client
	feed *redis.Client
}

func (s split) Subscribe(ctx context.Context, channels ...string) *redis.PubSub {
	return s.feed.Subscribe(ctx, channels...)
}

// A follower reads a subscription in the background and keeps what it is given.
type follower struct {
	t    testing.TB
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex
	change chan struct{}
	texts  []string
	gaps   []*eventbus.GapError
	cursor eventbus.Cursor
}

func follow(t testing.TB, bus *eventbus.Bus, sub eventbus.Subscription) *follower {
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{t: t, stop: cancel, done: make(chan struct{}), change: make(chan struct{})}
	go func() {
		defer close(f.done)
		for ev, err := range bus.SubscribeWith(ctx, sub) {
			var gap *eventbus.GapError
			f.mu.Lock()
			switch {
			case errors.As(err, &gap):
				f.gaps = append(f.gaps, gap)
				f.cursor = gap.Cursor
			case err == nil:
				f.texts = append(f.texts, text(t, ev))
				f.cursor = ev.Cursor
			}
			close(f.change)
			f.change = make(chan struct{})
			f.mu.Unlock()
		}
	}()
	t.Cleanup(f.end)
	return f
}

func (f *follower) end() {
	f.stop()
	<-f.done
}

// until waits for a condition on what was seen, as long as something comes.
func (f *follower) until(what string, ok func(texts []string, gaps []*eventbus.GapError) bool) {
	f.t.Helper()
	for {
		late := time.After(time.Minute)
		f.mu.Lock()
		met, change := ok(f.texts, f.gaps), f.change
		texts, gaps := len(f.texts), f.gaps
		f.mu.Unlock()
		if met {
			return
		}
		select {
		case <-change:
		case <-late:
			f.t.Fatalf("waiting for %s: have %d events, gaps %v", what, texts, gaps)
		}
	}
}

// begun waits until foreign events arrive, which come only live, and gives how many
// there were.
func (f *follower) begun(rdb redis.UniversalClient, project uuid.UUID) (n int) {
	f.t.Helper()
	channel := eventbus.ProjectChannel(project).String()
	send := func(what string) {
		raw, err := message(f.t, project, what).MarshalJSON()
		require.NoError(f.t, err)
		require.NoError(f.t, rdb.Publish(deadline(f.t), channel, raw).Err())
	}
	require.Eventually(f.t, func() bool {
		send("begun")
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.texts) > 0
	}, time.Minute, 10*time.Millisecond)
	last := uuid.NewString() // no more is on its way once it has come
	send(last)
	f.until("the last of them", func(texts []string, _ []*eventbus.GapError) bool { return texts[len(texts)-1] == last })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.texts[len(f.texts)-1] = "begun"
	return len(f.texts)
}

func (f *follower) count(n int) {
	f.t.Helper()
	f.until(fmt.Sprint(n, " events"), func(texts []string, _ []*eventbus.GapError) bool { return len(texts) >= n })
}

// exactly checks that the follower saw these events, in order, and so many gaps.
func (f *follower) exactly(want []string, gaps int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Equal(f.t, want, f.texts)
	require.Len(f.t, f.gaps, gaps)
}

// countTo gives the texts of numbered messages.
func countTo(from, until int) (out []string) {
	for i := from; i < until; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// now is a subscription from the present on, however late it is begun.
func now(t testing.TB, bus *eventbus.Bus, channels ...eventbus.Channel) eventbus.Subscription {
	cursor, err := bus.Cursor(deadline(t), channels...)
	require.NoError(t, err)
	return eventbus.Subscription{Channels: channels, After: cursor}
}

func TestPublishWhoseReplyIsLostIsInTheLogOnce(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, direct, ctx, project := newBus(t, p.Client(t)), s.Client(t), deadline(t), uuid.New()
	channel := eventbus.ProjectChannel(project)
	require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
	var lost atomic.Int64
	for i := 1; i < 20; i++ {
		var once sync.Once
		p.SetOnReply(func(asked, got []byte) (pass bool) {
			pass = true
			if bytes.Contains(asked, []byte(channel.String())) && bytes.Contains(asked, []byte("evalsha")) && bytes.Contains(got, []byte("+")) {
				once.Do(func() { pass = false; lost.Add(1) })
			}
			return pass
		})
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
	}
	require.Positive(t, lost.Load(), "the proxy cut nothing")
	require.Positive(t, bus.Stats().Retries)
	require.EqualValues(t, 20, direct.XLen(ctx, logKey(channel)).Val())
}

func TestPublishAgainAfterAnErrorIsSafe(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, direct, project := newBus(t, p.Client(t)), s.Client(t), uuid.New()
	channel := eventbus.ProjectChannel(project)
	ev := message(t, project, "once")
	ctx, cancel := context.WithCancel(context.Background())
	p.SetOnReply(func(asked, got []byte) bool {
		if bytes.Contains(asked, []byte(channel.String())) {
			cancel() // it has run, and the caller does not learn of it
			return false
		}
		return true
	})
	err := bus.Publish(ctx, ev)
	var failed *eventbus.PublishError
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []eventbus.Channel{channel}, failed.Unknown)
	p.SetOnReply(nil)
	require.NoError(t, bus.Publish(deadline(t), ev))
	require.EqualValues(t, 1, direct.XLen(deadline(t), logKey(channel)).Val())
}

// TestRepeatAfterTheLogWasTrimmed: Redis ran it, the caller heard nothing, and repeats it when the log
// has gone on far beyond. It is not appended again.
func TestRepeatAfterTheLogWasTrimmed(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	short := eventbus.WithRetention(eventbus.Retention{Events: 100, Age: time.Hour})
	bus, other, project := newBus(t, p.Client(t), short), newBus(t, s.Client(t), short), uuid.New()
	channel := eventbus.ProjectChannel(project)
	require.NoError(t, bus.Publish(deadline(t), message(t, uuid.New(), "loads the script")))
	f := follow(t, other, now(t, other, channel))
	ev := message(t, project, "once")
	ctx, cancel := context.WithCancel(context.Background())
	p.SetOnReply(func(asked, _ []byte) bool {
		lose := bytes.Contains(asked, []byte(ev.ID)) && ctx.Err() == nil
		if lose {
			cancel()
		}
		return !lose
	})
	require.ErrorIs(t, bus.Publish(ctx, ev), context.Canceled)
	const n = 500
	publish(t, other, project, nil, countTo(0, n)...)
	require.Less(t, s.Client(t).XLen(deadline(t), logKey(channel)).Val(), int64(n))
	receipt, err := bus.PublishWith(deadline(t), ev, eventbus.PublishOptions{})
	require.NoError(t, err)
	require.True(t, receipt.Repeated)
	publish(t, other, project, nil, "end")
	f.count(n + 2)
	f.exactly(append(append([]string{"once"}, countTo(0, n)...), "end"), 0)
}

// TestPublishThatComesLateIsNotAppendedAgain keeps the first attempt on its way, until the
// event has been published again by somebody else.
func TestPublishThatComesLateIsNotAppendedAgain(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	rdb, ctx, project := s.Client(t), deadline(t), uuid.New()
	late, other := newBus(t, p.Client(t)), newBus(t, rdb)
	channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.UserChannel(uuid.New())}
	require.NoError(t, late.Publish(ctx, message(t, project, "0"), channels[1]))
	ev := message(t, project, "1")
	p.Freeze()
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	var failed *eventbus.PublishError
	again := eventbus.PublishOptions{Channels: channels[1:], Idempotent: true}
	_, err := late.PublishWith(short, ev, again)
	require.ErrorAs(t, err, &failed)
	require.Equal(t, channels, failed.Unknown)
	_, err = other.PublishWith(ctx, ev, again)
	require.NoError(t, err)
	calls := commandCalls(t, rdb, "evalsha")
	p.Thaw()
	require.Eventually(t, func() bool { return commandCalls(t, rdb, "evalsha") > calls }, time.Minute, 10*time.Millisecond)
	for _, c := range channels {
		require.EqualValues(t, 2, rdb.XLen(ctx, logKey(c)).Val())
	}
}

// TestIdempotentThroughAnotherProcess: Redis ran it, the caller heard nothing, and goes
// to another process with the same event.
func TestIdempotentThroughAnotherProcess(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	here, there, direct, project := newBus(t, p.Client(t)), newBus(t, s.Client(t)), s.Client(t), uuid.New()
	agent := eventbus.AgentChannel(uuid.New())
	require.NoError(t, here.Publish(deadline(t), message(t, uuid.New(), "loads the script")))
	f := follow(t, there, now(t, there, eventbus.ProjectChannel(project), agent))
	for i := range 10 {
		ev := message(t, project, fmt.Sprint(i))
		ctx, cancel := context.WithCancel(context.Background())
		p.SetOnReply(func(asked, _ []byte) bool {
			if bytes.Contains(asked, []byte(ev.ID)) {
				cancel()
				return false
			}
			return true
		})
		opts := eventbus.PublishOptions{Channels: []eventbus.Channel{agent}, Idempotent: true}
		_, err := here.PublishWith(ctx, ev, opts)
		require.ErrorIs(t, err, context.Canceled)
		receipt, err := there.PublishWith(deadline(t), ev, opts)
		require.NoError(t, err)
		require.True(t, receipt.Repeated)
	}
	require.EqualValues(t, 10, direct.XLen(deadline(t), logKey(eventbus.ProjectChannel(project))).Val())
	require.EqualValues(t, 10, direct.XLen(deadline(t), logKey(agent)).Val())
	f.count(10)
	f.exactly(countTo(0, 10), 0)
}

// TestFullMemory: Redis takes nothing more. That is an error which says so, and nothing is
// in the log; when there is room, it goes on.
func TestFullMemory(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	ev := message(t, project, "1")
	err := bus.Publish(ctx, ev)
	require.ErrorIs(t, err, eventbus.ErrUnavailable)
	require.ErrorContains(t, err, "OOM")
	var failed *eventbus.PublishError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, []eventbus.Channel{eventbus.ProjectChannel(project)}, failed.Missing)
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	require.NoError(t, bus.Publish(ctx, ev))
	f.count(2)
	f.exactly(countTo(0, 2), 0)
}

// TestOutputBufferLimit: the feed does not read for a while, and Redis cuts it. It is
// a connection that broke, like any other.
func TestOutputBufferLimit(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, "--client-output-buffer-limit", "pubsub 64kb 64kb 1")
	p := redistest.StartProxy(t, s.Addr)
	bus, project := newBus(t, split{s.Client(t), p.Client(t)}), uuid.New()
	publisher := newBus(t, s.Client(t))
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	insist(t, bus, message(t, project, "0"))
	f.count(1)
	p.Freeze()
	big := strings.Repeat("x", 100<<10)
	for range 200 { // more than the sockets in between hold
		insist(t, publisher, message(t, project, big))
	}
	p.Thaw()
	insist(t, publisher, message(t, project, "the end"))
	f.count(202)
	require.Positive(t, bus.Stats().Reconnects)
	f.until("no gap", func(texts []string, gaps []*eventbus.GapError) bool { return len(texts) == 202 && len(gaps) == 0 })
}

// TestRedisIsAway for several times what Health allows: publishes fail within their
// context, streams stay open, Health turns red, and green again by itself.
func TestRedisIsAway(t *testing.T) {
	t.Parallel()
	const bound = time.Second
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	bus, project := newBus(t, s.Client(t), quiet(), eventbus.WithFreshness(bound), eventbus.WithKeepalive(200*time.Millisecond)), uuid.New()
	stream := joined(t, streams(t, bus, eventbus.ProjectChannel(project)))
	insist(t, bus, message(t, project, "0"))
	stream.expect("0")
	require.NoError(t, bus.Health())
	s.Kill()
	began := time.Now()
	for time.Since(began) < *away {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		err := bus.Publish(ctx, message(t, project, "nobody gets this"))
		cancel()
		require.Error(t, err)
		require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, eventbus.ErrUnavailable), err)
		b := stream.block() // keepalives go on
		require.Nil(t, b.Event)
	}
	require.Eventually(t, func() bool { return bus.Health() != nil }, time.Minute, time.Millisecond)
	require.ErrorIs(t, bus.Health(), eventbus.ErrUnavailable)
	s.Restart(t)
	require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, time.Millisecond)
	insist(t, bus, message(t, project, "1"))
	for textOf(t, stream.event()) != "1" { // what failed in doubt may be there now
	}
	require.Zero(t, bus.Stats().Gaps)
}

// TestHealthWithoutSubscribers also tells that Redis is away.
func TestHealthWithoutSubscribers(t *testing.T) {
	s := redistest.Start(t)
	bus := newBus(t, s.Client(t), quiet(), eventbus.WithFreshness(500*time.Millisecond))
	require.NoError(t, bus.Health())
	s.Kill()
	require.Eventually(t, func() bool { return bus.Health() != nil }, time.Minute, time.Millisecond)
	s.Restart(t)
	require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, time.Millisecond)
}

// TestBrokenConnectionsLoseNothing breaks the feed, the commands, or both, every
// 200 ms for 30 s, while the same bus publishes.
func TestBrokenConnectionsLoseNothing(t *testing.T) {
	for name, which := range map[string]struct{ feed, commands bool }{
		"feed": {feed: true}, "commands": {commands: true}, "both": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting for the next cut
			s := redistest.Start(t)
			feed, commands := redistest.StartProxy(t, s.Addr), redistest.StartProxy(t, s.Addr)
			bus := newBus(t, split{commands.Client(t), feed.Client(t)}, eventbus.WithFreshness(time.Second))
			project := uuid.New()
			sub := now(t, bus, eventbus.ProjectChannel(project))
			var followers []*follower
			for range 50 {
				followers = append(followers, follow(t, bus, sub))
			}
			over := make(chan struct{})
			go func() {
				defer close(over)
				for range 150 {
					time.Sleep(200 * time.Millisecond)
					if which.feed {
						feed.Cut()
					}
					if which.commands {
						commands.Cut()
					}
				}
			}()
			n := 0
			for broken := true; broken; n++ {
				ev := message(t, project, fmt.Sprint(n))
				for bus.Publish(context.Background(), ev) != nil { // however long that takes
				}
				select {
				case <-over:
					broken = false
				case <-time.After(5 * time.Millisecond):
				}
			}
			t.Logf("%d events", n)
			for _, f := range followers {
				f.count(n)
				f.exactly(countTo(0, n), 0)
			}
		})
	}
}

// TestFrozenFeedIsNoticed keeps the Pub/Sub connection open and silent: events come
// from the log, and a new connection is made.
func TestFrozenFeedIsNoticed(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus := newBus(t, split{s.Client(t), p.Client(t)}, eventbus.WithFreshness(500*time.Millisecond))
	project := uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	require.NoError(t, bus.Publish(deadline(t), message(t, project, "0")))
	f.count(1)
	p.Freeze()
	for i := 1; i < 10; i++ {
		require.NoError(t, bus.Publish(deadline(t), message(t, project, fmt.Sprint(i))))
		f.count(i + 1)
	}
	require.Eventually(t, func() bool { return bus.Health() != nil }, time.Minute, 10*time.Millisecond)
	require.ErrorIs(t, bus.Health(), eventbus.ErrUnavailable)
	p.Thaw()
	require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, 10*time.Millisecond)
	require.Positive(t, bus.Stats().Reconnects)
	f.exactly(countTo(0, 10), 0)
}

func TestKilledRedisWithAppendOnlyFileLosesNothing(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	bus, project := newBus(t, s.Client(t), eventbus.WithFreshness(time.Second)), uuid.New()
	channel := eventbus.ProjectChannel(project)
	sub := now(t, bus, channel)
	live := follow(t, bus, sub)
	want := []string{}
	for i := range 60 {
		if i%20 == 10 {
			s.Kill()
			go func() { s.Restart(t) }()
		}
		ev := message(t, project, fmt.Sprint(i))
		for bus.Publish(deadline(t), ev) != nil { // as a caller would: the same event, until it is in
		}
		want = append(want, fmt.Sprint(i))
	}
	live.count(len(want))
	live.exactly(want, 0)
	resumed := follow(t, newBus(t, s.Client(t)), sub)
	resumed.count(len(want))
	resumed.exactly(want, 0)
}

// TestLostLogIsOneGap loses the log in several ways: every reader, live or resuming,
// is told of exactly one gap, and then gets everything that follows.
func TestLostLogIsOneGap(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, s *redistest.Server, rdb *redis.Client, key string){
		"restart without persistence": func(t *testing.T, s *redistest.Server, _ *redis.Client, _ string) { s.Kill(); s.Restart(t) },
		"FLUSHALL": func(t *testing.T, _ *redistest.Server, rdb *redis.Client, _ string) {
			require.NoError(t, rdb.FlushAll(deadline(t)).Err())
		},
		"DEL": func(t *testing.T, _ *redistest.Server, rdb *redis.Client, key string) {
			require.NoError(t, rdb.Del(deadline(t), key).Err())
		},
		"eviction": func(t *testing.T, _ *redistest.Server, rdb *redis.Client, key string) {
			ctx := deadline(t)
			require.NoError(t, rdb.ConfigSet(ctx, "maxmemory-policy", "allkeys-random").Err())
			require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
			require.Eventually(t, func() bool {
				_ = rdb.Set(ctx, "something", "new", 0).Err() // a write makes room
				return rdb.Exists(ctx, key).Val() == 0
			}, time.Minute, time.Millisecond)
			require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := redistest.Start(t)
			rdb := s.Client(t)
			bus, project := newBus(t, rdb, eventbus.WithFreshness(time.Second)), uuid.New()
			channel := eventbus.ProjectChannel(project)
			var followers []*follower
			sub := now(t, bus, channel)
			for range 3 {
				followers = append(followers, follow(t, bus, sub))
			}
			publish := func(from, until int) {
				for _, n := range countTo(from, until) {
					ev := message(t, project, n)
					for bus.Publish(deadline(t), ev) != nil {
					}
				}
			}
			publish(0, 50)
			for _, f := range followers {
				f.count(50)
			}
			followers[2].end()
			lose(t, s, rdb, logKey(channel))
			publish(50, 100)
			resume := eventbus.Subscription{Channels: []eventbus.Channel{channel}, After: followers[2].cursor}
			followers[2] = follow(t, bus, resume)
			followers = append(followers, follow(t, newBus(t, rdb), resume))
			for i, f := range followers {
				want := countTo(0, 100)
				if i >= 2 {
					want = countTo(50, 100)
				}
				f.count(len(want))
				f.exactly(want, 1)
				require.Equal(t, eventbus.GapLost, f.gaps[0].Reason)
				require.Equal(t, channel, f.gaps[0].Channel)
				require.False(t, f.gaps[0].From.IsZero())
			}
		})
	}
}

// TestLogOfAQuietStreamLivesOn: whoever listens keeps a log alive. When nobody does any more, it goes
// in its time.
func TestLogOfAQuietStreamLivesOn(t *testing.T) {
	t.Parallel()
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		const age = 2 * time.Second
		bus := newBus(t, rdb, eventbus.WithRetention(eventbus.Retention{Events: 100, Age: age}), eventbus.WithFreshness(age/8))
		project := uuid.New()
		channel := eventbus.ProjectChannel(project)
		f := follow(t, bus, now(t, bus, channel))
		for i := range 3 {
			require.NoError(t, bus.Publish(deadline(t), message(t, project, fmt.Sprint(i))))
			f.count(i + 1)
			for quiet := time.Now(); time.Since(quiet) < age; {
				quietly(t, bus)
			}
		}
		f.exactly(countTo(0, 3), 0)
		require.EqualValues(t, 3, rdb.XLen(deadline(t), logKey(channel)).Val())
		require.NoError(t, bus.Close())
		require.Eventually(t, func() bool { return rdb.Exists(deadline(t), logKey(channel)).Val() == 0 }, time.Minute, 5*time.Millisecond)
	})
}

// TestForeignEventsAreHeardLive publishes as the Python services do.
func TestForeignEventsAreHeardLive(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		channel := eventbus.ProjectChannel(project)
		f := follow(t, bus, now(t, bus, channel))
		require.NoError(t, bus.Publish(ctx, message(t, project, "logged")))
		f.count(1) // it listens
		raw, err := message(t, project, "foreign").MarshalJSON()
		require.NoError(t, err)
		for _, junk := range []string{"", "junk", "[]", `{"id":"x"}`, strings.Repeat("[", 20000)} {
			require.NoError(t, rdb.Publish(ctx, channel.String(), junk).Err())
		}
		require.NoError(t, rdb.Publish(ctx, channel.String(), raw).Err())
		f.count(2)
		require.NoError(t, bus.Publish(ctx, message(t, project, "logged too")))
		f.count(3)
		f.exactly([]string{"logged", "foreign", "logged too"}, 0)
		require.EqualValues(t, 5, bus.Stats().Unreadable)
		require.EqualValues(t, 2, rdb.XLen(ctx, logKey(channel)).Val())
	})
}

// TestKnownIDHidesNothing: somebody publishes an event of his own with the id of another one. Both are
// delivered, in whatever order they come.
func TestKnownIDHidesNothing(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project, user := newBus(t, rdb), deadline(t), uuid.New(), eventbus.UserChannel(uuid.New())
		f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project), user))
		publish(t, bus, project, []eventbus.Channel{user}, "listens")
		f.count(1)
		true_, false_ := message(t, project, "real"), message(t, project, "false")
		false_.ID = true_.ID
		raw, err := false_.MarshalJSON()
		require.NoError(t, err)
		require.NoError(t, rdb.Publish(ctx, user.String(), raw).Err())
		f.count(2)
		require.NoError(t, bus.Publish(ctx, true_))
		f.count(3)
		f.exactly([]string{"listens", "false", "real"}, 0)
	})
}

// TestForgedPositionIsNoConfusion sends an event on a channel whose log does not have its position, as
// a program would that passes on what it has heard elsewhere. It is counted and skipped.
func TestForgedPositionIsNoConfusion(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		for _, at := range []string{"1700000000000-7", "1700000000000-1", fmt.Sprint(time.Now().Add(time.Hour).UnixMilli(), "-1")} {
			bus, ctx, project := newBus(t, rdb, fresh), deadline(t), uuid.New()
			channel := eventbus.ProjectChannel(project)
			f := follow(t, bus, now(t, bus, channel))
			require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
			f.count(1)
			raw, err := message(t, project, "1").MarshalJSON()
			require.NoError(t, err)
			forged := string(raw[:len(raw)-1]) + `,"position":"` + at + `"}`
			require.NoError(t, rdb.Publish(ctx, channel.String(), forged).Err())
			require.Eventually(t, func() bool { return bus.Stats().Unreadable == 1 }, time.Minute, time.Millisecond)
			require.NoError(t, bus.Publish(ctx, message(t, project, "2")))
			f.count(2)
			f.exactly([]string{"0", "2"}, 0)
			require.NoError(t, bus.Health())
		}
	})
}

// TestSlowReaderReadsTheLogAndDelaysNobody lets a reader stop while more goes by
// than any ring holds.
func TestSlowReaderReadsTheLogAndDelaysNobody(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb, eventbus.WithPublishTimeout(time.Minute)), deadline(t), uuid.New()
		channel := eventbus.ProjectChannel(project)
		sub := now(t, bus, channel)
		const n = 6000
		resume := make(chan struct{})
		var slow []string
		var reader sync.WaitGroup
		reader.Go(func() {
			for ev, err := range bus.SubscribeWith(ctx, sub) {
				if err != nil {
					t.Error(err)
					return
				}
				if len(slow) == 0 {
					<-resume
				}
				if slow = append(slow, text(t, ev)); len(slow) == n {
					return
				}
			}
		})
		fast := follow(t, bus, sub)
		var publishers sync.WaitGroup
		for i := range n {
			if i == 0 {
				require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
				continue
			}
			publishers.Go(func() {
				if err := bus.Publish(ctx, message(t, project, fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			})
		}
		publishers.Wait()
		fast.count(n)
		close(resume)
		reader.Wait()
		fast.exactly(slow, 0)
	})
}

// TestSlowReaderOfForeignEventsIsTold: what is in no log cannot be read again.
func TestSlowReaderOfForeignEventsIsTold(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		channel := eventbus.ProjectChannel(project)
		sub := now(t, bus, channel)
		require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
		seen, gaps := 0, 0
		raw, err := message(t, project, "foreign").MarshalJSON()
		require.NoError(t, err)
		last, err := message(t, project, "last").MarshalJSON()
		require.NoError(t, err)
		for ev, err := range bus.SubscribeWith(ctx, sub) {
			var gap *eventbus.GapError
			if errors.As(err, &gap) {
				require.Equal(t, eventbus.GapUnlogged, gap.Reason)
				gaps++
				continue
			}
			require.NoError(t, err)
			if text(t, ev) == "end" {
				break
			}
			if seen++; seen == 1 {
				quick := follow(t, bus, now(t, bus, channel))
				require.Eventually(t, func() bool { return bus.Stats().Active == 2 }, time.Minute, time.Millisecond)
				pipe := rdb.Pipeline()
				for range 6000 {
					pipe.Publish(ctx, channel.String(), raw)
				}
				pipe.Publish(ctx, channel.String(), last)
				_, err := pipe.Exec(ctx)
				require.NoError(t, err)
				quick.until("the last foreign event", func(texts []string, gaps []*eventbus.GapError) bool {
					return len(texts) > 0 && texts[len(texts)-1] == "last" || len(gaps) > 0
				})
				require.NoError(t, bus.Publish(ctx, message(t, project, "end")))
			}
		}
		require.Equal(t, 1, gaps)
	})
}

func TestTenThousandSubscribersShareOnePubSubConnection(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	channel := eventbus.ProjectChannel(project)
	sub := now(t, bus, channel)
	var readers sync.WaitGroup
	const n = 10_000
	for range n {
		readers.Go(func() {
			for ev, err := range bus.SubscribeWith(ctx, sub) {
				if err != nil || text(t, ev) != "hello" {
					t.Error(ev, err)
				}
				return
			}
		})
	}
	require.Eventually(t, func() bool { return bus.Stats().Active == n }, time.Minute, 10*time.Millisecond)
	require.Equal(t, 1, strings.Count(rdb.Do(ctx, "CLIENT", "LIST", "TYPE", "PUBSUB").String(), "laddr="))
	require.NoError(t, bus.Publish(ctx, message(t, project, "hello")))
	readers.Wait()
}

// TestHerdCostsRedisLittle resumes many readers at different places at once, on a
// process that has just started.
func TestHerdCostsRedisLittle(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	ctx, project := deadline(t), uuid.New()
	channel := eventbus.ProjectChannel(project)
	old := newBus(t, rdb)
	const n, events = 5000, 2000
	cursors := make([]eventbus.Cursor, events)
	for i := range events {
		r, err := old.PublishWith(ctx, message(t, project, fmt.Sprint(i)), eventbus.PublishOptions{})
		require.NoError(t, err)
		cursors[i] = r.Cursor
	}
	bus := newBus(t, rdb)
	require.NoError(t, rdb.Do(ctx, "CONFIG", "RESETSTAT").Err())
	var readers sync.WaitGroup
	for i := range n {
		readers.Go(func() {
			from := i % (events - 1)
			until := min(from+20, events-1)
			if i%50 == 0 {
				until = events - 1
			}
			for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{channel}, After: cursors[from]}) {
				if from++; err != nil || text(t, ev) != fmt.Sprint(from) {
					t.Error(ev, err)
					return
				}
				if from == until {
					return
				}
			}
		})
	}
	readers.Wait()
	scripts := commandCalls(t, rdb, "evalsha") + commandCalls(t, rdb, "eval")
	t.Logf("%d clients resumed from %d places: %d script calls, %d XRANGE", n, events-1, scripts, commandCalls(t, rdb, "xrange"))
	require.Less(t, commandCalls(t, rdb, "xrange"), 250)
	require.Less(t, scripts, 40)
}

// commandCalls reads INFO commandstats.
func commandCalls(t testing.TB, rdb *redis.Client, command string) (calls int) {
	for line := range strings.Lines(rdb.Info(deadline(t), "commandstats").Val()) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			_, err := fmt.Sscanf(rest, "%d", &calls)
			require.NoError(t, err)
		}
	}
	return calls
}

// TestCloseAndCancelDoNotWaitForRedis freezes everything first.
func TestCloseAndCancelDoNotWaitForRedis(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, project := newBus(t, p.Client(t)), uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	require.NoError(t, bus.Publish(deadline(t), message(t, project, "0")))
	f.count(1)
	p.Freeze()
	ctx, cancel := context.WithCancel(context.Background())
	published := make(chan error, 1)
	go func() { published <- bus.Publish(ctx, message(t, project, "1")) }()
	cold := follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{eventbus.UserChannel(uuid.New())}})
	require.Eventually(t, func() bool { return bus.Stats().Active == 3 }, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-published, context.Canceled)
	cold.end()
	require.NoError(t, bus.Close())
	<-f.done
	p.Thaw()
}

func TestShutdownDrains(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		channel := eventbus.ProjectChannel(project)
		sub := now(t, bus, channel)
		for i := range 100 {
			require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
		}
		begun, go_ := make(chan struct{}), make(chan struct{})
		seen, last := 0, error(nil)
		var reader sync.WaitGroup
		reader.Go(func() {
			for _, err := range bus.SubscribeWith(ctx, sub) {
				if seen == 0 {
					close(begun)
					<-go_
				}
				if last = err; err == nil {
					seen++
				}
			}
		})
		<-begun
		var ended sync.WaitGroup
		ended.Go(func() {
			if err := bus.Shutdown(ctx); err != nil {
				t.Error(err)
			}
		})
		require.Eventually(t, func() bool { return errors.Is(bus.Health(), eventbus.ErrClosed) }, time.Minute, time.Millisecond)
		require.ErrorIs(t, bus.Publish(ctx, message(t, project, "late")), eventbus.ErrClosed)
		close(go_)
		reader.Wait()
		ended.Wait()
		require.Equal(t, 100, seen)
		require.ErrorIs(t, last, eventbus.ErrClosed)
	})
}

func TestShutdownIsBoundedByItsContext(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, project := newBus(t, rdb), uuid.New()
	stuck, release := make(chan struct{}), make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for range bus.SubscribeWith(context.Background(), eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}, Oldest: true}) {
			close(stuck)
			<-release
			return
		}
	})
	require.NoError(t, bus.Publish(deadline(t), message(t, project, "x")))
	<-stuck
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, bus.Shutdown(ctx), context.Canceled)
	close(release)
	reader.Wait()
}

// TestRefusedFeedIsServedFromTheLogs lets no Pub/Sub connection come about: events
// come later, but they come.
func TestRefusedFeedIsServedFromTheLogs(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	p.SetRefuse(true)
	bus := newBus(t, split{s.Client(t), p.Client(t)}, eventbus.WithFreshness(500*time.Millisecond))
	project := uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	for i := range 5 {
		require.NoError(t, bus.Publish(deadline(t), message(t, project, fmt.Sprint(i))))
		f.count(i + 1)
	}
	require.Eventually(t, func() bool { return bus.Health() != nil }, time.Minute, 10*time.Millisecond)
	p.SetRefuse(false)
	require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, 10*time.Millisecond)
	f.exactly(countTo(0, 5), 0)
}

// TestForeignEventsAreNeverReplayed: a reader gets those from after it began, also on
// a channel that has no others.
func TestForeignEventsAreNeverReplayed(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		channel := eventbus.ProjectChannel(project)
		foreign := func(what string) {
			raw, err := message(t, project, what).MarshalJSON()
			require.NoError(t, err)
			require.NoError(t, rdb.Publish(ctx, channel.String(), raw).Err())
		}
		first := follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{channel}})
		first.begun(rdb, project)
		sub := now(t, bus, channel)
		second := follow(t, bus, sub)
		require.Eventually(t, func() bool { return bus.Stats().Active == 2 }, time.Minute, time.Millisecond)
		require.NoError(t, bus.Publish(ctx, message(t, project, "1")))
		second.count(1)
		foreign("2")
		require.NoError(t, bus.Publish(ctx, message(t, project, "3")))
		second.count(3)
		second.exactly(countTo(1, 4), 0)
		third := follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{channel}, After: sub.After})
		third.count(2)
		foreign("4")
		third.count(3)
		third.exactly([]string{"1", "3", "4"}, 0)
	})
}

// TestEventsThatGrowAreRead: what others have put into a log can be longer once it is
// written as this package does.
func TestEventsThatGrowAreRead(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, project := deadline(t), uuid.New()
		channel := eventbus.ProjectChannel(project)
		for i := range 3 {
			ev := message(t, project, fmt.Sprint(i))
			ev.ID = strings.Repeat("\u2028", 3000)
			raw, err := ev.MarshalJSON()
			require.NoError(t, err)
			short := strings.ReplaceAll(string(raw), `\u2028`, "\u2028")
			require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: logKey(channel), ID: fmt.Sprintf("1763868000000-%d", i+1), Values: []string{"event", short}}).Err())
		}
		i := 0
		for ev, err := range newBus(t, rdb).SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{channel}, Oldest: true}) {
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(i), text(t, ev))
			if i++; i == 3 {
				break
			}
		}
	})
}

// TestDeletedEntriesAreAGap: somebody has taken events out of a log by hand.
func TestDeletedEntriesAreAGap(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, project := deadline(t), uuid.New()
		channel := eventbus.ProjectChannel(project)
		bus := newBus(t, rdb)
		sub := now(t, bus, channel)
		for i := range 10 {
			require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
		}
		entries, err := rdb.XRange(ctx, logKey(channel), "-", "+").Result()
		require.NoError(t, err)
		for _, i := range []int{4, 5, 8, 9} {
			require.NoError(t, rdb.XDel(ctx, logKey(channel), entries[i].ID).Err())
		}
		f := follow(t, newBus(t, rdb), sub)
		f.until("both gaps", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) == 2 })
		require.NoError(t, bus.Publish(ctx, message(t, project, "10")))
		f.count(7)
		f.exactly([]string{"0", "1", "2", "3", "6", "7", "10"}, 2)
	})
}

// TestResumeWhileRedisIsAway: what the tail still has is given, though the log would be
// asked first.
func TestResumeWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	bus, ctx, project := newBus(t, server.Client(t), quiet(), eventbus.WithFreshness(time.Second)), deadline(t), uuid.New()
	require.NoError(t, bus.Publish(ctx, message(t, project, "before")))
	channels := []eventbus.Channel{eventbus.ProjectChannel(project)}
	first := follow(t, bus, eventbus.Subscription{Channels: channels, Oldest: true}) // keeps the tail
	first.count(1)
	sub := now(t, bus, channels...)
	for i := range 5 {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
	}
	first.count(6)
	server.Kill()
	eventually(t, "Health sees it", func() bool { return errors.Is(bus.Health(), eventbus.ErrUnavailable) })
	second := follow(t, bus, sub)
	second.count(5)
	server.Restart(t)
	eventually(t, "Health is green", func() bool { return bus.Health() == nil })
	require.NoError(t, bus.Publish(ctx, message(t, project, "5")))
	second.count(6)
	second.exactly(countTo(0, 6), 0)
}

// A readFault makes reads of one log fail.
type readFault struct {
	key   atomic.Pointer[string]
	reads atomic.Int64
}

func (f *readFault) DialHook(next redis.DialHook) redis.DialHook { return next }
func (f *readFault) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (f *readFault) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if key := f.key.Load(); key != nil && slices.Contains(cmd.Args(), any(*key)) {
			f.reads.Add(1)
			cmd.SetErr(io.ErrUnexpectedEOF)
			return cmd.Err()
		}
		return next(ctx, cmd)
	}
}

// TestALogThatCannotBeReadHoldsUpNoOther channel of the same subscription.
func TestALogThatCannotBeReadHoldsUpNoOther(t *testing.T) {
	client, fault := onMiniredis(t), &readFault{}
	client.AddHook(fault)
	bus := newBus(t, client, quiet())
	good, bad := uuid.New(), uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(good), eventbus.ProjectChannel(bad)}
	cursor, err := bus.Cursor(deadline(t), channels...)
	require.NoError(t, err)
	for range 3 { // behind the cursor, and before the tail
		require.NoError(t, bus.Publish(deadline(t), message(t, bad, "missed")))
	}
	key := "eventbus:log:{" + channels[1].String() + "}"
	fault.key.Store(&key)
	const events = 300
	go func() {
		for range events {
			if bus.Publish(deadline(t), message(t, good, "x")) != nil {
				return
			}
		}
	}()
	got := 0
	for ev, err := range bus.SubscribeWith(deadline(t), eventbus.Subscription{Channels: channels, After: cursor}) {
		require.NoError(t, err)
		require.Equal(t, good, ev.ProjectID)
		if got++; got == events {
			break
		}
	}
	require.Less(t, fault.reads.Load(), int64(events/3))
}

// TestTheEndOfTheBusEndsASubscriptionThatBegins while Redis does not say where a log ends.
func TestTheEndOfTheBusEndsASubscriptionThatBegins(t *testing.T) {
	for name, end := range map[string]func(*eventbus.Bus) error{
		"close":    (*eventbus.Bus).Close,
		"shutdown": func(bus *eventbus.Bus) error { return bus.Shutdown(deadline(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			client, fault := onMiniredis(t), &readFault{}
			client.AddHook(fault)
			bus := newBus(t, client, quiet())
			channels := []eventbus.Channel{eventbus.ProjectChannel(uuid.New()), eventbus.ProjectChannel(uuid.New())}
			now(t, bus, channels...) // their tails are there
			cursor, err := bus.Cursor(deadline(t), channels[0])
			require.NoError(t, err)
			f := follow(t, bus, eventbus.Subscription{Channels: channels})
			f.end()
			key := logKey(channels[1])
			fault.key.Store(&key)
			ended := make(chan error, 1)
			go func() {
				for _, err := range bus.SubscribeWith(context.Background(), eventbus.Subscription{Channels: channels, After: cursor}) {
					ended <- err
					return
				}
			}()
			require.Eventually(t, func() bool { return fault.reads.Load() > 0 }, time.Minute, time.Millisecond)
			require.NoError(t, end(bus))
			require.ErrorIs(t, <-ended, eventbus.ErrClosed)
		})
	}
}
