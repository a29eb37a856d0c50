package eventbus

import (
	"context"
	"errors"
	"path"
	"slices"
	"sync/atomic"
	"time"
)

// A reader is one subscription at work: a place in the tail of each channel. It
// belongs to one goroutine.
type reader struct {
	bus    *Bus
	lanes  []*lane
	types  []string
	key    cursorKey
	waiter waiter
	passed int // how often a lane has passed over one
	seen   recent

	alarm    atomic.Bool // see ring
	counted  bool        // it was admitted
	named    bool        // under this identity,
	identity identity
	revoked  atomic.Bool // which may read no more
}

// ring makes next return, with a timeout if there is nothing else.
func (r *reader) ring() {
	r.alarm.Store(true)
	r.waiter.wake()
}

// A lane is a reader's way through one channel.
type lane struct {
	tail  *tail
	place place
	view  view // entries to take next
	// rewound says that a failover has put other events before the place: a gap that
	// is to be announced.
	rewound bool
	began   Position        // where the subscription began
	loads   uint64          // how often view was filled
	verdict answer          // of judge, for the next entry
	waits   bool            // used by turn alone
	asked   map[*lane]asked // what is to be found out of other lanes' logs, for view
	from    uint64          // ordinal in the tail before which a reader of several channels reads the log

	// What the lane passes over, though it is before its position, while other
	// lanes may have some of these events yet to come.
	holes []hole
}

// A step is what a reader comes upon: a gap, some entries of one lane, or neither
// when time is up.
type step struct {
	lane *lane
	view
	gap     *GapError
	timeout bool
}

// open begins a subscription. It waits until all its channels can be read.
func (b *Bus) open(ctx context.Context, sub Subscription) (*reader, error) {
	if err := sub.check(&b.options); err != nil {
		if len(sub.Channels) > b.options.maxChannels {
			b.stats.refusedChannels.Add(1)
		}
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !b.enter() {
		return nil, ErrClosed
	}
	r := &reader{bus: b, waiter: newWaiter()}
	if err := b.admit(r, sub.Identity); err != nil {
		b.leave()
		return nil, err
	}
	r.counted = true
	if r.named {
		b.watchOnce.Do(func() { b.spawn(b.watch) })
		if err := b.await(ctx, b.watches); err != nil {
			r.close()
			return nil, err
		}
	}
	if err := b.begin(ctx, r, sub); err != nil {
		return nil, err
	}
	return r, nil
}

// await waits for what must be there before a subscription can begin.
func (b *Bus) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.draining:
		return ErrClosed
	}
}

// newReader makes a reader of the bus's own, which no limit counts.
func (b *Bus) newReader(ctx context.Context, sub Subscription) (*reader, error) {
	r := &reader{bus: b, waiter: newWaiter()}
	if err := b.begin(ctx, r, sub); err != nil {
		return nil, err
	}
	return r, nil
}

// begin sets a reader to where its subscription begins. With an error, it closes it.
func (b *Bus) begin(ctx context.Context, r *reader, sub Subscription) (err error) {
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	r.types = sub.Types
	var names []string
	for _, c := range sub.Channels {
		t := b.feed.acquire(c)
		r.lanes = append(r.lanes, &lane{tail: t, place: place{waiter: r.waiter}})
		names = append(names, t.name)
	}
	r.key = newCursorKey(names)
	for _, l := range r.lanes {
		if err := b.await(ctx, l.tail.opened); err != nil {
			return err
		}
	}
	for _, l := range r.lanes {
		l.tail.begin(&l.place)
		_, l.from = l.tail.end()
		if sub.After.IsZero() && sub.LastEventID == "" && !sub.Oldest {
			l.place.pos = b.present(ctx, l)
		}
	}
	if len(r.lanes) == 1 {
		r.lanes[0].from = 0
	}
	if err := r.start(ctx, sub, names); err != nil {
		return err
	}
	for _, l := range r.lanes {
		l.began = l.place.pos
	}
	return nil
}

// present is where a lane stands that begins now. What this process has published can
// be on its way to the tail yet, or can have been lost since: then the log is asked.
func (b *Bus) present(ctx context.Context, l *lane) Position {
	head, pos := b.log.head(l.tail.name), l.place.pos
	if head.IsZero() || head.epoch == pos.epoch && head.seq <= pos.seq {
		return pos
	}
	if heads, err := b.heads(ctx, []string{l.tail.name}); err == nil {
		return heads[0]
	}
	if head.epoch == pos.epoch {
		return head
	}
	return pos
}

// start moves the lanes from the present to where the subscription begins.
func (r *reader) start(ctx context.Context, sub Subscription, names []string) error {
	after := sub.After
	switch id := sub.LastEventID; {
	case id == "":
		if sub.Oldest {
			for _, l := range r.lanes {
				l.place.pos = Position{}
			}
			return nil
		}
	case isUUID(id):
		return r.startAtEvent(ctx, id)
	default:
		cursor, err := ParseCursor(id)
		pos, posErr := ParsePosition(id)
		switch {
		case err == nil:
			after = cursor
		case posErr == nil && len(r.lanes) == 1:
			r.lanes[0].place.pos = pos
			return nil
		default:
			for _, l := range r.lanes {
				l.place.pos = unknown
			}
			return nil
		}
	}
	if after.IsZero() {
		return nil
	}
	entries, err := after.entries(names)
	if err != nil {
		return err
	}
	for i, e := range entries {
		if e != nil {
			r.lanes[i].place.pos = e.pos
		}
	}
	for i, e := range entries {
		if e == nil {
			r.pass(r.lanes[i], hole{upto: r.lanes[i].place.pos})
			continue
		}
		for _, h := range e.holes {
			r.pass(r.lanes[i], h)
		}
	}
	return nil
}

func isUUID(s string) bool {
	_, err := parseUUID(s)
	return err == nil
}

// startAtEvent begins behind the event with this id.
func (r *reader) startAtEvent(ctx context.Context, id string) error {
	for _, l := range r.lanes {
		pos, ok, err := r.bus.findEvent(ctx, l.tail, id)
		switch {
		case err != nil:
			return err
		case ok:
			l.place.pos = pos
		default:
			l.place.pos = unknown
		}
	}
	return nil
}

func (r *reader) close() {
	for _, l := range r.lanes {
		l.tail.forget(&l.place)
		r.bus.feed.release(l.tail)
	}
	if r.counted {
		r.bus.dismiss(r)
		r.bus.leave()
	}
}

// wakeOn makes the end of a context wake the reader. It must be called, once, before
// next is called with that context.
func (r *reader) wakeOn(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, r.waiter.wake)
}

// next gives the next step. It waits until there is one, the context or the bus
// ends, or ring is called. When the bus drains, it first gives what there is, if drain
// says so.
func (r *reader) next(ctx context.Context, drain bool) (step, error) {
	var retry backoff
	pause := pendingPause
	for {
		draining := r.bus.isDraining()
		if err := r.ended(ctx, draining && !drain); err != nil {
			return step{}, err
		}
		if draining {
			for _, l := range r.lanes {
				l.tail.show()
			}
		}
		st, err := r.step(ctx)
		switch {
		case st.gap != nil || len(st.entries) > 0:
			return st, nil
		case ctx.Err() != nil:
			continue
		case draining:
			return step{}, ErrClosed
		case r.alarm.Swap(false):
			return step{timeout: true}, nil
		case err == nil:
			// A tail, ring, the context's end, Revoke and the bus's end all wake it. The
			// last does that through the tails, which it may have gone past already.
			if !r.bus.isDraining() {
				<-r.waiter
			}
			continue
		}
		again := time.After(pause)
		pause = min(2*pause, 64*pendingPause)
		if err != errPending {
			r.bus.warn("reading a log failed; trying again", err)
			again = retry.after()
		}
		select {
		case <-r.waiter:
		case <-again:
		case <-r.bus.draining:
		}
	}
}

// ended says why there is no more to come, if so.
func (r *reader) ended(ctx context.Context, over bool) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case over || r.bus.isClosed():
		return ErrClosed
	case r.revoked.Load():
		return ErrRevoked
	}
	return nil
}

// errPending is the step of a reader whose lanes wait for what a tail has yet to read.
var errPending = errors.New("waiting for another channel")

const pendingPause = 5 * time.Millisecond

// step looks once what there is. With nothing, the waiter is set.
func (r *reader) step(ctx context.Context) (step, error) {
	var failed error
	for passed := -1; passed != r.passed; { // passing over a hole sends other lanes back
		passed, failed = r.passed, nil
		for _, l := range r.lanes {
			if len(l.view.entries) > 0 {
				continue
			}
			gap, err := r.load(ctx, l)
			if gap != nil {
				gap.Cursor = r.cursor()
				r.bus.stats.gaps.Add(1)
				return step{gap: gap}, nil
			}
			if err != nil {
				failed = err
			}
		}
	}
	next, waits := r.turn()
	if next == nil && waits && failed == nil {
		failed = errPending
	}
	if next == nil {
		return step{}, failed
	}
	v := next.view
	if len(r.lanes) > 1 {
		v.entries = v.entries[:1] // then it may be another lane's turn
	}
	return step{lane: next, view: v}, nil
}

// load gets a lane its next entries, from the tail or, where that does not reach
// back far enough, from the log.
func (r *reader) load(ctx context.Context, l *lane) (*GapError, error) {
	l.loads++
	for {
		before := l.place.pos
		g := l.tail.look(&l.place, l.from)
		r.moved(l, before)
		l.view = g.view
		if g.skipped {
			return &GapError{Channel: l.tail.channel, Reason: GapUnlogged, From: l.place.pos}, nil
		}
		l.rewound = l.rewound || g.rewound
		if !g.behind && !l.rewound {
			return nil, nil
		}
		v, pos, gap, err := l.tail.after(ctx, l.place.pos)
		l.place.anyway = err != nil
		if err != nil {
			return nil, err
		}
		if l.rewound && gap == "" {
			gap = GapRewound
		}
		l.rewound = false
		from := l.place.pos
		l.place.pos, l.view = pos, v
		if from == unknown {
			from = Position{}
		}
		if gap != "" || from.IsZero() && pos != from {
			r.pass(l, hole{from, pos})
		}
		if gap != "" {
			return &GapError{Channel: l.tail.channel, Reason: gap, From: from}, nil
		}
		if len(v.entries) > 0 {
			return nil, nil
		}
		l.place.atEnd = pos == from || pos.seq == noLog && from.seq == noLog
	}
}

// older tells whether the next event of l happened before that of m.
func (l *lane) older(m *lane) bool {
	a, b := l.view.entries[0].event, m.view.entries[0].event
	return a == nil || b != nil && a.timestamp.Before(b.timestamp)
}

// take moves the step's lane over its next n entries.
func (r *reader) take(st step, n int) {
	l := st.lane
	before := l.place.pos
	l.place.advance(l.view.entries[:n])
	l.view.entries = l.view.entries[n:]
	r.moved(l, before)
}

// wants tells whether the entry of a step is to be delivered: not when its type is left
// out, and not when its event came from another lane.
func (r *reader) wants(l *lane, e *entry) bool {
	if e.event == nil || len(r.lanes) > 1 && (l.verdict == yes || r.seen.elsewhere(e.event.id, l)) {
		return false
	}
	for _, glob := range r.types {
		if ok, _ := path.Match(glob, string(e.event.typ)); ok {
			return true
		}
	}
	return len(r.types) == 0
}

// positions gives where the reader stands in each lane.
func (r *reader) positions(into []Position) []Position {
	into = into[:0]
	for _, l := range r.lanes {
		into = append(into, l.place.pos)
	}
	return into
}

// stands tells whether the reader is at exactly these positions.
func (r *reader) stands(at []Position) bool {
	return slices.EqualFunc(r.lanes, at, func(l *lane, p Position) bool { return l.place.pos == p })
}

// cursor covers all lanes.
func (r *reader) cursor() Cursor {
	var holes [][]hole
	for i, l := range r.lanes {
		if len(l.holes) > 0 && holes == nil {
			holes = make([][]hole, len(r.lanes))
		}
		if len(l.holes) > 0 {
			holes[i] = l.holes
		}
	}
	return Cursor{string(r.key.append(nil, func(i int) Position { return r.lanes[i].place.pos }, holes...))}
}

// findEvent looks for an event in a tail and then in its log, for one reader at
// a time: searching a log is the dearest thing that a client can ask for.
func (b *Bus) findEvent(ctx context.Context, t *tail, id string) (Position, bool, error) {
	if pos, ok := t.locate(id); ok {
		return pos, true, nil
	}
	select {
	case b.searching <- struct{}{}:
	case <-ctx.Done():
		return Position{}, false, context.Cause(ctx)
	}
	type answer struct {
		pos Position
		ok  bool
		err error
	}
	answers := make(chan answer, 1)
	b.spawn(func() {
		defer func() { <-b.searching }()
		var a answer
		a.pos, a.ok, a.err = b.log.find(b.ctx, t.name, id)
		answers <- a
	})
	select {
	case a := <-answers:
		return a.pos, a.ok, a.err
	case <-ctx.Done():
		return Position{}, false, context.Cause(ctx)
	}
}
