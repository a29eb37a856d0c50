package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// foreign is an event as a foreign publisher sends it, with more members behind the seven.
func foreign(t testing.TB, ev eventbus.Event, members ...string) string {
	t.Helper()
	raw, err := ev.MarshalJSON()
	require.NoError(t, err)
	return strings.TrimSuffix(string(raw), "}") + strings.Join(append([]string{""}, members...), ",") + "}"
}

// shout does as the Python services do, once so many connections listen to the channel.
func shout(t testing.TB, rdb redis.UniversalClient, listeners int64, c eventbus.Channel, message string) {
	t.Helper()
	listened(t, rdb, listeners, c)
	heard, err := rdb.Publish(deadline(t), c.String(), message).Result()
	require.NoError(t, err)
	require.Equal(t, listeners, heard)
}

// listened waits until so many connections listen to each channel, one of them by patterns, if any
// does.
func listened(t testing.TB, rdb redis.UniversalClient, n int64, channels ...eventbus.Channel) {
	t.Helper()
	for _, c := range channels {
		require.Eventually(t, func() bool {
			by := rdb.PubSubNumSub(deadline(t), c.String()).Val()[c.String()]
			return by+min(1, rdb.PubSubNumPat(deadline(t)).Val()) >= n
		}, time.Minute, time.Millisecond, "%d listen to %s", n, c)
	}
}

// logOfIDs gives the ids in a log, in order.
func logOfIDs(t testing.TB, rdb redis.UniversalClient, c eventbus.Channel) (ids []string) {
	for _, e := range rdb.XRange(deadline(t), logKey(c), "-", "+").Val() {
		ids = append(ids, eventOf(t, e).ID)
	}
	return ids
}

// TestForeignEventIsLoggedAndDeliveredOnce, with its place: to a subscriber and a stream, again to
// those that come back, in another process, too, and once to a program that only listens.
func TestForeignEventIsLoggedAndDeliveredOnce(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		never := eventbus.WithFreshness(time.Hour) // a comparison with the log
		bus, other, ctx := newBus(t, rdb, eventbus.WithForeignLog(), never), newBus(t, rdb, eventbus.WithForeignLog(), never), deadline(t)
		project := uuid.New()
		c := eventbus.ProjectChannel(project)
		f, g := follow(t, bus, now(t, bus, c)), follow(t, other, now(t, other, c))
		s := joined(t, streams(t, bus, c))
		plain := rdb.Subscribe(ctx, c.String())
		defer plain.Close()
		listened(t, rdb, 3, c)
		ev := message(t, project, "0")
		before := s.LastEventID
		shout(t, rdb, 3, c, foreign(t, ev, `"also":"agent:x@1-1"`, `"prev":"12345678"`, `"channel":"user:x"`, `"final":true`))
		f.count(1)
		g.count(1)
		publish(t, bus, project, nil, "1")
		for _, f := range []*follower{f, g} {
			f.count(2)
			f.exactly(countTo(0, 2), 0)
		}
		entries := rdb.XRange(ctx, logKey(c), "-", "+").Val()
		require.Len(t, entries, 2)
		canonical, err := ev.MarshalJSON()
		require.NoError(t, err)
		require.Equal(t, map[string]any{"event": string(canonical)}, entries[0].Values)

		b := s.until(func(b sseBlock) bool { return b.Event != nil })
		requireCursor(t, b.Event.LastEventID)
		names, _ := sseclient.Members(t, b.Event.Data)
		require.Equal(t, []string{"id", "type", "timestamp", "project_id", "actor_id", "actor_type", "payload", "position", "channel"}, names)
		require.Equal(t, entries[0].ID, decode(t, *b.Event).Position.String())
		live := b.Event.Data
		server := streams(t, newBus(t, rdb, eventbus.WithForeignLog()), c)
		again := joined(t, server, lastEventID(before)).event()
		require.Equal(t, live, again.Data, "it is replayed as it was live")
		joined(t, server, lastEventID(b.Event.LastEventID)).expect("1")
		joined(t, server, lastEventID(ev.ID)).expect("1")

		heard := 0
		for range 4 {
			m, err := plain.ReceiveTimeout(ctx, time.Minute)
			require.NoError(t, err)
			if m, ok := m.(*redis.Message); ok && strings.Contains(m.Payload, ev.ID) {
				heard++
			} else if ok {
				require.Contains(t, m.Payload, `"prev":"`+ev.ID[28:]+`"`)
				break
			}
		}
		require.Equal(t, 1, heard)
		require.Zero(t, bus.Stats().Unreadable+other.Stats().Unreadable)
	})
}

// TestWithoutTheOptionForeignEventsAreLive: nothing of them is kept.
func TestWithoutTheOptionForeignEventsAreLive(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, project := newBus(t, rdb), uuid.New()
		c := eventbus.ProjectChannel(project)
		f := follow(t, bus, now(t, bus, c))
		publish(t, bus, project, nil, "0")
		f.count(1)
		shout(t, rdb, 1, c, foreign(t, message(t, project, "1"), `"final":true`))
		f.count(2)
		require.EqualValues(t, 1, rdb.XLen(deadline(t), logKey(c)).Val())
		require.Empty(t, rdb.Keys(deadline(t), "eventbus:id:*").Val())
	})
}

// TestWhatPythonSendsIsLogged: the log has what the schema of the Python services makes of it.
func TestWhatPythonSendsIsLogged(t *testing.T) {
	raw, err := os.ReadFile("../testdata/events.json")
	require.NoError(t, err)
	var vectors []struct {
		Case   string
		Input  json.RawMessage
		Error  bool
		Output map[string]any
	}
	require.NoError(t, json.Unmarshal(raw, &vectors))
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, project := newBus(t, rdb, eventbus.WithForeignLog(), quiet()), uuid.New()
		c := eventbus.ProjectChannel(project)
		relay(t, bus)
		logged := 0
		for i, v := range vectors {
			var ev eventbus.Event
			if json.Unmarshal(v.Input, &ev) != nil {
				continue // it is no event for any bus
			}
			// Most of them have the same id. So each gets its own.
			id := fmt.Sprintf("%s-%d", ev.ID, i)
			input := bytes.Replace(v.Input, []byte(ev.ID), []byte(id), 1)
			if ev.ID == "" || !bytes.Contains(input, []byte(id)) {
				continue
			}
			shout(t, rdb, 1, c, string(input))
			logged++
			require.Eventually(t, func() bool { return rdb.XLen(deadline(t), logKey(c)).Val() == int64(logged) }, time.Minute, time.Millisecond, v.Case)
			entry := rdb.XRevRangeN(deadline(t), logKey(c), "+", "-", 1).Val()[0].Values["event"].(string)
			if !v.Error {
				output := maps.Clone(v.Output)
				output["id"] = id
				want, err := json.Marshal(output)
				require.NoError(t, err)
				require.JSONEq(t, string(want), entry, v.Case)
			}
		}
		require.Greater(t, logged, 20)
	})
}

// TestForeignEventOfTwoChannelsComesOnce, to whoever reads both, now or later, though it takes two
// PUBLISHes, and whoever hears which of them.
func TestForeignEventOfTwoChannelsComesOnce(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx, logs := deadline(t), eventbus.WithForeignLog()
		both, one, relays := newBus(t, rdb, logs), newBus(t, rdb, logs), newBus(t, rdb, logs)
		project := uuid.New()
		p, a := eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New())
		sub := now(t, both, p, a)
		f, g := follow(t, both, sub), follow(t, one, now(t, one, a))
		relay(t, relays)
		listened(t, rdb, 2, p)
		listened(t, rdb, 3, a)
		const n = 200
		pipe := rdb.Pipeline()
		for i := range n {
			m := foreign(t, message(t, project, fmt.Sprint(i)))
			for _, k := range rand.Perm(2) {
				pipe.Publish(ctx, []string{p.String(), a.String()}[k], m)
			}
			if i%7 == 0 {
				_, err := pipe.Exec(ctx)
				require.NoError(t, err)
			}
		}
		_, err := pipe.Exec(ctx)
		require.NoError(t, err)
		f.count(n)
		g.count(n)
		publish(t, both, project, []eventbus.Channel{a}, "end")
		last := func(texts []string, _ []*eventbus.GapError) bool { return len(texts) > n }
		f.until("the last", last)
		g.until("the last", last)
		for name, f := range map[string]*follower{"live": f, "replayed": follow(t, newBus(t, rdb, logs), sub)} {
			f.until(name, last)
			f.mu.Lock()
			require.ElementsMatch(t, append(countTo(0, n), "end"), f.texts, name)
			require.Empty(t, f.gaps)
			f.mu.Unlock()
		}
		g.exactly(append(countTo(0, n), "end"), 0)
		for _, c := range []eventbus.Channel{p, a} {
			require.EqualValues(t, n+1, rdb.XLen(ctx, logKey(c)).Val())
		}
	})
}

// TestForeignFinalEndsTheChannel: a Python worker ends a run. What it sends then is dropped.
func TestForeignFinalEndsTheChannel(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		log, ctx := &logBook{}, deadline(t)
		bus, other := newBus(t, rdb, eventbus.WithForeignLog(), log.option()), newBus(t, rdb, eventbus.WithForeignLog(), quiet())
		project, r := uuid.New(), run(t)
		f, g := follow(t, bus, now(t, bus, r)), follow(t, other, now(t, other, r))
		for i := range 10 {
			shout(t, rdb, 2, r, foreign(t, message(t, project, fmt.Sprint(i))))
		}
		last := message(t, project, "10")
		shout(t, rdb, 2, r, foreign(t, last, `"final": true`))
		shout(t, rdb, 2, r, foreign(t, message(t, project, "late")))
		shout(t, rdb, 2, r, foreign(t, last, `"final": true`))
		f.count(11)
		g.count(11)
		settle(t, bus, 1)
		settle(t, other, 1)
		f.exactly(countTo(0, 11), 0)
		g.exactly(countTo(0, 11), 0)
		entry := rdb.XRevRangeN(ctx, logKey(r), "+", "-", 1).Val()[0]
		require.Equal(t, "1", entry.Values["final"])
		require.Equal(t, entry.ID, rdb.HGet(ctx, "eventbus:producers:{"+r.String()+"}", "ended").Val())
		require.EqualValues(t, 11, rdb.XLen(ctx, logKey(r)).Val())
		_, err := bus.PublishWith(ctx, message(t, project, "late"), eventbus.PublishOptions{Channels: []eventbus.Channel{r}, NoProject: true})
		require.ErrorIs(t, err, eventbus.ErrEnded)
		require.EqualValues(t, 1, bus.Stats().Unreadable)
		require.Len(t, log.all(), 1)
		require.Contains(t, log.all()[0], r.String()+": eventbus: the channel has ended")
	})
}

// TestForeignIDs: whatever the id is, it is known again; without one, an event is no event.
func TestForeignIDs(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, other, ctx := newBus(t, rdb, eventbus.WithForeignLog(), quiet()), newBus(t, rdb, eventbus.WithForeignLog(), quiet()), deadline(t)
		project := uuid.New()
		c := eventbus.ProjectChannel(project)
		sub := now(t, bus, c)
		f, g := follow(t, bus, sub), follow(t, other, sub)
		ids := []string{"x", "X", "7", "a\nb", `"`, `\`, "ö", "\u2028", "}{", " @1-1", strings.Repeat("z", 128), "01J9ZQ4TXXXXXXXXXXXXXXXXXX", "550e8400-e29b-41d4-a716-446655440000"}
		for range 2 {
			for i, id := range ids {
				ev := message(t, project, fmt.Sprint(i))
				ev.ID = id
				shout(t, rdb, 2, c, foreign(t, ev))
			}
		}
		upper := message(t, project, "upper")
		upper.ID = strings.ToUpper(ids[len(ids)-1])
		shout(t, rdb, 2, c, foreign(t, upper))
		for _, id := range []string{"", strings.Repeat("z", 129)} {
			ev := message(t, project, "no")
			ev.ID = id
			shout(t, rdb, 2, c, foreign(t, ev))
		}
		want := countTo(0, len(ids))
		f.count(len(want))
		for _, f := range []*follower{f, g} {
			f.count(len(want)) // an event of ours could overtake what the buses have only heard
		}
		for i := range 20 { // also between events of buses, and seen from their messages' prev
			text := fmt.Sprint(len(ids) + i)
			want = append(want, text)
			if i%2 == 0 {
				publish(t, bus, project, nil, text)
				continue
			}
			ev := message(t, project, text)
			ev.ID = ids[i%len(ids)] + "2"
			shout(t, rdb, 2, c, foreign(t, ev))
			f.count(len(want))
			g.count(len(want))
		}
		publish(t, other, project, nil, "end")
		want = append(want, "end")
		resumed := follow(t, newBus(t, rdb, eventbus.WithForeignLog()), sub)
		for _, f := range []*follower{f, g, resumed} {
			f.count(len(want))
			f.exactly(want, 0)
		}
		require.EqualValues(t, len(want), rdb.XLen(ctx, logKey(c)).Val())
		require.EqualValues(t, 2, bus.Stats().Unreadable)
		require.Zero(t, bus.Stats().Reconnects)
	})
}

// TestHostileForeignMessagesInjectNothing, in the log either. What is no event is counted.
func TestHostileForeignMessagesInjectNothing(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, project := newBus(t, rdb, eventbus.WithForeignLog(), quiet()), uuid.New()
		c := eventbus.ProjectChannel(project)
		s := joined(t, streams(t, bus, c))
		bad := garbage(project)
		for _, m := range bad {
			shout(t, rdb, 1, c, m)
		}
		settle(t, bus, int64(len(bad)))
		head := `"timestamp":"2024-01-15T10:30:00Z","project_id":"` + project.String() + `","actor_type":"system","payload":`
		good := []string{
			`{"id":"a\ndata: injected\n\nevent: injected\n\n","type":"a.b",` + head + `{}}`,
			`{"id":"a\r\rid: injected\r\r","type":"a.b",` + head + `{"\r\n\r\nretry: 1":"\r\rretry: 1\n\n\u0000"}}`,
			"{\r\n\r\n\"id\":\"1\",\n\n\"type\":\"a.b\",\r\r" + head + "{\n\n\"retry\":\r\r1\n\n}\r\n\r\n}",
			`{"id":"\ud800","type":"a.b",` + head + `{"\udfff":"\ud800\ud800"}}`,
			`{"id":"2","id":"\u0000","type":"one","type":"a.b",` + head + `[],"payload":{"a":1,"a":2}}`,
			`{"id":"3","type":"a.b",` + head + strings.Repeat(`{"a":`, 9_990) + `1` + strings.Repeat(`}`, 9_990) + `}`,
			`{"id":"4","type":"a.b",` + head + `{},"position":"1-1\nid: injected"}`,
			`{"id":"5","type":"a.b",` + head + `{},"position":-1e999,"event":"injected","data":"injected","retry":1}`,
			`{"id":"6","type":"a.b",` + head + "{\"\u2028\u2029\u0085\ufeff\":\"\x7f\"}}",
			`{"id":"} eventbus:log:{x} 1","type":"a.b",` + head + `{},"final":1,"also":7,"position":null}`,
		}
		var live []string
		for _, m := range good {
			shout(t, rdb, 1, c, m)
			b := s.until(func(b sseBlock) bool { return b.Event != nil })
			requireOwnFields(t, b)
			require.NotContains(t, b.LastEventID, "injected")
			live = append(live, b.Event.Data)
		}
		shout(t, rdb, 1, c, `{"id":"7","type":"a.b",`+head+`{},"position":"1-1"}`) // it claims to be of a bus
		settle(t, bus, int64(len(bad)+1))
		require.EqualValues(t, len(bad)+1, bus.Stats().Unreadable)
		require.EqualValues(t, len(good), rdb.XLen(deadline(t), logKey(c)).Val())
		server := serve(t, handler(newBus(t, rdb, eventbus.WithForeignLog()), func(r *http.Request) (eventbus.Subscription, error) {
			return eventbus.Subscription{Channels: []eventbus.Channel{c}, Oldest: true}, nil
		}))
		s = joined(t, server)
		for _, data := range live {
			require.Equal(t, data, s.event().Data)
		}
	})
}

// TestForeignAndOwnEventsKeepTheOrderOfTheLog, at every subscriber, while both come.
func TestForeignAndOwnEventsKeepTheOrderOfTheLog(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		var log lockedBuffer
		ctx, project := deadline(t), uuid.New()
		c := eventbus.ProjectChannel(project)
		var followers []*follower
		var buses []*eventbus.Bus
		for range 3 {
			bus := newBus(t, rdb, eventbus.WithForeignLog(), eventbus.WithFreshness(time.Second), eventbus.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
			buses = append(buses, bus)
			followers = append(followers, follow(t, bus, now(t, bus, c)))
		}
		listened(t, rdb, 3, c)
		const n = 300
		own := make(chan error)
		go func() {
			for i := range n {
				if err := buses[i%3].Publish(ctx, message(t, project, fmt.Sprint("own ", i))); err != nil {
					own <- err
				}
			}
			close(own)
		}()
		for i := range n {
			require.Positive(t, rdb.Publish(ctx, c.String(), foreign(t, message(t, project, fmt.Sprint("foreign ", i)))).Val())
		}
		require.NoError(t, <-own)
		for _, f := range followers {
			f.count(2 * n)
		}
		var order []string
		for _, e := range rdb.XRange(ctx, logKey(c), "-", "+").Val() {
			order = append(order, text(t, eventOf(t, e)))
		}
		for _, f := range followers {
			f.exactly(order, 0)
		}
		for _, kind := range []string{"own ", "foreign "} {
			i := 0
			for _, text := range order {
				if strings.HasPrefix(text, kind) {
					require.Equal(t, fmt.Sprint(kind, i), text)
					i++
				}
			}
		}
		require.NotContains(t, log.String(), "does not bring")
	})
}
