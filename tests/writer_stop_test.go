package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// TestALastingErrorStopsTheWriter: every later call returns the same error, with all that is not in
// its logs, in order. Another Writer goes on with that.
func TestALastingErrorStopsTheWriter(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		for name, broken := range map[string]struct {
			stop, mend func(ctx context.Context, r eventbus.Channel)
			is         error
			contains   string
		}{
			"no log": {
				stop:     func(ctx context.Context, r eventbus.Channel) { rdb.Set(ctx, logKey(r), "no log", 0) },
				mend:     func(ctx context.Context, r eventbus.Channel) { rdb.Del(ctx, logKey(r)) },
				contains: "WRONGTYPE",
			},
			"ended": {
				stop: func(ctx context.Context, r eventbus.Channel) {
					ev := message(t, uuid.New(), "the end")
					_, err := newBus(t, rdb).PublishWith(ctx, ev, eventbus.PublishOptions{Channels: []eventbus.Channel{r}, Ends: []eventbus.Channel{r}})
					require.NoError(t, err)
				},
				mend: func(ctx context.Context, r eventbus.Channel) {
					rdb.Del(ctx, logKey(r), "eventbus:producers:{"+r.String()+"}")
				},
				is: eventbus.ErrEnded, contains: "has ended",
			},
		} {
			bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
			w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, Buffer: 100})
			write(t, w, project, 0, 10)
			_, err := w.Flush(ctx)
			require.NoError(t, err)
			broken.stop(ctx, r)
			n := 10
			for err = nil; err == nil; n++ {
				err = w.Write(ctx, message(t, project, fmt.Sprint(n)))
			}
			failed := writeError(t, err)
			require.ErrorContains(t, failed, broken.contains)
			if broken.is != nil {
				require.ErrorIs(t, failed, broken.is)
			}
			require.Equal(t, countTo(10, n-1), textsOf(t, failed.Events), name)
			_, flushed := w.Flush(ctx)
			bad := message(t, project, "x")
			bad.ID = ""
			for _, err := range []error{w.Write(ctx, message(t, project, "x")), w.Write(ctx, bad), flushed, w.End(ctx, bad), w.Close(ctx), w.Close(ctx)} {
				require.Same(t, failed, err)
			}
			broken.mend(ctx, r)
			next := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
			for _, ev := range failed.Events {
				require.NoError(t, next.Write(ctx, ev))
			}
			require.NoError(t, next.Close(ctx))
			require.Equal(t, countTo(10, n-1), textsIn(t, rdb, r), name)
			all := textsIn(t, rdb, eventbus.ProjectChannel(project))
			require.Equal(t, countTo(0, n-1), all, name)
		}
	})
}

// TestAFullBufferMakesWriteWait: until there is room, or the context ends, or the Writer does.
func TestAFullBufferMakesWriteWait(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, ctx, project, r := newBus(t, p.Client(t), eventbus.WithMaxEventSize(8<<20)), deadline(t), uuid.New(), run(t)
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, Buffer: 4})
	full := func(ev eventbus.Event) {
		t.Helper()
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, w.Write(short, ev), context.DeadlineExceeded)
	}
	p.Freeze()
	write(t, w, project, 0, 4)
	full(message(t, project, "not taken"))
	waiting := ask(ctx)
	written := make(chan error)
	go func() { written <- w.Write(waiting, message(t, project, "4")) }()
	<-waiting.done
	p.Thaw()
	require.NoError(t, <-written)
	require.NoError(t, w.Close(ctx))
	require.Equal(t, countTo(0, 5), textsIn(t, s.Client(t), r))

	r = run(t)
	w = bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
	p.Freeze()
	large, huge := message(t, project, strings.Repeat("x", 1<<20)), message(t, project, strings.Repeat("x", 5<<20))
	for range 3 {
		require.NoError(t, w.Write(ctx, large))
	}
	full(large)
	full(huge)
	p.Thaw()
	_, err := w.Flush(ctx)
	require.NoError(t, err)
	p.Freeze()
	require.NoError(t, w.Write(ctx, huge), "a single one may be larger")
	full(message(t, project, "small"))
	go func() { written <- w.Write(ctx, message(t, project, "behind")) }()
	go func() { written <- w.Write(ctx, message(t, project, "behind")) }()
	closing, cancel := context.WithCancel(ctx)
	closed := make(chan error)
	go func() { closed <- w.Close(closing) }()
	for range 2 {
		require.ErrorIs(t, <-written, eventbus.ErrClosed)
	}
	cancel()
	require.Len(t, writeError(t, <-closed).Events, 1)
	p.Thaw()
}

// TestEndDoesNotWaitForRoom: nothing can come between it and the end of the Writer.
func TestEndDoesNotWaitForRoom(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, ctx, project, r := newBus(t, p.Client(t)), deadline(t), uuid.New(), run(t)
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, Buffer: 1})
	p.Freeze()
	write(t, w, project, 0, 1)
	waiting, written := ask(ctx), make(chan error)
	go func() { written <- w.Write(waiting, message(t, project, "too late")) }()
	<-waiting.done
	ended := make(chan error)
	go func() { ended <- w.End(ctx, message(t, project, "1")) }()
	require.ErrorIs(t, <-written, eventbus.ErrClosed)
	p.Thaw()
	require.NoError(t, <-ended)
	require.Equal(t, countTo(0, 2), textsIn(t, s.Client(t), r))
}

// TestCloseGivesUp what is not in its logs when its context ends. Publishing that again, with
// whatever of the bus, waits for the call on the wire, and brings nothing twice.
func TestCloseGivesUp(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	for name, again := range map[string]func(ctx context.Context, bus *eventbus.Bus, r eventbus.Channel, events []eventbus.Event) error{
		"another Writer": func(ctx context.Context, bus *eventbus.Bus, r eventbus.Channel, events []eventbus.Event) error {
			w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, Buffer: 7})
			for _, ev := range events {
				if err := w.Write(ctx, ev); err != nil {
					return err
				}
			}
			return w.Close(ctx)
		},
		"Publish": func(ctx context.Context, bus *eventbus.Bus, r eventbus.Channel, events []eventbus.Event) error {
			for _, ev := range events {
				if err := bus.Publish(ctx, ev, r); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			bus, ctx, project, r := newBus(t, p.Client(t)), deadline(t), uuid.New(), run(t)
			w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
			write(t, w, project, 0, 10)
			_, err := w.Flush(ctx)
			require.NoError(t, err)
			calls := commandCalls(t, s.Client(t), "evalsha")
			p.Freeze()
			write(t, w, project, 10, 300)
			ended, cancel := context.WithCancelCause(ctx)
			cause := errors.New("the cause")
			cancel(cause)
			failed := writeError(t, w.Close(ended))
			require.ErrorIs(t, failed, cause)
			require.Equal(t, countTo(10, 300), textsOf(t, failed.Events))
			require.Same(t, failed, w.Close(ctx))
			done := make(chan error)
			waiting := ask(ctx)
			go func() { done <- again(waiting, bus, r, failed.Events) }()
			<-waiting.done
			p.Thaw()
			require.NoError(t, <-done)
			require.Greater(t, commandCalls(t, s.Client(t), "evalsha"), calls)
			for _, c := range []eventbus.Channel{r, eventbus.ProjectChannel(project)} {
				require.Equal(t, countTo(0, 300), textsIn(t, s.Client(t), c))
			}
		})
	}
}

// TestShutdownFlushesWriters: what they have taken is in its logs, and they take no more.
func TestShutdownFlushesWriters(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, ctx, project, r := newBus(t, p.Client(t)), deadline(t), uuid.New(), run(t)
	idle := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, Buffer: 300})
	p.Freeze()
	write(t, w, project, 0, 300)
	require.Equal(t, 1, bus.Stats().Active)
	waiting, written := ask(ctx), make(chan error)
	go func() { written <- w.Write(waiting, message(t, project, "waits")) }()
	<-waiting.done
	over := make(chan error)
	go func() { over <- bus.Shutdown(ctx) }()
	require.ErrorIs(t, <-written, eventbus.ErrClosed)
	for _, w := range []*eventbus.Writer{idle, w} {
		require.Equal(t, eventbus.ErrClosed, w.Write(ctx, message(t, project, "late")))
		require.Equal(t, eventbus.ErrClosed, w.End(ctx, message(t, project, "late")))
	}
	p.Thaw()
	require.NoError(t, <-over)
	require.Equal(t, countTo(0, 300), textsIn(t, s.Client(t), r))
	require.NoError(t, w.Close(ctx))
	cursor, err := w.Flush(ctx)
	require.NoError(t, err)
	require.False(t, cursor.IsZero())
	require.NoError(t, idle.Close(ctx))
}

// TestTheEndOfTheBusStopsWriters at once, also while Redis does not answer.
func TestTheEndOfTheBusStopsWriters(t *testing.T) {
	s := redistest.Start(t)
	for name, end := range map[string]func(bus *eventbus.Bus) error{
		"Close": (*eventbus.Bus).Close,
		"Shutdown": func(bus *eventbus.Bus) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			require.ErrorIs(t, bus.Shutdown(ctx), context.DeadlineExceeded)
			return nil
		},
	} {
		p := redistest.StartProxy(t, s.Addr)
		bus, ctx, project := newBus(t, p.Client(t)), deadline(t), uuid.New()
		w := bus.NewWriter(eventbus.WriterOptions{})
		p.Freeze()
		write(t, w, project, 0, 300)
		waiting, flushed := ask(ctx), make(chan error)
		go func() {
			_, err := w.Flush(waiting)
			flushed <- err
		}()
		<-waiting.done
		require.NoError(t, end(bus), name)
		failed := writeError(t, <-flushed)
		require.ErrorIs(t, failed, eventbus.ErrClosed)
		require.Equal(t, countTo(0, 300), textsOf(t, failed.Events))
		require.Same(t, failed, w.Write(ctx, message(t, project, "x")))
		require.Same(t, failed, w.Close(ctx))
		p.Thaw()
	}
}
