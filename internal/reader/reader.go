package reader

import (
	"context"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Reader is one subscription at work: a place in the tail of each channel. It
// belongs to one goroutine.
type Reader struct {
	*Readers
	lanes   []*lane
	types   *typeFilter
	key     position.Key
	waiter  pace.Flag
	open    bool   // cursors say where lanes began, and their holes: see once.go
	foreign recent // foreign events of late

	alarm atomic.Bool           // see ring
	over  atomic.Pointer[error] // see end
}

// ring makes next return, with a timeout if there is nothing else.
func (r *Reader) ring() {
	r.alarm.Store(true)
	r.waiter.Set()
}

// End makes next return this error from now on.
func (r *Reader) End(err error) {
	r.over.Store(&err)
	r.waiter.Set()
}

// A lane is a reader's way through one channel.
type lane struct {
	tail  *tail.Tail
	place tail.Place
	view  tail.View // entries to take next

	// What is before the place and was not delivered from here: see once.go.
	began position.Position // where the subscription began, zero if by a cursor
	hole  position.Hole

	// Where the log ended when a lane of the reader began or passed over something: where the read
	// found it that will be, or was, this one of the tail.
	end     position.Position
	endRead int // 0: it is known

	// A log that cannot be read is tried again, without holding up the other lanes.
	failed error
	retry  pace.Backoff
	again  time.Time // not before
}

// A step is what a reader comes upon: a gap, some entries of one lane, or neither
// when time is up.
type step struct {
	lane    *lane
	Channel int // number of the lane
	tail.View
	Gap     *Gap
	timeout bool
}

// A Gap says that a lane has passed over something.
type Gap struct {
	Channel int // number of the lane
	Reason  position.Reason
	From    position.Position
	Cursor  string // behind it
}

// WakeOn makes the end of a context wake the reader. It must be called, once, before
// next is called with that context.
func (r *Reader) WakeOn(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, r.waiter.Set)
}

// Next gives the next step. It waits until there is one, the context or the bus
// ends, or ring is called. When the bus drains, it first gives what there is, if drain
// says so.
func (r *Reader) Next(ctx context.Context, drain bool) (step, error) {
	for {
		draining := r.Draining.Err() != nil
		if err := r.ended(ctx, draining && !drain); err != nil {
			return step{}, err
		}
		if draining {
			for _, l := range r.lanes {
				l.tail.Show()
			}
		}
		st, err := r.step(ctx)
		switch {
		case st.Gap != nil || len(st.Entries) > 0:
			return st, nil
		case ctx.Err() != nil:
			continue
		case draining:
			return step{}, context.Cause(r.Draining)
		case r.alarm.Swap(false):
			return step{timeout: true}, nil
		case err == nil:
			// A tail, ring, the context's end, Revoke and the bus's end all wake it. The
			// last does that through the tails, which it may have gone past already.
			if r.Draining.Err() == nil {
				<-r.waiter
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

// again is when the next log that could not be read is tried again.
func (r *Reader) again() (at time.Time) {
	for _, l := range r.lanes {
		if l.failed != nil && (at.IsZero() || l.again.Before(at)) {
			at = l.again
		}
	}
	return at
}

// ended says why there is no more to come, if so.
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

// step looks once what there is. With nothing, the waiter is set.
func (r *Reader) step(ctx context.Context) (step, error) {
	var failed error
	next, number := (*lane)(nil), 0
	for i, l := range r.lanes {
		if len(l.view.Entries) == 0 {
			gap, err := r.load(ctx, l)
			if gap != nil {
				r.Gaps.Add(1)
				return step{Gap: gap}, nil
			}
			if err != nil {
				failed = err
			}
		}
		if l.place.Pos.IsZero() || l.place.Pos == position.Unknown {
			return step{}, failed // where it begins decides what others deliver
		}
		if len(l.view.Entries) > 0 && (next == nil || l.older(next)) {
			next, number = l, i
		}
	}
	if next == nil {
		return step{}, failed
	}
	v := next.view
	if len(r.lanes) > 1 {
		v.Entries = v.Entries[:1] // then it may be another lane's turn
	}
	return step{lane: next, Channel: number, View: v}, nil
}

// load gets a lane its next entries, from the tail or, where that does not reach
// back far enough, from the log.
func (r *Reader) load(ctx context.Context, l *lane) (*Gap, error) {
	for {
		g := l.tail.Look(&l.place)
		l.view = g.View
		if g.Skipped {
			return r.gap(l, l.place.Pos, position.Unlogged), nil
		}
		if !g.Behind {
			return nil, nil
		}
		if time.Now().Before(l.again) {
			return nil, l.failed
		}
		v, pos, gap, err := l.tail.After(ctx, l.place.Pos)
		l.place.Anyway, l.failed = err != nil, err
		if err != nil {
			l.again = time.Now().Add(l.retry.Next())
			return nil, err
		}
		l.retry = pace.Backoff{}
		from := l.place.Pos
		l.place.Pos, l.view = pos, v
		if from.IsZero() || from == position.Unknown {
			l.began, from = pos, position.Position{}
			r.passed()
		} else if gap != "" {
			l.pass(from, pos)
			r.passed()
		}
		if gap != "" {
			return r.gap(l, from, gap), nil
		}
		if len(v.Entries) > 0 {
			return nil, nil
		}
		l.place.AtEnd = pos == from
	}
}

// gap is what a reader is told when a lane has passed over something.
func (r *Reader) gap(l *lane, from position.Position, reason position.Reason) *Gap {
	return &Gap{slices.Index(r.lanes, l), reason, from, r.cursor()}
}

// older tells whether the next event of l happened before that of m.
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

// wants reports whether the entry of a step is to be delivered: not when its type is left
// out, and not when another lane delivers its event.
func (r *Reader) wants(l *lane, e *tail.Entry) bool {
	return e.Event != nil && !r.elsewhere(l, e) && r.types.has(e.Event.Type)
}

// Events takes the events of a step that are to be delivered, each with the cursor behind it. Their
// payloads are everybody's.
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

// stands tells whether the reader is at exactly these positions.
func (r *Reader) stands(at []position.Position) bool {
	return slices.EqualFunc(r.lanes, at, func(l *lane, p position.Position) bool { return l.place.Pos == p })
}

// cursor covers all lanes.
func (r *Reader) cursor() string {
	if !r.isOpen() {
		return string(r.key.Append(nil, func(i int) position.Position { return r.lanes[i].place.Pos }))
	}
	entries := make([]position.Entry, len(r.lanes))
	for i, l := range r.lanes {
		entries[i] = position.Entry{Pos: l.place.Pos, Began: l.began, Hole: l.hole}
	}
	return string(r.key.AppendAll(nil, entries))
}
