package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A contestant is one way to bring events to browsers. Channels have numbers.
type contestant interface {
	http.Handler
	// publish returns when the event is where the contestant keeps it. An after that is not
	// nil gets what a client would send to get all that follows ("" where there is no replay).
	publish(ctx context.Context, channel int, text string, after *string) error
	// request is what a client sends to read a channel, from now on or after an event.
	request(channel int, after string) request
}

// A writer is a contestant that can publish without waiting for each event.
type writer interface {
	// write takes an event of a channel, and flush waits until all are where publish would bring
	// them.
	write(ctx context.Context, channel int, text string) error
	flush(ctx context.Context) error
}

var contestants = map[string]func(ctx context.Context, redis string, options map[string]string) (contestant, error){
	"limit":      newLimit,
	"ours":       newOurs,
	"centrifuge": newCentrifuge,
	"go-sse":     newGoSSE,
	"naive":      newNaive,
	"streams":    newRedisStreams,
}

var names = []string{"limit", "ours", "centrifuge", "go-sse", "naive", "streams"}

// An order is what the load asks of a server process; a line of JSON each way.
type order struct {
	Do         string // publish, request, collect, usage
	Publishers int
	Events     int           // in all
	For        time.Duration // instead of Events
	Channels   int           // in turn
	Rate       float64       // events a second in all; 0 as fast as it goes
	Writes     bool          // as a writer does, where the contestant is one
	Token      bool          // events without padding, which have the time when they were due
	Same       bool          // the same event each time
	Channel    int
	After      string
}

type answer struct {
	Error        string
	Begin        int64 // Unix time, ns
	Events       int
	Seconds      float64
	P50, P99     float64 // ms, of a publish
	After        string  // the first event
	CPU          float64 // s, user and system
	RSS, PeakRSS int     // bytes
	Loads        int     // of the state, see state.go
	Path, Header string
}

// serve runs a contestant until its standard input ends.
func serve(name, redis string, options map[string]string) error {
	ctx := context.Background()
	if base := options["profile"]; base != "" {
		f, err := os.Create(base + ".cpu")
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	c, err := contestants[name](ctx, redis, options)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = (&http.Server{Handler: c}).Serve(l) }()
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(answer{Path: l.Addr().String()})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		a, err := obey(ctx, c, o, options)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return nil
}

func obey(ctx context.Context, c contestant, o order, options map[string]string) (answer, error) {
	switch o.Do {
	case "publish":
		return publish(ctx, c, o)
	case "request":
		r := c.request(o.Channel, o.After)
		return answer{Path: r.path, Header: r.header}, nil
	case "collect":
		runtime.GC()
		debug.FreeOSMemory()
		return answer{}, nil
	case "usage":
		if base := options["profile"]; base != "" {
			if err := heapProfile(base + ".heap"); err != nil {
				return answer{}, err
			}
		}
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			return answer{}, err
		}
		rss, peak, err := residentBytes()
		return answer{CPU: float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9, RSS: rss, PeakRSS: peak, Loads: int(loads.Load())}, err
	}
	return answer{}, fmt.Errorf("unknown order %q", o.Do)
}

func heapProfile(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}

func residentBytes() (now, peak int, err error) {
	b, err := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		switch name, rest, _ := strings.Cut(line, ":"); name {
		case "VmRSS":
			now = atoi(strings.Fields(rest)[0]) << 10
		case "VmHWM":
			peak = atoi(strings.Fields(rest)[0]) << 10
		}
	}
	return now, peak, err
}

// publish shares the events out to publishers, each of which publishes one after the other.
func publish(ctx context.Context, c contestant, o order) (answer, error) {
	send := c.publish
	w, writes := c.(writer)
	if writes = writes && o.Writes; writes {
		send = func(ctx context.Context, channel int, text string, _ *string) error {
			return w.write(ctx, channel, text)
		}
	}
	same := o.text(0, 1, time.Now())
	a := answer{Begin: time.Now().UnixNano()}
	began := time.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []int64
	var failed error
	for p := range o.Publishers {
		wg.Go(func() {
			took := make([]int64, 0, 1024)
			var err error
			n := 0
			for ; ; n++ {
				if o.For > 0 && time.Since(began) >= o.For || o.For == 0 && p+n*o.Publishers >= o.Events {
					break
				}
				at := o.wait(began, p+n*o.Publishers)
				var after *string
				if p == 0 && n == 0 {
					after = &a.After
				}
				text := same
				if !o.Same {
					text = o.text(p, n+1, at)
				}
				start := time.Now()
				if err = send(ctx, (p+n*o.Publishers)%max(o.Channels, 1), text, after); err != nil {
					break
				}
				if !writes { // the time of a write says nothing, and a million take memory
					took = append(took, int64(time.Since(start)))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			a.Events += n
			all = append(all, took...)
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	if writes {
		failed = errors.Join(failed, w.flush(ctx))
	}
	a.Seconds = time.Since(began).Seconds()
	a.P50, a.P99 = percentile(all, 0.5), percentile(all, 0.99)
	return a, failed
}

// wait waits until the n-th event of all is due, and gives the time that it is to have.
func (o *order) wait(began time.Time, n int) time.Time {
	if o.Rate == 0 {
		return time.Now()
	}
	due := began.Add(time.Duration(float64(n) / o.Rate * float64(time.Second)))
	time.Sleep(time.Until(due))
	if o.Token {
		return due
	}
	return time.Now()
}

// text is what a publisher's n-th event has.
func (o *order) text(publisher, n int, at time.Time) string {
	r := record(publisher%8, n, at)
	if o.Token {
		return r
	}
	return r + padding
}

// A server is a contestant in its process.
type server struct {
	addr string
	cmd  *exec.Cmd
	in   *json.Encoder
	out  *bufio.Scanner
	stop func()
}

// start starts a contestant. options are "name=value".
func start(name, redis string, options ...string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, append([]string{"serve", name, redis}, options...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, in: json.NewEncoder(in), out: bufio.NewScanner(out)}
	s.out.Buffer(nil, 1<<20)
	s.stop = func() {
		_ = in.Close()
		end := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		end.Stop()
	}
	a, err := s.answer()
	if err != nil {
		s.stop()
		return nil, err
	}
	s.addr = a.Path
	return s, nil
}

func (s *server) do(o order) (answer, error) {
	if err := s.in.Encode(o); err != nil {
		return answer{}, err
	}
	return s.answer()
}

func (s *server) answer() (answer, error) {
	var a answer
	if !s.out.Scan() {
		return a, fmt.Errorf("the server has ended: %w", s.out.Err())
	}
	if err := json.Unmarshal(s.out.Bytes(), &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

func (s *server) request(channel int, after string) (request, error) {
	a, err := s.do(order{Do: "request", Channel: channel, After: after})
	return request{path: a.Path, header: a.Header}, err
}
