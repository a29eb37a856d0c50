package eventbus

import (
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A tail holds the newest events of one channel, encoded once, in a bounded ring
// of segments that all readers of the channel share. A reader has no queue: it
// comes with a place and is given what follows it.
//
// The feed fills the tail, from the channel while nothing is in doubt and from
// the log otherwise. What is in a tail is contiguous: where the log itself is
// not, the tail starts anew and its readers find out in the log what they miss.
type tail struct {
	channel Channel
	name    string // as Redis knows it
	key     cursorKey
	age     time.Duration
	onBad   func(error)  // told of what cannot be read
	spawn   func(func()) // starts a goroutine
	told    told         // which entries onBad was told of
	pages   pages        // older entries, read from the log

	mu       sync.Mutex // guards following
	segments []*segment // oldest first
	first    uint64     // ordinal of the oldest entry
	next     uint64     // ordinal that the next entry will have
	run      uint64     // raised when the tail starts anew: ordinals from before mean nothing
	reads    int        // how often the log was read
	top      Position   // where it ended at the last read, whether the tail has come so far or not
	foreign  uint64     // how many foreign events the tail has had
	bytes    int        // of all segments
	last     Position   // the tail is complete up to here
	former   int64      // epoch of the log before this one, if that was lost
	expires  int64      // Redis time at which the log is dropped if nothing follows last, 0 unknown
	ready    bool       // last is known
	took     taking     // what a fill has read, to be told when the lock is free
	opened   chan struct{}
	waves

	// A tail in doubt takes nothing from the channel until it has been filled:
	// what comes meanwhile is held back.
	doubt     bool
	since     time.Time // when the doubt began
	broken    bool      // the doubt came from the connection, not from an event
	unsure    bool      // and the log was not read since: another server may have another
	held      []heldEvent
	heldBytes int
	overflow  bool // more came than can be held
	asked     int  // how many were held when the fill under way was begun

	// verified is how far a read of the log has confirmed what is here. Where another
	// server has given some numbers behind it to other events, and this process heard
	// only those that followed, rewinds is raised: who was past it has missed some.
	verified Position
	rewinds  uint64
	intact   Position // where the log was still the same, when rewinds was raised

	// due is what a fill found though nothing was in doubt: the channel has yet to
	// bring it.
	due      Position
	dueSince time.Time

	readers   int
	idleSince time.Time
}

type heldEvent struct {
	Event
	also  string
	noted bool // also says all that there is to say
}

// The ring of a tail is bounded in events and bytes; what is held back, too.
const (
	verifyEvents = 1000 // how far back a tail is compared with its log, at most
	tailEvents   = 4096
	tailBytes    = 2 << 20
	heldEvents   = 512
)

func newTail(c Channel, name string, age time.Duration, onBad func(error), spawn func(func())) *tail {
	return &tail{
		channel: c, name: name, age: age, onBad: onBad, spawn: spawn,
		key:    newCursorKey([]string{name}),
		opened: make(chan struct{}),
		doubt:  true, broken: true, since: time.Now(),
	}
}

// offer takes what came on the channel, and where the feed saw it before; noted is
// false when it may have been elsewhere, unseen; began says that the log is known to
// begin with it. The answer is false when the event does not follow what the tail has:
// then the tail is in doubt and wants to be filled.
func (t *tail) offer(ev Event, also string, noted, began bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ev.Position.IsZero() {
		if t.ready { // before that there is nobody to hear it
			t.addLocked(ev, "")
			t.wakeLocked()
		}
		return true
	}
	ev.Position.mark = fingerprint(ev.ID)
	if t.due.epoch == ev.Position.epoch && t.due.seq <= ev.Position.seq {
		t.due = Position{}
	}
	if t.doubt {
		t.holdLocked(heldEvent{ev, also, noted})
		return true // a fill is under way already
	}
	// Whether a log has begun, else only the log can tell.
	if noted && (t.last.seq != noLog || began) && ev.Position.follows(t.last) {
		t.addLocked(ev, also)
		t.wakeLocked()
		return true
	}
	if t.hasLocked(ev.Position) {
		return true
	}
	t.doubtLocked(false)
	t.holdLocked(heldEvent{ev, also, noted})
	return false
}

// question puts the tail in doubt because of the connection.
func (t *tail) question() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doubtLocked(true)
	t.due = Position{}
	t.unsure = true
	t.pages.clear()
}

// overdue tells whether the channel has not brought, since then, what it should have.
func (t *tail) overdue(since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.due.IsZero() && t.dueSince.Before(since)
}

func (t *tail) doubtLocked(broken bool) {
	if !t.doubt {
		t.doubt, t.since = true, time.Now()
	}
	t.broken = t.broken || broken
}

func (t *tail) holdLocked(ev heldEvent) {
	if len(t.held) >= heldEvents || t.heldBytes+len(ev.Payload) > tailBytes && t.heldBytes > 0 {
		t.overflow = true
		return
	}
	t.held = append(t.held, ev)
	t.heldBytes += len(ev.Payload)
}

// want is what a fill should read: the page behind the tail's end, or for a new
// tail only where the log ends.
func (t *tail) want() readRequest {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = len(t.held)
	r := readRequest{name: t.name, from: t.last, count: pageEvents}
	if v := t.verified; t.ready && v.epoch == t.last.epoch && v.seq < t.last.seq {
		r.verify = Position{epoch: v.epoch, seq: max(v.seq, t.last.seq-verifyEvents) + 1}
	}
	if !t.ready {
		r.count = 0
	}
	return r
}

// fill takes a page that was read as want had asked for it. While connected says
// that the channel is listened to, a fill that leaves no hole ends the doubt.
// It is false when another fill is needed.
func (t *tail) fill(asked readRequest, page *logPage, connected bool) bool {
	t.mu.Lock()
	whole := t.fillLocked(asked, page, connected)
	took := t.took
	t.took = taking{}
	t.mu.Unlock()
	t.told.tell(took, t.onBad)
	return whole
}

func (t *tail) fillLocked(asked readRequest, page *logPage, connected bool) bool {
	t.unsure = false
	t.reads, t.top = t.reads+1, page.last
	t.pages.sized(page)
	next, run := t.next, t.run
	defer func() {
		if t.next != next || t.run != run {
			t.wakeLocked()
		}
	}()
	forked := t.forkedLocked(page)
	if t.ready && asked.from != t.last && !forked {
		t.verifyLocked(page)
		return !t.doubt // the tail has moved on since: the page is out of date
	}
	switch {
	case !t.ready:
		t.last, t.ready = page.head(), true
		close(t.opened)
	case forked:
		t.rewinds++
		t.intact = t.verified
		t.restartLocked(page)
	case t.expiredLocked(page):
		// Dropped in its time, with every event delivered: nothing is missing.
		t.last = Position{epoch: t.expires, seq: noLog}
		t.takeLocked(page)
	default:
		t.takeLocked(page)
	}
	t.verifyLocked(page)
	if t.last.seq != noLog && t.last.epoch == t.former {
		t.former = 0 // it has come back
	}
	t.expires = page.expires
	if !t.doubt && connected && t.next != next && t.due.IsZero() {
		t.due, t.dueSince = t.last, time.Now()
	}
	if !t.doubt || !connected {
		return !t.doubt
	}
	held, whole := t.held, !t.overflow
	t.held, t.heldBytes, t.overflow = nil, 0, false
	for i, ev := range held {
		switch {
		case t.last.seq != noLog && ev.Position.epoch == t.last.epoch:
			if ev.noted && ev.Position.follows(t.last) {
				t.addLocked(ev.Event, ev.also)
			} else if ev.Position.seq > t.last.seq {
				whole = false // the log has it, if anything
			}
		case i >= t.asked:
			t.holdLocked(ev) // the log may have begun since it was read
			whole = false
		case ev.Position.epoch == t.former:
			// It was in the log that is lost: in the gap that readers are told of.
		default:
			// It claims a place in another log than this channel has: somebody
			// passes on an event that was published elsewhere.
			ev.Position = Position{}
			t.addLocked(ev.Event, "")
		}
	}
	if whole {
		t.doubt, t.broken = false, false
	}
	return whole
}

// expiredLocked tells whether the log that the tail ends in was dropped because
// nothing had followed for the time of its retention.
func (t *tail) expiredLocked(page *logPage) bool {
	if t.broken || t.expires == 0 || t.last.seq == noLog || page.last.epoch == t.last.epoch {
		return false
	}
	until := page.now
	if !page.last.IsZero() {
		until = page.last.epoch
	}
	slack := min(t.age/8, time.Second) // the times that a server tells are not exact
	return until+slack.Milliseconds() >= t.expires
}

// takeLocked appends what the page has behind the tail's end. Where something is
// missing there, or more than a page, the tail starts anew at the log's end.
func (t *tail) takeLocked(page *logPage) {
	start, gap := page.resume(t.last, t.age)
	entries := page.after(start)
	complete := page.last.IsZero() || start.same(page.last) ||
		len(entries) > 0 && entries[len(entries)-1].pos.same(page.last)
	if gap != "" || !complete {
		t.restartLocked(page)
		return
	}
	if start.seq <= 0 {
		t.last = start // keeps the time at which there was no log up to date
	}
	for _, e := range entries {
		t.took.add(e.pos)
		t.addLoggedLocked(e)
	}
}

// restartLocked starts the tail anew at the log's end.
func (t *tail) restartLocked(page *logPage) {
	t.segments, t.first, t.bytes = nil, t.next, 0
	t.run++
	t.pages.clear()
	head := page.head()
	if t.last.seq != noLog && t.last.epoch != head.epoch {
		t.former = t.last.epoch
	}
	t.last = head
}

// forkedLocked tells whether the log has other events than the tail under the same
// numbers.
func (t *tail) forkedLocked(page *logPage) bool {
	for line := range strings.Lines(page.ids) {
		number, id, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		seq, err := strconv.ParseInt(number, 10, 64)
		if err != nil || id == "" {
			continue
		}
		_, at, found := t.findLocked(Position{epoch: page.last.epoch, seq: seq})
		if found && at.mark != 0 && at.mark != fingerprint(id) {
			return true
		}
	}
	return false
}

// verifyLocked notes that the tail has what the log ended with when the page was read.
func (t *tail) verifyLocked(page *logPage) {
	if page.last.seq <= 0 {
		return
	}
	if page.last.same(t.last) {
		t.verified = page.last
	} else if _, at, found := t.findLocked(page.last); found && at.same(page.last) {
		t.verified = page.last
	}
}

func (t *tail) addLoggedLocked(e logEntry) {
	ev, err := decode(e.event)
	if err != nil {
		t.took.bad = append(t.took.bad, badEntry{e.pos.seq, err})
		t.roomLocked(0).skip(e.pos)
		t.last = e.pos
		t.next++
		t.trimLocked()
		return
	}
	ev.Position = e.pos
	t.addLocked(ev, e.also)
}

func (t *tail) addLocked(ev Event, also string) {
	pos := ev.Position
	if pos.IsZero() {
		pos = t.last
		t.foreign++
	}
	s := t.roomLocked(len(ev.Payload))
	before := len(s.buf)
	s.add(t.key, ev, pos, also)
	t.bytes += len(s.buf) - before
	t.last = pos
	t.next++
	t.trimLocked()
}

// roomLocked is the segment for another event with so much payload.
func (t *tail) roomLocked(payload int) *segment {
	if n := len(t.segments); n > 0 && t.segments[n-1].takes(payload) {
		return t.segments[n-1]
	}
	s := &segment{first: t.next, before: t.last}
	if n := len(t.segments); n > 0 {
		full := t.segments[n-1]
		s.entries, s.buf = make([]entry, 0, len(full.entries)), make([]byte, 0, min(len(full.buf)+frameBytes, mostSegmentBytes))
	}
	t.segments = append(t.segments, s)
	return s
}

// trimLocked drops the oldest segments of a ring that is full.
func (t *tail) trimLocked() {
	for len(t.segments) > 1 && (t.bytes > tailBytes || t.next-t.first > tailEvents) {
		t.bytes -= len(t.segments[0].buf)
		t.segments = slices.Delete(t.segments, 0, 1)
		t.first = t.segments[0].first
	}
}

// hasLocked tells whether the tail is past pos and, as far as it still holds the
// event there, that it is the same one.
func (t *tail) hasLocked(pos Position) bool {
	if pos.epoch != t.last.epoch || pos.seq > t.last.seq {
		return false
	}
	_, at, found := t.findLocked(pos)
	return !found || at.same(pos)
}

// findLocked gives the ordinal behind the entry at pos, and what stands there,
// which can have another fingerprint.
func (t *tail) findLocked(pos Position) (uint64, Position, bool) {
	for i := len(t.segments) - 1; i >= 0; i-- {
		s := t.segments[i]
		n := sort.Search(len(s.entries), func(n int) bool {
			p := s.entries[n].pos
			return p.epoch > pos.epoch || p.epoch == pos.epoch && p.seq >= pos.seq
		})
		if n < len(s.entries) && s.entries[n].pos.epoch == pos.epoch && s.entries[n].pos.seq == pos.seq && !s.entries[n].foreign {
			return s.first + uint64(n) + 1, s.entries[n].pos, true
		}
		if s.before.epoch == pos.epoch && s.before.seq == pos.seq && i == 0 {
			return s.first, s.before, true
		}
		if s.before.epoch == pos.epoch && s.before.seq < pos.seq {
			break
		}
	}
	return 0, Position{}, false
}

// lastRead is how often the log was read, and where it ended then.
func (t *tail) lastRead() (int, Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reads, t.top
}

// compare tells whether the event with this number is known, be it from the tail or from
// a page of its log, whether it has this fingerprint, and where the tail ends.
func (t *tail) compare(pos Position) (found, same bool, end Position) {
	t.mu.Lock()
	at, end := t.last, t.last
	if found = pos.epoch == end.epoch && pos.seq == end.seq; !found {
		_, at, found = t.findLocked(pos)
	}
	t.mu.Unlock()
	if !found {
		at, found = t.pages.at(pos)
	}
	return found, found && at.same(pos), end
}

// A place is where a reader stands in a tail. The position alone would do; the
// rest saves the search, and covers foreign events, which have no position.
type place struct {
	pos      Position
	anyway   bool   // the log cannot be read: take what the tail has, even if it is unsure
	attached bool   // the following are of use
	run      uint64 // the tail's, when it attached
	rewinds  uint64 // likewise
	ord      uint64 // ordinal of the entry to read next
	foreign  uint64 // how many foreign events the tail had had when the reader began, and here

	// The log ends at pos, as far as a read could tell that was begun when the
	// tail was at tailRun and tailNext: there is nothing to do but wait.
	atEnd             bool
	tailRun, tailNext uint64

	wave uint64 // the last in which the reader was given something,
	upto uint64 // up to this ordinal

	waiter waiter // woken when the tail has something new
	slept  uint64 // guarded by the tail's lock: 1 + the wave behind which it fell asleep,
	slot   int    // and its index in tail.waiting
}

// A glance is the answer of a tail to a reader: entries that follow its place;
// or nothing, when it is at the end; or that it must read the log.
type glance struct {
	view
	behind  bool // the tail does not reach back to the place
	skipped bool // foreign events went by between the place and here
	rewound bool // events before the place are not those that the log has
}

// look gives what follows the place. A reader that is not attached is attached
// where the tail holds its position, but not before ordinal from. When there is
// nothing new, its waiter will be woken once there is.
func (t *tail) look(p *place, from uint64) glance {
	t.mu.Lock()
	defer t.mu.Unlock()
	var g glance
	if p.attached && (p.run != t.run || p.ord < t.first) {
		p.attached = false
		g.rewound = p.rewinds != t.rewinds && (p.pos.epoch != t.intact.epoch || p.pos.seq > t.intact.seq)
	}
	if g.rewound {
		g.behind = true
		return g
	}
	if !p.attached {
		var ok bool
		if g.skipped, ok = t.attachLocked(p, from); !ok {
			if p.atEnd && p.tailRun == t.run && p.tailNext == t.next {
				t.sleepLocked(p) // what is in the log comes here soon
			} else {
				g.behind = true
			}
			p.atEnd, p.tailRun, p.tailNext = false, t.run, t.next
			return g
		}
	}
	if p.wave != t.wave { // the later it comes in a wave, the more it gets
		p.wave, p.upto = t.wave, t.next
	}
	if p.ord >= p.upto {
		if p.ord == t.next {
			p.pos = t.last // the same place, or a fresher word for "no log yet"
		}
		t.sleepLocked(p)
		return g
	}
	i := len(t.segments) - 1
	for t.segments[i].first > p.ord {
		i--
	}
	s := t.segments[i]
	g.view = s.from(int(p.ord - s.first))
	if n := p.upto - p.ord; n < uint64(len(g.entries)) {
		g.entries = g.entries[:n:n]
	}
	return g
}

// attachLocked finds where in the ring a reader at p.pos goes on. Foreign events
// have no position: of those next to it, the reader gets the ones from after it
// began.
func (t *tail) attachLocked(p *place, from uint64) (skipped, ok bool) {
	ord, foreign := t.next, t.foreign
	if p.pos.same(t.last) || p.pos.seq == noLog && t.last.seq == noLog && !t.comeAndGone(p.pos, t.last) {
		for ord > t.first && foreign > p.foreign && t.entryLocked(ord-1).foreign {
			ord, foreign = ord-1, foreign-1
		}
	} else {
		at, pos, found := t.findLocked(p.pos)
		if !found || !pos.same(p.pos) {
			return false, false
		}
		for ; ord > at; ord-- {
			if t.entryLocked(ord - 1).foreign {
				foreign--
			}
		}
		for ; foreign < p.foreign; ord, foreign = ord+1, foreign+1 {
			if !t.entryLocked(ord).foreign {
				return false, false // events from the log stand between: it is read there
			}
		}
	}
	if ord < from || ord < t.next && t.unsure && !p.anyway {
		return false, false
	}
	skipped = foreign > p.foreign
	p.attached, p.run, p.rewinds, p.ord, p.foreign = true, t.run, t.rewinds, ord, foreign
	return skipped, true
}

// comeAndGone tells whether, between two moments without a log, there was time for one
// to begin and to expire.
func (t *tail) comeAndGone(then, now Position) bool {
	return t.age > 0 && now.epoch-then.epoch > t.age.Milliseconds()
}

// entryLocked gives the entry with this ordinal, which is in the ring.
func (t *tail) entryLocked(ord uint64) *entry {
	i := len(t.segments) - 1
	for t.segments[i].first > ord {
		i--
	}
	return &t.segments[i].entries[ord-t.segments[i].first]
}

// advance moves a place over entries that look has given.
func (p *place) advance(entries []entry) {
	for i := range entries {
		if entries[i].foreign {
			p.foreign++
		}
	}
	p.pos = entries[len(entries)-1].pos
	if p.attached {
		p.ord += uint64(len(entries))
	}
}

// locate gives the position of the logged event with this id, if the tail has it.
func (t *tail) locate(id string) (Position, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.segments {
		for i := range s.entries {
			if e := &s.entries[i]; e.event != nil && e.event.id == id && !e.foreign {
				return e.pos, true
			}
		}
	}
	return Position{}, false
}

// begin puts a place at the tail's end.
func (t *tail) begin(p *place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.pos, p.foreign = t.last, t.foreign
}

// end is where the tail ends, and the ordinal there.
func (t *tail) end() (Position, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last, t.next
}

// stale tells for how long the tail has been in doubt, 0 when it is not.
func (t *tail) stale(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.doubt {
		return 0
	}
	return now.Sub(t.since)
}
