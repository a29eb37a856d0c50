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
	"strconv"
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
	publish(ctx context.Context, channel int, record string, after *string) error
	// request is what a client sends to read a channel, from now on or after an event.
	request(channel int, after string) request
}

var contestants = map[string]func(ctx context.Context, redis string, options map[string]string) (contestant, error){
	"limit":      newLimit,
	"ours":       newOurs,
	"centrifuge": newCentrifuge,
	"go-sse":     newGoSSE,
	"naive":      newNaive,
}

var names = []string{"limit", "ours", "centrifuge", "go-sse", "naive"}

// An order is what the load asks of a server process; a line of JSON each way.
type order struct {
	Do         string // publish, request, collect, usage
	Publishers int
	Events     int           // in all
	For        time.Duration // instead of Events
	Channels   int           // in turn
	Rate       float64       // events a second in all; 0 as fast as it goes
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
	RSS          int     // bytes
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
		rss, err := residentBytes()
		return answer{CPU: float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9, RSS: rss}, err
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

func residentBytes() (int, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize(), err
}

// publish shares the events out to publishers, each of which publishes one after the other.
func publish(ctx context.Context, c contestant, o order) (answer, error) {
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
			for n := 0; ; n++ {
				if o.For > 0 && time.Since(began) >= o.For || o.For == 0 && p+n*o.Publishers >= o.Events {
					break
				}
				if o.Rate > 0 {
					due := began.Add(time.Duration(float64(n*o.Publishers+p) / o.Rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				var after *string
				if p == 0 && n == 0 {
					after = &a.After
				}
				start := time.Now()
				if err = c.publish(ctx, (p+n*o.Publishers)%max(o.Channels, 1), record(p%8, n+1), after); err != nil {
					break
				}
				took = append(took, int64(time.Since(start)))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	a.Seconds = time.Since(began).Seconds()
	a.Events = len(all)
	a.P50, a.P99 = percentile(all, 0.5), percentile(all, 0.99)
	return a, failed
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
	return request{a.Path, a.Header}, err
}
