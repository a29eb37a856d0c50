package tail

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
)

// The pages of a tail are older entries of its channel, read from the log for
// readers that are further behind than the ring reaches. They are shared: many
// readers that come back at once cost one read for each page, not one each.
// A page is bounded in events and bytes.
type pages struct {
	read  func(r Request, done func(*position.Page, error)) // begins a read, on a goroutine of the bus
	taken *atomic.Int64                                     // bytes of all pages of the bus

	mu      sync.Mutex                    // guards following
	kept    []*page                       // the one used last at the end
	flights map[position.Position]*flight // reads that are under way, by where the page begins
	started uint64                        // how many were begun
}

// A page is what one read of a log gave.
type page struct {
	*position.Page
	segment *segment // entries that follow one another without holes
	used    time.Time
}

// A flight is a read of the log that any number of readers wait for.
type flight struct {
	number uint64
	done   chan struct{} // closed when the following are set
	page   *page
	err    error
}

const (
	pageEvents = 256              // events in a page, and the grid on which pages begin
	pagesBytes = 32 << 20         // bound on all pages of a bus
	mostFrames = 1 << 30          // bytes in a page: offsets have 31 bits
	pageUnused = 30 * time.Second // after that a page is dropped
)

// After gives entries that follow pos; or the gap that a reader at pos has to be
// told of, with the position that it goes on from; or neither, when pos is where
// the log ends.
func (t *Tail) After(ctx context.Context, pos position.Position) (View, position.Position, position.Reason, error) {
	from := gridded(pos)
	arrived := t.pages.begun()
	for {
		v, ok, ends := t.pages.find(pos)
		if ok {
			return v, pos, "", nil
		}
		if ends { // for its bytes, or the log ended there
			from = pos
		}
		f := t.pages.join(t, from)
		select {
		case <-f.done:
		case <-ctx.Done():
			return View{}, pos, "", context.Cause(ctx)
		}
		if f.err != nil {
			return View{}, pos, "", f.err
		}
		if v, ok := f.page.from(pos); ok {
			return v, pos, "", nil
		}
		if f.number <= arrived {
			continue // the read is older than the question
		}
		start, gap := f.page.Resume(pos)
		if gap != "" || start != pos || pos.Same(f.page.Last) {
			return View{}, start, gap, nil
		}
		from = pos // the page ended for its bytes, before it came to pos
	}
}

// LogEnd asks where the log ends now, until there is an answer.
func (t *Tail) LogEnd(ctx context.Context) (position.Position, error) {
	var retry pace.Backoff
	for {
		answers := make(chan *position.Page, 1)
		t.pages.read(Request{}, func(lp *position.Page, _ error) { answers <- lp })
		select {
		case page := <-answers:
			if page != nil {
				return page.Last, nil
			}
		case <-ctx.Done():
			return position.Position{}, context.Cause(ctx)
		}
		select {
		case <-retry.After():
		case <-ctx.Done():
			return position.Position{}, context.Cause(ctx)
		}
	}
}

// gridded is where on the grid the page begins that has what follows pos.
func gridded(pos position.Position) position.Position {
	return position.Position{Epoch: pos.Epoch, Seq: pos.Seq - pos.Seq%pageEvents}
}

// from gives the page's entries behind pos, if pos is in the page and not its end.
func (p *page) from(pos position.Position) (View, bool) {
	s := p.segment
	if len(s.entries) == 0 || pos.IsZero() {
		return View{}, false
	}
	first := s.entries[0].pos
	i := int(pos.Seq - first.Seq) // numbers in a page are consecutive
	switch {
	case pos.Epoch != first.Epoch || i < -1 || i >= len(s.entries)-1:
		return View{}, false
	case i >= 0 && !s.entries[i].pos.Same(pos):
		return View{}, false
	case i < 0 && pos.Mark != 0 && p.Asked.Seq > pos.Seq:
		return View{}, false // the event at pos was not asked for, to compare with
	}
	return s.from(i + 1), true
}

func (ps *pages) begun() uint64 {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.started
}

// find looks among the pages that are kept for entries behind pos, or for one that ends there.
func (ps *pages) find(pos position.Position) (v View, ok, ends bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for i, p := range ps.kept {
		if v, ok = p.from(pos); ok {
			p.used = time.Now()
			ps.kept = append(slices.Delete(ps.kept, i, i+1), p)
			return v, true, false
		}
		ends = ends || p.segment.entries[len(p.segment.entries)-1].pos.Same(pos)
	}
	return View{}, false, ends
}

// join gives the flight that brings the page that begins at from, or begins it.
func (ps *pages) join(t *Tail, from position.Position) *flight {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if f := ps.flights[from]; f != nil {
		return f
	}
	ps.started++
	f := &flight{number: ps.started, done: make(chan struct{})}
	if ps.flights == nil {
		ps.flights = make(map[position.Position]*flight)
	}
	ps.flights[from] = f
	ps.read(Request{From: from, Count: pageEvents + 1}, func(lp *position.Page, err error) {
		var bad []error
		if f.err = err; err == nil {
			f.page = &page{Page: lp, used: time.Now()}
			f.page.segment, bad = t.encode(lp)
			lp.Entries = slices.Clone(lp.Entries[:min(len(lp.Entries), 1+len(f.page.segment.entries))]) // what resume needs
			for i := range lp.Entries {
				lp.Entries[i].Event, lp.Entries[i].Also = nil, ""
			}
		}
		ps.land(from, f)
		close(f.done)
		for _, err := range bad {
			t.onBad(err)
		}
	})
	return f
}

// land keeps the page of a flight, unless the pages were dropped meanwhile.
func (ps *pages) land(from position.Position, f *flight) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.flights[from] != f {
		return
	}
	delete(ps.flights, from)
	if f.page != nil {
		ps.keepLocked(f.page)
	}
}

// encode makes a segment of a page's entries, up to the first hole, or as many as fit in. It gives
// back what could not be read.
func (t *Tail) encode(lp *position.Page) (s *segment, bad []error) {
	bytes := 0
	for i := range lp.Entries {
		bytes += len(lp.Entries[i].Event)
	}
	s = &segment{channel: t.Channel, buf: make([]byte, 0, bytes+256*len(lp.Entries)), entries: make([]Entry, 0, len(lp.Entries))}
	for i, e := range lp.Entries {
		if i > 0 && (!e.Pos.Follows(lp.Entries[i-1].Pos) || len(s.buf) > mostFrames) {
			break
		}
		if err := s.addLogged(t.key, e); err != nil {
			bad = append(bad, err)
		}
	}
	return s, bad
}

func (p *page) size() int64 { return int64(cap(p.segment.buf) + 512*len(p.segment.entries)) }

// keepLocked keeps a page as long as the bound on all pages allows it.
func (ps *pages) keepLocked(p *page) {
	if len(p.segment.entries) < 2 {
		return
	}
	for i, old := range ps.kept { // the log may have gone on since
		if old.segment.entries[0].pos == p.segment.entries[0].pos {
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

// Expire drops the pages that nobody has used for a while.
func (t *Tail) Expire(now time.Time) { t.pages.expire(now) }

// Drop is the end of a tail.
func (t *Tail) Drop() { t.pages.clear() }

// clear drops all pages, also those that are on their way, but for who waits for them.
func (ps *pages) clear() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.dropLocked(len(ps.kept))
	clear(ps.flights)
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
