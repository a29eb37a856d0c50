package tests

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// A logBook is a slog handler that keeps what it is given, line by line.
type logBook struct {
	mu    sync.Mutex
	lines []string
}

func (b *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (b *logBook) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *logBook) WithGroup(string) slog.Handler            { return b }
func (b *logBook) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	b.write(line)
	return nil
}

func (b *logBook) write(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
}

func (b *logBook) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines)
}

func (b *logBook) option() eventbus.Option { return eventbus.WithLogger(slog.New(b)) }

// garbage is no event, each in another way.
func garbage(project uuid.UUID) []string {
	event := func(member, value string) string {
		have := map[string]string{
			"id": `"a"`, "type": `"a.b"`, "timestamp": `"2024-01-15T10:30:00Z"`, "project_id": `"` + project.String() + `"`, "actor_type": `"system"`, "payload": "{}",
		}
		have[member] = value
		var b strings.Builder
		for _, name := range []string{"id", "type", "timestamp", "project_id", "actor_type", "payload"} {
			fmt.Fprintf(&b, `,"%s":%s`, name, have[name])
		}
		return "{" + b.String()[1:] + "}"
	}
	nested := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	return []string{
		"", "garbage", "{", "[]", "null", `"text"`, "{}", "\x00", "\xff\xfe", "data: x\n\nid: 1\n\n", `{"id":1}`, "{}{}", nested,
		event("id", "7"), event("id", `"\xff"`), event("id", "\"\x00\""), event("id", "\"a\nb\""),
		event("type", `"a.b\ndata: injected\n\n"`), event("type", `"a.b\rid: injected\r\r"`), event("type", `"a.b\r\nretry: 1"`),
		event("type", `"a.b: c"`), event("type", `"a.b\u0000"`), event("type", `"a.b\ud800"`), event("type", `"a.b\u2028c"`), event("type", `"stream.gap"`),
		event("type", `"one"`), event("type", `"a.`+strings.Repeat("b", 200)+`"`), event("type", `null`), event("type", `["a.b"]`),
		event("timestamp", "1e400"), event("timestamp", `"99999-01-01T00:00:00Z"`), event("timestamp", `"2024-01-15T10:30:00Z\nid: injected"`),
		event("project_id", `"x"`), event("actor_type", `"system\r"`), event("payload", "[]"), event("payload", nested), event("payload", `{"a":01}`),
		event("payload", `{"a":"`+"\n"+`"}`), event("payload", `{},"payload":7`),
	}
}

// settle waits until the bus has counted n unreadable things.
func settle(t testing.TB, bus *eventbus.Bus, n int64) {
	t.Helper()
	for ctx := deadline(t); bus.Stats().Unreadable < n; runtime.Gosched() {
		require.NoError(t, ctx.Err(), "%d unreadable things are counted, not %d", bus.Stats().Unreadable, n)
	}
}

// heap is what is in use once nothing is left to collect.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// requireOneLinePerBurst wants no more than a line at once and one every ten seconds.
func requireOneLinePerBurst(t testing.TB, log *logBook, began time.Time) {
	t.Helper()
	lines := log.all()
	require.NotEmpty(t, lines)
	require.LessOrEqual(t, len(lines), 1+int(time.Since(began)/(10*time.Second)), "%q", lines)
	for _, line := range lines {
		require.NotContains(t, line, "\n")
		require.Less(t, len(line), 500)
	}
}

// flood is what somebody sends who has a loop, and no idea what an event is.
const flood = 100_000

func TestFloodOfUnreadableMessages(t *testing.T) {
	eachRedisAlone(t, func(t *testing.T, rdb redis.UniversalClient) {
		log, began := &logBook{}, time.Now()
		bus, ctx, project := newBus(t, rdb, log.option()), deadline(t), uuid.New()
		c := eventbus.ProjectChannel(project)
		f := follow(t, bus, now(t, bus, c))
		publish(t, bus, project, nil, "before")
		f.count(1)
		messages := slices.DeleteFunc(garbage(project), func(m string) bool { return len(m) > 1000 }) // 2 GB otherwise

		before := heap()
		flood := flood
		if strings.Contains(t.Name(), "miniredis") {
			flood /= 10 // it takes its time
		}
		const parts = 10
		for part := range parts {
			pipe := rdb.Pipeline()
			for i := range flood / parts {
				pipe.Publish(ctx, c.String(), messages[i%len(messages)])
			}
			_, err := pipe.Exec(ctx)
			require.NoError(t, err)
			publish(t, bus, project, nil, fmt.Sprint("among ", part))
			settle(t, bus, int64((part+1)*flood/parts))
		}
		publish(t, bus, project, nil, "after")
		f.count(parts + 2)
		want := []string{"before"}
		for part := range parts {
			want = append(want, fmt.Sprint("among ", part))
		}
		f.exactly(append(want, "after"), 0)
		require.EqualValues(t, flood, bus.Stats().Unreadable)
		requireOneLinePerBurst(t, log, began)
		require.Less(t, heap()-before, int64(4<<20), "what cannot be read is kept")
		require.NoError(t, bus.Health())
	})
}

func TestFloodOfUnreadableLogEntries(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	log, began := &logBook{}, time.Now()
	bus, ctx, project := newBus(t, rdb, log.option(), eventbus.WithRetention(eventbus.Retention{})), deadline(t), uuid.New()
	c := eventbus.ProjectChannel(project)
	sub := now(t, bus, c)
	f := follow(t, bus, sub)
	publish(t, bus, project, nil, "before")
	f.count(1)
	epoch, _, _ := strings.Cut(newest(t, rdb, c), "-")
	messages := slices.DeleteFunc(garbage(project), func(m string) bool { return len(m) > 1000 })

	before := heap()
	const parts = 10
	want := []string{"before"}
	for part := range parts {
		pipe := rdb.Pipeline()
		for i := range flood / parts {
			field := "event"
			if i%10 == 0 {
				field = "other"
			}
			pipe.XAdd(ctx, &redis.XAddArgs{Stream: logOf(c), ID: epoch + "-*", Values: []any{field, messages[i%len(messages)]}})
		}
		_, err := pipe.Exec(ctx)
		require.NoError(t, err)
		want = append(want, fmt.Sprint("among ", part))
		publish(t, bus, project, nil, want[part+1])
		f.count(part + 2)
	}
	f.exactly(want, 0)
	// Those that come later go over all of it again.
	for range 2 {
		again := follow(t, bus, sub)
		again.count(len(want))
		again.exactly(want, 0)
	}
	settle(t, bus, flood)
	require.GreaterOrEqual(t, bus.Stats().Unreadable, int64(flood), "an entry counts each time that it is read")
	requireOneLinePerBurst(t, log, began)
	require.Less(t, heap()-before, int64(48<<20), "more than the pages that the bus keeps")
	require.NoError(t, bus.Health())
}

// Somebody lets Redis number what he puts into a log: that is the end of what was before,
// which is told, and told once.
func TestLogEntriesThatTheBusHasNotNumbered(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb, quiet(), eventbus.WithFreshness(200*time.Millisecond)), deadline(t), uuid.New()
		c := eventbus.ProjectChannel(project)
		sub := now(t, bus, c)
		f := follow(t, bus, sub)
		publish(t, bus, project, nil, "a", "b")
		f.count(2)
		began, _, _ := strings.Cut(newest(t, rdb, c), "-")
		require.Eventually(t, func() bool { // in the millisecond in which the log began, Redis would number as the bus does
			return fmt.Sprint(rdb.Time(ctx).Val().UnixMilli()) > began
		}, time.Minute, time.Millisecond)
		for _, values := range [][]any{{"event", "garbage"}, {"x", "y"}} {
			require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: logOf(c), ID: "*", Values: values}).Err())
		}
		publish(t, bus, project, nil, "c")
		f.until("c", func(texts []string, gaps []*eventbus.GapError) bool { return slices.Contains(texts, "c") })
		epoch, _, _ := strings.Cut(newest(t, rdb, c), "-")
		long := message(t, project, "long id")
		long.ID = strings.Repeat("long", 100)
		raw, err := long.MarshalJSON()
		require.NoError(t, err)
		require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: logOf(c), ID: epoch + "-*", Values: []any{"event", raw}}).Err())
		f.until("the long id", func(texts []string, gaps []*eventbus.GapError) bool { return slices.Contains(texts, "long id") })
		publish(t, bus, project, nil, "d")
		f.until("d", func(texts []string, gaps []*eventbus.GapError) bool { return slices.Contains(texts, "d") })
		f.end()
		require.Equal(t, []string{"a", "b", "c", "long id", "d"}, f.texts)
		require.LessOrEqual(t, len(f.gaps), 2) // one for each entry, or for both
		for name, sub := range map[string]eventbus.Subscription{
			"from the oldest": {Channels: sub.Channels, Oldest: true},
			"from before":     {Channels: sub.Channels, LastEventID: f.texts[0]},
		} {
			again := follow(t, bus, sub)
			again.count(3)
			t.Log(name)
			again.exactly([]string{"c", "long id", "d"}, len(sub.LastEventID)) // "a" is no id: one gap
		}
	})
}

// What is longer than the bus takes is counted, and keeps nobody waiting; another bus on
// the same Redis may take it.
func TestForeignMessageOfAMillionBytes(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		log, project := &logBook{}, uuid.New()
		c := eventbus.ProjectChannel(project)
		small, large := newBus(t, rdb, log.option()), newBus(t, rdb, eventbus.WithMaxEventSize(2<<20))
		few, all := follow(t, small, now(t, small, c)), follow(t, large, now(t, large, c))
		publish(t, small, project, nil, "before")
		few.count(1)
		all.count(1)
		big := strings.Repeat("ü\n", 333_334)
		raw, err := message(t, project, big).MarshalJSON()
		require.NoError(t, err)
		require.Greater(t, len(raw), 1_000_000)
		publishForeign(t, rdb, c, string(raw))
		all.count(2) // until then, a comparison with the log could bring what comes after it
		publish(t, small, project, nil, "after")
		few.count(2)
		all.count(3)
		few.exactly([]string{"before", "after"}, 0)
		all.exactly([]string{"before", big, "after"}, 0)
		require.EqualValues(t, 1, small.Stats().Unreadable)
		require.Zero(t, large.Stats().Unreadable)
		require.Len(t, log.all(), 1)
		require.ErrorIs(t, large.Publish(deadline(t), message(t, project, strings.Repeat("x", 2<<20))), eventbus.ErrLimit)
	})
}

// Nothing that a foreign message or log entry has in it gets out of its field.
func TestHostileMessagesInjectNothing(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb, quiet()), deadline(t), uuid.New()
		c := eventbus.ProjectChannel(project)
		s := joined(t, streams(t, bus, c))
		publish(t, bus, project, nil, "before")
		s.expect("before")
		bad := garbage(project)
		head := `"timestamp":"2024-01-15T10:30:00Z","project_id":"` + project.String() + `","actor_type":"system","payload":`
		good := map[string]string{ // type that is shown, by message
			`{"id":"a\ndata: injected\n\nevent: injected\n\n","type":"a.b",` + head + `{}}`:                                   "a.b",
			`{"id":"a\r\rid: injected\r\r","type":"a.c",` + head + `{"\r\n\r\nretry: 1":"\r\rretry: 1\n\n\u0000"}}`:           "a.c",
			"{\r\n\r\n\"id\":\"x\",\n\n\"type\":\"a.d\",\r\r" + head + "{\n\n\"retry\":\r\r1\n\n}\r\n\r\n}":                   "a.d",
			`{"id":"\ud800","type":"a.e",` + head + `{"\udfff":"\ud800\ud800"}}`:                                              "a.e",
			`{"id":"x","id":"\u0000","type":"one","type":"a.f",` + head + `[],"payload":{"a":1,"a":2}}`:                       "a.f",
			`{"id":"","type":"a.g",` + head + `{"n":-` + strings.Repeat("9", 10_000) + `e+` + strings.Repeat("9", 100) + `}}`: "a.g",
			`{"id":"x","type":"a.h",` + head + strings.Repeat(`{"a":`, 9_990) + `1` + strings.Repeat(`}`, 9_990) + `}`:        "a.h",
			`{"id":"x","type":"a.i",` + head + `{},"position":"1-1\nid: injected"}`:                                           "a.i",
			`{"id":"x","type":"a.j",` + head + `{},"position":-1e999,"event":"injected","data":"injected","retry":1}`:         "a.j",
			`{"id":"x","type":"a.k",` + head + "{\"\u2028\u2029\u0085\ufeff\":\"\x7f\"}}":                                     "a.k",
		}
		seen := map[string]int{}
		read := func(until string) {
			for {
				b := s.block()
				requireOwnFields(t, b)
				if b.Event == nil {
					require.True(t, b.Comment() || b.Has("id"), "%q", b.Lines)
					continue
				}
				require.NotContains(t, b.LastEventID, "injected")
				ev := decode(t, *b.Event)
				require.Equal(t, string(ev.Type), b.Event.Type)
				require.Equal(t, project, ev.ProjectID)
				names, _ := sseclient.Members(t, b.Event.Data)
				order := []string{"id", "type", "timestamp", "project_id", "actor_id", "actor_type", "payload"}
				if len(names) > 8 {
					order = append(order, "position")
				}
				require.Equal(t, append(order, "channel"), names)
				seen[b.Event.Type]++
				if b.Event.Type == "agent.message" && text(t, ev) == until {
					return
				}
			}
		}
		for _, m := range bad {
			publishForeign(t, rdb, c, m)
		}
		for m := range good {
			publishForeign(t, rdb, c, m)
		}
		publish(t, bus, project, nil, "after")
		read("after")
		settle(t, bus, int64(len(bad)))
		require.EqualValues(t, len(bad), bus.Stats().Unreadable)
		for _, typ := range good {
			require.Equal(t, 1, seen[typ], typ)
		}
		require.Len(t, seen, len(good)+1)

		// The same out of the log, where somebody has put it.
		epoch, _, _ := strings.Cut(newest(t, rdb, c), "-")
		id := s.LastEventID
		for _, m := range bad {
			require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: logOf(c), ID: epoch + "-*", Values: []any{"event", m, "also", "\n\nid: injected\n\n@1-1 @ x@"}}).Err())
		}
		for m := range good {
			require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: logOf(c), ID: epoch + "-*", Values: []any{"also", c.String() + "@1-1", "event", m}}).Err())
		}
		publish(t, bus, project, nil, "end")
		clear(seen)
		read("end")
		require.EqualValues(t, 2*len(bad), bus.Stats().Unreadable)
		for _, typ := range good {
			require.Equal(t, 1, seen[typ], typ)
		}
		s = joined(t, streams(t, newBus(t, rdb, quiet()), c), lastEventID(id))
		clear(seen)
		read("end")
		require.Len(t, seen, len(good)+1)
		require.Zero(t, bus.Stats().Gaps)
	})
}
