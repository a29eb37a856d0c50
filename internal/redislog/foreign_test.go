package redislog

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sample"
	"github.com/syndarix/eventbus/internal/wire"
)

// heard makes what a bus makes of an event that it has heard on a channel.
func heard(channel string, ev wire.Event) *Foreign {
	return &Foreign{Channel: channel, Event: ev, JSON: ev.AppendJSON(nil)}
}

// append1 makes a call of its own for an event, which must succeed.
func append1(t testing.TB, l *Log, e *Foreign) wire.Event {
	t.Helper()
	l.AppendForeign(context.Background(), []*Foreign{e})
	require.NoError(t, e.Err)
	return e.Event
}

// entryAt gives the fields of a log's entry.
func entryAt(t testing.TB, client *redis.Client, channel string, at position.Position) map[string]any {
	t.Helper()
	found := client.XRange(context.Background(), logKey(channel), at.String(), at.String()).Val()
	require.Len(t, found, 1)
	return found[0].Values
}

// TestForeignEventIsInItsLogOnce: whoever calls, and however often, gets the place and the fields of
// the one entry.
func TestForeignEventIsInItsLogOnce(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, a, b := context.Background(), newTestLog(client), newTestLog(client)
		ev, next := sample.Event(), sample.Event()
		channel := "run:r"
		first := append1(t, a, heard(channel, ev))
		second := append1(t, b, heard(channel, next))
		require.Equal(t, position.Position{Epoch: first.Position.Epoch, Seq: 2}, second.Position)
		require.Equal(t, ev.ID[28:], second.Prev)
		require.Empty(t, first.Prev)
		for range 2 {
			require.Equal(t, first, append1(t, b, heard(channel, ev)))
			require.Equal(t, second, append1(t, a, heard(channel, next)))
		}
		upper := ev
		upper.ID = strings.ToUpper(ev.ID)
		e := heard(channel, upper)
		require.Equal(t, first.Position, append1(t, a, e).Position, "the case of a UUID does not matter")
		require.True(t, e.Differs, "the entry has the other text")
		require.Equal(t, map[string]any{"event": string(ev.AppendJSON(nil))}, entryAt(t, client, channel, first.Position))
		require.EqualValues(t, 2, client.XLen(ctx, logKey(channel)).Val())

		hash := client.HGetAll(ctx, producersKey(channel)).Val()
		require.Equal(t, next.ID[28:], hash["last"])
		require.Equal(t, fmt.Sprint(2*len(ev.AppendJSON(nil))), hash["bytes"])
		for _, key := range client.Keys(ctx, "eventbus:id:*").Val() {
			require.InDelta(t, 10*time.Minute, client.PTTL(ctx, key).Val(), float64(time.Minute))
		}
		require.NoError(t, client.XTrimMaxLen(ctx, logKey(channel), 1).Err())
		e = heard(channel, ev)
		require.Equal(t, first.Position, append1(t, a, e).Position)
		require.True(t, e.Differs, "there is no entry any more")

		require.NoError(t, client.Del(ctx, logKey(channel)).Err())
		again := append1(t, a, heard(channel, ev))
		require.Greater(t, again.Position.Epoch, first.Position.Epoch, "a marker of a log that was lost counts for nothing")
		require.EqualValues(t, 1, client.XLen(ctx, logKey(channel)).Val())
	})
}

// TestForeignEntriesSayWhereElseTheEventIs, in whatever order its channels come, and whoever appends.
func TestForeignEntriesSayWhereElseTheEventIs(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			ev := sample.Event()
			channels := []string{"project:" + ev.ProjectID.String(), "agent:" + uuid.NewString(), "run:r"}
			var places []string
			for _, i := range order {
				got := append1(t, newTestLog(client), heard(channels[i], ev))
				require.ElementsMatch(t, places, strings.Fields(got.Also))
				also, _ := entryAt(t, client, channels[i], got.Position)["also"].(string)
				require.Equal(t, got.Also, also)
				require.Equal(t, got, append1(t, newTestLog(client), heard(channels[i], ev)))
				places = append(places, channels[i]+"@"+got.Position.String())
			}
		}
	})
}

// TestAForeignEventOnManyChannels: what is kept of it has a bound.
func TestAForeignEventOnManyChannels(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		l, ev := newTestLog(client), sample.Event()
		for i := range 100 {
			channel := fmt.Sprint("run:", i)
			got := append1(t, l, heard(channel, ev))
			require.Len(t, strings.Fields(got.Also), min(i, 39)) // one more is for the project's channel
			require.Equal(t, got, append1(t, l, heard(channel, ev)))
		}
	})
}

// TestForeignFinalEndsTheLog, and what a log has that has ended is still found in it.
func TestForeignFinalEndsTheLog(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		before, last, late := sample.Event(), sample.Event(), sample.Event()
		last.Final = true
		events := []*Foreign{heard("run:r", before), heard("run:r", last), heard("run:r", late), heard("run:r", before)}
		l.AppendForeign(ctx, events)
		for i, want := range []bool{false, true, false, false} {
			require.Equal(t, want, events[i].Event.Final)
		}
		require.ErrorIs(t, events[2].Err, ErrEnded)
		require.Equal(t, events[0].Event, events[3].Event)
		end := events[1].Event.Position
		require.Equal(t, "1", entryAt(t, client, "run:r", end)["final"])
		require.Equal(t, end.String(), client.HGet(ctx, producersKey("run:r"), "ended").Val())
		c := newCommit(t, false, "run:r")
		require.Empty(t, l.Send(ctx, []*Call{l.newCall("one", 1, alone(c))}))
		require.ErrorIs(t, c.Records[0].Err, ErrEnded)

		require.NoError(t, client.Del(ctx, producersKey("run:r")).Err())
		l.AppendForeign(ctx, events[2:3])
		require.ErrorIs(t, events[2].Err, ErrEnded, "also without the hash")
		require.Equal(t, end, append1(t, l, heard("run:r", last)).Position)
		require.EqualValues(t, 2, client.XLen(ctx, logKey("run:r")).Val())
	})
}

// TestForeignAndIdempotentKnowEachOther: both leave the same marker beside a log.
func TestForeignAndIdempotentKnowEachOther(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		publish := func(ev wire.Event, channel string) Record {
			c := &Commit{ID: ev.ID, Event: ev.AppendJSON(nil), Idempotent: true, Records: []Record{{Channel: channel}}}
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, alone(c))}))
			require.NoError(t, c.Records[0].Err)
			return c.Records[0]
		}
		ev := sample.Event()
		project, agent := "project:"+ev.ProjectID.String(), "agent:"+uuid.NewString()
		for _, channel := range []string{project, agent} {
			at := append1(t, l, heard(channel, ev)).Position
			r := publish(ev, channel)
			require.True(t, r.Again, channel)
			require.Equal(t, at, r.Pos)
		}
		require.True(t, publish(ev, project).Again, "its marker says now where else the event is")
		ev = sample.Event()
		project = "project:" + ev.ProjectID.String()
		at := publish(ev, project).Pos
		require.Equal(t, at, append1(t, l, heard(project, ev)).Position)
		require.Equal(t, project+"@"+at.String(), append1(t, l, heard(agent, ev)).Also)
		require.Equal(t, ev.ID[28:], client.HGet(ctx, producersKey(agent), "last").Val())
	})
}

// TestOddIDsOfForeignEvents: they are known again, and the end of one never breaks a message.
func TestOddIDsOfForeignEvents(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		before := ""
		for i, odd := range []struct{ id, end string }{
			{"x", "x"}, {"X", "X"}, {"order 12345678", "12345678"}, {"größe", "e"}, {"ööööö", ""}, {"a\"b", ""}, {"a\nb}{:@ ", ""}, {strings.Repeat("z", 128), "zzzzzzzz"},
		} {
			ev := sample.Event()
			ev.ID = odd.id
			got := append1(t, l, heard("run:r", ev))
			require.EqualValues(t, i+1, got.Position.Seq)
			require.Equal(t, before, got.Prev)
			require.Equal(t, got, append1(t, newTestLog(client), heard("run:r", ev)))
			require.Equal(t, odd.end, client.HGet(ctx, producersKey("run:r"), "last").Val())
			before = odd.end
			page, err := l.Read(ctx, Request{Channel: "run:r", From: got.Position, Count: 10})
			require.NoError(t, err)
			require.True(t, page.Entries[0].Pos.Same(page.Last))
			own := got.Position
			own.Fingerprint = position.Fingerprint(ev.ID)
			require.True(t, own.Same(page.Last))
			require.True(t, own.Same(page.Entries[0].Pos))
		}
		listener := client.Subscribe(ctx, "run:r")
		defer listener.Close()
		_, err := listener.Receive(ctx)
		require.NoError(t, err)
		odd := sample.Event()
		odd.ID = "ö"
		append1(t, l, heard("run:r", odd))
		require.Empty(t, l.Send(ctx, []*Call{l.newCall("one", 1, alone(newCommit(t, false, "run:r")))}))
		m, err := listener.ReceiveMessage(ctx)
		require.NoError(t, err)
		ev, err := wire.Decode([]byte(m.Payload))
		require.NoError(t, err)
		require.Empty(t, ev.Prev)
	})
}

// TestForeignEventsThatRedisRefuses keep their order, and come into the log once later.
func TestForeignEventsThatRedisRefuses(t *testing.T) {
	client := redistest.Start(t).Client(t)
	ctx, l := context.Background(), newTestLog(client)
	events := []*Foreign{heard("run:a", sample.Event()), heard("run:b", sample.Event()), heard("run:a", sample.Event())}
	first := heard("run:a", sample.Event())
	append1(t, l, first)
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())
	l.AppendForeign(ctx, append(events, first))
	for _, e := range events {
		require.ErrorIs(t, e.Err, ErrUnavailable)
	}
	require.NoError(t, first.Err, "it is in the log")
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "0").Err())
	for range 2 {
		l.AppendForeign(ctx, events)
		for i, e := range events {
			require.NoError(t, e.Err)
			require.EqualValues(t, []int{2, 1, 3}[i], e.Event.Position.Seq)
		}
	}
	require.NoError(t, client.Set(ctx, logKey("run:bad"), "no log", 0).Err())
	bad := heard("run:bad", sample.Event())
	l.AppendForeign(ctx, []*Foreign{bad, events[1]})
	require.ErrorContains(t, bad.Err, "WRONGTYPE")
	require.NotErrorIs(t, bad.Err, ErrUnavailable)
	require.NoError(t, events[1].Err)
}

// TestAReplicaGivesNoAnswerFromItsMarkers: it may lag behind its master.
func TestAReplicaGivesNoAnswerFromItsMarkers(t *testing.T) {
	client := redistest.Start(t).Client(t)
	l, e := newTestLog(client), heard("run:r", sample.Event())
	append1(t, l, e)
	require.NoError(t, client.Do(context.Background(), "replicaof", "127.0.0.1", "1").Err())
	for _, e := range []*Foreign{e, heard("run:r", sample.Event()), heard("run:s", sample.Event())} {
		l.AppendForeign(context.Background(), []*Foreign{e})
		require.ErrorIs(t, e.Err, ErrUnavailable)
	}
}

// FuzzParseForeign: whatever Redis answers becomes a position, or an error.
func FuzzParseForeign(f *testing.F) {
	f.Add("1-1", "", "1", "x", uint8(4))
	f.Add("OOM", "", "", "", uint8(0))
	f.Fuzz(func(t *testing.T, a, b, c, d string, n uint8) {
		e := &Foreign{}
		if n == 0 {
			e.settle(a)
			require.Error(t, e.Err)
			return
		}
		e.settle([]any{a, b, c, d}[:min(n, 4)])
		require.Equal(t, e.Err != nil, e.Event.Position.IsZero())
	})
}

// BenchmarkForeign appends events to one log in calls of 64, as the first bus that hears them, and as
// another one.
func BenchmarkForeign(b *testing.B) {
	for _, again := range []bool{false, true} {
		b.Run(fmt.Sprint("again=", again), func(b *testing.B) {
			rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr})
			defer rdb.Close()
			l := &Log{client: rdb, epochs: make(map[string]int64), retention: func(string) Retention { return Retention{Events: 10_000, Age: time.Hour} }}
			events := make([]*Foreign, 64)
			for b.Loop() {
				for i := range events {
					if events[i] == nil || !again {
						events[i] = heard("run:r", sample.Event())
					}
				}
				l.AppendForeign(context.Background(), events)
				if events[63].Err != nil {
					b.Fatal(events[63].Err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
		})
	}
}
