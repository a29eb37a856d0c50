package eventbus

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
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
	waiter *waiter
	holes  int // of all lanes
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
	asked   map[*lane]asked // what is to be found out of other lanes' logs, for view
	from    uint64          // ordinal in the tail before which a reader of several channels reads the log

	// What the lane passes over, though it is before its position, while other
	// lanes may have some of these events yet to come.
	holes []passed
}

// A passed hole matters until the other lanes are where their logs ended when it
// was passed: events behind that place are not in the hole.
type passed struct {
	hole
	ends []Position // by lane
}

// maxHoles bounds what is remembered of a lane with gap after gap.
const maxHoles = 8

// pass notes that a lane passes over a hole. The other lanes go on in their logs:
// there, and only there, it is noted where else an event is.
func (r *reader) pass(l *lane, h hole) {
	if len(r.lanes) == 1 {
		return
	}
	p := passed{hole: h, ends: make([]Position, len(r.lanes))}
	for i, m := range r.lanes {
		p.ends[i], m.from = m.tail.end()
		if m != l && m.place.attached { // else what it has is from its log already
			m.view, m.place.attached = view{}, false
		}
	}
	if len(l.holes) == maxHoles {
		l.holes = slices.Delete(l.holes, 0, 1)
	}
	l.holes = append(l.holes, p)
	r.holes++
	r.passed++
}

// forgetHoles drops those that all other lanes have come past.
func (r *reader) forgetHoles() {
	if r.holes == 0 {
		return
	}
	r.holes = 0
	for _, l := range r.lanes {
		l.holes = slices.DeleteFunc(l.holes, func(p passed) bool {
			for i, m := range r.lanes {
				at, end := m.place.pos, p.ends[i]
				if m != l && end.seq > 0 && (at.epoch < end.epoch || at.epoch == end.epoch && at.seq < end.seq) {
					return false
				}
			}
			return true
		})
		r.holes += len(l.holes)
	}
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
				<-r.waiter.woken
			}
			continue
		}
		again := time.After(pendingPause)
		if err != errPending {
			r.bus.warn("reading a log failed; trying again", err)
			again = retry.after()
		}
		select {
		case <-r.waiter.woken:
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
	var best *lane
	var failed error
	waits := false
	for passed := -1; passed != r.passed; { // passing over a hole sends other lanes back
		passed, best, failed, waits = r.passed, nil, nil, false
		for _, l := range r.lanes {
			if len(l.view.entries) == 0 {
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
			if len(l.view.entries) == 0 || best != nil && len(best.view.entries) > 0 && !l.older(best) {
				continue
			}
			if len(r.lanes) > 1 && r.pending(l) {
				waits = true
				continue
			}
			best = l
		}
	}
	if best == nil && waits && failed == nil {
		failed = errPending
	}
	if best == nil {
		return step{}, failed
	}
	v := best.view
	if len(r.lanes) > 1 {
		v.entries = v.entries[:1] // then it may be another lane's turn
	}
	return step{lane: best, view: v}, nil
}

// load gets a lane its next entries, from the tail or, where that does not reach
// back far enough, from the log.
func (r *reader) load(ctx context.Context, l *lane) (*GapError, error) {
	l.loads++
	for {
		g := l.tail.look(&l.place, l.from)
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
			h := hole{from, pos}
			if gap == GapRewound {
				h.after = Position{} // from where on the log is another, nobody knows
			}
			r.pass(l, h)
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
	return a == nil || b != nil && a.Timestamp.Before(b.Timestamp)
}

// take moves the step's lane over its next n entries.
func (r *reader) take(st step, n int) {
	l := st.lane
	l.place.advance(l.view.entries[:n])
	l.view.entries = l.view.entries[n:]
	r.forgetHoles()
}

// wants tells whether an entry is to be delivered: not when its type is left
// out, and not when its event comes, or came, from another lane.
func (r *reader) wants(l *lane, e *entry) bool {
	if e.event == nil || len(r.lanes) > 1 && r.elsewhere(l, e) {
		return false
	}
	for _, glob := range r.types {
		if ok, _ := path.Match(glob, string(e.event.Type)); ok {
			return true
		}
	}
	return len(r.types) == 0
}

// elsewhere tells whether the event of an entry is delivered from another lane:
// from the first that it was appended to. Entries note where that was, so the answer
// does not depend on what this reader remembers, and holds across a resume.
func (r *reader) elsewhere(l *lane, e *entry) bool {
	if !e.foreign() {
		for _, m := range r.lanes {
			if at, ok := r.notes(l, m, e); ok && (!r.bus.log.perChannel || r.has(l, m, at, e.event.ID) == yes) {
				return true
			}
		}
	}
	return r.seen.elsewhere(e.event.ID, l)
}

// notes finds where an entry of lane l says that its event is in lane m, unless m has
// passed over that place.
func (r *reader) notes(l, m *lane, e *entry) (Position, bool) {
	if m == l {
		return Position{}, false
	}
	at, ok := noted(e.also, m.tail.name)
	return at, ok && !slices.ContainsFunc(m.holes, func(p passed) bool { return p.has(at) })
}

// An answer can be that it is not known yet.
type answer int

const (
	no answer = iota
	yes
	notYet
)

// pending tells whether the next entry of a lane has to wait for another lane. The nodes of
// a cluster lose what they lose each by itself: what an entry notes of another node's
// log may not hold any more, so the lane there goes first.
func (r *reader) pending(l *lane) bool {
	e := &l.view.entries[0]
	if !r.bus.log.perChannel || e.event == nil || e.foreign() {
		return false
	}
	for _, m := range r.lanes {
		if at, ok := r.notes(l, m, e); ok && r.has(l, m, at, e.event.ID) == notYet {
			return true
		}
	}
	return false
}

// has tells whether lane m has delivered, or will, the event that an entry of lane l
// notes to be at this position of m's log.
func (r *reader) has(l, m *lane, at Position, id string) answer {
	at.mark = fingerprint(id)
	pos := m.place.pos
	found, same, end := m.tail.compare(at)
	switch {
	case found && same:
		return yes
	case found:
		return no
	case at.epoch == pos.epoch && at.seq <= m.began.seq && m.began.epoch == pos.epoch:
		return yes // before this subscription was resumed
	case at.epoch == pos.epoch && at.seq <= pos.seq:
		if _, ok := r.seen.lanes[id]; ok {
			return yes
		}
		if len(r.seen.order) < recentEvents {
			return no
		}
		return l.lookUp(m, at)
	case at.epoch == end.epoch && at.seq <= end.seq:
		return notYet // the lane is on its way there
	}
	// The tail may not have it yet. Whatever l's view notes was in m's log before the
	// view was filled, so a read that begins from now on will tell.
	a := l.asks(m)
	if a.reads == 0 {
		a.reads = m.tail.reads.Load() + 2
		l.asked[m] = a
	}
	if m.tail.reads.Load() < a.reads {
		r.bus.feed.want(true, m.tail)
		return notYet
	}
	return no
}

// An asked is what one lane has to find out of another's log.
type asked struct {
	loads  uint64   // the lane's, when it began to ask
	reads  int64    // the other tail's, when it will have been told where that log ends; 0 not asked
	at     Position // what flight looks for
	flight *flight
	own    bool
}

func (l *lane) asks(m *lane) asked {
	if l.asked == nil {
		l.asked = make(map[*lane]asked)
	}
	a := l.asked[m]
	if a.loads != l.loads {
		a = asked{loads: l.loads}
	}
	return a
}

// lookUp reads in m's log whether it has the event that is noted to be at this position, where
// m was longer ago than the reader remembers.
func (l *lane) lookUp(m *lane, at Position) answer {
	a := l.asks(m)
	if a.flight != nil && a.at == at && isClosed(a.flight.done) {
		if p := a.flight.page; p != nil {
			there, ok := p.at(at)
			switch {
			case ok && there.same(at), p.trimmed(at): // before it was trimmed, the lane had it
				return yes
			case ok || a.own:
				return no
			}
		}
		a.flight = nil // it failed, or was to read something else
	}
	if a.flight == nil || a.at != at {
		a.at = at
		a.flight, a.own = m.tail.pages.join(m.tail, at, true)
		l.asked[m] = a
	}
	return notYet
}

// noted finds where the notes of an entry say that its event is in a channel.
func noted(also, name string) (Position, bool) {
	for note := range strings.FieldsSeq(also) {
		if channel, at, _ := strings.Cut(note, "@"); channel == name {
			pos, err := ParsePosition(at)
			return pos, err == nil
		}
	}
	return Position{}, false
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
	if r.holes > 0 {
		holes = make([][]hole, len(r.lanes))
		for i, l := range r.lanes {
			for _, p := range l.holes {
				holes[i] = append(holes[i], p.hole)
			}
		}
	}
	return Cursor{string(r.key.append(nil, func(i int) Position { return r.lanes[i].place.pos }, holes...))}
}

// A recent set remembers from which lane events were delivered last. It is for events
// whose notes do not tell: foreign ones, and those of a log that went back.
type recent struct {
	lanes map[string]*lane
	order []string // a ring, oldest at next
	next  int
}

const recentEvents = 1024

// elsewhere tells whether the event was delivered from another lane than l, and
// otherwise remembers it.
func (s *recent) elsewhere(id string, l *lane) bool {
	if m, ok := s.lanes[id]; ok {
		return m != l
	}
	if s.lanes == nil {
		s.lanes = make(map[string]*lane)
	}
	if len(s.order) < recentEvents {
		s.order = append(s.order, id)
	} else {
		delete(s.lanes, s.order[s.next])
		s.order[s.next] = id
		s.next = (s.next + 1) % recentEvents
	}
	s.lanes[id] = l
	return false
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
