package tests

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

// run makes the channel of a run that no other test has.
func run(t *testing.T) eventbus.Channel {
	c, err := eventbus.NewChannel("run", uuid.NewString())
	require.NoError(t, err)
	return c
}

// TestEndRefusesWhatFollows: nothing comes into any log behind an end, by any process, also where
// the hash beside the log is lost.
func TestEndRefusesWhatFollows(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		one, other, ctx := newBus(t, rdb), newBus(t, rdb), deadline(t)
		r, project := run(t), uuid.New()
		publish := func(bus *eventbus.Bus, opts eventbus.PublishOptions) error {
			_, err := bus.PublishWith(ctx, message(t, project, "x"), opts)
			return err
		}
		require.NoError(t, publish(one, eventbus.PublishOptions{Channels: []eventbus.Channel{r}}))
		last := message(t, project, "last")
		end := eventbus.PublishOptions{Channels: []eventbus.Channel{r}, Ends: []eventbus.Channel{r}, Idempotent: true}
		first, err := one.PublishWith(ctx, last, end)
		require.NoError(t, err)
		again, err := other.PublishWith(ctx, last, end)
		require.NoError(t, err, "the log has it")
		require.True(t, again.Repeated)
		require.Equal(t, first.Cursor, again.Cursor)

		refused := func(name string) {
			for _, bus := range []*eventbus.Bus{one, other} {
				for _, opts := range []eventbus.PublishOptions{
					{Channels: []eventbus.Channel{r}}, {Channels: []eventbus.Channel{r}, NoProject: true}, {Channels: []eventbus.Channel{r}, Idempotent: true}, end,
				} {
					err := publish(bus, opts)
					require.ErrorIs(t, err, eventbus.ErrEnded, name)
					pe, ok := errors.AsType[*eventbus.PublishError](err)
					require.True(t, ok)
					require.Contains(t, pe.Missing, r)
					require.Empty(t, append(pe.Done, pe.Unknown...))
					require.ErrorContains(t, err, r.String())
				}
			}
			require.EqualValues(t, 2, rdb.XLen(ctx, logKey(r)).Val(), name)
			require.EqualValues(t, 2, rdb.XLen(ctx, logKey(eventbus.ProjectChannel(project))).Val(), name)
		}
		refused("as it is")
		require.NoError(t, rdb.Del(ctx, "eventbus:producers:{"+r.String()+"}").Err())
		refused("without the hash")

		require.NoError(t, rdb.Del(ctx, logKey(r)).Err())
		require.NoError(t, publish(other, eventbus.PublishOptions{Channels: []eventbus.Channel{r}}), "the end lives as long as the log")
	})
}

func TestEndIsMarkedOnTheWire(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, r, project := newBus(t, rdb), deadline(t), run(t), uuid.New()
		listener := rdb.Subscribe(ctx, r.String(), eventbus.ProjectChannel(project).String())
		defer listener.Close()
		for range 2 {
			_, err := listener.Receive(ctx)
			require.NoError(t, err)
		}
		require.NoError(t, bus.Publish(ctx, message(t, project, "before"), r))
		ev := message(t, project, "last")
		_, err := bus.PublishWith(ctx, ev, eventbus.PublishOptions{Channels: []eventbus.Channel{r}, Ends: []eventbus.Channel{r}})
		require.NoError(t, err)
		for range 2 {
			_, err := listener.ReceiveMessage(ctx)
			require.NoError(t, err)
		}
		m, err := listener.ReceiveMessage(ctx)
		require.NoError(t, err)
		require.NotContains(t, m.Payload, "final", "the project's channel goes on")
		at := rdb.XRevRangeN(ctx, logKey(eventbus.ProjectChannel(project)), "+", "-", 1).Val()[0].ID
		m, err = listener.ReceiveMessage(ctx)
		require.NoError(t, err)
		entry := rdb.XRevRangeN(ctx, logKey(r), "+", "-", 1).Val()[0]
		plain, err := ev.MarshalJSON()
		require.NoError(t, err)
		also := eventbus.ProjectChannel(project).String() + "@" + at
		want := strings.TrimSuffix(string(plain), "}") + `,"position":"` + entry.ID + `","also":"` + also + `","final":true,"prev":"`
		require.Equal(t, want, m.Payload[:len(want)])
		require.Equal(t, map[string]any{"event": string(plain), "also": also, "final": "1"}, entry.Values)
		require.Equal(t, entry.ID, rdb.HGet(ctx, "eventbus:producers:{"+r.String()+"}", "ended").Val())
	})
}

func TestPublishOptionsNameWhatIsWrong(t *testing.T) {
	rdb := onMiniredis(t)
	bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
	for field, opts := range map[string]eventbus.PublishOptions{
		"channels":    {NoProject: true},
		"channels[1]": {Channels: []eventbus.Channel{r, {}}},
		"ends[0]":     {Channels: []eventbus.Channel{run(t)}, Ends: []eventbus.Channel{r}},
		"ends[1]":     {Channels: []eventbus.Channel{r}, Ends: []eventbus.Channel{r, {}}},
	} {
		_, err := bus.PublishWith(ctx, message(t, project, "x"), opts)
		bad, ok := errors.AsType[*eventbus.ValidationError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, field, bad.Fields[0].Field)
	}
	p := eventbus.ProjectChannel(project)
	for _, channels := range [][]eventbus.Channel{nil, {p}, {p, r}} {
		_, err := bus.PublishWith(ctx, message(t, project, "x"), eventbus.PublishOptions{Channels: channels, Ends: []eventbus.Channel{p}})
		require.ErrorContains(t, err, "ends[0] is a project's channel, which cannot end")
	}
	require.Empty(t, rdb.Keys(ctx, "eventbus:*").Val(), "nothing was sent")
}

func TestNoProjectLeavesTheProjectOut(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
		receipt, err := bus.PublishWith(ctx, message(t, project, "token"), eventbus.PublishOptions{Channels: []eventbus.Channel{r}, NoProject: true})
		require.NoError(t, err)
		require.False(t, receipt.Cursor.IsZero())
		require.Zero(t, rdb.Exists(ctx, logKey(eventbus.ProjectChannel(project))).Val())
		require.EqualValues(t, 1, rdb.XLen(ctx, logKey(r)).Val())
	})
}

// TestMaxLogBytes: a log holds about so many bytes, whatever the sizes of its events, and its
// newest event always.
func TestMaxLogBytes(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		const most = 1 << 20
		bus, ctx := newBus(t, rdb, eventbus.WithMaxLogBytes(most)), deadline(t)
		project := uuid.New()
		key := logKey(eventbus.ProjectChannel(project))
		held := func() (n, bytes int) {
			for _, e := range rdb.XRange(ctx, key, "-", "+").Val() {
				n, bytes = n+1, bytes+len(e.Values["event"].(string))
			}
			return n, bytes
		}
		publish := func(n, size int) {
			for range n {
				require.NoError(t, bus.Publish(ctx, message(t, project, strings.Repeat("x", size))))
			}
		}
		publish(500, 100)
		n, _ := held()
		require.Equal(t, 500, n, "far below the bound, all are kept")
		publish(3, 200<<10)
		n, bytes := held()
		require.Equal(t, 503, n, "few large events do not drive the small ones out")
		publish(20, 200<<10)
		n, bytes = held()
		require.Greater(t, bytes, most*3/4)
		require.Less(t, bytes, most*5/4)
		require.Less(t, n, 10)
		publish(3000, 1000)
		n, bytes = held()
		require.Greater(t, bytes, most*3/4)
		require.Less(t, bytes, most*5/4)

		small := newBus(t, rdb, eventbus.WithMaxLogBytes(1))
		ev := message(t, project, "the newest")
		require.NoError(t, small.Publish(ctx, ev))
		newest := rdb.XRevRangeN(ctx, key, "+", "-", 1).Val()
		require.Len(t, newest, 1)
		require.Contains(t, newest[0].Values["event"], ev.ID)
	})
}

func TestMaxLogBytesIsNotNegative(t *testing.T) {
	rdb := onMiniredis(t)
	_, err := eventbus.New(rdb, eventbus.WithMaxLogBytes(-1))
	require.ErrorContains(t, err, "WithMaxLogBytes")
	newBus(t, rdb, eventbus.WithChannelRetention("run", eventbus.Retention{Events: 5, Age: time.Hour}))
	_, err = eventbus.New(rdb, eventbus.WithChannelRetention("Run", eventbus.Retention{Events: 5, Age: time.Hour}))
	require.ErrorContains(t, err, "WithChannelRetention")
}
