package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A measure is one figure of a workload.
type measure struct {
	name   string
	value  float64
	unit   string
	higher bool // is better
}

// A run measures one contestant once.
type run struct {
	contestant string
	redis      *redisServer
	server     *server
	options    []string // of the server
	tally      tally
	measures   []measure
}

func (r *run) add(name string, value float64, unit string) {
	r.measures = append(r.measures, measure{name, value, unit, strings.HasSuffix(unit, "/s") || unit == "events"})
}

// A workload is a row, or some, of the table.
type workload struct {
	name, what  string
	contestants []string
	measure     func(r *run) error
	options     []string // of the server
}

// browsers are the contestants for workloads without other ways by hand.
var browsers = names[:5]

var workloads = []workload{
	{"W1", "burst from 8 publishers, 1M deliveries (peers: 300k)", browsers, burst, nil},
	{"W2", "1,000 streams, 20 events/s for 10 s", browsers, steady, nil},
	{"W3", "publish with history, one channel", []string{"ours", "centrifuge"}, publishing, nil},
	{"W4", "4,000 idle streams", browsers, idle, nil},
	{"W5", "replay of 999 of 1,000 events", []string{"ours", "centrifuge", "go-sse"}, replay, nil},
	{"W6", "4,000 channels with a stream each", browsers, channels, nil},
	{"W7", "one client stops reading, 20 others get 2,500 events/s for 10 s", browsers, stalled, []string{"keep=30000"}},
	{"W8", "one goroutine publishes 250-byte events to a run", []string{"ours", "centrifuge", "streams"}, writing, []string{"runs=yes", "script=yes"}},
	{"W9", "1,000 runs, each with a client, for 10 s", names, tokens, []string{"runs=yes"}},
	{"W10", "5,000 clients join a channel with a state", []string{"ours", "naive"}, joins, []string{"state=shared"}},
}

const (
	patience = 3 * time.Second // a contestant that delivers nothing for so long has lost the rest
	streams  = 4000
)

// connect opens n streams, each on its channel of so many.
func (r *run) connect(n, channels int) (*load, error) {
	requests := make([]request, n)
	for i := range requests {
		if i < channels {
			var err error
			if requests[i], err = r.server.request(i, ""); err != nil {
				return nil, err
			}
		} else {
			requests[i] = requests[i%channels]
		}
	}
	return connect(r.server.addr, requests)
}

func (r *run) count(l *load, each int) {
	t := l.tally(each)
	r.tally.Lost += t.Lost
	r.tally.Disordered += t.Disordered
}

func (r *run) cpu() (float64, error) {
	a, err := r.server.do(order{Do: "usage"})
	return a.CPU, err
}

func burst(r *run) error {
	for _, n := range []int{100, 1000, 4000} {
		l, err := r.connect(n, 1)
		if err != nil {
			return err
		}
		events := 1_000_000 / n
		if r.contestant != "limit" && r.contestant != "ours" {
			events = 300_000 / n // the rate is the same, and they take their time
		}
		if _, err := r.server.do(order{Do: "collect"}); err != nil {
			return err
		}
		before, err := r.cpu()
		if err != nil {
			return err
		}
		a, err := r.server.do(order{Do: "publish", Publishers: 8, Events: events})
		if err != nil {
			return err
		}
		last := l.await(n*events, patience)
		after, err := r.cpu()
		if err != nil {
			return err
		}
		got := float64(l.received.Load())
		r.count(l, events)
		r.add(fmt.Sprintf("%d streams", n), got/last.Sub(time.Unix(0, a.Begin)).Seconds(), "deliveries/s")
		r.add(fmt.Sprintf("%d streams, server CPU", n), (after-before)/got*1e6, "s per million")
	}
	return nil
}

func steady(r *run) error {
	const n, rate, seconds = 1000, 20, 10
	l, err := r.connect(n, 1)
	if err != nil {
		return err
	}
	l.timed.Store(true)
	before, err := r.cpu()
	if err != nil {
		return err
	}
	if _, err := r.server.do(order{Do: "publish", Publishers: 1, Events: rate * seconds, Rate: rate}); err != nil {
		return err
	}
	l.await(n*rate*seconds, patience)
	after, err := r.cpu()
	if err != nil {
		return err
	}
	r.count(l, rate*seconds)
	r.add("p50", percentile(l.latencies, 0.5), "ms")
	r.add("p99", percentile(l.latencies, 0.99), "ms")
	r.add("server CPU", (after-before)/float64(len(l.latencies))*1e6, "µs per delivery")
	return nil
}

func publishing(r *run) error {
	for _, k := range []int{1, 64, 256} {
		if err := r.redis.client.FlushAll(context.Background()).Err(); err != nil {
			return err
		}
		if _, err := r.server.do(order{Do: "publish", Publishers: k, Events: 2 * k}); err != nil {
			return err
		}
		a, err := r.server.do(order{Do: "publish", Publishers: k, For: 3 * time.Second})
		if err != nil {
			return err
		}
		r.add(fmt.Sprintf("K=%d", k), float64(a.Events)/a.Seconds, "events/s")
		if k == 256 {
			r.add("K=256, p99", a.P99, "ms")
		}
	}
	return nil
}

// byBenchmark is what redis-benchmark makes of the least script, in the same run.
func byBenchmark(r *run) error {
	for _, c := range []struct {
		name                       string
		clients, pipeline, request int
	}{{"K=1", 1, 1, 40_000}, {"K=256", 64, 64, 600_000}} {
		rate, err := r.redis.benchmark(c.clients, c.pipeline, c.request)
		if err != nil {
			return err
		}
		r.add(c.name, rate, "events/s")
	}
	rate, err := r.redis.pings(20_000)
	if err != nil {
		return err
	}
	r.add("K=1, PING on a bare connection in Go", rate, "calls/s")
	return nil
}

func idle(r *run) error {
	if _, err := r.server.do(order{Do: "collect"}); err != nil {
		return err
	}
	before, err := r.server.do(order{Do: "usage"})
	if err != nil {
		return err
	}
	l, err := r.connect(streams, 1)
	if err != nil {
		return err
	}
	defer l.close()
	time.Sleep(time.Second)
	if _, err := r.server.do(order{Do: "collect"}); err != nil {
		return err
	}
	with, err := r.server.do(order{Do: "usage"})
	if err != nil {
		return err
	}
	r.add("RSS per stream", float64(with.RSS-before.RSS)/streams/1024, "KiB")
	if r.contestant != "limit" {
		r.add("Pub/Sub connections", float64(r.redis.subscribers()), "")
	}
	if r.contestant != "ours" {
		return nil
	}
	const seconds = 15 // one round of keepalives
	time.Sleep(seconds * time.Second)
	late, err := r.server.do(order{Do: "usage"})
	if err != nil {
		return err
	}
	r.add("CPU of keepalives every 15 s", (late.CPU-with.CPU)/seconds*100, "% of a core")
	return nil
}

func replay(r *run) error {
	const events = 1000
	sent := order{Do: "publish", Publishers: 1, Events: events}
	l, err := r.connect(1, 1)
	if err != nil {
		return err
	}
	a, err := r.server.do(sent)
	if err != nil {
		return err
	}
	l.await(events, patience)
	again := func(name string, clients int) error {
		req, err := r.server.request(0, a.After)
		if err != nil {
			return err
		}
		requests := make([]request, clients)
		for i := range requests {
			requests[i] = req
		}
		sentBefore, runBefore := r.redis.calls()
		began := time.Now()
		l, err := connect(r.server.addr, requests)
		if err != nil {
			return err
		}
		last := l.await(clients*(events-1), patience)
		sentAfter, runAfter := r.redis.calls()
		r.count(l, events-1)
		r.add(name, last.Sub(began).Seconds()*1000, "ms")
		if clients > 1 {
			r.add(name+", scripts and subscriptions sent", float64(sentAfter-sentBefore), "calls")
			r.add(name+", commands run in Redis", float64(runAfter-runBefore), "commands")
		}
		return nil
	}
	if err := again("1 client, warm", 1); err != nil {
		return err
	}
	if err := again("200 clients", 200); err != nil {
		return err
	}
	r.count(l, events)
	if r.contestant == "go-sse" {
		return nil // what it replays is in its memory
	}
	// A process that has never heard of the channel.
	r.server.stop()
	if r.server, err = start(r.contestant, r.redis.addr); err != nil {
		return err
	}
	if err := again("1 client, cold", 1); err != nil {
		return err
	}
	r.server.stop()
	if r.server, err = start(r.contestant, r.redis.addr); err != nil {
		return err
	}
	return again("200 clients, cold", 200)
}

func channels(r *run) error {
	requests := make([]request, streams)
	for i := range requests {
		var err error
		if requests[i], err = r.server.request(i, ""); err != nil {
			return err
		}
	}
	began := time.Now()
	l, err := connect(r.server.addr, requests)
	if err != nil {
		return err
	}
	r.add("all subscribed", l.began.Sub(began).Seconds(), "s")
	if r.contestant != "limit" {
		r.add("Pub/Sub connections", float64(r.redis.subscribers()), "")
	}
	a, err := r.server.do(order{Do: "publish", Publishers: 64, Channels: streams, Events: streams})
	if err != nil {
		return err
	}
	last := l.await(streams, patience)
	r.count(l, 1)
	r.add("one event to each", last.Sub(time.Unix(0, a.Begin)).Seconds(), "s")
	return nil
}

func stalled(r *run) error {
	const others, rate, seconds = 20, 2500, 10
	l, err := r.connect(others, 1)
	if err != nil {
		return err
	}
	req, err := r.server.request(0, "")
	if err != nil {
		return err
	}
	var late lateReader
	if err := late.open(r.server.addr, req); err != nil {
		return err
	}
	if _, err := r.server.do(order{Do: "collect"}); err != nil {
		return err
	}
	before, err := r.server.do(order{Do: "usage"})
	if err != nil {
		return err
	}
	l.timed.Store(true)
	if _, err := r.server.do(order{Do: "publish", Publishers: 1, Events: rate * seconds, Rate: rate}); err != nil {
		return err
	}
	l.await(others*rate*seconds, patience)
	after, err := r.server.do(order{Do: "usage"})
	if err != nil {
		return err
	}
	r.count(l, rate*seconds)
	r.add("p99 of the others", percentile(l.latencies, 0.99), "ms")
	r.add("RSS grows by", float64(after.RSS-before.RSS)/(1<<20), "MiB")
	got, err := late.read(r.server.addr, req, rate*seconds)
	r.add("the stalled one gets", float64(got), "events")
	if r.contestant == "ours" {
		r.tally.Lost += rate*seconds - got
		r.tally.Disordered += late.disordered
	}
	return err
}

// A lateReader is a client that reads nothing for a while. When it finds itself cut off,
// it comes back with the last id that it has seen, as a browser does.
type lateReader struct {
	response   *http.Response
	lines      *bufio.Reader
	next       int
	disordered int
	id, given  string
}

func (r *lateReader) open(addr string, req request) error {
	q, err := http.NewRequest(http.MethodGet, "http://"+addr+req.path, nil)
	if err != nil {
		return err
	}
	if req.header != "" {
		q.Header.Set("Last-Event-ID", req.header)
	}
	if r.response, err = (&http.Transport{DisableKeepAlives: true}).RoundTrip(q); err != nil {
		return err
	}
	r.lines = bufio.NewReader(r.response.Body)
	return nil
}

// read reads until it has so many events, or none comes for a while.
func (r *lateReader) read(addr string, req request, want int) (got int, err error) {
	r.next = 1
	for attempts := 0; got < want && attempts < 10; attempts++ {
		stop := time.AfterFunc(patience, func() { r.response.Body.Close() })
		for got < want {
			line, err := r.lines.ReadString('\n')
			if err != nil {
				break
			}
			stop.Reset(patience)
			if id, ok := strings.CutPrefix(line, "id: "); ok {
				r.given = strings.TrimSpace(id)
			} else if line == "\n" {
				r.id = r.given // a block that is cut off does not count
			}
			if i := strings.IndexByte(line, '~'); i >= 0 && len(line) >= i+recordLength {
				_, number, _ := parseRecord([]byte(line[i : i+recordLength]))
				if number != r.next {
					r.disordered++
				}
				r.next = number + 1
				got++
			}
		}
		stop.Stop()
		r.response.Body.Close()
		if got == want || r.id == "" {
			return got, nil
		}
		if err := r.open(addr, request{path: req.path, header: r.id}); err != nil {
			return got, err
		}
	}
	return got, nil
}
