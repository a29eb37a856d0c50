package tests

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// TestStoppedReadersCostNobodyAnything: 100 clients stop reading while 20 MB go by. The
// others get everything meanwhile, memory does not grow, and the stopped ones go on
// without a hole: those whose connection is still there from where they were, those cut
// by the write deadline when they come back.
func TestStoppedReadersCostNobodyAnything(t *testing.T) {
	for name, writeTimeout := range map[string]time.Duration{"patient server": time.Minute, "cut": time.Second} {
		t.Run(name, func(t *testing.T) {
			const stopped, good, events = 100, 10, 1000
			rdb := redistest.Start(t).Client(t)
			// A bus of its own for the publisher: what is measured is what readers cost.
			publisher, project := newBus(t, rdb), uuid.New()
			bus := newBus(t, rdb, quiet(), eventbus.WithWriteTimeout(writeTimeout))
			server := streams(t, bus, eventbus.ProjectChannel(project))
			sub := now(t, bus, eventbus.ProjectChannel(project))
			payload := strings.Repeat("x", 20<<10)

			var asleep []*rawClient
			for range stopped {
				asleep = append(asleep, dialRaw(t, server, sub.After.String()))
			}
			follow := func(until int, latencies *latencies, sub eventbus.Subscription) (done *sync.WaitGroup) {
				done = &sync.WaitGroup{}
				for range good {
					done.Go(func() {
						i := 0
						for ev, err := range bus.SubscribeWith(deadline(t), sub) {
							if err != nil || !bytes.Contains(ev.Payload, fmt.Appendf(nil, `"message":"%d `, i)) {
								t.Error("a reader that keeps up:", i, err)
								return
							}
							latencies.add(time.Since(ev.Timestamp))
							if i++; i == until {
								return
							}
						}
					})
				}
				return done
			}
			publish := func(project uuid.UUID, n int) {
				for i := range n {
					require.NoError(t, publisher.Publish(deadline(t), message(t, project, fmt.Sprintf("%d %s", i, payload))))
				}
			}
			// For comparison: the same without anybody who is in the way.
			var alone, beside latencies
			other := uuid.New()
			undisturbed := follow(250, &alone, now(t, bus, eventbus.ProjectChannel(other)))
			publish(other, 250)
			undisturbed.Wait()

			awake := follow(events, &beside, sub)
			require.Eventually(t, func() bool { return bus.Stats().Active == stopped+good }, time.Minute, time.Millisecond)
			before := heap()
			publish(project, events)
			awake.Wait()
			after := heap()
			if writeTimeout < time.Minute {
				require.Eventually(t, func() bool { return bus.Stats().Active == 0 }, time.Minute, time.Millisecond, "the stopped ones were not cut")
			} else {
				require.Equal(t, stopped, bus.Stats().Active)
			}
			t.Logf("%d others: p50 %s, p99 %s without, p50 %s, p99 %s with %d stopped; heap %+.1f MiB", good,
				alone.at(0.5), alone.at(0.99), beside.at(0.5), beside.at(0.99), stopped, float64(int64(after)-int64(before))/(1<<20))
			require.Less(t, int64(after)-int64(before), int64(64<<20))

			var all sync.WaitGroup
			for _, c := range asleep[:5] { // it is 20 MB for each
				all.Go(func() { c.wakeUp(t, server, events) })
			}
			all.Wait()
			require.Zero(t, bus.Stats().Gaps)
		})
	}
}

type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) { l.mu.Lock(); l.all = append(l.all, d); l.mu.Unlock() }

func (l *latencies) at(part float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.all)
	return l.all[int(part*float64(len(l.all)-1))].Round(10 * time.Microsecond)
}

// A rawClient has asked for a stream and reads nothing of it.
type rawClient struct {
	conn net.Conn
	next int // number of the event that is to come
	id   string
}

func dialRaw(t *testing.T, server *httptest.Server, id string) *rawClient {
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: x\r\nAccept: text/event-stream\r\nLast-Event-ID: %s\r\n\r\n", id)
	require.NoError(t, err)
	return &rawClient{conn: conn, id: id}
}

// wakeUp reads what there is, comes back where it was cut, and wants every event once
// and in order. It takes a stream apart in a cheaper way than the parser: there is much.
func (c *rawClient) wakeUp(t *testing.T, server *httptest.Server, events int) {
	var body io.ReadCloser = c.conn
	defer func() { _ = body.Close() }()
	for c.next < events {
		frames := bufio.NewScanner(body)
		frames.Buffer(make([]byte, 64<<10), 1<<20)
		frames.Split(func(data []byte, _ bool) (int, []byte, error) {
			// What the end of the stream cuts off does not count.
			if i := bytes.Index(data, []byte("\n\n")); i >= 0 {
				return i + 2, data[:i], nil
			}
			return 0, nil, nil
		})
		for c.next < events && frames.Scan() {
			frame := frames.Bytes()
			if i := bytes.LastIndex(frame, []byte("id: ")); i >= 0 {
				c.id, _, _ = strings.Cut(string(frame[i+4:]), "\n")
			}
			if bytes.Contains(frame, []byte("data: ")) && !bytes.HasPrefix(frame, []byte("event: stream.live")) {
				if !bytes.Contains(frame, fmt.Appendf(nil, `"message":"%d `, c.next)) {
					t.Errorf("want event %d, got %.300s", c.next, frame)
					return
				}
				c.next++
			}
		}
		if c.next == events {
			return
		}
		_ = body.Close()
		r, err := http.NewRequestWithContext(deadline(t), http.MethodGet, server.URL, nil)
		if err == nil {
			r.Header.Set("Last-Event-ID", c.id)
			var response *http.Response
			if response, err = http.DefaultClient.Do(r); err == nil {
				body = response.Body
			}
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// TestSlowRedis answers everything 200 ms late: it is slower, and that is all.
func TestSlowRedis(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	bus, project := newBus(t, p.Client(t)), uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	p.SetDelay(200 * time.Millisecond)
	late := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	var published sync.WaitGroup
	var n atomic.Int64
	for range 50 {
		published.Go(func() {
			for range 4 {
				if err := bus.Publish(deadline(t), message(t, project, "x")); err != nil {
					t.Error(err)
				}
				n.Add(1)
			}
		})
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, bus.Publish(short, message(t, project, "y")), context.DeadlineExceeded)
	published.Wait()
	f.count(int(n.Load()))
	late.count(int(n.Load()))
	require.NoError(t, bus.Health())
	require.Zero(t, bus.Stats().Gaps+bus.Stats().Reconnects)
}
