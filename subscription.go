package eventbus

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"path"
	"slices"
	"strings"
	"time"
)

// A Subscription says what is to be read. Only Channels is required; with the
// other fields zero it begins now and takes all types.
type Subscription struct {
	// Channels to read; at most 32, see [WithMaxChannels]. The same channel
	// twice counts once.
	Channels []Channel
	// Types are globs such as "agent.*" as [path.Match] takes them; an event
	// whose type matches none is left out. None at all means all types.
	Types []string
	// After is the cursor to resume from. A channel that it does not cover
	// begins now; channels that it covers and the subscription does not have
	// are ignored.
	After Cursor
	// Oldest begins with the oldest event of each log, when After is zero.
	Oldest bool
	// LastEventID resumes from what an SSE client sends: a cursor, the id of an
	// event that is still in a log of one of the channels, or the position of one
	// when there is one channel. Anything else is a gap with [GapUnknown] in every
	// channel. It counts before After; [Bus.Handler] sets it from the request.
	LastEventID string
	// ValidUntil is, for [Bus.Handler], the time at which the function that
	// authorises the stream is asked again at the latest; zero means at keepalives.
	ValidUntil time.Time
}

// check refuses a subscription that cannot be read.
func (s *Subscription) check(o *options) error {
	p := problems{subject: "subscription"}
	if len(s.Channels) == 0 {
		p.add("channels", "is empty")
	}
	s.Channels = distinct(s.Channels)
	if len(s.Channels) > o.maxChannels {
		p.add("channels", "has %d channels, more than %d", len(s.Channels), o.maxChannels)
	}
	for _, c := range s.Channels {
		var bad *ValidationError
		if errors.As(c.check("channels"), &bad) {
			p.fields = append(p.fields, bad.Fields...)
		}
	}
	for _, t := range s.Types {
		if _, err := path.Match(t, ""); err != nil || t == "" {
			p.add("types", "has %s, which is not a glob", excerpt(t))
		}
	}
	if s.Oldest && !s.After.IsZero() {
		p.add("oldest", "is set beside after")
	}
	return p.err()
}

// distinct leaves out channels that are there before.
func distinct(channels []Channel) []Channel {
	var out []Channel
	for _, c := range channels {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// Subscribe walks the events of channels from now on:
//
//	for ev, err := range bus.Subscribe(ctx, eventbus.ProjectChannel(id)) {
//		var gap *eventbus.GapError
//		switch {
//		case errors.As(err, &gap):
//			reload(gap.Channel) // events are missing here; the walk goes on
//		case err != nil:
//			return err // the last pair: why the walk has ended
//		default:
//			show(ev)
//		}
//	}
//
// Within a channel events come in the order of its log, each once, also where it
// was published to several of the channels. Nothing happens before the range
// begins; "now" is then. The walk is endless: a gap is the one error after which it goes on;
// any other is the last: the cause of the context's end, [ErrClosed], or a
// [*ValidationError] for the channels. It outlasts a Redis that is away. A loop
// body that takes its time delays nobody else, and costs no memory: it is behind,
// and reads from the log what it has missed.
//
// The iterator is for one goroutine; ranging over it again begins again, at the
// then present end.
func (b *Bus) Subscribe(ctx context.Context, channels ...Channel) iter.Seq2[Event, error] {
	return b.SubscribeWith(ctx, Subscription{Channels: channels})
}

// SubscribeWith is [Bus.Subscribe] for everything that a [Subscription] can say.
func (b *Bus) SubscribeWith(ctx context.Context, sub Subscription) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r, err := b.open(ctx, sub)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer r.close()
		for {
			st, err := r.next(ctx, nil, true)
			if err != nil {
				yield(Event{}, err)
				return
			}
			if st.gap != nil && !yield(Event{}, st.gap) {
				return
			}
			for i := range st.entries {
				e := &st.entries[i]
				wanted := r.wants(st.lane, e)
				r.take(st, 1)
				if !wanted {
					continue
				}
				ev := *e.event
				ev.Payload = bytes.Clone(ev.Payload) // the original is everybody's
				if len(r.lanes) > 1 || e.foreign() {
					ev.Cursor = r.cursor()
				}
				if !yield(ev, nil) {
					return
				}
			}
		}
	}
}

// A reader is one subscription at work: a place in the tail of each channel. It
// belongs to one goroutine.
type reader struct {
	bus    *Bus
	lanes  []*lane
	types  []string
	key    cursorKey
	waiter *waiter
	gaps   []*GapError // to be told before anything else
	seen   recent
}

// A lane is a reader's way through one channel.
type lane struct {
	tail   *tail
	place  place
	from   uint64   // ordinal in the tail from which a reader of several channels takes its entries
	opened Position // where the tail ended when the reader began
	fresh  bool     // began at that end, while other lanes resume
	view   view     // entries to take next
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
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !b.enter() {
		return nil, ErrClosed
	}
	r := &reader{bus: b, types: sub.Types, waiter: newWaiter()}
	var names []string
	for _, c := range sub.Channels {
		t := b.feed.acquire(c)
		r.lanes = append(r.lanes, &lane{tail: t, place: place{waiter: r.waiter}})
		names = append(names, t.name)
	}
	r.key = newCursorKey(names)
	for _, l := range r.lanes {
		select {
		case <-l.tail.opened:
		case <-ctx.Done():
			r.close()
			return nil, context.Cause(ctx)
		case <-b.draining:
			r.close()
			return nil, ErrClosed
		}
	}
	for _, l := range r.lanes {
		l.opened, l.from = l.tail.end()
		l.place.pos = l.opened
		if head := b.log.head(l.tail.name); head.epoch == l.opened.epoch && head.seq > l.opened.seq {
			l.place.pos = head // published by this process, on its way back
		}
	}
	if len(r.lanes) == 1 {
		r.lanes[0].from = 0
	}
	if err := r.start(ctx, sub, names); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
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
				r.unknown(l)
			}
			return nil
		}
	}
	if after.IsZero() {
		return nil
	}
	positions, covered, err := after.positions(names)
	if err != nil {
		return err
	}
	for i, l := range r.lanes {
		if l.fresh = !covered[i]; covered[i] {
			l.place.pos = positions[i]
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
			r.unknown(l)
		}
	}
	return nil
}

// unknown begins a lane at the oldest event, with a gap.
func (r *reader) unknown(l *lane) {
	l.place.pos = Position{}
	r.gaps = append(r.gaps, &GapError{Channel: l.tail.channel, Reason: GapUnknown})
}

func (r *reader) close() {
	for _, l := range r.lanes {
		l.tail.forget(&l.place)
		r.bus.feed.release(l.tail)
	}
	r.bus.leave()
}

// next gives the next step. It waits until there is one, the context or the bus
// ends, or timeout has something. When the bus drains, it first gives what there
// is, if drain says so.
func (r *reader) next(ctx context.Context, timeout <-chan time.Time, drain bool) (step, error) {
	var retry backoff
	for {
		if err := context.Cause(ctx); err != nil {
			return step{}, err
		}
		draining := r.bus.isDraining()
		if draining && !drain || r.bus.isClosed() {
			return step{}, ErrClosed
		}
		st, err := r.step(ctx)
		switch {
		case st.gap != nil || len(st.entries) > 0:
			return st, nil
		case ctx.Err() != nil:
			continue
		case draining:
			return step{}, ErrClosed
		}
		var again <-chan time.Time
		if err != nil {
			r.bus.warn("reading a log failed; trying again", err)
			again = retry.after()
		}
		select {
		case <-r.waiter.woken:
		case <-again:
		case <-timeout:
			return step{timeout: true}, nil
		case <-ctx.Done():
		case <-r.bus.draining:
		}
	}
}

// step looks once what there is. With nothing, the waiter is set.
func (r *reader) step(ctx context.Context) (step, error) {
	if len(r.gaps) > 0 {
		gap := r.gaps[0]
		r.gaps = r.gaps[1:]
		gap.Cursor = r.cursor()
		r.bus.stats.gaps.Add(1)
		return step{gap: gap}, nil
	}
	var best *lane
	var failed error
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
		if len(l.view.entries) > 0 && (best == nil || l.earlier(best)) {
			best = l
		}
	}
	if best == nil {
		return step{}, failed
	}
	v := best.view
	if len(r.lanes) > 1 {
		v.entries = v.entries[:1] // then again the earliest of all lanes
	}
	return step{lane: best, view: v}, nil
}

// load gets a lane its next entries, from the tail or, where that does not reach
// back far enough, from the log.
func (r *reader) load(ctx context.Context, l *lane) (*GapError, error) {
	for {
		g := l.tail.look(&l.place, l.from)
		l.view = g.view
		if g.skipped {
			return &GapError{Channel: l.tail.channel, Reason: GapUnlogged, From: l.place.pos}, nil
		}
		if !g.behind {
			return nil, nil
		}
		v, pos, gap, err := l.tail.after(ctx, l.place.pos)
		if err != nil {
			return nil, err
		}
		from := l.place.pos
		l.place.pos, l.view = pos, v
		if gap != "" {
			return &GapError{Channel: l.tail.channel, Reason: gap, From: from}, nil
		}
		if len(v.entries) > 0 {
			return nil, nil
		}
		l.place.atEnd = pos == from
	}
}

// earlier tells whether the next event of l happened before that of m.
func (l *lane) earlier(m *lane) bool {
	a, b := l.view.entries[0].event, m.view.entries[0].event
	return a == nil || b != nil && a.Timestamp.Before(b.Timestamp)
}

// take moves the step's lane over its next n entries.
func (r *reader) take(st step, n int) {
	l := st.lane
	l.place.advance(l.view.entries[:n])
	l.view.entries = l.view.entries[n:]
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

// elsewhere tells whether the event of an entry is delivered from another lane.
// Every bus appends an event to its project's log before any other, and notes
// with it which other logs had it before; so for what is in the logs the answer
// does not depend on what this reader remembers, and holds across a resume.
func (r *reader) elsewhere(l *lane, e *entry) bool {
	ev := e.event
	if !e.foreign() {
		project := ProjectChannel(ev.ProjectID)
		if l.tail.channel == project {
			return false
		}
		for _, m := range r.lanes {
			if m == l || m.tail.channel != project && !mentions(e.also, m.tail.name) {
				continue
			}
			// A lane that began now does not deliver what was there before.
			if !m.fresh || e.pos.epoch != l.opened.epoch || e.pos.seq > l.opened.seq {
				return true
			}
		}
	}
	return r.seen.elsewhere(ev.ID, l)
}

// mentions tells whether a list with blanks between has the name.
func mentions(list, name string) bool {
	if list == "" {
		return false
	}
	return slices.Contains(strings.Fields(list), name)
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

// refresh brings the positions of lanes that are at the end up to date, which
// move with time where there is no log yet.
func (r *reader) refresh() {
	for _, l := range r.lanes {
		if len(l.view.entries) == 0 && l.place.attached {
			l.view = l.tail.look(&l.place, l.from).view
		}
	}
}

// cursor covers all lanes.
func (r *reader) cursor() Cursor {
	return Cursor{string(r.key.append(nil, func(i int) Position { return r.lanes[i].place.pos }))}
}

// A recent set remembers from which lane events were delivered last. It is for
// what logs do not tell: events that come by the channel, where the note of the
// log is missing, and foreign ones.
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
