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
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A report gathers the figures of all runs.
type report struct {
	Date     string            `json:"date"`
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Rows     []*row            `json:"rows"`
	Tallies  map[string]tally  `json:"tallies"` // by contestant, over everything
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
		Tallies:  make(map[string]tally),
	}
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
	if r.contestant != benchmarkName {
		t := rep.Tallies[r.contestant]
		rep.Tallies[r.contestant] = tally{t.Lost + r.tally.Lost, t.Disordered + r.tally.Disordered}
	}
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

// print writes medians as a table for each workload.
func (rep *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %s, %v\n", rep.Date, rep.Machine, rep.Versions)
	columns := slices.DeleteFunc(append(slices.Clone(names), benchmarkName), func(name string) bool {
		return !slices.ContainsFunc(rep.Rows, func(x *row) bool { return x.Values[name] != nil })
	})
	header := append(append([]string{""}, columns...), "ours / limit", "ours / best peer")
	rows := [][]string{header}
	last := ""
	for _, x := range rep.sorted() {
		if x.Workload != last {
			rows = append(rows, []string{fmt.Sprintf("**%s: %s**", x.Workload, x.What)})
			last = x.Workload
		}
		cells := []string{fmt.Sprintf("%s, %s", x.Measure, cmp.Or(x.Unit, "number"))}
		for _, name := range columns {
			cells = append(cells, figure(x.median(name)))
		}
		ours, has := x.median("ours")
		limit, hasLimit := x.median("limit")
		if !hasLimit {
			limit, hasLimit = x.median(benchmarkName)
		}
		best, hasBest := x.best()
		rows = append(rows, append(cells, ratio(ours, limit, has && hasLimit), ratio(ours, best, has && hasBest)))
	}
	lost, disordered := []string{"**lost, in all runs**"}, []string{"**twice or out of order**"}
	for _, name := range columns {
		t, ok := rep.Tallies[name]
		lost, disordered = append(lost, count(t.Lost, ok)), append(disordered, count(t.Disordered, ok))
	}
	printTable(w, append(rows, lost, disordered))
}

// printTable writes rows, the first of which is the header, as Markdown.
func printTable(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, cells := range rows {
		for i, c := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for n, cells := range rows {
		for i, width := range widths {
			c := ""
			if i < len(cells) {
				c = cells[i]
			}
			pad := strings.Repeat(" ", width-utf8.RuneCountInString(c))
			if i == 0 {
				fmt.Fprintf(w, "| %s%s ", c, pad)
			} else {
				fmt.Fprintf(w, "| %s%s ", pad, c)
			}
		}
		fmt.Fprintln(w, "|")
		if n == 0 {
			for i, width := range widths {
				align := ":" // right
				if i == 0 {
					align = "-"
				}
				fmt.Fprintf(w, "|%s%s", strings.Repeat("-", width+1), align)
			}
			fmt.Fprintln(w, "|")
		}
	}
}

// sorted puts the rows of a workload together; contestants differ in those that they have.
func (rep *report) sorted() []*row {
	rows := slices.Clone(rep.Rows)
	slices.SortStableFunc(rows, func(a, b *row) int { return cmp.Compare(atoi(a.Workload[1:]), atoi(b.Workload[1:])) })
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

func count(n int, ok bool) string {
	if !ok {
		return "-"
	}
	return strconv.Itoa(n)
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
