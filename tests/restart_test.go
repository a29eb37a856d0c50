package tests

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// The environment of a process that is this test binary, run as a server.
const (
	serveEnv  = "EVENTBUS_TEST_SERVE" // addresses: its own, and that of Redis
	restRetry = 200 * time.Millisecond
)

// serveProcess is what a program with a bus does: it serves streams until SIGTERM, and
// then ends them in order.
func serveProcess(addr, redisAddr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	rdb := redis.NewClient(&redis.Options{Addr: redisAddr})
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: bus.Handler(func(r *http.Request) (eventbus.Subscription, error) {
		project, err := uuid.Parse(r.URL.Query().Get("project"))
		return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}}, err
	}, eventbus.WithRetry(restRetry))}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	fmt.Println("listening on", l.Addr())
	<-ctx.Done()
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := bus.Shutdown(end); err != nil {
		return err
	}
	if err := server.Shutdown(end); err != nil {
		return err
	}
	<-served
	return nil
}

// A process is one that runs serveProcess.
type process struct {
	addr, redis string
	cmd         *exec.Cmd
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), serveEnv+"="+p.addr+" "+p.redis)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	_, p.addr, _ = strings.Cut(strings.TrimSpace(line), "listening on ")
}

// TestRollingRestart restarts three processes one after the other under load, with 200
// clients that come back as browsers do: when they were told to, with the last event id.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	const browsers = 200
	s := redistest.Start(t)
	publisher, project := newBus(t, s.Client(t), eventbus.WithPublishTimeout(time.Minute)), uuid.New()
	sub := now(t, publisher, eventbus.ProjectChannel(project))
	processes := make([]*process, 3)
	for i := range processes {
		processes[i] = &process{addr: "127.0.0.1:0", redis: s.Addr}
		processes[i].start(t)
	}
	var addrs []string
	for _, p := range processes {
		addrs = append(addrs, p.addr)
	}
	clients := make([]*browser, browsers)
	var all, connected sync.WaitGroup
	connected.Add(browsers)
	for i := range clients {
		clients[i] = &browser{
			t: t, addrs: addrs, turn: i, query: "?project=" + project.String(), id: sub.After.String(),
			connected: connected.Done, last: make(chan int, 1),
		}
		all.Go(clients[i].run)
	}
	connected.Wait()

	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		for _, p := range processes {
			began := time.Now()
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			if err := p.cmd.Wait(); err != nil {
				t.Error("a process did not end well:", err)
			}
			t.Logf("a process with about %d streams ended in %s", browsers/len(processes), time.Since(began).Round(time.Millisecond))
			p.start(t)
		}
	}()
	n := 0
	for done := false; !done; n++ {
		select {
		case <-restarted:
			done = true
		default:
		}
		require.NoError(t, publisher.Publish(deadline(t), message(t, project, fmt.Sprint(n))))
	}
	for _, c := range clients {
		c.last <- n
	}
	require.NoError(t, publisher.Publish(deadline(t), message(t, project, "the end")))
	all.Wait()

	var retries []int
	came := 0
	for _, c := range clients {
		require.Equal(t, n, c.next)
		retries = append(retries, c.retries...)
		came += c.came
	}
	// Each was told of a time of its own, from one retry to two and 2 ms more for each stream.
	least, most := retries[0], retries[0]
	var quarters [4]int
	for _, r := range retries {
		least, most = min(least, r), max(most, r)
		quarters[max(0, min((r-int(restRetry.Milliseconds()))*4/int(restRetry.Milliseconds()), 3))]++
	}
	t.Logf("%d events to %d browsers, which connected %d times; told to come back after %d to %d ms, by quarters of the first retry %v",
		n, browsers, came, least, most, quarters)
	require.GreaterOrEqual(t, len(retries), browsers)
	require.GreaterOrEqual(t, least, int(restRetry.Milliseconds()))
	require.Less(t, most, int(2*restRetry.Milliseconds())+2*browsers)
	for _, q := range quarters {
		require.Greater(t, q, len(retries)/25)
	}
}

// A browser keeps a stream open, as an EventSource does, and wants every number once.
type browser struct {
	t         *testing.T
	addrs     []string
	turn      int // whose turn it is to be connected to
	query     string
	id        string
	connected func()   // called once
	last      chan int // is sent how many there are

	next    int
	retries []int // what it was told when streams ended
	came    int
}

func (b *browser) run() {
	ctx := deadline(b.t)
	n := -1
	for ctx.Err() == nil {
		b.turn++
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.addrs[b.turn%len(b.addrs)]+b.query, nil)
		if err != nil {
			b.t.Error(err)
			return
		}
		r.Header.Set("Accept", "text/event-stream")
		r.Header.Set("Last-Event-ID", b.id)
		response, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			time.Sleep(10 * time.Millisecond) // a balancer would have known
			continue
		}
		b.came++
		if b.connected != nil {
			b.connected()
			b.connected = nil
		}
		p, buf := sseclient.New(""), make([]byte, 64<<10)
		for err == nil {
			var got int
			got, err = response.Body.Read(buf)
			for _, block := range p.Parse(buf[:got]) {
				b.id = block.LastEventID
				if block.Event == nil || block.Event.Type == "stream.live" {
					continue
				}
				if strings.Contains(block.Event.Data, `"message":"the end"`) {
					n = <-b.last
					break
				}
				if !strings.Contains(block.Event.Data, fmt.Sprintf(`"message":"%d"`, b.next)) {
					b.t.Errorf("want %d, got %s %.200s", b.next, block.Event.Type, block.Event.Data)
					_ = response.Body.Close()
					return
				}
				b.next++
			}
			if n >= 0 {
				_ = response.Body.Close()
				return
			}
		}
		_ = response.Body.Close()
		b.retries = append(b.retries, p.Retry)
		time.Sleep(time.Duration(p.Retry) * time.Millisecond)
	}
	b.t.Error("time is up")
}
