package tail

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/position"
)

// The pages of a tail are older entries, read from the log for readers that the ring does not reach
// back to. Readers share them: when many come back at once, each page is read once. Pages begin on
// a grid, so that readers at different places want the same ones. Events and bytes bound a page.
type pages struct {
	read  func(r Request, done func(*position.Page, error)) // starts a read on another goroutine
	taken *atomic.Int64                                     // bytes of all pages of the bus

	mu      sync.Mutex          // guards the fields below
	kept    []*page             // the page that was used last is at the end
	flights map[Request]*flight // reads under way
	started uint64              // number of reads begun so far
}

// A page is what one read of a log gave.
type page struct {
	*position.Page
	segment *segment // the page's entries, up to the first missing number
	used    time.Time
}

// A flight is one read of the log. Any number of readers wait for it.
type flight struct {
	number uint64
	done   chan struct{} // closed when the others are set
	state  *position.Page
	page   *page // its entries
	err    error
}

const (
	pageEvents = 256              // events in a page, and the grid on which pages begin
	pagesBytes = 32 << 20         // bound on the bytes of all pages of a bus
	mostFrames = 1 << 30          // bytes of frames after which a page ends: offsets have 31 bits
	pageUnused = 30 * time.Second // a page that was not used for so long is dropped
)

// After gives entries that follow pos. Where some are missing, it gives the reason of the gap
// instead, and the position from which the reader goes on. With neither, the reader goes on from
// the returned position: the log ends at pos, or pos is zero.
func (t *Tail) After(ctx context.Context, pos position.Position) (View, position.Position, position.Reason, error) {
	from := gridded(pos)
	arrived := t.pages.begun()
	for {
		v, ok, ends := t.pages.find(pos)
		if ok {
			return v, pos, "", nil
		}
		if ends { // a page was full there, or the log ended there
			from = pos
		}
		f := t.pages.join(t, Request{From: from, Count: pageEvents + 1})
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
			continue // the read began before the question: the log may have gone on
		}
		start, gap := f.page.Resume(pos)
		if gap != "" || start != pos || pos.Same(f.page.Last) {
			return View{}, start, gap, nil
		}
		from = pos // the page was full before it came to pos
	}
}

// State reads the state of the log, as it is after the call. Readers that ask at the same time share
// a read.
func (t *Tail) State(ctx context.Context) (*position.Page, error) {
	arrived := t.pages.begun()
	for {
		f := t.pages.join(t, Request{})
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if f.number > arrived {
			return f.state, f.err
		}
	}
}

// gridded gives where the page begins, on the grid, that has what follows pos.
func gridded(pos position.Position) position.Position {
	return position.Position{Epoch: pos.Epoch, Seq: pos.Seq - pos.Seq%pageEvents}
}

// from gives a view of the page's entries behind pos, if pos is in the page and not its end.
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
	case i < 0 && pos.Fingerprint != 0 && p.Asked.Seq > pos.Seq:
		return View{}, false // the read began behind pos: the fingerprint there was not compared
	}
	return s.from(i + 1), true
}

func (ps *pages) begun() uint64 {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.started
}

// find looks for entries behind pos among the kept pages. ends says that a kept page ends at pos.
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

// join gives the flight of a request. It begins one where there is none.
func (ps *pages) join(t *Tail, r Request) *flight {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if f := ps.flights[r]; f != nil {
		return f
	}
	ps.started++
	f := &flight{number: ps.started, done: make(chan struct{})}
	if ps.flights == nil {
		ps.flights = make(map[Request]*flight)
	}
	ps.flights[r] = f
	ps.read(r, func(lp *position.Page, err error) {
		var bad []error
		if f.err = err; err == nil {
			f.state = lp
			f.page = &page{Page: lp, used: time.Now()}
			f.page.segment, bad = t.encode(lp)
			// Resume needs the positions in the segment, and the one that follows them.
			lp.Entries = slices.Clone(lp.Entries[:min(len(lp.Entries), 1+len(f.page.segment.entries))])
			for i := range lp.Entries {
				lp.Entries[i].Event, lp.Entries[i].Also = nil, ""
			}
		}
		ps.land(r, f)
		close(f.done)
		for _, err := range bad {
			t.onBad(err)
		}
	})
	return f
}

// land keeps the page of a flight, unless the pages were cleared meanwhile.
func (ps *pages) land(r Request, f *flight) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.flights[r] != f {
		return
	}
	delete(ps.flights, r)
	if f.page != nil {
		ps.keepLocked(f.page)
	}
}

// encode makes a segment of a page's entries, up to the first missing number, or as many as fit in.
// It gives an error for each entry that is no event.
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

// keepLocked keeps a page if the bound on all pages allows it. Older pages of the tail make room.
func (ps *pages) keepLocked(p *page) {
	if len(p.segment.entries) < 2 {
		return
	}
	for i, old := range ps.kept { // the new page may have more: the log may have gone on
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

// Expire drops the pages that were not used for a while.
func (t *Tail) Expire(now time.Time) { t.pages.expire(now) }

// clear drops all pages. A read that is under way still reaches those that wait for it, but its
// page is not kept.
func (ps *pages) clear() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.dropLocked(len(ps.kept))
	clear(ps.flights)
}

func (ps *pages) expire(now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	n := 0
	for n < len(ps.kept) && now.Sub(ps.kept[n].used) > pageUnused {
		n++
	}
	ps.dropLocked(n)
}
