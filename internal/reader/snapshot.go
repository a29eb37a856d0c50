package reader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Snapshot is a program's way to load the state of everything that a stream shows.
type Snapshot struct {
	// Load gives the state, and the cursor that was stored with it, "" if there is none.
	Load func(ctx context.Context) (state any, after string, err error)
	Key  string // readers of the same channels with the same key may share a call; "" shares nothing
}

const (
	snapshotTimeout = 30 * time.Second
	snapshotBytes   = 4 << 20 // the most that a state has as JSON
)

// These are the calls of Load that are under way. A reader that joins a stream takes the answer
// of any of them: the stream goes on behind the cursor that belongs to it. A reader that comes upon
// a gap needs one that begins after that.
type snapshots struct {
	mu      sync.Mutex // guards following, and waiting of the flights
	flights map[string]*flight
}

// A flight is one call of Load. Its other fields are set when done is closed.
type flight struct {
	key     string
	waiting map[*Reader]bool
	cancel  context.CancelFunc // when nobody waits any more
	done    chan struct{}

	state []byte // JSON on one line
	after string // the cursor that came with the state
	heads string // the cursor of where the logs ended before the call
	err   error

	foreign map[string]uint64 // how many foreign events each tail had had before the call, by name

	mu             sync.Mutex // guards following
	cursor, reason string     // of the last block
	last           []byte
}

// block gives the state as a block. Streams that stand at the same cursor share its memory.
func (f *flight) block(cursor, reason string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil || f.cursor != cursor || f.reason != reason {
		f.cursor, f.reason = cursor, reason
		f.last = slices.Clip(wire.AppendSnapshot(nil, cursor, reason, f.state))
	}
	return f.last
}

// ask asks for a snapshot. Next gives it, as a step. With fresh, only a call that begins from now on
// will do: while another one is under way, the reader waits for that, and then asks again.
func (r *Reader) ask(ctx context.Context, s *Snapshot, fresh bool) {
	r.leave()
	key := ""
	if s.Key != "" {
		names := namesOf(r.lanes)
		slices.Sort(names)
		key = strings.Join(names, " ") + "\x00" + s.Key
		ctx = r.Closed
	}
	r.snapshots.mu.Lock()
	defer r.snapshots.mu.Unlock()
	f := r.snapshots.flights[key]
	r.stale = fresh && f != nil
	if f == nil {
		f = &flight{key: key, waiting: make(map[*Reader]bool), done: make(chan struct{})}
		ctx, f.cancel = context.WithTimeoutCause(ctx, snapshotTimeout, fmt.Errorf("no snapshot within %s", snapshotTimeout))
		if key != "" {
			r.snapshots.flights[key] = f
		}
		lanes := slices.Clone(r.lanes)
		r.Spawn(func() { r.fly(ctx, f, lanes, s) })
	}
	f.waiting[r] = true
	r.asked = f
}

// leave says that the reader does not wait for a snapshot any more.
func (r *Reader) leave() {
	f := r.asked
	if f == nil {
		return
	}
	r.asked = nil
	r.snapshots.mu.Lock()
	defer r.snapshots.mu.Unlock()
	if delete(f.waiting, r); len(f.waiting) == 0 {
		r.snapshots.landLocked(f)
	}
}

// landLocked makes the next reader begin a flight of its own.
func (ss *snapshots) landLocked(f *flight) {
	f.cancel()
	if ss.flights[f.key] == f {
		delete(ss.flights, f.key)
	}
}

// fly makes the call, and wakes those that wait for it.
func (rs *Readers) fly(ctx context.Context, f *flight, lanes []*lane, s *Snapshot) {
	if f.err = f.begin(ctx, lanes); f.err == nil {
		f.err = f.load(ctx, s)
	}
	rs.snapshots.mu.Lock()
	defer rs.snapshots.mu.Unlock()
	rs.snapshots.landLocked(f)
	close(f.done)
	for r := range f.waiting {
		r.waiter.Set()
	}
}

// begin notes where the logs of lanes end before the call.
func (f *flight) begin(ctx context.Context, lanes []*lane) error {
	entries := make([]position.Entry, len(lanes))
	f.foreign = make(map[string]uint64, len(lanes))
	for i, l := range lanes {
		f.foreign[l.tail.Name] = l.tail.Foreign()
		page, err := l.tail.State(ctx)
		if err != nil {
			return err
		}
		entries[i] = position.Entry{Pos: page.Last, Began: page.Last}
	}
	f.heads = string(position.NewKey(namesOf(lanes)).AppendAll(nil, entries))
	return nil
}

func namesOf(lanes []*lane) []string {
	names := make([]string, len(lanes))
	for i, l := range lanes {
		names[i] = l.tail.Name
	}
	return names
}

// load calls Load. It does not wait for one that ignores the end of its context.
func (f *flight) load(ctx context.Context, s *Snapshot) error {
	type answer struct {
		state []byte
		after string
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		a := answer{err: errors.New("it has not returned")} // such as after runtime.Goexit
		defer func() {
			if p := recover(); p != nil {
				a.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			answers <- a
		}()
		state, after, err := s.Load(ctx)
		var text []byte
		if err == nil {
			text, err = json.Marshal(state)
		}
		a = answer{text, after, err}
	}()
	select {
	case a := <-answers:
		if a.err == nil && len(a.state) > snapshotBytes {
			a.err = fmt.Errorf("the state has %d bytes, more than %d", len(a.state), snapshotBytes)
		}
		f.state, f.after = a.state, a.after
		return a.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// answer gives the snapshot that was asked for, once it is there.
func (r *Reader) answer() step {
	f := r.asked
	select {
	case <-f.done:
		r.leave()
		return step{snapshot: f}
	default:
		return step{}
	}
}

// jump puts the lanes right behind a snapshot: where its cursor says, which is as good as any that a
// client brings, or where the logs ended before the call.
func (r *Reader) jump(f *flight) error {
	names := namesOf(r.lanes)
	after, err := position.Entries(f.after, names)
	if err != nil {
		return err
	}
	heads, err := position.Entries(f.heads, names)
	if err != nil {
		return err
	}
	for i, l := range r.lanes {
		e := after[i]
		if e == nil {
			e = heads[i]
		}
		l.place.Move(e.Pos, f.foreign[l.tail.Name])
		l.view.Entries, l.began, l.hole = nil, e.Began, e.Hole
		l.ended, l.said, l.fresh, l.follows.lane = false, false, true, nil
	}
	r.passed()
	return nil
}
