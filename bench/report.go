package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report gathers the figures of all runs.
type report struct {
	Date     string            `json:"date"`
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Rows     []*row            `json:"rows"`
	Tallies  map[string]*tally `json:"tallies"` // by contestant, over everything

	tallies map[string]*tally
}

// A row is one figure, for each contestant that has it.
type row struct {
	Workload string               `json:"workload"`
	What     string               `json:"what"`
	Measure  string               `json:"measure"`
	Unit     string               `json:"unit"`
	Higher   bool                 `json:"higher_is_better"`
	Values   map[string][]float64 `json:"values"` // one for each run
}

func newReport() *report {
	rep := &report{
		Date:     time.Now().UTC().Format(time.DateTime),
		Machine:  fmt.Sprintf("%d CPUs, %s/%s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH),
		Versions: map[string]string{"go": runtime.Version()},
		Tallies:  make(map[string]*tally),
	}
	rep.tallies = rep.Tallies
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				rep.Machine += ", " + strings.Trim(name, "\t: \n")
				break
			}
		}
	}
	if out, err := exec.CommandContext(context.Background(), "redis-server", "--version").Output(); err == nil {
		if fields := strings.Fields(string(out)); len(fields) > 2 {
			rep.Versions["redis"] = strings.TrimPrefix(fields[2], "v=")
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/redis/go-redis/v9", "github.com/centrifugal/centrifuge", "github.com/tmaxmax/go-sse":
				rep.Versions[m.Path] = m.Version
			}
		}
	}
	return rep
}

func (rep *report) add(w workload, r *run) {
	for _, m := range r.measures {
		i := slices.IndexFunc(rep.Rows, func(x *row) bool { return x.Workload == w.name && x.Measure == m.name })
		if i < 0 {
			i = len(rep.Rows)
			rep.Rows = append(rep.Rows, &row{w.name, w.what, m.name, m.unit, m.higher, make(map[string][]float64)})
		}
		rep.Rows[i].Values[r.contestant] = append(rep.Rows[i].Values[r.contestant], m.value)
	}
	t := rep.tallies[r.contestant]
	if t == nil {
		t = &tally{}
		rep.tallies[r.contestant] = t
	}
	t.Lost += r.tally.Lost
	t.Disordered += r.tally.Disordered
}

func (x *row) median(contestant string) (float64, bool) {
	values := slices.Sorted(slices.Values(x.Values[contestant]))
	if len(values) == 0 {
		return 0, false
	}
	return values[len(values)/2], true
}

// best is the peer with the best figure.
func (x *row) best() (best float64, ok bool) {
	for _, name := range names[2:] {
		if v, has := x.median(name); has && (!ok || x.Higher == (v > best)) {
			best, ok = v, true
		}
	}
	return best, ok
}

func (rep *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %s, %v\n", rep.Date, rep.Machine, rep.Versions)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	columns := append(slices.Clone(names), benchmarkName)
	fmt.Fprintf(t, "\t%s\tours / limit\tours / best peer\t\n", strings.Join(columns, "\t"))
	last := ""
	for _, x := range rep.sorted() {
		if x.Workload != last {
			fmt.Fprintf(t, "%s: %s\t\t\t\t\t\t\t\t\t\n", x.Workload, x.What)
			last = x.Workload
		}
		fmt.Fprintf(t, "%s, %s", x.Measure, cmp.Or(x.Unit, "number"))
		for _, name := range columns {
			fmt.Fprintf(t, "\t%s", figure(x.median(name)))
		}
		ours, has := x.median("ours")
		limit, hasLimit := x.median("limit")
		if !hasLimit {
			limit, hasLimit = x.median(benchmarkName)
		}
		best, hasBest := x.best()
		fmt.Fprintf(t, "\t%s\t%s\t\n", ratio(ours, limit, has && hasLimit), ratio(ours, best, has && hasBest))
	}
	for _, name := range columns {
		if tally := rep.tallies[name]; tally != nil {
			fmt.Fprintf(t, "%s: lost, twice or out of order\t%d\t%d\t\n", name, tally.Lost, tally.Disordered)
		}
	}
	_ = t.Flush()
}

// sorted puts the rows of a workload together; contestants differ in those that they have.
func (rep *report) sorted() []*row {
	rows := slices.Clone(rep.Rows)
	slices.SortStableFunc(rows, func(a, b *row) int { return cmp.Compare(a.Workload, b.Workload) })
	return rows
}

func figure(v float64, ok bool) string {
	switch {
	case !ok:
		return "-"
	case v >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func ratio(a, b float64, ok bool) string {
	if !ok || b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}

func (rep *report) write(file string) error {
	b, err := json.MarshalIndent(rep, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
