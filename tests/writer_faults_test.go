package tests

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
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

// A stream is a Writer at work: it writes numbered messages in the background, until it is told to
// end.
type stream struct {
	t       testing.TB
	w       *eventbus.Writer
	n       atomic.Int64 // how many were written
	halt    context.CancelFunc
	written sync.WaitGroup
}

func startStream(t testing.TB, w *eventbus.Writer, project uuid.UUID) *stream {
	ctx, halt := context.WithCancel(context.Background())
	s := &stream{t: t, w: w, halt: halt}
	s.written.Go(func() {
		for ctx.Err() == nil {
			if assert.NoError(t, w.Write(deadline(t), message(t, project, fmt.Sprint(s.n.Load())))) {
				s.n.Add(1)
			}
		}
	})
	t.Cleanup(s.end)
	return s
}

// more waits until n more events were written.
func (s *stream) more(n int64) {
	s.t.Helper()
	from := s.n.Load()
	eventually(s.t, "the Writer goes on", func() bool { return s.n.Load() >= from+n })
}

func (s *stream) end() {
	s.halt()
	s.written.Wait()
}

// closed ends the stream and its Writer, and gives the texts of its events.
func (s *stream) closed() []string {
	s.t.Helper()
	s.end()
	require.NoError(s.t, s.w.Close(deadline(s.t)))
	return countTo(0, int(s.n.Load()))
}

// unbounded keeps all events, so that a test can look at them in the end.
var unbounded = eventbus.WithRetention(eventbus.Retention{})

// TestWriterAcrossBrokenConnections: connections are cut at any time, and many replies are lost. Each
// event is in each of its logs once, in order.
func TestWriterAcrossBrokenConnections(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, project, r := newBus(t, split{p.Client(t), s.Client(t)}, unbounded, eventbus.WithMaxLogBytes(0)), uuid.New(), run(t)
	w := startStream(t, bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, Buffer: 50}), project)
	w.more(100)
	var replies, lost atomic.Int64
	p.SetOnReply(func(asked, _ []byte) bool {
		if !bytes.Contains(asked, []byte("evalsha")) || replies.Add(1)%3 != 0 {
			return true
		}
		lost.Add(1)
		return false
	})
	eventually(t, "replies are lost", func() bool { return lost.Load() >= 30 })
	p.SetOnReply(nil)
	for range 30 {
		w.more(10)
		p.Cut()
	}
	want := w.closed()
	for _, c := range []eventbus.Channel{r, eventbus.ProjectChannel(project)} {
		require.Equal(t, want, textsIn(t, s.Client(t), c))
	}
	t.Logf("%d events, %d replies lost, %d calls repeated", len(want), lost.Load(), bus.Stats().Retries)
	require.GreaterOrEqual(t, bus.Stats().Retries, lost.Load())
}

// TestWriterWaitsForRedis, which is killed in mid-stream and comes back with all that it has
// acknowledged.
func TestWriterWaitsForRedis(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	bus, project, r := newBus(t, s.Client(t), unbounded, eventbus.WithMaxLogBytes(0), eventbus.WithPublishTimeout(100*time.Millisecond)), uuid.New(), run(t)
	w := startStream(t, bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, Buffer: 200}), project)
	late, other := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{run(t)}}), uuid.New()
	for i := range 3 {
		w.more(300)
		s.Kill()
		write(t, late, other, 10*i, 10*i+10) // It has nothing on the wire that may have run.
		retries := bus.Stats().Retries
		eventually(t, "calls are repeated", func() bool { return bus.Stats().Retries > retries+5 })
		s.Restart(t)
	}
	w.more(300)
	want := w.closed()
	require.NoError(t, late.Close(deadline(t)))
	require.Equal(t, countTo(0, 30), textsIn(t, s.Client(t), eventbus.ProjectChannel(other)))
	for _, c := range []eventbus.Channel{r, eventbus.ProjectChannel(project)} {
		require.Equal(t, want, textsIn(t, s.Client(t), c))
	}
}

// TestFullMemoryStopsNoWriter: Writers wait for room, for longer than a publish does. A publish that
// shares a call with them, or comes behind them, fails as fast as without them, and certainly.
func TestFullMemoryStopsNoWriter(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project := newBus(t, rdb, eventbus.WithPublishTimeout(4*time.Second)), deadline(t), uuid.New()
	writers := make([]*eventbus.Writer, 10) // more than there are workers
	channels := make([]eventbus.Channel, len(writers))
	for i := range writers {
		channels[i] = run(t)
		writers[i] = bus.NewWriter(eventbus.WriterOptions{Channels: channels[i : i+1], NoProject: true})
		write(t, writers[i], project, 0, 100)
		_, err := writers[i].Flush(ctx)
		require.NoError(t, err)
	}
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "1").Err())
	for round := range 2 {
		for _, w := range writers {
			write(t, w, project, 100+10*round, 110+10*round)
		}
		events := []eventbus.Event{message(t, project, "refused"), message(t, project, "refused"), message(t, project, "refused")}
		var publishers sync.WaitGroup
		for _, ev := range events {
			publishers.Go(func() {
				err := bus.Publish(ctx, ev, channels[0])
				assert.ErrorIs(t, err, eventbus.ErrUnavailable)
				assert.ErrorContains(t, err, "OOM")
				var failed *eventbus.PublishError
				if assert.ErrorAs(t, err, &failed) {
					assert.Equal(t, []eventbus.Channel{eventbus.ProjectChannel(project), channels[0]}, failed.Missing)
				}
			})
		}
		publishers.Wait()
	}
	require.NoError(t, rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	for i, w := range writers {
		require.NoError(t, w.Close(ctx))
		require.Equal(t, countTo(0, 120), textsIn(t, rdb, channels[i]))
	}
	require.Zero(t, rdb.Exists(ctx, logKey(eventbus.ProjectChannel(project))).Val())
	require.NoError(t, bus.Publish(ctx, message(t, project, "taken"), channels[0]))
}

// TestAWriterThatMayNotRing: its events come into the log, but Redis refuses to publish them. That
// stops the Writer, and its error has only the events that are in no log.
func TestAWriterThatMayNotRing(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, NoProject: true})
	write(t, w, project, 0, 10)
	_, err := w.Flush(ctx)
	require.NoError(t, err)
	require.NoError(t, rdb.Do(ctx, "acl", "setuser", "default", "resetchannels").Err())
	n := 10
	for err = nil; err == nil; n++ {
		err = w.Write(ctx, message(t, project, fmt.Sprint(n)))
	}
	failed := writeError(t, err)
	require.ErrorContains(t, failed, "not all of its publish has run")
	in := textsIn(t, rdb, r)
	require.Greater(t, len(in), 10)
	require.Equal(t, countTo(0, n-1), append(in, textsOf(t, failed.Events)...))
}

// TestSentinelReplacesTheMasterOfAWriter: what the Writer sends afterwards is in the new master's log
// once, in order, behind what the replica had.
func TestSentinelReplacesTheMasterOfAWriter(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinels(t, 1)
	bus, project, r := newBus(t, s.Client(t), unbounded, eventbus.WithMaxLogBytes(0)), uuid.New(), run(t)
	channels := []eventbus.Channel{eventbus.ProjectChannel(project), r}
	w := startStream(t, bus.NewWriter(eventbus.WriterOptions{Channels: channels[1:], Buffer: 100}), project)
	w.more(500)
	s.Master.Kill()
	w.more(500)
	want := w.closed()
	for _, c := range channels {
		last := -1
		texts := textsIn(t, s.Client(t), c)
		for _, text := range texts {
			var n int
			_, err := fmt.Sscan(text, &n)
			require.NoError(t, err)
			require.Greater(t, n, last, "in order, and once")
			last = n
		}
		require.Equal(t, len(want)-1, last)
		t.Logf("%d events, %d in the log of %s", len(want), len(texts), c.Kind())
	}
}

// TestWriterInACluster: the logs are on several nodes, their slots move, and a master is replaced.
func TestWriterInACluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, true)
	rdb := c.Client(t)
	eachMode(t, func(t *testing.T, mode ...any) {
		bus, project := newBus(t, rdb, append(mode, unbounded, eventbus.WithMaxLogBytes(0))...), uuid.New()
		channels := append(spread(project, 4), run(t))
		readable := func(c eventbus.Channel) (texts []string) {
			eventually(t, "the log can be read", func() bool { return rdb.XLen(deadline(t), logKey(c)).Err() == nil })
			return textsIn(t, rdb, c)
		}
		f := follow(t, bus, now(t, bus, channels...))
		w := startStream(t, bus.NewWriter(eventbus.WriterOptions{Channels: channels[1:], Buffer: 100}), project)
		w.more(200)
		for i, ch := range channels {
			c.MoveSlot(t, slotOf(t, rdb, ch), c.Masters[i%3])
			w.more(50)
		}
		want := w.closed()
		for _, c := range channels {
			require.Equal(t, want, readable(c))
		}
		f.count(len(want))
		f.exactly(want, 0)
		last := bus.NewWriter(eventbus.WriterOptions{Channels: channels[1:]})
		require.NoError(t, last.End(deadline(t), message(t, project, "the end")))
		for _, ch := range channels[1:] {
			_, err := bus.PublishWith(deadline(t), message(t, project, "x"), eventbus.PublishOptions{Channels: []eventbus.Channel{ch}, NoProject: true})
			require.ErrorIs(t, err, eventbus.ErrEnded)
		}
	})
	bus, project := newBus(t, rdb, unbounded, eventbus.WithMaxLogBytes(0)), uuid.New()
	channels := spread(project, 3)
	w := startStream(t, bus.NewWriter(eventbus.WriterOptions{Channels: channels[1:], Buffer: 100}), project)
	w.more(200)
	master := c.Owner(t, slotOf(t, rdb, channels[0]))
	require.NoError(t, rdb.Do(deadline(t), "set", "{"+channels[0].String()+"}", "x").Err())
	master.Kill()
	w.more(300)
	n := len(w.closed())
	for _, ch := range channels {
		last := -1
		eventually(t, "the log can be read", func() bool { return rdb.XLen(deadline(t), logKey(ch)).Err() == nil })
		for _, text := range textsIn(t, rdb, ch) {
			var n int
			_, err := fmt.Sscan(text, &n)
			require.NoError(t, err)
			require.Greater(t, n, last, "in order, and once")
			last = n
		}
		require.Equal(t, n-1, last)
	}
}

// writeEnv makes this test binary a program that writes for ever: the address of Redis, a project
// and a channel.
const writeEnv = "EVENTBUS_TEST_WRITE"

func writeProcess(addr, project, channel string) error {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	bus, err := eventbus.New(rdb, unbounded, eventbus.WithMaxLogBytes(0))
	if err != nil {
		return err
	}
	r, err := eventbus.ParseChannel(channel)
	if err != nil {
		return err
	}
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
	for i := 0; ; i++ {
		agent := uuid.New()
		ev, err := eventbus.NewEvent(uuid.MustParse(project), eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: fmt.Sprint(i)})
		if err != nil {
			return err
		}
		if err := w.Write(context.Background(), ev); err != nil {
			return err
		}
		if i == 2000 {
			fmt.Println("streams")
		}
	}
}

// TestAProcessIsKilledWhileItsWriterStreams: the logs have the first events, without a hole.
func TestAProcessIsKilledWhileItsWriterStreams(t *testing.T) {
	s := redistest.Start(t)
	rdb := s.Client(t)
	for range 3 {
		project, r := uuid.New(), run(t)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writeEnv+"="+strings.Join([]string{s.Addr, project.String(), r.String()}, " "))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		_, err = bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.NoError(t, cmd.Process.Kill()) // This is SIGKILL.
		require.Error(t, cmd.Wait())
		texts := textsIn(t, rdb, r)
		require.NotEmpty(t, texts)
		require.Equal(t, countTo(0, len(texts)), texts)
		all := textsIn(t, rdb, eventbus.ProjectChannel(project))
		require.Equal(t, countTo(0, len(all)), all)
		t.Logf("%d events are in the log", len(texts))
	}
}
