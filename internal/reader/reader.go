// Package reader is one subscription at work. A Reader merges the tails of its channels. It
// delivers each event once, and announces a gap where something is missing. What it finds comes as
// events (Events) or as SSE frames (Stream).
//
// The bus makes the Readers. For each subscription it calls New, Begin, then Next until that fails,
// and Close. Next ends with an error:
//
//	what ends it          the error          when
//	the context ends      its cause          at once
//	a revoke calls End    the error of End   at once
//	the bus is closed     cause of Closed    at once
//	the bus drains        cause of Draining  at once; with drain, when nothing more can be read
//	NoFollow is done      ErrDone            when the reader is where the logs ended as it began
//	all channels ended    ErrDone            when their ends were given
//
// A Reader belongs to one goroutine, that of its caller, and has no lock. Other goroutines may only
// call ring and End, and set its waiter, as WakeOn does. The package starts a goroutine for the
// search of a log for an id, one at a time, and two for each snapshot that is being loaded.
//
//	reader.go    the Reader: lanes, steps, gaps, cursors
//	begin.go     where a subscription begins, and the search
//	once.go      the once-rule
//	snapshot.go  snapshots, which readers with the same view share
//	stream.go    frames, keepalives, and the checks whether a client may still read
//	types.go     the type filter
package reader

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Reader is one subscription at work: it has a lane for each channel.
type Reader struct {
	*Readers
	lanes   []*lane
	types   *typeFilter
	key     position.Key
	waiter  pace.Flag
	carries bool   // cursors say where lanes began, and their holes: see once.go
	foreign recent // the newest foreign events

	noFollow  bool
	due       bool    // the reader begins with a snapshot
	uncovered bool    // the cursor that it came with lacks a channel
	live      bool    // all lanes have come to where their logs ended when the reader began
	asked     *flight // the snapshot that the reader waits for
	stale     bool    // asked began too early: another one is to be asked for

	alarm atomic.Bool           // set by ring
	over  atomic.Pointer[error] // set by End
}

// ring makes Next return: with a timeout if there is nothing else. Any goroutine may call it.
func (r *Reader) ring() {
	r.alarm.Store(true)
	r.waiter.Set()
}

// End makes Next return this error from now on. Any goroutine may call it.
func (r *Reader) End(err error) {
	r.over.Store(&err)
	r.waiter.Set()
}

// A lane is a reader's way through one channel.
type lane struct {
	tail  *tail.Tail
	place tail.Place
	view  tail.View // entries to take next

	// What lies before the place but was not delivered by this lane: see once.go.
	began position.Position // where the subscription began here; zero if it came by a cursor
	hole  position.Hole

	// end is where the log ended when a lane of the reader last began or came upon a gap, or
	// somewhat later. The tail's reads from number endRead on can find it: see passed.
	end     position.Position
	endRead int // 0: the end is known

	log    *position.Page    // the log's state as the reader began, nil where nobody asked
	target position.Position // where the log ended then; zero where there was none
	ended  bool              // the lane is behind the last event of a log that has ended
	said   bool              // Next has given that
	// follows is the place of the log's last event in the lane that delivers it. The end comes
	// behind that.
	follows struct {
		lane *lane
		at   position.Position
	}
	// Whether the lane's log was not read since it was put here: by a snapshot, by Last, or by a cursor
	// that a reader without follow has to compare with the log.
	fresh, last, unchecked bool

	// A log that cannot be read is tried again. It does not hold up the other lanes.
	failed error
	retry  pace.Backoff
	again  time.Time // when to try next
}

// A step is what a reader comes upon, one of: some entries of one lane, a gap, that the reader is
// live, that a channel has ended, or a snapshot that was asked for. It is a timeout where ring was
// called and there was none of them.
type step struct {
	lane    *lane
	Channel int // number of the lane
	tail.View
	Gap      *Gap
	live     bool
	end      bool
	snapshot *flight
	timeout  bool
}

// something reports whether the step is anything but a timeout.
func (st *step) something() bool {
	return len(st.Entries) > 0 || st.Gap != nil || st.live || st.end || st.snapshot != nil
}

// ErrDone ends a subscription that has come to its end.
var ErrDone = errors.New("the subscription is done")

// A Gap says that a lane has passed over something.
type Gap struct {
	Channel int // number of the lane
	Reason  position.Reason
	From    position.Position // where the lane stood; zero if that is not known
	Cursor  string            // the cursor behind the gap
	fresh   bool              // the gap begins where a snapshot has put the lane
}

// WakeOn makes the end of a context wake the reader. Call it once, before Next is called with that
// context.
func (r *Reader) WakeOn(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, r.waiter.Set)
}

// Next gives the next step. It waits until there is one, or ring is called, or something ends it:
// see the package comment. With drain, it gives what there is before a drain of the bus ends it.
func (r *Reader) Next(ctx context.Context, drain bool) (step, error) {
	for {
		draining := r.Draining.Err() != nil
		if err := r.ended(ctx, draining && !drain); err != nil {
			return step{}, err
		}
		if r.live && (r.noFollow || !slices.ContainsFunc(r.lanes, func(l *lane) bool { return !l.said })) {
			return step{}, ErrDone
		}
		if draining {
			for _, l := range r.lanes {
				l.tail.Wake()
			}
		}
		st, err := r.step(ctx)
		switch {
		case st.something():
			return st, nil
		case ctx.Err() != nil:
			continue
		case draining:
			return step{}, context.Cause(r.Draining)
		case r.alarm.Swap(false):
			return step{timeout: true}, nil
		case err == nil && r.asked == nil:
			// Tails, ring, End and the end of the context set the waiter. A drain does so only
			// through the tails, once, and step may have looked at a tail after that. So Draining
			// is checked again.
			if r.Draining.Err() == nil {
				<-r.waiter
			}
			continue
		case err == nil: // a reader that waits for a snapshot is in no tail's list
			select {
			case <-r.waiter:
			case <-r.Draining.Done():
			}
			continue
		}
		r.Warn("reading a log failed; trying again", err)
		select {
		case <-r.waiter:
		case <-time.After(time.Until(r.again())):
		case <-r.Draining.Done():
		}
	}
}

// again is when the next of the logs that could not be read is to be tried again.
func (r *Reader) again() (at time.Time) {
	for _, l := range r.lanes {
		if l.failed != nil && (at.IsZero() || l.again.Before(at)) {
			at = l.again
		}
	}
	return at
}

// ended gives the error with which Next ends, nil if it goes on. over says that a drain of the bus
// ends it now.
func (r *Reader) ended(ctx context.Context, over bool) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case over:
		return context.Cause(r.Draining)
	case r.Closed.Err() != nil:
		return context.Cause(r.Closed)
	}
	if err := r.over.Load(); err != nil {
		return *err
	}
	return nil
}

// step looks once at what there is. If it finds nothing, the tails set the waiter once there is
// something.
func (r *Reader) step(ctx context.Context) (step, error) {
	if r.asked != nil {
		return r.answer(), nil
	}
	var failed error
	next, number := (*lane)(nil), 0
	for i, l := range r.lanes {
		if len(l.view.Entries) == 0 && !(r.noFollow && l.reached()) {
			gap, err := r.load(ctx, l)
			if gap != nil {
				r.Gaps.Add(1)
				return step{Gap: gap}, nil
			}
			if err != nil {
				failed = err
			}
			if r.noFollow {
				l.clip()
			}
		}
		if r.noFollow && l.reached() {
			continue
		}
		if l.place.Pos.IsZero() || l.place.Pos == position.Unknown {
			return step{}, failed // where this lane begins decides what the others deliver
		}
		if len(l.view.Entries) > 0 && (next == nil || l.older(next)) {
			next, number = l, i
		}
	}
	if st := r.announce(); next == nil || st.something() {
		return st, failed
	}
	v := next.view
	if len(r.lanes) > 1 {
		v.Entries = v.Entries[:1] // after one entry it may be another lane's turn
	}
	return step{lane: next, Channel: number, View: v}, nil
}

// announce gives what is to be said before the next event, if there is something.
func (r *Reader) announce() (st step) {
	if !r.live {
		r.live = !slices.ContainsFunc(r.lanes, func(l *lane) bool { return !l.reached() })
		return step{live: r.live}
	}
	for i, l := range r.lanes {
		late := l.follows.lane != nil && l.follows.at.Beyond(l.follows.lane.place.Pos)
		if l.ended && !l.said && !late {
			l.said = true
			return step{Channel: i, end: true}
		}
	}
	return step{}
}

// reached reports whether the lane has come to where its log ended when the reader began, or to where
// it ended at some time after that: the log may have gone back meanwhile.
func (l *lane) reached() bool {
	p, t := l.place.Pos, l.target
	if l.unchecked {
		return false
	}
	if t.IsZero() || p.IsZero() || p == position.Unknown {
		return p == t
	}
	return p.Epoch > t.Epoch || p.Epoch == t.Epoch && p.Seq >= t.Seq || l.endKnown() && !l.end.Beyond(p)
}

// clip leaves out what came into the log after the reader had begun.
func (l *lane) clip() {
	for i := range l.view.Entries {
		if l.view.Entries[i].Beyond(l.target) {
			l.view.Entries = l.view.Entries[:i]
			return
		}
	}
}

// load gets a lane its next entries: from the tail, or from the log where the tail does not reach
// back far enough. It gives the gap that the lane comes upon.
func (r *Reader) load(ctx context.Context, l *lane) (*Gap, error) {
	for {
		g := l.tail.Look(&l.place)
		l.view, l.ended = g.View, g.Ended
		if g.Skipped {
			return r.gap(l, l.place.Pos, position.Unlogged), nil
		}
		if !g.Behind {
			l.failed, l.fresh, l.last = nil, false, false
			return nil, nil
		}
		if time.Now().Before(l.again) && r.Draining.Err() == nil {
			return nil, l.failed
		}
		v, pos, gap, err := l.tail.After(ctx, l.place.Pos)
		l.place.Anyway, l.failed = err != nil, err
		if err != nil {
			l.again = time.Now().Add(l.retry.Next())
			return nil, err
		}
		l.retry = pace.Backoff{}
		if l.last && gap == position.Trimmed {
			l.began, gap = pos, "" // it begins with the oldest event, and that was another one before
		}
		l.last, l.unchecked = false, false
		from := l.place.Pos
		l.place.Pos, l.view = pos, v
		if from.IsZero() || from == position.Unknown {
			l.began, from = pos, position.Position{}
			r.passed()
		} else if gap != "" {
			l.pass(from, pos)
			r.passed()
		}
		if pos.IsZero() || gap == position.Rewound || gap == position.Lost && pos.Epoch != l.target.Epoch {
			l.target = pos // the log has no more of what it had when the reader began
		}
		if gap != "" {
			return r.gap(l, from, gap), nil
		}
		l.fresh = false
		if len(v.Entries) > 0 {
			return nil, nil
		}
		if l.place.AtEnd = pos == from; l.place.AtEnd && l.target.Beyond(pos) {
			l.target = pos // the log went back
		}
	}
}

// gap makes the Gap of a lane that has just passed over something.
func (r *Reader) gap(l *lane, from position.Position, reason position.Reason) *Gap {
	fresh := l.fresh
	l.said, l.fresh, l.follows.lane = false, false, nil
	return &Gap{slices.Index(r.lanes, l), reason, from, r.cursor(), fresh}
}

// older reports whether the next event of l has an earlier time than that of m. An entry that could
// not be read comes before any event.
func (l *lane) older(m *lane) bool {
	a, b := l.view.Entries[0].Event, m.view.Entries[0].Event
	return a == nil || b != nil && a.Timestamp.Before(b.Timestamp)
}

// take moves the step's lane over its next n entries.
func (r *Reader) take(st step, n int) {
	l := st.lane
	l.place.Advance(l.view.Entries[:n])
	l.view.Entries = l.view.Entries[n:]
}

// wants reports whether a lane delivers an entry. It does not when the entry could not be read,
// when another lane delivers the event, or when the type is left out.
func (r *Reader) wants(l *lane, e *tail.Entry) bool {
	if e.Event == nil {
		return false
	}
	m, at, ok := r.elsewhere(l, e)
	if e.Final {
		l.follows.lane, l.follows.at = m, at
	}
	return !ok && r.types.has(e.Event.Type)
}

// Events takes the entries of a step. It yields the events that are to be delivered, each with the
// cursor behind it. Other readers share their payloads: do not change them.
func (r *Reader) Events(st step) iter.Seq2[wire.Event, string] {
	return func(yield func(wire.Event, string) bool) {
		for i := range st.Entries {
			e := &st.Entries[i]
			wanted := r.wants(st.lane, e)
			r.take(st, 1)
			if !wanted {
				continue
			}
			cursor := ""
			if len(r.lanes) == 1 && !e.Foreign {
				cursor = st.Cursor(e)
			} else {
				cursor = r.cursor()
			}
			if !yield(st.Event(e), cursor) {
				return
			}
		}
	}
}

// positions gives where the reader stands in each lane.
func (r *Reader) positions(into []position.Position) []position.Position {
	into = into[:0]
	for _, l := range r.lanes {
		into = append(into, l.place.Pos)
	}
	return into
}

// stands reports whether the reader is at exactly these positions.
func (r *Reader) stands(at []position.Position) bool {
	return slices.EqualFunc(r.lanes, at, func(l *lane, p position.Position) bool { return l.place.Pos == p })
}

// cursor gives the cursor of where the reader stands in all lanes.
func (r *Reader) cursor() string {
	if !r.carriesHoles() {
		return string(r.key.Append(nil, func(i int) position.Position { return r.lanes[i].place.Pos }))
	}
	entries := make([]position.Entry, len(r.lanes))
	for i, l := range r.lanes {
		entries[i] = position.Entry{Pos: l.place.Pos, Began: l.began, Hole: l.hole}
	}
	return string(r.key.AppendAll(nil, entries))
}
