package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// Faults break things and mend them again. They run on the goroutine of the test.
type faults struct {
	t testing.TB
	w *world
	d *deployment
	r *rand.Rand

	lines   []*line // of d, and those of the browsers
	due     []repair
	broken  map[any]bool // lines and buses that are not to be broken again before they are mended
	down    bool         // a server is broken
	counted map[string]int
}

// A repair ends a fault. It is false when it has to be tried again.
type repair struct {
	at  time.Time
	run func() bool
}

func newFaults(t testing.TB, w *world, r *rand.Rand) *faults {
	return &faults{t: t, w: w, d: w.d, r: r, lines: append(slices.Clone(w.d.lines), w.browserLines()...),
		broken: make(map[any]bool), counted: make(map[string]int)}
}

func (f *faults) String() string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(f.counted)) {
		out = append(out, fmt.Sprintf("%s %d", kind, f.counted[kind]))
	}
	return strings.Join(out, ", ")
}

// between gives a random time.
func (f *faults) between(least, most time.Duration) time.Duration {
	return least + time.Duration(f.r.Int64N(int64(most-least)))
}

func (f *faults) after(d time.Duration, run func() bool) {
	f.due = append(f.due, repair{time.Now().Add(d), run})
}

// mend runs the repairs that are due; all of them, if need be again, with now.
func (f *faults) mend(all bool) {
	left := f.due
	f.due = nil
	for _, r := range left {
		if !all && time.Now().Before(r.at) || !r.run() {
			f.due = append(f.due, r)
		}
	}
}

// run breaks something now and then for so long.
func (f *faults) run(d time.Duration) {
	end := time.Now().Add(d)
	f.breakServer() // also in the shortest run
	for time.Now().Before(end) {
		time.Sleep(f.between(100*time.Millisecond, 300*time.Millisecond))
		f.mend(false)
		switch n := f.r.IntN(100); {
		case n < 4:
			f.flushScripts()
		case n < 8:
			f.restartBus()
		case n < 16:
			f.breakServer()
		default:
			f.breakLine()
		}
	}
}

// heal mends everything and waits until it works.
func (f *faults) heal() {
	f.t.Helper()
	eventually(f.t, "everything to be mended", func() bool {
		f.mend(true)
		return len(f.due) == 0
	})
	f.w.restarts.Wait()
	eventually(f.t, "the servers to be whole", f.d.whole)
}

func (f *faults) flushScripts() {
	f.counted["script flush"]++
	for _, s := range f.d.servers {
		ctx, cancel := context.WithTimeout(context.Background(), impatient)
		_ = s.rdb.ScriptFlush(ctx).Err() // one that is down has lost them anyway
		cancel()
	}
}

func (f *faults) restartBus() {
	p := f.w.processes[f.r.IntN(len(f.w.processes))]
	if f.broken[p] {
		return
	}
	f.broken[p] = true
	f.counted["bus restart"]++
	done := make(chan struct{})
	patience := f.between(100*time.Millisecond, 2*time.Second)
	f.w.restarts.Go(func() {
		defer close(done)
		p.restart(f.w, patience)
	})
	f.after(0, func() bool {
		select {
		case <-done:
			delete(f.broken, p)
			return true
		default:
			return false
		}
	})
}

// breakServer kills or freezes a server, for a moment, or for so long that another takes
// over. Killed for a moment only, one without an append-only file comes back empty.
func (f *faults) breakServer() {
	if f.down || !f.d.whole() {
		return
	}
	s := f.d.victim(f.r)
	if s == nil {
		return
	}
	f.down = true
	d := f.between(0, time.Second)
	if !f.d.lossless && (f.r.IntN(3) > 0 || s.replica) {
		d = f.between(2500*time.Millisecond, 5*time.Second)
	}
	if f.r.IntN(3) == 0 {
		f.counted["freeze"]++
		s.Freeze()
		f.after(d+300*time.Millisecond, func() bool { s.Thaw(); f.down = false; return true })
		return
	}
	f.counted["kill"]++
	s.Kill()
	f.after(d, func() bool { s.Restart(f.t); f.down = false; return true })
}

func (f *faults) breakLine() {
	if len(f.lines) == 0 {
		return
	}
	l := f.lines[f.r.IntN(len(f.lines))]
	if f.broken[l] {
		return
	}
	f.broken[l] = true
	// Often longer than what the bus takes for a connection that is alive.
	d := f.between(50*time.Millisecond, 600*time.Millisecond)
	if f.r.IntN(4) == 0 {
		d = f.between(time.Second, 3*time.Second)
	}
	if f.r.IntN(7) == 0 {
		f.counted["refused"]++
		l.refuse()
		f.after(d, func() bool { delete(f.broken, l); return l.accept() })
		return
	}
	kinds := []*toxic{
		{"reset_peer", `{"timeout":0}`},
		{"timeout", `{"timeout":0}`},
		{"stall", `{}`},
		{"latency", `{"latency":200,"jitter":50}`},
		{"slicer", `{"average_size":24,"size_variation":12,"delay":200}`},
		{"limit_data", fmt.Sprintf(`{"bytes":%d}`, 1+f.r.IntN(4000))},
		{"unanswered", `{}`},
	}
	tx := kinds[f.r.IntN(len(kinds))]
	f.counted[tx.kind]++
	switch n := f.r.IntN(3); {
	case n == 0 || tx.kind == "unanswered":
		l.set(nil, tx)
	case n == 1:
		l.set(tx, nil)
	default:
		l.set(tx, tx)
	}
	f.after(d, func() bool { delete(f.broken, l); l.set(nil, nil); return true })
}

// eventually waits for a condition, however slow the machine is.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !within(2*time.Minute, ok) {
		t.Fatalf("waiting for %s", what)
	}
}

func within(d time.Duration, ok func() bool) bool {
	for late := time.Now().Add(d); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(late) {
			return false
		}
	}
	return true
}
