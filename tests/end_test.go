package tests

import (
	"context"
	"errors"
	"net/http"
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
		n, _ = held()
		require.Equal(t, 503, n, "few large events do not drive the small ones out")
		publish(20, 200<<10)
		n, bytes := held()
		require.Greater(t, bytes, most*3/4)
		require.Less(t, bytes, most*5/4)
		require.Less(t, n, 10)
		publish(3000, 1000)
		_, bytes = held()
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

// TestStreamEnds: after the last event, whichever channel delivered it, comes stream.end with an id;
// after the last channel's end the response is over.
func TestStreamEnds(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, a, b := newBus(t, rdb), run(t), run(t)
		server := serve(t, handler(bus, byQuery(a, b)))
		s, typed := joined(t, server), joined(t, server, query("type", "issue.*"))
		tokens(t, bus, a, "1")
		tokens(t, bus, b, "2")
		end(t, bus, b, "3", a) // b's last event is delivered from a
		s.expect("1", "2", "3")
		id := s.LastEventID
		require.JSONEq(t, `{"channel":"`+b.String()+`"}`, s.own("stream.end"))
		require.NotEmpty(t, s.LastEventID)
		typed.own("stream.live")
		require.JSONEq(t, `{"channel":"`+b.String()+`"}`, typed.own("stream.end"), "types never hide it")
		tokens(t, bus, a, "4")
		end(t, bus, a, "5")
		s.expect("4", "5")
		require.JSONEq(t, `{"channel":"`+a.String()+`"}`, s.own("stream.end"))
		require.Empty(t, s.rest())
		require.JSONEq(t, `{"channel":"`+a.String()+`"}`, typed.own("stream.end"))
		require.Empty(t, typed.rest())

		// A client that was away gets the rest first, then stream.live, then the ends.
		for name, bus := range map[string]*eventbus.Bus{"warm": bus, "another process": newBus(t, rdb)} {
			back := joined(t, serve(t, handler(bus, byQuery(a, b))), lastEventID(id))
			back.expect("4", "5")
			require.Equal(t, `{"replayed":2}`, back.own("stream.live"), name)
			ends := []string{back.own("stream.end"), back.own("stream.end")}
			require.ElementsMatch(t, []string{`{"channel":"` + a.String() + `"}`, `{"channel":"` + b.String() + `"}`}, ends)
			require.Empty(t, back.rest())
			response, _ := get(t, server, lastEventID(back.LastEventID))
			require.Equal(t, http.StatusNoContent, response.StatusCode, "a browser that has everything stays away")
		}
		// Without a cursor, the answer is a stream.
		fresh := joined(t, server)
		require.Equal(t, `{"replayed":0}`, fresh.own("stream.live"))
		fresh.own("stream.end")
		fresh.own("stream.end")
		require.Empty(t, fresh.rest())
	})
}

func TestWalkEnds(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, other, a, b := newBus(t, rdb), newBus(t, rdb), run(t), run(t)
		project := uuid.New()
		texts := make(chan []string)
		for _, bus := range []*eventbus.Bus{bus, other} {
			go func() {
				got, _ := history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{a, b}, Oldest: true})
				texts <- got
			}()
		}
		tokens(t, bus, a, "1", "2")
		end(t, bus, a, "3")
		end(t, other, b, "4")
		for range 2 {
			require.ElementsMatch(t, []string{"1", "2", "3", "4"}, await(t, texts))
		}
		require.Empty(t, first(history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{a, b}})), "it had ended before")
		require.Equal(t, []string{"1", "2", "3", "4"}, first(history(t, other, eventbus.Subscription{Channels: []eventbus.Channel{a, b}, Oldest: true})))

		// Where one channel of a subscription has ended, the others go on.
		ctx, cancel := context.WithCancel(deadline(t))
		defer cancel()
		var got []string
		for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{a, eventbus.ProjectChannel(project)}, Last: 1}) {
			require.NoError(t, err)
			if got = append(got, text(t, ev)); len(got) == 1 {
				require.NoError(t, bus.Publish(ctx, message(t, project, "live")))
			} else {
				break
			}
		}
		require.Equal(t, []string{"3", "live"}, got)
	})
}

func first[A, B any](a A, _ B) A { return a }

// TestEndIsSeenAfterAFailureOfTheLink: the connection breaks while the reader stands at the end.
func TestEndIsSeenAfterAFailureOfTheLink(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr)
	bus, publisher, a, b := newBus(t, proxy.Client(t), quiet()), newBus(t, server.Client(t)), run(t), run(t)
	s := joined(t, serve(t, handler(bus, byQuery(a, b))))
	tokens(t, publisher, a, "1")
	s.expect("1")
	proxy.SetRefuse(true)
	proxy.Cut()
	end(t, publisher, a, "2")
	end(t, publisher, b, "3")
	proxy.SetRefuse(false)
	var got []string
	for _, b := range s.rest() {
		switch {
		case b.Event == nil:
		case b.Event.Type == "stream.end":
			got = append(got, "end")
		default:
			got = append(got, textOf(t, *b.Event))
		}
	}
	require.ElementsMatch(t, []string{"2", "end", "3", "end"}, got)
	require.Equal(t, "end", got[3])
}

// TestEndAgainstPublishers: many publish to a run and its project, one ends it. Each publish is in
// both logs or in none, and nothing is behind the end.
func TestEndAgainstPublishers(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		for range 10 {
			r, project := run(t), uuid.New()
			var wg sync.WaitGroup
			var mu sync.Mutex
			published, refused := map[string]bool{}, map[string]bool{}
			for range 4 {
				bus := newBus(t, rdb)
				wg.Go(func() {
					for {
						ev := message(t, project, "x")
						err := bus.Publish(deadline(t), ev, r)
						mu.Lock()
						if err == nil {
							published[ev.ID] = true
						} else {
							refused[ev.ID] = true
						}
						mu.Unlock()
						if err != nil {
							if !errors.Is(err, eventbus.ErrEnded) {
								t.Error(err)
							}
							return
						}
					}
				})
			}
			time.Sleep(5 * time.Millisecond)
			last := message(t, project, "last")
			_, err := newBus(t, rdb).PublishWith(deadline(t), last, eventbus.PublishOptions{Channels: []eventbus.Channel{r}, Ends: []eventbus.Channel{r}})
			require.NoError(t, err)
			wg.Wait()
			published[last.ID] = true
			for _, c := range []eventbus.Channel{r, eventbus.ProjectChannel(project)} {
				entries := rdb.XRange(deadline(t), logKey(c), "-", "+").Val()
				require.Len(t, entries, len(published), c)
				require.Contains(t, entries[len(entries)-1].Values["event"], last.ID)
				for _, e := range entries {
					var ev eventbus.Event
					require.NoError(t, ev.UnmarshalJSON([]byte(e.Values["event"].(string))))
					require.True(t, published[ev.ID])
					require.False(t, refused[ev.ID])
				}
			}
		}
	})
}

// TestEndOutlivesTrimming: however small the retention, the last event stays, and the end with it.
func TestEndOutlivesTrimming(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, r := newBus(t, rdb, eventbus.WithChannelRetention("run", eventbus.Retention{Events: 1, Age: time.Hour}), eventbus.WithMaxLogBytes(1)), run(t)
		for range 300 {
			tokens(t, bus, r, strings.Repeat("x", 100))
		}
		at := end(t, bus, r, "last")
		require.NoError(t, rdb.Del(deadline(t), "eventbus:producers:{"+r.String()+"}").Err())
		_, err := bus.PublishWith(deadline(t), message(t, uuid.New(), "x"), eventbus.PublishOptions{Channels: []eventbus.Channel{r}, NoProject: true})
		require.ErrorIs(t, err, eventbus.ErrEnded)
		require.Empty(t, first(history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{r}, After: at})))
	})
}
