package main

import (
	"fmt"
	"slices"
	"time"
)

// These workloads are those of agent runs: W8 to W10.

// writing publishes from one goroutine, and waits for each event, or lets the contestant gather.
func writing(r *run) error {
	for _, o := range []order{{For: 3 * time.Second}, {Events: 1_000_000, Writes: true}} {
		name := "each awaited"
		if o.Writes {
			name = "not awaited"
			if r.contestant == "centrifuge" {
				return nil // it has no way for that
			}
		}
		o.Do, o.Publishers, o.Token, o.Same = "publish", 1, true, true
		warm := o
		warm.For, warm.Events = 0, 10_000
		if _, err := r.server.do(warm); err != nil {
			return err
		}
		if _, err := r.publish(name, o, nil); err != nil {
			return err
		}
	}
	after, err := r.server.do(order{Do: "usage"})
	r.add("peak RSS, 1M not awaited", float64(after.PeakRSS)/(1<<20), "MiB")
	return err
}

// publish has the server publish, and waits until the clients have everything. It adds the rate, and
// what an event costs.
func (r *run) publish(name string, o order, l *load) (answer, error) {
	redis := r.redis.cpu()
	before, err := r.cpu()
	if err != nil {
		return answer{}, err
	}
	a, err := r.server.do(o)
	if err != nil {
		return a, err
	}
	if l != nil {
		l.await(a.Events, patience)
	}
	after, err := r.cpu()
	n := float64(a.Events)
	r.add(name, n/a.Seconds, "events/s")
	r.add(name+", CPU of the server", (after-before)/n*1e6, "µs per event")
	r.add(name+", CPU of server and Redis", (after-before+r.redis.cpu()-redis)/n*1e6, "µs per event")
	return a, err
}

// tokens has many runs, each of which gives tokens to one client. A token that waits because its
// publisher is behind waits for its client, too.
func tokens(r *run) error {
	const runs = 1000
	for _, rate := range []int{10, 15, 60} {
		l, err := r.connect(runs, runs)
		if err != nil {
			return err
		}
		// In the first second, all runs begin at once, which is not what this is about.
		time.AfterFunc(time.Second, func() { l.timed.Store(true) })
		name := fmt.Sprintf("%d tokens/s each", rate)
		a, err := r.publish(name, order{
			Do: "publish", Publishers: runs, Channels: runs, Rate: float64(rate * runs), For: 11 * time.Second, Writes: true, Token: true,
		}, l)
		if err != nil {
			return err
		}
		t := l.tally(0)
		r.tally.Disordered += t.Disordered
		r.tally.Lost += a.Events - (int(l.received.Load()) - t.Disordered)
		r.add(name+", p50", percentile(l.latencies, 0.5), "ms")
		r.add(name+", p99", percentile(l.latencies, 0.99), "ms")
	}
	return nil
}

// joins has many clients come to one channel at once. Their streams begin with its state.
func joins(r *run) error {
	if err := r.join(""); err != nil || r.contestant != "ours" {
		return err
	}
	r.server.stop()
	var err error
	if r.server, err = start(r.contestant, r.redis.addr, "state=own"); err != nil {
		return err
	}
	return r.join("without a SnapshotKey: ")
}

func (r *run) join(name string) error {
	const clients = 5000
	req, err := r.server.request(0, "")
	if err != nil {
		return err
	}
	req.until = "event: stream.live"
	l, err := connect(r.server.addr, slices.Repeat([]request{req}, clients))
	if err != nil {
		return err
	}
	defer l.close()
	a, err := r.server.do(order{Do: "usage"})
	r.add(name+"state loaded", float64(a.Loads), "times")
	r.add(name+"live, p50", percentile(l.begins, 0.5), "ms")
	r.add(name+"live, p99", percentile(l.begins, 0.99), "ms")
	r.add(name+"all live", percentile(l.begins, 1), "ms")
	return err
}
