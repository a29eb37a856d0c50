package tests

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// appendSource is the script that appends.
func appendSource(t testing.TB) string {
	begin, err := os.ReadFile("../internal/redislog/begin.lua")
	require.NoError(t, err)
	rest, err := os.ReadFile("../internal/redislog/append.lua")
	require.NoError(t, err)
	return string(begin) + string(rest)
}

// BenchmarkPublish publishes events of about 300 bytes from 1 and 256 goroutines, and
// in the same run calls the same script through go-redis by hand, once per event.
// ratio is events per second, ours to that.
func BenchmarkPublish(b *testing.B) {
	for _, goroutines := range []int{1, 256} {
		b.Run(fmt.Sprint("goroutines=", goroutines), func(b *testing.B) {
			rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr, PoolSize: goroutines})
			b.Cleanup(func() { _ = rdb.Close() })
			bus, ctx, project := newBus(b, rdb), context.Background(), uuid.New()
			ev := message(b, project, strings.Repeat("x", 40))
			raw, err := ev.MarshalJSON()
			require.NoError(b, err)
			script, name := redis.NewScript(appendSource(b)), "project:"+uuid.UUID{1}.String()
			type producer struct {
				id    string
				calls int
			}
			idle := make(chan *producer, goroutines)
			for range goroutines {
				idle <- &producer{id: uuid.NewString()}
			}
			byHand := func() error {
				p := <-idle
				defer func() { idle <- p }()
				p.calls++
				return script.Run(ctx, rdb, []string{"eventbus:log:{" + name + "}", "eventbus:producers:{" + name + "}"},
					1, p.id, p.calls, "PUBLISH", 600_000, name, 10_000, 64<<20, 86_400_000, 0, 1, "1", raw).Err()
			}
			require.NoError(b, byHand())
			spread := func(n int, publish func() error) time.Duration {
				var left atomic.Int64
				left.Store(int64(n))
				var wg sync.WaitGroup
				began := time.Now()
				for range goroutines {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							if err := publish(); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				return time.Since(began)
			}
			var ours, hand time.Duration
			n := 0
			for b.Loop() {
				const batch = 2048
				ours += spread(batch, func() error { return bus.Publish(ctx, ev) })
				hand += spread(batch, byHand)
				n += batch
			}
			b.ReportMetric(float64(n)/ours.Seconds(), "events/s")
			b.ReportMetric(float64(n)/hand.Seconds(), "byhand-events/s")
			b.ReportMetric(hand.Seconds()/ours.Seconds(), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// A benchToken is the payload of a small event: about 220 bytes on the wire.
type benchToken struct {
	Text string `json:"text" eventbus:"required"`
}

// EventType makes it a payload.
func (benchToken) EventType() eventbus.Type { return "bench.token" }

// BenchmarkWriter writes small events to one channel from one goroutine. In the same run, go-redis
// calls the same script by hand, once per event: each call on its own, and 64 calls in a pipeline.
// The ratios are events per second, ours to these.
func BenchmarkWriter(b *testing.B) {
	require.NoError(b, eventbus.Register[benchToken]())
	rdb := redistest.Start(b).Client(b)
	bus, ctx := newBus(b, rdb), context.Background()
	r, err := eventbus.NewChannel("run", "bench")
	require.NoError(b, err)
	ev, err := eventbus.NewEvent(uuid.New(), eventbus.System(), benchToken{"tokens "})
	require.NoError(b, err)
	raw, err := ev.MarshalJSON()
	require.NoError(b, err)
	script, name, call := redis.NewScript(appendSource(b)), "run:by-hand", 0
	require.NoError(b, script.Load(ctx, rdb).Err())
	byHand := func(c redis.Scripter) *redis.Cmd {
		call++
		return script.EvalSha(ctx, c, []string{"eventbus:log:{" + name + "}", "eventbus:producers:{" + name + "}"},
			1, "by hand", call, "PUBLISH", 600_000, name, 10_000, 64<<20, 86_400_000, 0, 1, "1", raw)
	}
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, NoProject: true})
	timed := func(took *time.Duration, f func()) {
		began := time.Now()
		f()
		*took += time.Since(began)
	}
	const batch = 8192
	var ours, alone, piped time.Duration
	n := 0
	for b.Loop() {
		timed(&ours, func() {
			for range batch {
				require.NoError(b, w.Write(ctx, ev))
			}
			_, err := w.Flush(ctx)
			require.NoError(b, err)
		})
		timed(&alone, func() {
			for range batch / 16 { // It is slow, so it has a part of the events.
				require.NoError(b, byHand(rdb).Err())
			}
		})
		timed(&piped, func() {
			for range batch / 64 {
				pipe := rdb.Pipeline()
				for range 64 {
					byHand(pipe)
				}
				_, err := pipe.Exec(ctx)
				require.NoError(b, err)
			}
		})
		n += batch
	}
	b.ReportMetric(float64(n)/ours.Seconds(), "events/s")
	b.ReportMetric(16*alone.Seconds()/ours.Seconds(), "ratio-byhand")
	b.ReportMetric(piped.Seconds()/ours.Seconds(), "ratio-pipelined")
	b.ReportMetric(0, "ns/op")
}

// An audience is many SSE connections that count the events they are sent.
type audience struct {
	conns []net.Conn
	got   atomic.Int64
	more  chan struct{}
	wg    sync.WaitGroup
}

// listen opens connections to a server, as plainly as can be, so that what is measured
// is the server.
func listen(b *testing.B, server *httptest.Server, n int) *audience {
	a := &audience{more: make(chan struct{}, 1)}
	ready := make(chan struct{}, n)
	for range n {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		require.NoError(b, err)
		a.conns = append(a.conns, conn)
		_, err = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
		require.NoError(b, err)
		a.wg.Go(func() {
			lines := bufio.NewReader(conn)
			for {
				line, err := lines.ReadSlice('\n')
				switch {
				case err != nil:
					return
				case bytes.HasPrefix(line, []byte("retry:")):
					ready <- struct{}{}
				case bytes.HasPrefix(line, []byte("data:")):
					a.got.Add(1)
					select {
					case a.more <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	for range n {
		<-ready
	}
	return a
}

// wait until so many events were received in all.
func (a *audience) wait(n int64) {
	for a.got.Load() < n {
		<-a.more
	}
}

func (a *audience) leave() {
	for _, c := range a.conns {
		_ = c.Close()
	}
	a.wg.Wait()
}

// BenchmarkFanOut sends one event to 1,000 SSE connections over loopback HTTP, and in
// the same run the same bytes from a bare handler that has them in memory. ratio is
// deliveries per second, ours to that.
func BenchmarkFanOut(b *testing.B) {
	const n = 1000
	rdb := redistest.Start(b).Client(b)
	bus, ctx, project := newBus(b, rdb), context.Background(), uuid.New()
	channel := eventbus.ProjectChannel(project)
	ev := message(b, project, strings.Repeat("x", 40))

	bell := struct {
		sync.Mutex
		rung chan struct{}
	}{rung: make(chan struct{})}
	var frame []byte
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		next := func() chan struct{} { bell.Lock(); defer bell.Unlock(); return bell.rung }
		rung := next()
		fmt.Fprint(w, "retry: 1\n\n")
		w.(http.Flusher).Flush()
		for {
			select {
			case <-rung:
			case <-r.Context().Done():
				return
			}
			rung = next()
			_, _ = w.Write(frame)
			w.(http.Flusher).Flush()
		}
	}))
	defer bare.Close()
	ours := httptest.NewServer(handler(bus, func(*http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{Channels: []eventbus.Channel{channel}}, nil
	}))
	defer ours.Close()

	raw, err := ev.MarshalJSON()
	require.NoError(b, err)
	frame = fmt.Appendf(nil, "id: %s\nevent: %s\ndata: %s\n\n", strings.Repeat("c", 20), ev.Type, raw)
	a, limit := listen(b, ours, n), listen(b, bare, n)
	defer a.leave()
	defer limit.leave()
	var oursTook, limitTook time.Duration
	var events int64
	for b.Loop() {
		events++
		began := time.Now()
		require.NoError(b, bus.Publish(ctx, ev))
		a.wait(events * n)
		oursTook += time.Since(began)

		began = time.Now()
		bell.Lock()
		close(bell.rung)
		bell.rung = make(chan struct{})
		bell.Unlock()
		limit.wait(events * n)
		limitTook += time.Since(began)
	}
	b.ReportMetric(float64(events*n)/oursTook.Seconds(), "deliveries/s")
	b.ReportMetric(float64(events*n)/limitTook.Seconds(), "bare-deliveries/s")
	b.ReportMetric(limitTook.Seconds()/oursTook.Seconds(), "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkReplay gives one subscription 1,000 events: from the tail of a bus that has
// just seen them, and from the log, to one that has not. In the same run, go-redis
// reads the same entries with XRANGE. ratio is the time of that to ours.
func BenchmarkReplay(b *testing.B) {
	const n = 1000
	rdb := redistest.Start(b).Client(b)
	ctx, project := context.Background(), uuid.New()
	channel := eventbus.ProjectChannel(project)
	publisher := newBus(b, rdb)
	sub := now(b, publisher, channel)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if err := publisher.Publish(ctx, message(b, project, strings.Repeat("x", 40))); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	replay := func(bus *eventbus.Bus) time.Duration {
		began, got := time.Now(), 0
		for frame, err := range framesOf(ctx, bus, eventbus.Subscription{Channels: sub.Channels, After: sub.After}) {
			require.NoError(b, err)
			if got += bytes.Count(frame, []byte("\ndata: ")); got == n {
				break
			}
		}
		return time.Since(began)
	}
	for _, from := range []string{"tail", "log"} {
		b.Run("from="+from, func(b *testing.B) {
			bus := publisher
			if from == "tail" {
				listener := follow(b, publisher, sub)
				listener.count(n)
				listener.end()
			}
			var ours, plain time.Duration
			runs := 0
			for b.Loop() {
				if from == "log" {
					var err error
					bus, err = eventbus.New(rdb)
					require.NoError(b, err)
				}
				ours += replay(bus)
				if from == "log" {
					require.NoError(b, bus.Close())
				}
				began := time.Now()
				entries, err := rdb.XRange(ctx, logKey(channel), "-", "+").Result()
				require.NoError(b, err)
				require.Len(b, entries, n)
				plain += time.Since(began)
				runs++
			}
			b.ReportMetric(ours.Seconds()*1000/float64(runs), "ms/replay")
			b.ReportMetric(plain.Seconds()*1000/float64(runs), "xrange-ms")
			b.ReportMetric(plain.Seconds()/ours.Seconds(), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
