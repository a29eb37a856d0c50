package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// A study measures ours at several sizes of one thing.
type study struct {
	X      string                         `json:"x"`
	Xs     []int                          `json:"xs"`
	Charts []chart                        `json:"charts"`
	at     func(x int) ([]float64, error) // for all lines of all charts, in their order
}

// A chart is a plot with one line or more, all in the same unit.
type chart struct {
	File  string `json:"file"`
	Title string `json:"title"`
	Unit  string `json:"unit"`
	Lines []line `json:"lines"`
}

type line struct {
	Name   string    `json:"name"`
	Values []float64 `json:"values"` // medians, one for each x
}

func lines(names ...string) (ls []line) {
	for _, name := range names {
		ls = append(ls, line{Name: name})
	}
	return ls
}

var studies = []*study{
	{X: "streams on one channel", Xs: []int{100, 300, 1000, 3000, 10_000}, at: growStreams, Charts: []chart{
		{"streams.svg", "Events from 8 publishers to all streams", "deliveries/s", lines("deliveries")},
		{"streams-cpu.svg", "Server CPU", "s per million deliveries", lines("CPU")},
		{"streams-memory.svg", "Server memory, streams idle", "MiB", lines("RSS")},
	}},
	{X: "channels", Xs: []int{1, 10, 100, 1000, 10_000}, at: growChannels, Charts: []chart{
		{"channels.svg", "Publish, 256 goroutines, channels in turn", "events/s", lines("publish")},
		{"channels-cpu.svg", "CPU of a publish", "µs per event", lines("Redis", "server")},
	}},
	{X: "events in the log", Xs: []int{1000, 3000, 10_000, 30_000, 100_000}, at: growLog, Charts: []chart{
		{"log.svg", "A log that is full", "events/s", lines("publish, 64 goroutines", "replay of all, cold")},
		{"log-resume.svg", "Replay of the last 999, cold", "ms", lines("one client")},
		{"log-memory.svg", "Memory of the log in Redis", "MiB", lines("Redis")},
	}},
	{X: "processes", Xs: []int{1, 2, 4, 8}, at: growProcesses, Charts: []chart{
		{"processes.svg", "64 goroutines publish to 64 channels, each process streams all", "events/s", lines(deployments...)},
		{"processes-redis.svg", "CPU of an event, all Redis servers", "µs per event", lines(deployments...)},
		{"processes-cpu.svg", "CPU of an event, all processes", "µs per event", lines(deployments...)},
	}},
}

var deployments = []string{"one Redis", "three masters", "three masters, sharded Pub/Sub"}

// growth runs all studies three times, and leaves medians and plots in plots/.
func growth() error {
	const runs = 3
	for _, s := range studies {
		for _, x := range s.Xs {
			var values [][]float64
			for n := range runs {
				fmt.Fprintf(os.Stderr, "run %d of %d: %d %s          \r", n+1, runs, x, s.X)
				got, err := s.at(x)
				if err != nil {
					return fmt.Errorf("%d %s: %w", x, s.X, err)
				}
				values = append(values, got)
			}
			s.add(values)
		}
		if err := s.plot("plots"); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr)
		s.print(os.Stdout)
	}
	b, err := json.MarshalIndent(struct {
		*report
		Studies []*study `json:"studies"`
	}{newReport(), studies}, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile("plots/growth.json", append(b, '\n'), 0o644)
}

// add notes the medians of some runs.
func (s *study) add(runs [][]float64) {
	n := 0
	for c := range s.Charts {
		for l := range s.Charts[c].Lines {
			column := make([]float64, len(runs))
			for i := range runs {
				column[i] = runs[i][n]
			}
			slices.Sort(column)
			to := &s.Charts[c].Lines[l]
			to.Values = append(to.Values, column[len(column)/2])
			n++
		}
	}
}

func (s *study) print(w io.Writer) {
	rows := [][]string{{s.X}}
	for _, x := range s.Xs {
		rows[0] = append(rows[0], strconv.Itoa(x))
	}
	for _, c := range s.Charts {
		for _, l := range c.Lines {
			cells := []string{fmt.Sprintf("%s: %s, %s", c.Title, l.Name, c.Unit)}
			for _, v := range l.Values {
				cells = append(cells, figure(v, true))
			}
			rows = append(rows, cells)
		}
	}
	printTable(w, rows)
	fmt.Fprintln(w)
}

// ticks have the labels of the tables.
type ticks struct{}

func (ticks) Ticks(least, most float64) []plot.Tick {
	all := plot.DefaultTicks{}.Ticks(least, most)
	for i := range all {
		if all[i].Label != "" {
			all[i].Label = figure(all[i].Value, true)
		}
	}
	return all
}

func (s *study) plot(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range s.Charts {
		p := plot.New()
		p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.Title, s.X, c.Unit
		p.X.Scale, p.Y.Tick.Marker = plot.LogScale{}, ticks{}
		var at plot.ConstantTicks
		for _, x := range s.Xs {
			at = append(at, plot.Tick{Value: float64(x), Label: strconv.Itoa(x)})
		}
		p.X.Tick.Marker = at
		p.Add(plotter.NewGrid())
		var all []any
		highest := 0.0
		for _, l := range c.Lines {
			points := make(plotter.XYs, len(s.Xs))
			for i, x := range s.Xs {
				points[i] = plotter.XY{X: float64(x), Y: l.Values[i]}
				highest = max(highest, l.Values[i])
			}
			if len(c.Lines) > 1 {
				all = append(all, l.Name)
			}
			all = append(all, points)
		}
		if err := plotutil.AddLinePoints(p, all...); err != nil {
			return err
		}
		p.Y.Min, p.Y.Max = 0, highest*1.25 // the legend is above the lines
		p.X.Max *= 1.1                     // the last label would be cut off
		p.Legend.Top = true
		if err := p.Save(16*vg.Centimeter, 9*vg.Centimeter, filepath.Join(dir, c.File)); err != nil {
			return err
		}
	}
	return nil
}

// A fleet is processes of ours, and the Redis servers that they share.
type fleet struct {
	nodes   []*redisServer
	servers []*server
}

func (f *fleet) stop() {
	for _, s := range f.servers {
		s.stop()
	}
	for _, n := range f.nodes {
		n.stop()
	}
}

// with runs something on one Redis, or a cluster of some masters, and so many processes.
func with(masters, processes int, options []string, run func(f *fleet) ([]float64, error)) ([]float64, error) {
	f := &fleet{}
	defer f.stop()
	if masters == 1 {
		node, err := startRedis()
		if err != nil {
			return nil, err
		}
		f.nodes = append(f.nodes, node)
	} else {
		nodes, err := startCluster(masters)
		if err != nil {
			return nil, err
		}
		f.nodes, options = nodes, append(slices.Clone(options), "cluster=yes")
	}
	for range processes {
		s, err := start("ours", f.nodes[0].addr, options...)
		if err != nil {
			return nil, err
		}
		f.servers = append(f.servers, s)
	}
	return run(f)
}

// publish has every process publish, and gives the events and the time in all.
func (f *fleet) publish(o order) (events int, seconds float64, err error) {
	answers := make([]answer, len(f.servers))
	errs := make([]error, len(f.servers))
	var wg sync.WaitGroup
	for i, s := range f.servers {
		wg.Go(func() { answers[i], errs[i] = s.do(o) })
	}
	wg.Wait()
	for _, a := range answers {
		events += a.Events
		seconds = max(seconds, a.Seconds)
	}
	return events, seconds, errors.Join(errs...)
}

func (f *fleet) redisCPU() (seconds float64) {
	for _, n := range f.nodes {
		seconds += n.cpu()
	}
	return seconds
}

func (f *fleet) serverCPU() (seconds float64, err error) {
	for _, s := range f.servers {
		a, err := s.do(order{Do: "usage"})
		if err != nil {
			return 0, err
		}
		seconds += a.CPU
	}
	return seconds, nil
}

// all checks that the clients have got everything.
func (l *load) all(want int) error {
	l.await(want, patience)
	l.close()
	if got := l.received.Load(); got != int64(want) {
		return fmt.Errorf("%d events have come, not %d", got, want)
	}
	return nil
}

func growStreams(n int) ([]float64, error) {
	return with(1, 1, nil, func(f *fleet) ([]float64, error) {
		r := &run{contestant: "ours", redis: f.nodes[0], server: f.servers[0]}
		l, err := r.connect(n, 1)
		if err != nil {
			return nil, err
		}
		if _, err := r.server.do(order{Do: "collect"}); err != nil {
			return nil, err
		}
		idle, err := r.server.do(order{Do: "usage"})
		if err != nil {
			return nil, err
		}
		events := max(1_000_000/n, 400)
		a, err := r.server.do(order{Do: "publish", Publishers: 8, Events: events})
		if err != nil {
			return nil, err
		}
		last := l.await(n*events, patience)
		cpu, err := r.cpu()
		if err != nil {
			return nil, err
		}
		if t := l.tally(events); t.Lost+t.Disordered > 0 {
			return nil, fmt.Errorf("%d lost, %d twice or out of order", t.Lost, t.Disordered)
		}
		total := float64(n * events)
		return []float64{total / last.Sub(time.Unix(0, a.Begin)).Seconds(), (cpu - idle.CPU) / total * 1e6, float64(idle.RSS) / (1 << 20)}, nil
	})
}

func growChannels(n int) ([]float64, error) {
	return with(1, 1, nil, func(f *fleet) ([]float64, error) {
		// Every channel has events before, as it has in a service.
		if _, _, err := f.publish(order{Do: "publish", Publishers: 256, Channels: n, Events: max(n, 512)}); err != nil {
			return nil, err
		}
		return f.cost(order{Do: "publish", Publishers: 256, Channels: n, For: 3 * time.Second})
	})
}

// cost publishes, and gives events a second, and the CPU of Redis and of the processes for
// each in µs. Each load has a stream of every channel.
func (f *fleet) cost(o order, loads ...*load) ([]float64, error) {
	redisBefore := f.redisCPU()
	before, err := f.serverCPU()
	if err != nil {
		return nil, err
	}
	events, seconds, err := f.publish(o)
	if err != nil {
		return nil, err
	}
	for _, l := range loads {
		if err := l.all(events); err != nil {
			return nil, err
		}
	}
	after, err := f.serverCPU()
	if err != nil {
		return nil, err
	}
	return []float64{float64(events) / seconds, (f.redisCPU() - redisBefore) / float64(events) * 1e6, (after - before) / float64(events) * 1e6}, nil
}

func growLog(n int) ([]float64, error) {
	options := []string{fmt.Sprintf("keep=%d", n)}
	return with(1, 1, options, func(f *fleet) ([]float64, error) {
		r := &run{contestant: "ours", redis: f.nodes[0], server: f.servers[0]}
		first, err := r.server.do(order{Do: "publish", Publishers: 1, Events: 1})
		if err != nil {
			return nil, err
		}
		if _, err := r.server.do(order{Do: "publish", Publishers: 64, Events: n - 1}); err != nil {
			return nil, err
		}
		memory := r.redis.info("memory", "used_memory_dataset")
		replay := func(after string, want int) (seconds float64, err error) {
			r.server.stop()
			if r.server, err = start("ours", r.redis.addr, options...); err != nil {
				return 0, err
			}
			f.servers[0] = r.server
			req, err := r.server.request(0, after)
			if err != nil {
				return 0, err
			}
			began := time.Now()
			l, err := connect(r.server.addr, []request{req})
			if err != nil {
				return 0, err
			}
			err = l.all(want)
			return time.Unix(0, l.last.Load()).Sub(began).Seconds(), err
		}
		all, err := replay(first.After, n-1)
		if err != nil {
			return nil, err
		}
		rate, err := r.server.do(order{Do: "publish", Publishers: 64, For: 3 * time.Second})
		if err != nil {
			return nil, err
		}
		last, err := r.server.do(order{Do: "publish", Publishers: 1, Events: 1000})
		if err != nil {
			return nil, err
		}
		resume, err := replay(last.After, 999)
		if err != nil {
			return nil, err
		}
		return []float64{float64(rate.Events) / rate.Seconds, float64(n-1) / all, resume * 1000, memory / (1 << 20)}, nil
	})
}

func growProcesses(n int) ([]float64, error) {
	const channels = 64
	var values [3][]float64
	for i, d := range []struct {
		masters int
		options []string
	}{{1, nil}, {3, nil}, {3, []string{"sharded=yes"}}} {
		got, err := with(d.masters, n, d.options, func(f *fleet) ([]float64, error) {
			var loads []*load
			for _, s := range f.servers {
				l, err := (&run{server: s}).connect(channels, channels)
				if err != nil {
					return nil, err
				}
				defer l.close()
				loads = append(loads, l)
			}
			return f.cost(order{Do: "publish", Publishers: 64 / n, Channels: channels, For: 3 * time.Second}, loads...)
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", deployments[i], err)
		}
		for m := range values {
			values[m] = append(values[m], got[m])
		}
	}
	return slices.Concat(values[:]...), nil
}
