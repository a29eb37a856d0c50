package eventbus

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The pages of a tail are older entries of its channel, read from the log for
// readers that are further behind than the ring reaches. They are shared: many
// readers that come back at once cost one read for each page, not one each.
type pages struct {
	read  func(r readRequest, done func(*logPage, error)) // begins a read, on a goroutine of the bus
	taken *atomic.Int64                                   // bytes of all pages of the bus

	mu      sync.Mutex    // guards following
	kept    []*page       // the one used last at the end
	flights []*flight     // reads that are under way
	started uint64        // how many were begun
	freed   chan struct{} // closed when one more may begin; nil while nobody waits for that

	// What the log is known to be like, if not by the latest news.
	largest     int      // bytes of the largest event
	first, last Position // of its entries
}

// A page is what one read of a log gave.
type page struct {
	*logPage
	segment *segment // entries that follow one another without holes
	flight  *flight  // which has brought it
	used    time.Time
}

// A flight is a read of the log that any number of readers wait for.
type flight struct {
	number uint64
	from   Position // where the page begins
	exact  bool     // not on the grid
	full   bool     // for all that is known, the page ends where the next one on the grid begins, or the log does

	// The lock of its pages guards these.
	awaited  bool     // somebody wants its page,
	followed bool     // and so what follows is being read
	landed   bool     // the answer is there,
	next     Position // and this is where it ends; zero if the log does, too

	done chan struct{} // closed when the following are set
	page *page
	err  error
}

const (
	pageEvents  = 256              // events in a page, and the grid on which pages begin
	pageFlights = 4                // reads of a log at the same time
	pagesBytes  = 32 << 20         // bound on all pages of a bus
	smallBytes  = 1 << 20          // a page that XRANGE gives is not to have more,
	worstBytes  = 128 << 20        // and never has, even if its events are larger than all that are known
	mostFrames  = 1 << 30          // bytes in a page: offsets have 31 bits
	pageUnused  = 30 * time.Second // after that a page is dropped
)

// after gives entries that follow pos; or the gap that a reader at pos has to be
// told of, with the position that it goes on from; or neither, when pos is where
// the log ends.
func (t *tail) after(ctx context.Context, pos Position) (view, Position, GapReason, error) {
	arrived := t.pages.begun()
	exact := false
	for {
		v, ok, cut := t.pages.find(t, pos)
		if ok {
			return v, pos, "", nil
		}
		exact = exact || cut
		f, own, again := t.pages.join(t, pos, exact)
		if f != nil {
			again = f.done
		}
		select {
		case <-again:
		case <-ctx.Done():
			return view{}, pos, "", context.Cause(ctx)
		}
		if f == nil {
			continue
		}
		if f.err != nil {
			return view{}, pos, "", f.err
		}
		if v, ok := f.page.from(pos); ok {
			return v, pos, "", nil
		}
		if f.number <= arrived {
			continue // the read is older than the question
		}
		start, gap := f.page.resume(pos, t.age)
		if gap != "" || start != pos || pos.same(f.page.last) {
			return view{}, start, gap, nil
		}
		exact = exact || own // big events: the page ended before it came to pos
	}
}

// from gives the page's entries behind pos, if pos is in the page and not its end.
func (p *page) from(pos Position) (view, bool) {
	s := p.segment
	if len(s.entries) == 0 || pos.seq < 0 || pos.IsZero() {
		return view{}, false
	}
	first := s.entries[0].pos
	i := int(pos.seq - first.seq) // numbers in a page are consecutive
	switch {
	case pos.epoch != first.epoch || i < -1 || i >= len(s.entries)-1:
		return view{}, false
	case i >= 0 && !s.entries[i].pos.same(pos):
		return view{}, false
	case i < 0 && pos.mark != 0 && p.asked.seq > pos.seq:
		return view{}, false // the event at pos was not asked for, to compare with
	}
	return s.from(i + 1), true
}

// trimmed tells whether the log does not reach back to pos any more.
func (lp *logPage) trimmed(pos Position) bool {
	return lp.last.epoch == pos.epoch && lp.origin().seq >= pos.seq
}

func (ps *pages) begun() uint64 {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.started
}

// find looks among the pages that are kept. One that is cut ends at pos, for its bytes: what
// follows has to be read from there.
func (ps *pages) find(t *tail, pos Position) (v view, ok, cut bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	i, v := ps.keptLocked(pos)
	if i < 0 {
		return view{}, false, slices.ContainsFunc(ps.kept, func(p *page) bool {
			n := len(p.entries)
			return n <= pageEvents && p.entries[n-1].pos.same(pos) && pos.seq < p.last.seq
		})
	}
	p := ps.kept[i]
	ps.awaitLocked(t, p.flight)
	p.used = time.Now()
	ps.kept = append(slices.Delete(ps.kept, i, i+1), p)
	return v, true, false
}

// keptLocked gives the kept page that has entries behind pos, and these; or -1.
func (ps *pages) keptLocked(pos Position) (int, view) {
	for i, p := range ps.kept {
		if v, ok := p.from(pos); ok {
			return i, v
		}
	}
	return -1, view{}
}

// at gives the position, with its fingerprint, that a page has under a number.
func (ps *pages) at(pos Position) (Position, bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.kept {
		if at, ok := p.at(pos); ok {
			return at, true
		}
	}
	return Position{}, false
}

func (p *page) at(pos Position) (Position, bool) {
	if len(p.segment.entries) == 0 {
		return Position{}, false
	}
	first := p.segment.entries[0].pos
	if i := pos.seq - first.seq; pos.epoch == first.epoch && i >= 0 && i < int64(len(p.segment.entries)) {
		return p.segment.entries[i].pos, true
	}
	return Position{}, false
}

// join gives the flight that is to bring what follows pos, or begins it; or, if too many are
// under way, what is closed when it makes sense to try again.
func (ps *pages) join(t *tail, pos Position, exact bool) (f *flight, own bool, again <-chan struct{}) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	switch f = ps.flightLocked(pos, exact); {
	case f != nil:
		ps.awaitLocked(t, f)
	case len(ps.flights) < pageFlights:
		f, own = ps.beginLocked(t, pos, exact, true), true
	case ps.freed == nil:
		ps.freed = make(chan struct{})
	}
	return f, own, ps.freed
}

// freeLocked lets those who wait try again.
func (ps *pages) freeLocked() {
	if ps.freed != nil {
		close(ps.freed)
		ps.freed = nil
	}
}

// flightLocked gives the one under way that is to bring what follows pos; or nil.
func (ps *pages) flightLocked(pos Position, exact bool) *flight {
	for _, f := range ps.flights {
		if f.exact == exact && (f.from == pos || !exact && f.from == gridded(pos)) {
			return f
		}
	}
	return nil
}

// gridded is where on the grid the page begins that has what follows pos.
func gridded(pos Position) Position {
	if pos.seq <= 0 {
		return pos
	}
	return Position{epoch: pos.epoch, seq: pos.seq - pos.seq%pageEvents}
}

// awaitLocked notes that somebody wants the page. He is going to want the next one, too: that is
// read while this one is read, encoded and sent.
func (ps *pages) awaitLocked(t *tail, f *flight) {
	f.awaited = true
	if f.followed || f.exact || len(ps.flights) >= pageFlights {
		return
	}
	next := f.next
	if !f.landed && f.full && f.from.epoch == ps.first.epoch && f.from.seq+1 >= ps.first.seq {
		next = Position{epoch: f.from.epoch, seq: f.from.seq + pageEvents} // unless the log was changed
	}
	if next.IsZero() || next.epoch != ps.last.epoch || next.seq >= ps.last.seq {
		return
	}
	f.followed = true
	if i, _ := ps.keptLocked(next); i < 0 && ps.flightLocked(next, false) == nil {
		ps.beginLocked(t, next, false, false)
	}
}

// beginLocked begins a read for pos, that somebody waits for or that nobody does yet.
func (ps *pages) beginLocked(t *tail, pos Position, exact, awaited bool) *flight {
	ps.started++
	f := &flight{number: ps.started, from: pos, exact: exact, done: make(chan struct{})}
	if !exact {
		f.from = gridded(pos)
	}
	r := readRequest{name: t.name, from: f.from, count: pageEvents + 1}
	r.small = ps.largest > 0 && ps.largest*r.count <= smallBytes
	f.full = ps.largest > 0 && ps.largest*r.count <= pageBytes
	ps.flights = append(ps.flights, f)
	if awaited {
		ps.awaitLocked(t, f) // first: as a rule, the goroutine that begins last runs first, and gets the connection that is free
	}
	ps.read(r, func(lp *logPage, err error) {
		if f.err = err; err == nil {
			ps.sized(lp)
			ps.land(t, f, lp)
			f.page = &page{logPage: lp, segment: t.encode(lp), flight: f, used: time.Now()}
			lp.entries = slices.Clone(lp.entries[:min(len(lp.entries), 1+len(f.page.segment.entries))]) // what resume needs
			for i := range lp.entries {
				lp.entries[i].event, lp.entries[i].also = nil, ""
			}
		}
		ps.mu.Lock()
		if i := slices.Index(ps.flights, f); i >= 0 { // else the pages were dropped meanwhile
			ps.flights = slices.Delete(ps.flights, i, i+1)
			ps.freeLocked()
			if err == nil {
				ps.keepLocked(f.page)
			}
		}
		ps.mu.Unlock()
		close(f.done)
	})
	return f
}

// land notes where an answer ends.
func (ps *pages) land(t *tail, f *flight, lp *logPage) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	f.landed = true
	if n := len(lp.entries); n > pageEvents {
		f.next = lp.entries[n-1].pos
	}
	if f.awaited && slices.Contains(ps.flights, f) {
		ps.awaitLocked(t, f)
	}
}

// sized notes what a read of the log tells of it.
func (ps *pages) sized(lp *logPage) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.largest, ps.first, ps.last = max(ps.largest, lp.largest), lp.first, lp.last
}

// encode makes a segment of a page's entries, up to the first hole, or as many as fit in.
func (t *tail) encode(lp *logPage) *segment {
	s := &segment{}
	var took taking
	bytes := 0
	for i := range lp.entries {
		bytes += len(lp.entries[i].event)
	}
	s.buf = make([]byte, 0, bytes+256*len(lp.entries))
	s.entries = make([]entry, 0, len(lp.entries))
	for i, e := range lp.entries {
		if i > 0 && (!e.pos.follows(lp.entries[i-1].pos) || len(s.buf) > mostFrames) {
			break
		}
		took.add(e.pos)
		s.addLogged(t.key, e, func(err error) { took.bad = append(took.bad, badEntry{e.pos.seq, err}) })
	}
	t.told.tell(took, t.onBad)
	return s
}

func (p *page) size() int64 { return int64(cap(p.segment.buf) + 512*len(p.segment.entries)) }

// keepLocked keeps a page as long as the bound on all pages allows it.
func (ps *pages) keepLocked(p *page) {
	if len(p.segment.entries) < 2 {
		return
	}
	for i, old := range ps.kept { // what it began with is asked for by every one that comes with garbage
		if old.segment.entries[0].pos == p.segment.entries[0].pos && len(old.segment.entries) <= len(p.segment.entries) {
			ps.taken.Add(-old.size())
			ps.kept = slices.Delete(ps.kept, i, i+1)
			break
		}
	}
	for ps.taken.Add(p.size()) > pagesBytes {
		ps.taken.Add(-p.size())
		if len(ps.kept) == 0 {
			return
		}
		ps.dropLocked(1)
	}
	ps.kept = append(ps.kept, p)
}

func (ps *pages) dropLocked(n int) {
	for _, p := range ps.kept[:n] {
		ps.taken.Add(-p.size())
	}
	ps.kept = slices.Delete(ps.kept, 0, n)
}

// clear drops all pages, also those that are on their way, but for who waits for them.
func (ps *pages) clear() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.dropLocked(len(ps.kept))
	ps.flights = nil
	ps.freeLocked()
}

// expire drops the pages that nobody has used for a while.
func (ps *pages) expire(now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	n := 0
	for n < len(ps.kept) && now.Sub(ps.kept[n].used) > pageUnused {
		n++
	}
	ps.dropLocked(n)
}
