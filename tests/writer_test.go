package tests

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// textsIn gives the texts of the messages in a log, in order.
func textsIn(t testing.TB, rdb redis.Cmdable, c eventbus.Channel) []string {
	t.Helper()
	texts := []string{}
	for _, e := range readLog(t, rdb, c) {
		texts = append(texts, e.text)
	}
	return texts
}

// textsOf gives the texts of messages.
func textsOf(t testing.TB, events []eventbus.Event) []string {
	t.Helper()
	texts := []string{}
	for _, ev := range events {
		texts = append(texts, text(t, ev))
	}
	return texts
}

// write writes numbered messages.
func write(t testing.TB, w *eventbus.Writer, project uuid.UUID, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		require.NoError(t, w.Write(deadline(t), message(t, project, fmt.Sprint(i))))
	}
}

// writeError gives the WriteError that an error is.
func writeError(t testing.TB, err error) *eventbus.WriteError {
	t.Helper()
	failed, ok := errors.AsType[*eventbus.WriteError](err)
	require.True(t, ok, "%v", err)
	return failed
}

// fieldOf is the first field that an error names.
func fieldOf(err error) string {
	if bad, ok := errors.AsType[*eventbus.ValidationError](err); ok {
		return bad.Fields[0].Field
	}
	return ""
}

func TestWriterKeepsTheOrderOfItsCalls(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
		channels := []eventbus.Channel{eventbus.ProjectChannel(project), r}
		f := follow(t, bus, now(t, bus, channels...))
		w := bus.NewWriter(eventbus.WriterOptions{Channels: channels[1:]})
		const n = 2000
		write(t, w, project, 0, n)
		_, err := w.Flush(ctx)
		require.NoError(t, err)
		for _, c := range channels {
			require.Equal(t, countTo(0, n), textsIn(t, rdb, c))
		}
		f.count(n)
		f.exactly(countTo(0, n), 0)
		require.EqualValues(t, n, bus.Stats().Published)
		require.NoError(t, w.Close(ctx))
	})
}

// TestWriterOfManyProjects: the projects' logs and the common one have the events in order.
func TestWriterOfManyProjects(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, r := newBus(t, rdb), deadline(t), run(t)
		projects := []uuid.UUID{uuid.New(), uuid.New()}
		w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
		want := map[uuid.UUID][]string{}
		for i := range 200 {
			p := projects[i/7%2]
			write(t, w, p, i, i+1)
			want[p] = append(want[p], fmt.Sprint(i))
		}
		cursor, err := w.Flush(ctx)
		require.NoError(t, err)
		require.Equal(t, countTo(0, 200), textsIn(t, rdb, r))
		for p, texts := range want {
			require.Equal(t, texts, textsIn(t, rdb, eventbus.ProjectChannel(p)))
		}
		last := eventbus.ProjectChannel(projects[199/7%2])
		write(t, w, projectOf(last), 200, 201)
		require.NoError(t, w.Close(ctx))
		f := follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{last, r}, After: cursor})
		f.count(1)
		f.exactly([]string{"200"}, 0)
	})
}

// An asked context says when somebody waits for its end.
type asked struct {
	context.Context
	once sync.Once
	done chan struct{}
}

func ask(ctx context.Context) *asked { return &asked{Context: ctx, done: make(chan struct{})} }

func (a *asked) Done() <-chan struct{} {
	a.once.Do(func() { close(a.done) })
	return a.Context.Done()
}

// TestFlushGivesThePlaceBehindWhatWasWritten, and not what was written after the call.
func TestFlushGivesThePlaceBehindWhatWasWritten(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, ctx, project, r := newBus(t, p.Client(t)), deadline(t), uuid.New(), run(t)
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
	cursor, err := w.Flush(ctx)
	require.NoError(t, err)
	require.True(t, cursor.IsZero(), "nothing was written")
	p.Freeze()
	var cursors [4]eventbus.Cursor
	var flushes sync.WaitGroup
	for i := range cursors {
		write(t, w, project, 10*i, 10*i+10)
		waiting := ask(ctx)
		flushes.Go(func() {
			var err error
			cursors[i], err = w.Flush(waiting)
			assert.NoError(t, err)
		})
		<-waiting.done
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	_, err = w.Flush(short)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	p.Thaw()
	flushes.Wait()
	again, err := w.Flush(ctx)
	require.NoError(t, err)
	require.Equal(t, cursors[3], again)
	write(t, w, project, 40, 41)
	require.NoError(t, w.Close(ctx))
	for i, cursor := range cursors {
		for _, channels := range [][]eventbus.Channel{{r}, {eventbus.ProjectChannel(project), r}} {
			f := follow(t, bus, eventbus.Subscription{Channels: channels, After: cursor})
			f.count(31 - 10*i)
			f.exactly(countTo(10*i+10, 41), 0)
		}
	}
}

func TestWriterNamesWhatIsWrong(t *testing.T) {
	rdb := onMiniredis(t)
	bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
	for field, opts := range map[string]eventbus.WriterOptions{
		"channels":    {NoProject: true},
		"channels[1]": {Channels: []eventbus.Channel{r, {}}},
		"buffer":      {Channels: []eventbus.Channel{r}, Buffer: -1},
	} {
		w := bus.NewWriter(opts)
		_, flushed := w.Flush(ctx)
		for _, err := range []error{w.Write(ctx, message(t, project, "x")), w.End(ctx, message(t, project, "x")), flushed, w.Close(ctx)} {
			require.Equal(t, field, fieldOf(err), "%v", err)
		}
	}
	for _, w := range []*eventbus.Writer{{}, new(eventbus.Bus).NewWriter(eventbus.WriterOptions{})} {
		_, flushed := w.Flush(ctx)
		for _, err := range []error{w.Write(ctx, message(t, project, "x")), w.End(ctx, message(t, project, "x")), flushed, w.Close(ctx)} {
			require.ErrorContains(t, err, "was not made by New")
		}
	}
	ends := bus.NewWriter(eventbus.WriterOptions{})
	require.Equal(t, "channels", fieldOf(ends.End(ctx, message(t, project, "x"))))
	ends = bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r, eventbus.ProjectChannel(uuid.New())}})
	require.ErrorContains(t, ends.End(ctx, message(t, project, "x")), "channels[1] is a project's channel, which cannot end")
	require.Empty(t, rdb.Keys(ctx, "eventbus:*").Val(), "nothing was sent")
}

// TestWriterRefusesABadEvent, and is as it was.
func TestWriterRefusesABadEvent(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project, r := newBus(t, rdb, eventbus.WithMaxEventSize(2000), eventbus.WithMaxChannels(2)), deadline(t), uuid.New(), run(t)
		w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
		write(t, w, project, 0, 1)
		bad := message(t, project, "x")
		bad.ID = "no id"
		for _, put := range []func(context.Context, eventbus.Event) error{w.Write, w.End} {
			require.Equal(t, "id", fieldOf(put(ctx, bad)))
			require.ErrorIs(t, put(ctx, message(t, project, strings.Repeat("x", 2000))), eventbus.ErrLimit)
		}
		ended, cancel := context.WithCancelCause(ctx)
		cause := errors.New("the cause")
		cancel(cause)
		require.Equal(t, cause, w.Write(ended, message(t, project, "x")))
		write(t, w, project, 1, 2)
		require.NoError(t, w.Close(ctx))
		require.Equal(t, countTo(0, 2), textsIn(t, rdb, r))
		many := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r, run(t)}})
		require.ErrorIs(t, many.Write(ctx, message(t, project, "x")), eventbus.ErrLimit)
	})
}

// TestWriterKeepsNoMemoryOfItsCaller: who writes may change the payload afterwards.
func TestWriterKeepsNoMemoryOfItsCaller(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, project := newBus(t, p.Client(t)), uuid.New()
	p.Freeze()
	defer p.Thaw()
	w := bus.NewWriter(eventbus.WriterOptions{})
	ev := message(t, project, "before")
	want := ev
	want.Payload = []byte(string(ev.Payload))
	require.NoError(t, w.Write(deadline(t), ev))
	copy(ev.Payload, strings.Repeat("x", len(ev.Payload)))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.Equal(t, []eventbus.Event{want}, writeError(t, w.Close(ended)).Events)
}

// TestEndIsTheLastEvent of the Writer's channels, while others publish to them.
func TestEndIsTheLastEvent(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
		channels := []eventbus.Channel{run(t), run(t)}
		var others sync.WaitGroup
		for i := range 4 {
			others.Go(func() {
				for {
					_, err := bus.PublishWith(ctx, message(t, project, "other"), eventbus.PublishOptions{Channels: channels[i%2 : i%2+1], NoProject: i < 2})
					if err != nil {
						assert.ErrorIs(t, err, eventbus.ErrEnded)
						return
					}
				}
			})
		}
		w := bus.NewWriter(eventbus.WriterOptions{Channels: channels})
		write(t, w, project, 0, 300)
		require.NoError(t, w.End(ctx, message(t, project, "300")))
		others.Wait()
		for _, c := range channels {
			texts := textsIn(t, rdb, c)
			require.Equal(t, "300", texts[len(texts)-1])
			entries := rdb.XRevRangeN(ctx, logKey(c), "+", "-", 1).Val()
			require.Equal(t, "1", entries[0].Values["final"])
		}
		entries := rdb.XRange(ctx, logKey(eventbus.ProjectChannel(project)), "-", "+").Val()
		require.NotContains(t, entries[len(entries)-1].Values, "final", "the project goes on")
		for _, err := range []error{w.Write(ctx, message(t, project, "x")), w.End(ctx, message(t, project, "x"))} {
			require.ErrorIs(t, err, eventbus.ErrClosed)
			require.EqualError(t, err, "eventbus: write: the writer is closed")
		}
		require.NoError(t, w.Close(ctx))
		cursor, err := w.Flush(ctx)
		require.NoError(t, err)
		require.False(t, cursor.IsZero())
	})
}

// TestIdleWritersHoldNoGoroutine, so that a program may have one for each run.
func TestIdleWritersHoldNoGoroutine(t *testing.T) {
	rdb := onMiniredis(t)
	bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
	publish(t, bus, project, []eventbus.Channel{r}, "starts the workers")
	before := runtime.NumGoroutine()
	writers := make([]*eventbus.Writer, 1000)
	for i := range writers {
		writers[i] = bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, NoProject: true})
		write(t, writers[i], project, i, i+1)
	}
	for _, w := range writers {
		_, err := w.Flush(ctx)
		require.NoError(t, err)
	}
	eventually(t, "their goroutines have ended", func() bool { return runtime.NumGoroutine() < before+50 && bus.Stats().Active == 0 })
	require.EqualValues(t, 1001, rdb.XLen(ctx, logKey(r)).Val())
	runtime.KeepAlive(writers)
}

// TestAThousandWritersShareCalls, as publishes do.
func TestAThousandWritersShareCalls(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx := newBus(t, rdb), deadline(t)
	const writers, rounds = 1000, 20
	runs := make([]eventbus.Channel, writers)
	var all sync.WaitGroup
	var written atomic.Int64
	for i := range runs {
		runs[i] = run(t)
		all.Go(func() {
			w := bus.NewWriter(eventbus.WriterOptions{Channels: runs[i : i+1], NoProject: true})
			for n := range rounds {
				assert.NoError(t, w.Write(ctx, message(t, uuid.New(), fmt.Sprint(n))))
				_, err := w.Flush(ctx) // Each Writer has one event under way, as with tokens that come slowly.
				assert.NoError(t, err)
				written.Add(1)
			}
			assert.NoError(t, w.Close(ctx))
		})
	}
	all.Wait()
	for _, r := range runs {
		require.Equal(t, countTo(0, rounds), textsIn(t, rdb, r))
	}
	calls := commandCalls(t, rdb, "evalsha")
	t.Logf("%d events in %d calls", written.Load(), calls)
	require.Less(t, calls, writers*rounds/4)
	require.EqualValues(t, writers*rounds, bus.Stats().Published)
}

// TestWriterIsSafeForConcurrentUse: each goroutine's events keep their order.
func TestWriterIsSafeForConcurrentUse(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
		w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, NoProject: true, Buffer: 20})
		var all sync.WaitGroup
		for g := range 10 {
			all.Go(func() {
				for i := range 100 {
					assert.NoError(t, w.Write(ctx, message(t, project, fmt.Sprint(g, " ", i))))
					if i%10 == 0 {
						_, err := w.Flush(ctx)
						assert.NoError(t, err)
					}
				}
			})
		}
		all.Wait()
		require.NoError(t, w.Close(ctx))
		next := make(map[int]int)
		for _, text := range textsIn(t, rdb, r) {
			var g, i int
			_, err := fmt.Sscan(text, &g, &i)
			require.NoError(t, err)
			require.Equal(t, next[g], i)
			next[g]++
		}
		require.Len(t, next, 10)
	})
}
