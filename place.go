package eventbus

import (
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
)

// A place is where a reader stands in a tail. The position alone would do; the
// rest saves the search, and covers foreign events, which have no position.
type place struct {
	pos      position.Position
	anyway   bool   // the log cannot be read: take what the tail has, even if it is unsure
	attached bool   // the following are of use
	run      uint64 // the tail's, when it attached
	ord      uint64 // ordinal of the entry to read next
	foreign  uint64 // how many foreign events the tail had had when the reader began, and here

	// The log ends at pos, as far as a read could tell that was begun when the
	// tail was at tailRun and tailNext: there is nothing to do but wait.
	atEnd             bool
	tailRun, tailNext uint64

	wave uint64 // the last in which the reader was given something,
	upto uint64 // up to this ordinal

	waiter pace.Flag // woken when the tail has something new
	slept  uint64    // guarded by the tail's lock: 1 + the wave behind which it fell asleep,
	slot   int       // and its index in tail.waiting
}

// A glance is the answer of a tail to a reader: entries that follow its place;
// or nothing, when it is at the end; or that it must read the log.
type glance struct {
	view
	behind  bool // the tail does not reach back to the place
	skipped bool // foreign events went by between the place and here
}

// look gives what follows the place. A reader that is not attached is attached
// where the tail holds its position. When there is nothing new, its waiter will be woken once there
// is.
func (t *tail) look(p *place) glance {
	t.mu.Lock()
	defer t.mu.Unlock()
	var g glance
	if p.attached && (p.run != t.run || p.ord < t.first) {
		p.attached = false
	}
	if !p.attached {
		var ok bool
		if g.skipped, ok = t.attachLocked(p); !ok {
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
func (t *tail) attachLocked(p *place) (skipped, ok bool) {
	ord, foreign := t.next, t.foreign
	if p.pos.Same(t.last) {
		for ord > t.first && foreign > p.foreign && t.entryLocked(ord-1).foreign {
			ord, foreign = ord-1, foreign-1
		}
	} else {
		at, pos, found := t.findLocked(p.pos)
		if !found || !pos.Same(p.pos) {
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
	if ord < t.next && t.state == cut && !p.anyway {
		return false, false
	}
	skipped = foreign > p.foreign
	p.attached, p.run, p.ord, p.foreign = true, t.run, ord, foreign
	return skipped, true
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

// begin puts a place at the tail's end.
func (t *tail) begin(p *place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.pos, p.foreign = t.last, t.foreign
}
