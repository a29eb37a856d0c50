package tail

import (
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
)

// A Place is where a reader stands in a tail. The position alone would do; the
// rest saves the search, and covers foreign events, which have no position.
type Place struct {
	Pos      position.Position
	Anyway   bool   // the log cannot be read: take what the tail has, even if it is unsure
	attached bool   // the following are of use
	run      uint64 // the tail's, when it attached
	ord      uint64 // ordinal of the entry to read next
	foreign  uint64 // how many foreign events the tail had had when the reader began, and here

	// The log ends at pos, as far as a read could tell that was begun when the
	// tail was at tailRun and tailNext: there is nothing to do but wait.
	AtEnd             bool
	tailRun, tailNext uint64

	wave uint64 // the last in which the reader was given something,
	upto uint64 // up to this ordinal

	Waiter pace.Flag // woken when the tail has something new
	slept  uint64    // guarded by the tail's lock: 1 + the wave behind which it fell asleep,
	slot   int       // and its index in tail.waiting
}

// A glance is the answer of a tail to a reader: entries that follow its place;
// or nothing, when it is at the end; or that it must read the log.
type glance struct {
	View
	Behind  bool // the tail does not reach back to the place
	Skipped bool // foreign events went by between the place and here
}

// Look gives what follows the place. A reader that is not attached is attached
// where the tail holds its position. When there is nothing new, its waiter will be woken once there
// is.
func (t *Tail) Look(p *Place) glance {
	t.mu.Lock()
	defer t.mu.Unlock()
	var g glance
	if p.attached && (p.run != t.run || p.ord < t.first) {
		p.attached = false
	}
	if !p.attached {
		var ok bool
		if g.Skipped, ok = t.attachLocked(p); !ok {
			if p.AtEnd && p.tailRun == t.run && p.tailNext == t.next {
				t.sleepLocked(p) // what is in the log comes here soon
			} else {
				g.Behind = true
			}
			p.AtEnd, p.tailRun, p.tailNext = false, t.run, t.next
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
	g.View = s.from(int(p.ord - s.first))
	if n := p.upto - p.ord; n < uint64(len(g.Entries)) {
		g.Entries = g.Entries[:n:n]
	}
	return g
}

// attachLocked finds where in the ring a reader at p.pos goes on. Foreign events
// have no position: of those next to it, the reader gets the ones from after it
// began.
func (t *Tail) attachLocked(p *Place) (skipped, ok bool) {
	ord, foreign := t.next, t.foreign
	if p.Pos.Same(t.last) {
		for ord > t.first && foreign > p.foreign && t.entryLocked(ord-1).Foreign {
			ord, foreign = ord-1, foreign-1
		}
	} else {
		at, pos, found := t.findLocked(p.Pos)
		if !found || !pos.Same(p.Pos) {
			return false, false
		}
		for ; ord > at; ord-- {
			if t.entryLocked(ord - 1).Foreign {
				foreign--
			}
		}
		for ; foreign < p.foreign; ord, foreign = ord+1, foreign+1 {
			if !t.entryLocked(ord).Foreign {
				return false, false // events from the log stand between: it is read there
			}
		}
	}
	if ord < t.next && t.state == cut && !p.Anyway {
		return false, false
	}
	skipped = foreign > p.foreign
	p.attached, p.run, p.ord, p.foreign = true, t.run, ord, foreign
	return skipped, true
}

// Advance moves a place over entries that look has given.
func (p *Place) Advance(entries []Entry) {
	for i := range entries {
		if entries[i].Foreign {
			p.foreign++
		}
	}
	p.Pos = entries[len(entries)-1].pos
	if p.attached {
		p.ord += uint64(len(entries))
	}
}

// Begin puts a place at the tail's end.
func (t *Tail) Begin(p *Place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.Pos, p.foreign = t.last, t.foreign
}
