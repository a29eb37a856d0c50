package tests

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

func logKey(c eventbus.Channel) string { return "eventbus:log:{" + c.String() + "}" }

func TestPublishAppendsToEveryLogAndRings(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		channels := []eventbus.Channel{
			eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New()),
		}
		var names []string
		for _, c := range channels {
			names = append(names, c.String())
		}
		listener := rdb.Subscribe(ctx, names...)
		defer listener.Close()
		for range names {
			_, err := listener.Receive(ctx)
			require.NoError(t, err)
		}
		ev := message(t, project, "hello")
		require.NoError(t, bus.Publish(ctx, ev, channels[1:]...))
		plain, err := ev.MarshalJSON()
		require.NoError(t, err)
		also := ""
		for _, c := range channels {
			entries, err := rdb.XRange(ctx, logKey(c), "-", "+").Result()
			require.NoError(t, err)
			require.Len(t, entries, 1)
			require.JSONEq(t, string(plain), entries[0].Values["event"].(string))
			m, err := listener.ReceiveMessage(ctx)
			require.NoError(t, err)
			require.Equal(t, c.String(), m.Channel)
			more := `,"position":"` + entries[0].ID + `"`
			if also != "" { // on every channel but the first
				require.Equal(t, also, entries[0].Values["also"])
				more += `,"also":"` + also + `"`
			}
			require.Equal(t, string(plain[:len(plain)-1])+more+`}`, m.Payload)
			also = strings.TrimSpace(also + " " + c.String() + "@" + entries[0].ID)
			ttl, err := rdb.PTTL(ctx, logKey(c)).Result()
			require.NoError(t, err)
			require.InDelta(t, 24*time.Hour, ttl, float64(time.Hour))
		}
	})
}

func TestReceiptResumesBehindTheEvent(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project, agent := newBus(t, rdb), deadline(t), uuid.New(), eventbus.AgentChannel(uuid.New())
		receipt, err := bus.PublishWith(ctx, message(t, project, "first"), eventbus.PublishOptions{Channels: []eventbus.Channel{agent}})
		require.NoError(t, err)
		require.False(t, receipt.Repeated)
		require.NoError(t, bus.Publish(ctx, message(t, project, "second")))
		sub := eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project), agent}, After: receipt.Cursor}
		for ev, err := range bus.SubscribeWith(ctx, sub) {
			require.NoError(t, err)
			require.Equal(t, "second", text(t, ev))
			break
		}
	})
}

func TestIdempotentPublishIsInTheLogOnce(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, project := deadline(t), uuid.New()
		one, other := newBus(t, rdb), newBus(t, rdb)
		ev := message(t, project, "once")
		receipt, err := one.PublishWith(ctx, ev, eventbus.PublishOptions{Idempotent: true})
		require.NoError(t, err)
		require.False(t, receipt.Repeated)
		ev.ID = strings.ToUpper(ev.ID) // the same
		for range 3 {
			receipt, err := other.PublishWith(ctx, ev, eventbus.PublishOptions{Idempotent: true})
			require.NoError(t, err)
			require.True(t, receipt.Repeated)
		}
		require.EqualValues(t, 1, rdb.XLen(ctx, logKey(eventbus.ProjectChannel(project))).Val())

		// The marker outlives entries, but not the log: then the event is not there.
		require.NoError(t, rdb.Del(ctx, logKey(eventbus.ProjectChannel(project))).Err())
		receipt, err = other.PublishWith(ctx, ev, eventbus.PublishOptions{Idempotent: true})
		require.NoError(t, err)
		require.False(t, receipt.Repeated)
	})
}

func TestConcurrentPublishesShareCallsAndKeepTheOrderOfEach(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		const goroutines, each = 32, 50
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for i := range each {
					if err := bus.Publish(ctx, message(t, project, fmt.Sprintf("%d %d", g, i))); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		next := map[int]int{}
		entries, err := rdb.XRange(ctx, logKey(eventbus.ProjectChannel(project)), "-", "+").Result()
		require.NoError(t, err)
		require.Len(t, entries, goroutines*each)
		for _, e := range entries {
			var g, i int
			_, err := fmt.Sscan(text(t, eventOf(t, e)), &g, &i)
			require.NoError(t, err)
			require.Equal(t, next[g], i)
			next[g]++
		}
		if rdb, ok := rdb.(*redis.Client); ok && rdb.ConfigGet(ctx, "port").Err() == nil { // miniredis does not count
			stats := rdb.Info(ctx, "commandstats").Val()
			var calls int
			for line := range strings.Lines(stats) {
				if rest, ok := strings.CutPrefix(line, "cmdstat_evalsha:calls="); ok {
					_, err := fmt.Sscanf(rest, "%d", &calls)
					require.NoError(t, err)
				}
			}
			require.Less(t, calls, goroutines*each/2, "calls to Redis")
		}
	})
}

func TestScriptsAreLoadedAgainAfterScriptFlush(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	channel := eventbus.ProjectChannel(project)
	cursor, err := bus.Cursor(ctx, channel)
	require.NoError(t, err)
	for i := range 10 {
		require.NoError(t, rdb.ScriptFlush(ctx).Err())
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i))))
		require.NoError(t, rdb.ScriptFlush(ctx).Err())
		_, err := bus.Cursor(ctx, channel, eventbus.UserChannel(uuid.New())) // a pipeline
		require.NoError(t, err)
	}
	require.EqualValues(t, 10, rdb.XLen(ctx, logKey(channel)).Val())
	require.NoError(t, rdb.ScriptFlush(ctx).Err())
	i := 0
	for ev, err := range newBus(t, rdb).SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{channel}, After: cursor}) {
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), text(t, ev))
		if i++; i == 10 {
			break
		}
	}
}

func TestRetentionTrimsAndDrops(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus := newBus(t, rdb,
			eventbus.WithRetention(eventbus.Retention{Events: 200, Age: time.Hour}),
			eventbus.WithChannelRetention(eventbus.UserKind, eventbus.Retention{}))
		ctx, project, user := deadline(t), uuid.New(), eventbus.UserChannel(uuid.New())
		for range 500 {
			require.NoError(t, bus.Publish(ctx, message(t, project, "x"), user))
		}
		channel := eventbus.ProjectChannel(project)
		require.Less(t, rdb.XLen(ctx, logKey(channel)).Val(), int64(400))
		require.GreaterOrEqual(t, rdb.XLen(ctx, logKey(channel)).Val(), int64(200))
		require.EqualValues(t, 500, rdb.XLen(ctx, logKey(user)).Val())
		require.InDelta(t, time.Hour, rdb.PTTL(ctx, logKey(channel)).Val(), float64(time.Minute))
		require.EqualValues(t, -1, rdb.PTTL(ctx, logKey(user)).Val())
	})
}

type wrongPayload struct {
	X any `json:"x"`
}

func (wrongPayload) EventType() eventbus.Type { return "test.unregistered" }

func TestBadInputIsRefusedByNameAndNothingIsSent(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx := newBus(t, rdb, eventbus.WithMaxEventSize(4096)), deadline(t)
		project := uuid.New()
		with := func(change func(*eventbus.Event)) eventbus.Event {
			ev := message(t, project, "fine")
			change(&ev)
			return ev
		}
		for name, c := range map[string]struct {
			ev    eventbus.Event
			to    []eventbus.Channel
			field string
		}{
			"unknown type":            {ev: with(func(ev *eventbus.Event) { ev.Type = "agent.danced" }), field: "type"},
			"bad actor type":          {ev: with(func(ev *eventbus.Event) { ev.ActorType = "robot" }), field: "actor_type"},
			"payload of wrong struct": {ev: with(func(ev *eventbus.Event) { ev.Type = eventbus.IssueClosed }), field: "payload.issue_id"},
			"payload not an object":   {ev: with(func(ev *eventbus.Event) { ev.Payload = []byte(`[1]`) }), field: "payload"},
			"payload not JSON":        {ev: with(func(ev *eventbus.Event) { ev.Payload = []byte(`{"a":NaN}`) }), field: "payload"},
			"payload not UTF-8":       {ev: with(func(ev *eventbus.Event) { ev.Payload = []byte("{\"a\":\"\xff\"}") }), field: "payload"},
			"no project":              {ev: with(func(ev *eventbus.Event) { ev.ProjectID = uuid.Nil }), field: "project_id"},
			"no id":                   {ev: with(func(ev *eventbus.Event) { ev.ID = "" }), field: "id"},
			"id not a UUID":           {ev: with(func(ev *eventbus.Event) { ev.ID = "42" }), field: "id"},
			"no timestamp":            {ev: with(func(ev *eventbus.Event) { ev.Timestamp = time.Time{} }), field: "timestamp"},
			"zero channel":            {ev: message(t, project, "fine"), to: []eventbus.Channel{{}}, field: "channels[0]"},
			"channel with nil UUID":   {ev: message(t, project, "fine"), to: []eventbus.Channel{eventbus.UserChannel(uuid.Nil)}, field: "channels[0]"},
		} {
			var bad *eventbus.ValidationError
			require.ErrorAs(t, bus.Publish(ctx, c.ev, c.to...), &bad, name)
			require.Equal(t, c.field, bad.Fields[0].Field, name)
		}
		err := bus.Publish(ctx, message(t, project, strings.Repeat("x", 4096)))
		require.ErrorIs(t, err, eventbus.ErrLimit)
		for _, x := range []any{math.NaN(), math.Inf(1), "\xff", map[string]any{"y": []any{math.NaN()}}} {
			_, err := eventbus.NewEvent(project, eventbus.System(), wrongPayload{X: x})
			var bad *eventbus.ValidationError
			require.ErrorAs(t, err, &bad)
			require.Contains(t, bad.Fields[0].Field, "payload.x")
		}
		require.Empty(t, rdb.Keys(ctx, "*").Val())
	})
}

func TestSubscribeRefusesBadChannels(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx := newBus(t, rdb, eventbus.WithMaxChannels(2)), deadline(t)
	c := func() eventbus.Channel { return eventbus.UserChannel(uuid.New()) }
	for name, sub := range map[string]eventbus.Subscription{
		"channels": {},
		"zero":     {Channels: []eventbus.Channel{{}}},
		"too many": {Channels: []eventbus.Channel{c(), c(), c()}},
		"types":    {Channels: []eventbus.Channel{c()}, Types: []string{"[a"}},
	} {
		n := 0
		for _, err := range bus.SubscribeWith(ctx, sub) {
			_, bad := errors.AsType[*eventbus.ValidationError](err)
			require.True(t, bad || name == "too many" && errors.Is(err, eventbus.ErrLimit), "%s: %v", name, err)
			n++
		}
		require.Equal(t, 1, n, name)
		_, err := bus.Cursor(ctx, sub.Channels...)
		if name != "types" {
			require.Error(t, err, name)
		}
	}
	_, err := eventbus.ParseChannel("project:not-a-uuid")
	var bad *eventbus.ValidationError
	require.ErrorAs(t, err, &bad)
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	_, err := eventbus.New(nil)
	require.ErrorContains(t, err, "nil")
	_, err = eventbus.New((*redis.Client)(nil))
	require.ErrorContains(t, err, "nil")

	master := redistest.Start(t)
	rdb := master.Client(t)
	for _, wrong := range []struct {
		name   string
		option eventbus.Option
	}{
		{"WithPrefix", eventbus.WithPrefix("a b")},
		{"WithPrefix", eventbus.WithPrefix(`a"`)},
		{"WithPublishTimeout", eventbus.WithPublishTimeout(0)},
		{"WithRetention", eventbus.WithRetention(eventbus.Retention{Events: -1})},
		{"WithRetention", eventbus.WithRetention(eventbus.Retention{Age: 9 * time.Second})},
		{"WithChannelRetention", eventbus.WithChannelRetention(eventbus.UserKind, eventbus.Retention{Age: time.Millisecond})},
		{"WithMaxEventSize", eventbus.WithMaxEventSize(1)},
		{"WithLogger", eventbus.WithLogger(nil)},
		{"option 0 is nil", nil},
	} {
		_, err = eventbus.New(rdb, wrong.option)
		require.ErrorContains(t, err, wrong.name)
	}

	bus, c := newBus(t, rdb, quiet()), eventbus.ProjectChannel(uuid.New())
	for name, wrong := range map[string]eventbus.SSEOption{
		"WithKeepalive": eventbus.WithKeepalive(0), "WithWriteTimeout": eventbus.WithWriteTimeout(0), "WithRetry": eventbus.WithRetry(2 * time.Hour), "option 0 is nil": nil,
	} {
		for _, err := range bus.SubscribeSSE(deadline(t), eventbus.Subscription{Channels: []eventbus.Channel{c}}, wrong) {
			require.ErrorContains(t, err, name)
		}
		w := httptest.NewRecorder()
		bus.Handler(reads(c), wrong).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, http.StatusInternalServerError, w.Code)
		require.Contains(t, w.Body.String(), name)
	}

	_, port, _ := strings.Cut(master.Addr, ":")
	replica := redistest.Start(t, "--replicaof", "127.0.0.1", port)
	_, err = eventbus.New(replica.Client(t))
	require.ErrorIs(t, err, eventbus.ErrUnsupported)
	require.ErrorContains(t, err, "master")

	require.NoError(t, rdb.Do(deadline(t), "ACL", "SETUSER", "weak", "on", ">secret", "~*", "&*", "+@all", "-xadd").Err())
	weak := redis.NewClient(&redis.Options{Addr: master.Addr, Username: "weak", Password: "secret"})
	defer weak.Close()
	_, err = eventbus.New(weak)
	require.ErrorIs(t, err, eventbus.ErrUnsupported)
	require.ErrorContains(t, err, "ACL")
	require.NotContains(t, err.Error(), "secret")

	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": master.Addr}})
	defer ring.Close()
	_, err = eventbus.New(ring)
	require.ErrorIs(t, err, eventbus.ErrUnsupported)

	gone := redistest.Start(t)
	gone.Kill()
	_, err = eventbus.New(gone.Client(t))
	require.ErrorIs(t, err, eventbus.ErrUnavailable)
}

func TestClosedBusAndEndedContextAreTold(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, project := newBus(t, rdb), uuid.New()
		channel := eventbus.ProjectChannel(project)
		cause := errors.New("had enough")
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(cause)
		require.ErrorIs(t, bus.Publish(ctx, message(t, project, "x")), cause)
		for _, err := range bus.Subscribe(ctx, channel) {
			require.ErrorIs(t, err, cause)
		}
		require.NoError(t, bus.Close())
		require.NoError(t, bus.Close())
		require.ErrorIs(t, bus.Publish(deadline(t), message(t, project, "x")), eventbus.ErrClosed)
		_, err := bus.Cursor(deadline(t), channel)
		require.ErrorIs(t, err, eventbus.ErrClosed)
		require.ErrorIs(t, bus.Health(), eventbus.ErrClosed)
		for _, err := range bus.Subscribe(deadline(t), channel) {
			require.ErrorIs(t, err, eventbus.ErrClosed)
		}
	})
}

func TestPrefixSeparatesBuses(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, project := deadline(t), uuid.New()
		a, b := newBus(t, rdb, eventbus.WithPrefix("a:")), newBus(t, rdb, eventbus.WithPrefix("b:"))
		require.NoError(t, a.Publish(ctx, message(t, project, "of a")))
		require.NoError(t, b.Publish(ctx, message(t, project, "of b")))
		for ev, err := range b.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}, Oldest: true}) {
			require.NoError(t, err)
			require.Equal(t, "of b", text(t, ev))
			break
		}
		require.EqualValues(t, 1, rdb.XLen(ctx, "eventbus:log:{a:project:"+project.String()+"}").Val())
	})
}

// TestPublishedAgainInAnotherOrder, and to fewer channels, after an error: each log that has the event
// keeps its one entry, and the others note it.
func TestPublishedAgainInAnotherOrder(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		x, y := eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New())
		require.NoError(t, rdb.Set(ctx, logKey(y), "no log", 0).Err())
		ev := message(t, project, "once")
		ev.ID = strings.ToUpper(ev.ID)
		var failed *eventbus.PublishError
		require.ErrorAs(t, bus.Publish(ctx, ev, x, y), &failed)
		require.Equal(t, []eventbus.Channel{eventbus.ProjectChannel(project), x}, failed.Done)
		require.Equal(t, []eventbus.Channel{y}, failed.Missing)
		require.ErrorAs(t, bus.Publish(ctx, ev, y), &failed)
		require.NoError(t, rdb.Del(ctx, logKey(y)).Err())
		receipt, err := bus.PublishWith(ctx, ev, eventbus.PublishOptions{Channels: []eventbus.Channel{y, x}})
		require.NoError(t, err)
		require.Equal(t, ev.ID, receipt.ID)
		for _, c := range []eventbus.Channel{eventbus.ProjectChannel(project), x, y} {
			require.EqualValues(t, 1, rdb.XLen(ctx, logKey(c)).Val())
		}
		require.Contains(t, rdb.XRange(ctx, logKey(y), "-", "+").Val()[0].Values["also"], x.String())
		require.NoError(t, bus.Publish(ctx, message(t, project, "next"), x))
		for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{x}, After: receipt.Cursor}) {
			require.NoError(t, err)
			require.Equal(t, "next", text(t, ev))
			break
		}
	})
}
