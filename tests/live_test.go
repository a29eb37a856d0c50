package tests

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// tokens publishes texts to a run alone.
func tokens(t testing.TB, bus *eventbus.Bus, r eventbus.Channel, texts ...string) {
	t.Helper()
	for _, text := range texts {
		_, err := bus.PublishWith(deadline(t), message(t, uuid.New(), text), eventbus.PublishOptions{Channels: []eventbus.Channel{r}, NoProject: true})
		require.NoError(t, err)
	}
}

// end publishes the last event of a channel, and gives its cursor.
func end(t testing.TB, bus *eventbus.Bus, r eventbus.Channel, text string, more ...eventbus.Channel) eventbus.Cursor {
	t.Helper()
	receipt, err := bus.PublishWith(deadline(t), message(t, uuid.New(), text),
		eventbus.PublishOptions{Channels: append(more, r), NoProject: true, Ends: []eventbus.Channel{r}})
	require.NoError(t, err)
	return receipt.Cursor
}

// history gives the texts of a subscription that ends by itself, and its last cursor. Gaps come as
// their reason.
func history(t testing.TB, bus *eventbus.Bus, sub eventbus.Subscription) (texts []string, last eventbus.Cursor) {
	t.Helper()
	for ev, err := range bus.SubscribeWith(deadline(t), sub) {
		if gap, ok := errors.AsType[*eventbus.GapError](err); ok {
			texts, last = append(texts, "gap "+string(gap.Reason)), gap.Cursor
			continue
		}
		require.NoError(t, err)
		texts, last = append(texts, text(t, ev)), ev.Cursor
	}
	return texts, last
}

// byQuery serves a stream as its query says: last, follow=no, and type.
func byQuery(channels ...eventbus.Channel) func(*http.Request) (eventbus.Subscription, error) {
	return func(r *http.Request) (eventbus.Subscription, error) {
		last, _ := strconv.Atoi(r.URL.Query().Get("last"))
		return eventbus.Subscription{
			Channels: channels, Types: r.URL.Query()["type"], Last: last, Oldest: r.URL.Query().Has("oldest"), NoFollow: r.URL.Query().Get("follow") == "no",
		}, nil
	}
}

// own wants the next event to be one of the bus's own, and gives its data.
func (s *sseStream) own(kind string) string {
	s.t.Helper()
	for {
		b, err := s.any()
		require.NoError(s.t, err, "the stream ended before %s", kind)
		if b.Event != nil {
			require.Equal(s.t, kind, b.Event.Type, b.Event.Data)
			return b.Event.Data
		}
	}
}

func TestNoFollowIsWhatTheLogsHave(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, other := newBus(t, rdb), newBus(t, rdb)
		a, b, none := run(t), run(t), run(t)
		tokens(t, bus, a, "1", "2", "3")
		tokens(t, bus, b, "x")
		for name, bus := range map[string]*eventbus.Bus{"its own events": bus, "another process": other} {
			channels := []eventbus.Channel{a, none, b}
			texts, last := history(t, bus, eventbus.Subscription{Channels: channels, Oldest: true, NoFollow: true})
			require.Equal(t, []string{"1", "2", "3", "x"}, texts, name)
			texts, _ = history(t, bus, eventbus.Subscription{Channels: channels, Last: 2, NoFollow: true})
			require.Equal(t, []string{"2", "3", "x"}, texts, name)
			texts, _ = history(t, bus, eventbus.Subscription{Channels: channels, Last: 2, NoFollow: true, Types: []string{"issue.*"}})
			require.Empty(t, texts, name)
			texts, _ = history(t, bus, eventbus.Subscription{Channels: channels, NoFollow: true})
			require.Empty(t, texts, "it begins and ends now")
			texts, _ = history(t, bus, eventbus.Subscription{Channels: channels, NoFollow: true, After: last})
			require.Empty(t, texts, name)
			require.Zero(t, rdb.Exists(deadline(t), logKey(none)).Val(), "it creates no logs")
			require.Zero(t, bus.Stats().Channels, "it listens to nothing")
		}
		// The cursor of a history goes on in a live subscription, also where there was no log.
		_, last := history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{a, none}, Last: 1, NoFollow: true})
		tokens(t, bus, a, "4")
		tokens(t, bus, none, "first")
		ctx, cancel := context.WithCancel(deadline(t))
		defer cancel()
		var texts []string
		for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{a, none}, After: last}) {
			require.NoError(t, err)
			if texts = append(texts, text(t, ev)); len(texts) == 2 {
				break
			}
		}
		require.ElementsMatch(t, []string{"4", "first"}, texts)
	})
}

// TestNoFollowSeesWhatWasPublishedBefore: also where the message is still on its way to the tail.
func TestNoFollowSeesWhatWasPublishedBefore(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		publisher, reader, r := newBus(t, rdb), newBus(t, rdb), run(t)
		ctx, cancel := context.WithCancel(deadline(t))
		defer cancel()
		go func() { // the tail is warm
			for range reader.Subscribe(ctx, r) {
			}
		}()
		for i := range 300 {
			tokens(t, publisher, r, fmt.Sprint(i))
			texts, _ := history(t, reader, eventbus.Subscription{Channels: []eventbus.Channel{r}, Last: 1, NoFollow: true})
			require.Equal(t, []string{fmt.Sprint(i)}, texts)
		}
	})
}

func TestNoFollowEndsWhereTheLogIsLost(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, r := newBus(t, rdb), run(t)
		tokens(t, bus, r, "1", "2")
		_, last := history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{r}, Oldest: true, NoFollow: true})
		require.NoError(t, rdb.Del(deadline(t), logKey(r)).Err())
		texts, _ := history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{r}, After: last, NoFollow: true})
		require.Equal(t, []string{"gap lost"}, texts)
		tokens(t, bus, r, "new")
		texts, _ = history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{r}, After: last, NoFollow: true})
		require.Equal(t, []string{"gap lost", "new"}, texts)
	})
}

// TestNoFollowDoesNotWaitForALogThatLostEvents: it is lost, or goes back to a place that is still in
// front of the reader, while it is read.
func TestNoFollowDoesNotWaitForALogThatLostEvents(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	for name, lose := range map[string]func(log string){
		"lost": func(log string) { require.NoError(t, rdb.Del(deadline(t), log).Err()) },
		"back": func(log string) {
			entries := rdb.XRange(deadline(t), log, "-", "+").Val()
			for _, e := range entries[400:] {
				require.NoError(t, rdb.XDel(deadline(t), log, e.ID).Err())
			}
			require.NoError(t, rdb.Do(deadline(t), "XSETID", log, entries[399].ID).Err())
		},
	} {
		bus, r := newBus(t, rdb), run(t)
		w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, NoProject: true})
		for i := range 600 {
			require.NoError(t, w.Write(deadline(t), message(t, uuid.New(), fmt.Sprint(i))))
		}
		require.NoError(t, w.Close(deadline(t)))
		n := 0
		for _, err := range bus.SubscribeWith(deadline(t), eventbus.Subscription{Channels: []eventbus.Channel{r}, Oldest: true, NoFollow: true}) {
			if _, gap := errors.AsType[*eventbus.GapError](err); gap {
				continue
			}
			require.NoError(t, err, name)
			if n++; n == 1 {
				lose(logKey(r))
			}
		}
		require.Less(t, n, 600, name)
	}
}

// TestNoFollowOfAnEventWhoseFirstLogIsGone: the other log has it.
func TestNoFollowOfAnEventWhoseFirstLogIsGone(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, r, project := newBus(t, rdb), run(t), uuid.New()
		publish(t, bus, project, []eventbus.Channel{r}, "1", "2")
		p := eventbus.ProjectChannel(project)
		require.NoError(t, rdb.Del(deadline(t), logKey(p)).Err())
		texts, _ := history(t, newBus(t, rdb), eventbus.Subscription{Channels: []eventbus.Channel{p, r}, Last: 50, NoFollow: true})
		require.Equal(t, []string{"1", "2"}, texts)
	})
}

func TestLastReachesBackToTheOldestWithoutAGap(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, r := newBus(t, rdb), run(t)
		tokens(t, bus, r, numbers(0, 10)...)
		require.NoError(t, rdb.XTrimMaxLen(deadline(t), logKey(r), 5).Err())
		for last, want := range map[int][]string{1: {"9"}, 4: numbers(6, 10), 5: numbers(5, 10), 6: numbers(5, 10), 1 << 40: numbers(5, 10)} {
			texts, _ := history(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{r}, Last: last, NoFollow: true})
			require.Equal(t, want, texts, last)
		}
		server := serve(t, handler(bus, byQuery(r)))
		s := joined(t, server, query("last", "2"))
		s.expect("8", "9")
		require.Equal(t, `{"replayed":2}`, s.own("stream.live"))
		tokens(t, bus, r, "10")
		at := s.expect("10").LastEventID
		tokens(t, bus, r, "11")
		joined(t, server, query("last", "5"), lastEventID(at)).expect("11") // EventSource repeats its URL
	})
}

func TestSubscriptionNamesWhatIsWrong(t *testing.T) {
	rdb := onMiniredis(t)
	bus, r := newBus(t, rdb), run(t)
	cursor, err := bus.Cursor(deadline(t), r)
	require.NoError(t, err)
	snapshot := func(context.Context) (any, eventbus.Cursor, error) { return nil, eventbus.Cursor{}, nil }
	for _, tc := range []struct {
		field string
		sub   eventbus.Subscription
	}{
		{"last", eventbus.Subscription{Last: -1}},
		{"last", eventbus.Subscription{Last: 1, After: cursor}},
		{"last", eventbus.Subscription{Last: 1, Oldest: true}},
		{"last", eventbus.Subscription{Last: 1, Snapshot: snapshot}},
		{"oldest", eventbus.Subscription{After: cursor, Oldest: true}},
		{"snapshot_key", eventbus.Subscription{Snapshot: snapshot, SnapshotKey: string(make([]byte, 1025))}},
	} {
		tc.sub.Channels = []eventbus.Channel{r}
		for _, err := range framesOf(deadline(t), bus, tc.sub) {
			bad, ok := errors.AsType[*eventbus.ValidationError](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, tc.field, bad.Fields[0].Field)
		}
	}
	for _, err := range bus.SubscribeWith(deadline(t), eventbus.Subscription{Channels: []eventbus.Channel{r}, Snapshot: snapshot}) {
		bad, ok := errors.AsType[*eventbus.ValidationError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, "snapshot", bad.Fields[0].Field)
	}
}

func TestNoFollowOverSSEEndsWithLive(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, r := newBus(t, rdb), run(t)
		tokens(t, bus, r, "1", "2", "3")
		s := joined(t, serve(t, handler(bus, byQuery(r))), query("last", "2"), query("follow", "no"))
		s.expect("2", "3")
		require.Equal(t, `{"replayed":2}`, s.own("stream.live"))
		require.Empty(t, s.rest())
	})
}

// TestLiveComesOnceAndBehindWhatTheLogsHad: with one channel and several, with types, at a join, a
// resume and after a gap.
func TestLiveComesOnceAndBehindWhatTheLogsHad(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus := newBus(t, rdb)
		for _, name := range []string{"one", "two"} {
			a := run(t)
			channels := []eventbus.Channel{a}
			if name == "two" {
				channels = append(channels, run(t))
			}
			server := serve(t, handler(bus, byQuery(channels...)))
			s := joined(t, server)
			require.Equal(t, `{"replayed":0}`, s.own("stream.live"), name)
			at := s.LastEventID
			tokens(t, bus, a, "1", "2", "3")
			s.expect("1", "2", "3")
			back := joined(t, server, lastEventID(at))
			back.expect("1", "2", "3")
			require.Equal(t, `{"replayed":3}`, back.own("stream.live"), name)
			tokens(t, bus, a, "4")
			back.expect("4")
			require.Empty(t, back.live, "once per connection")
			filtered := joined(t, server, lastEventID(at), query("type", "issue.*"))
			require.Equal(t, `{"replayed":0}`, filtered.own("stream.live"), name)
			require.NotEqual(t, at, filtered.LastEventID, "the place has moved over what is left out")

			require.NoError(t, rdb.XTrimMaxLen(deadline(t), logKey(a), 1).Err())
			cold := newBus(t, rdb)
			gapped := joined(t, serve(t, handler(cold, byQuery(channels...))), lastEventID(at))
			g, _ := gapped.gap()
			require.Equal(t, "trimmed", g.Reason)
			gapped.expect("4")
			require.Equal(t, `{"replayed":1}`, gapped.own("stream.live"), name)
		}
	})
}

// TestLiveIsExactBehindAPublish: what was published before the request comes before stream.live.
func TestLiveIsExactBehindAPublish(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		publisher, bus, r := newBus(t, rdb), newBus(t, rdb), run(t)
		server := serve(t, handler(bus, byQuery(r)))
		warm := joined(t, server)
		at := warm.LastEventID
		for i := range 100 {
			tokens(t, publisher, r, fmt.Sprint(i))
			s := joined(t, server, lastEventID(at))
			s.expect(numbers(0, i+1)...)
			require.Equal(t, fmt.Sprintf(`{"replayed":%d}`, i+1), s.own("stream.live"))
			s.leave()
		}
	})
}

func TestResumeDoesNotWaitForARedisThatIsAway(t *testing.T) {
	proxy := redistest.StartProxy(t, redistest.Start(t).Addr)
	bus, r := newBus(t, proxy.Client(t), quiet()), run(t)
	streams := serve(t, handler(bus, byQuery(r)))
	s := joined(t, streams)
	at := s.LastEventID
	tokens(t, bus, r, "1")
	s.expect("1")
	proxy.SetRefuse(true)
	proxy.Cut()
	back := joined(t, streams, lastEventID(at))
	back.expect("1")
	require.Equal(t, `{"replayed":1}`, back.own("stream.live"))
}
