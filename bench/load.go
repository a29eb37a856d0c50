package main

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A load is many clients. Two goroutines read all of them, each with an epoll of its own.
type load struct {
	clients []atomic.Pointer[client]
	polls   [2]int
	wg      sync.WaitGroup
	end     atomic.Bool

	start    time.Time    // before the first connection
	began    time.Time    // when all streams had
	ready    atomic.Int64 // clients that have something behind their header
	received atomic.Int64 // records in all
	closed   atomic.Int64 // connections that have ended
	last     atomic.Int64 // Unix time in ns of the last record
	timed    atomic.Bool  // note latencies

	mu        sync.Mutex // guards following
	latencies []int64    // ns
	begins    []int64    // ns from start, of each stream
}

// A client counts what it is given. It belongs to one of the load's goroutines.
type client struct {
	fd       int
	parser   parser
	next     [8]int32 // by publisher: the number of the event that comes next
	received int
	repeated int // came twice, or late
	skipped  int // did not come before the next
	ready    bool
}

// A request is what a client asks for: a path, and what it has seen last. Its stream has begun with
// until, or anything if that is "".
type request struct{ path, header, until string }

// connect opens streams, and waits until all have begun.
func connect(addr string, requests []request) (*load, error) {
	l := &load{start: time.Now()}
	for i := range l.polls {
		poll, err := unix.EpollCreate1(0)
		if err != nil {
			return nil, err
		}
		l.polls[i] = poll
	}
	to := netip.MustParseAddrPort(addr)
	var pending sync.WaitGroup
	errs := make(chan error, len(requests))
	slots := make(chan struct{}, 64)
	l.clients = make([]atomic.Pointer[client], len(requests))
	for i := range l.polls {
		l.wg.Go(func() { l.read(i) })
	}
	for i, r := range requests {
		slots <- struct{}{}
		pending.Go(func() {
			defer func() { <-slots }()
			c, err := dial(to, r)
			if err != nil {
				errs <- err
				return
			}
			l.clients[i].Store(c)
			event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
			if err := unix.EpollCtl(l.polls[i%len(l.polls)], unix.EPOLL_CTL_ADD, c.fd, &event); err != nil {
				errs <- err
			}
		})
	}
	pending.Wait()
	if len(errs) > 0 {
		l.close()
		return nil, <-errs
	}
	for l.ready.Load() < int64(len(requests)) {
		if time.Since(l.start) > 30*time.Second {
			l.close()
			return nil, fmt.Errorf("%d of %d streams began", l.ready.Load(), len(requests))
		}
		time.Sleep(time.Millisecond)
	}
	l.began = time.Now()
	time.Sleep(100 * time.Millisecond) // go-sse answers before it subscribes
	return l, nil
}

func dial(to netip.AddrPort, r request) (*client, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &client{fd: fd, parser: parser{until: r.until}}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	header := ""
	if r.header != "" {
		header = "Last-Event-ID: " + r.header + "\r\n"
	}
	_, err = unix.Write(fd, []byte("GET "+r.path+" HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n"+header+"\r\n"))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, unix.SetNonblock(fd, true)
}

func (l *load) read(n int) {
	buf := make([]byte, 256<<10)
	events := make([]unix.EpollEvent, 256)
	for !l.end.Load() {
		ready, err := unix.EpollWait(l.polls[n], events, 100)
		if err != nil && err != unix.EINTR {
			return
		}
		for _, e := range events[:max(ready, 0)] {
			c := l.clients[e.Fd].Load()
			got, err := unix.Read(c.fd, buf)
			switch {
			case err == unix.EAGAIN || err == unix.EINTR:
			case err != nil || got <= 0:
				_ = unix.EpollCtl(l.polls[n], unix.EPOLL_CTL_DEL, c.fd, nil)
				l.closed.Add(1)
			default:
				l.take(c, buf[:got])
			}
		}
	}
}

func (l *load) take(c *client, b []byte) {
	before := c.received
	now := time.Now().UnixNano()
	timed := l.timed.Load()
	var latencies []int64
	c.parser.feed(b, func(r []byte) {
		publisher, number, sent := parseRecord(r)
		if publisher < 0 || publisher >= len(c.next) {
			return
		}
		c.received++
		switch next := &c.next[publisher]; {
		case *next == 0 || int32(number) == *next: // the first may be any
			*next = int32(number) + 1
		case int32(number) < *next:
			c.repeated++
		default:
			c.skipped += number - int(*next)
			*next = int32(number) + 1
		}
		if timed {
			latencies = append(latencies, now-sent)
		}
	})
	if !c.ready && c.parser.body {
		c.ready = true
		l.mu.Lock()
		l.begins = append(l.begins, int64(time.Since(l.start)))
		l.mu.Unlock()
		l.ready.Add(1)
	}
	if n := c.received - before; n > 0 {
		l.received.Add(int64(n))
		l.last.Store(now)
	}
	if len(latencies) > 0 {
		l.mu.Lock()
		l.latencies = append(l.latencies, latencies...)
		l.mu.Unlock()
	}
}

// await waits until so many records have come in all, or none does for a while. It
// gives the time of the last.
func (l *load) await(total int, patience time.Duration) time.Time {
	count, since := l.received.Load(), time.Now()
	for l.received.Load() < int64(total) && time.Since(since) < patience {
		time.Sleep(200 * time.Microsecond)
		if now := l.received.Load(); now != count {
			count, since = now, time.Now()
		}
	}
	return time.Unix(0, l.last.Load())
}

// A tally is what clients have got of what they should have.
type tally struct {
	Lost       int `json:"lost"`
	Disordered int `json:"disordered"` // came twice or out of order
}

// close ends all connections and counts. each is how many records a client should have.
func (l *load) tally(each int) tally {
	l.close()
	var t tally
	for i := range l.clients {
		c := l.clients[i].Load()
		t.Disordered += c.repeated
		t.Lost += max(0, each-(c.received-c.repeated))
	}
	return t
}

func (l *load) close() {
	if l.end.Swap(true) {
		return
	}
	l.wg.Wait()
	for i := range l.clients {
		if c := l.clients[i].Load(); c != nil {
			unix.Close(c.fd)
		}
	}
	for _, poll := range l.polls {
		unix.Close(poll)
	}
}

// percentile sorts what it is given.
func percentile(ns []int64, p float64) float64 {
	if len(ns) == 0 {
		return 0
	}
	slices.Sort(ns)
	return float64(ns[min(len(ns)-1, int(p*float64(len(ns))))]) / 1e6
}
