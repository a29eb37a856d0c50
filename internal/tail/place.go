package tail

import (
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
)

// A Place is where a reader stands in a tail. For logged events the position would be enough. The
// rest saves the search for it, and covers foreign events, which have no position.
type Place struct {
	Pos      position.Position
	Anyway   bool   // the log cannot be read: take what the tail has, even if it is in doubt
	attached bool   // run and ord are of use
	run      uint64 // the tail's run when the place was attached
	ord      uint64 // ordinal of the entry to read next
	foreign  uint64 // number of the tail's foreign events that lie before the place

	// AtEnd says that a read found the end of the log at Pos. The tail was at tailRun and tailNext
	// when that read began. If it still is, the reader only has to wait.
	AtEnd             bool
	tailRun, tailNext uint64

	wave uint64 // the wave in which the reader looked last
	upto uint64 // in that wave, the reader gets the entries before this ordinal

	Waiter pace.Flag // set when the tail has something new
	slept  uint64    // 1 + the wave after which the reader fell asleep; guarded by the tail's mu
	slot   int       // index in tail.waiting; guarded by the tail's mu
}

// A Glance is the answer of a tail to a reader: the entries that follow the place, or nothing at
// the end of the tail, or that the reader has to read the log.
type Glance struct {
	View
	Behind  bool // the ring does not reach back to the place, or is in doubt
	Skipped bool // foreign events went by that the reader has not had
	Ended   bool // the log has ended, and the place is behind its last event
}

// Look gives what follows the place. It attaches a place whose position the ring has. Where nothing
// is new, the Waiter is set once something is.
func (t *Tail) Look(p *Place) Glance {
	t.mu.Lock()
	defer t.mu.Unlock()
	var g Glance
	if p.attached && (p.run != t.run || p.ord < t.first) {
		p.attached = false
	}
	if !p.attached {
		var ok bool
		if g.Skipped, ok = t.attachLocked(p); !ok {
			if p.AtEnd && p.tailRun == t.run && p.tailNext == t.next {
				t.sleepLocked(p) // if the log has more, the tail soon has it
				t.ahead = true
			} else {
				g.Behind = true
			}
			p.AtEnd, p.tailRun, p.tailNext = false, t.run, t.next
			return g
		}
	}
	if p.wave != t.wave { // a reader that comes later in a wave gets more
		p.wave, p.upto = t.wave, t.next
	}
	if p.ord >= p.upto {
		t.sleepLocked(p)
		g.Ended = t.endedLocked(p.Pos)
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

// endedLocked reports whether the log certainly ends with the event at pos.
func (t *Tail) endedLocked(pos position.Position) bool {
	return t.ended && t.state > cut && pos.Same(t.last)
}

// Ended reports whether the log certainly ends with the event at pos.
func (t *Tail) Ended(pos position.Position) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.endedLocked(pos)
}

// attachLocked finds where in the ring a reader at p.Pos goes on. Foreign events have no position.
// Of those next to p.Pos, the reader gets the ones that p.foreign does not count. skipped says that
// it has missed others, further back.
func (t *Tail) attachLocked(p *Place) (skipped, ok bool) {
	ord, foreign := t.next, t.foreign
	if t.state == unread {
		return false, false
	}
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
				return false, false // logged events stand in between: only the log can give them
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

// Advance moves a place over entries that the reader was given.
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

// Move puts a place elsewhere. So many of the tail's foreign events lie before it.
func (p *Place) Move(pos position.Position, foreign uint64) {
	p.Pos, p.foreign, p.attached, p.AtEnd = pos, foreign, false, false
}

// Foreign gives the number of foreign events so far.
func (t *Tail) Foreign() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.foreign
}

// Begin puts a place at the tail's end.
func (t *Tail) Begin(p *Place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.Pos, p.foreign = t.last, t.foreign
}
