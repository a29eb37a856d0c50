package eventbus

import (
	"slices"
	"strings"
)

// What several channels of a subscription have is delivered once: here it is decided from
// which of them.

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
	if slices.ContainsFunc(m.holes, func(p passed) bool { return p.after.epoch == at.epoch && p.after.seq >= at.seq }) {
		return yes // before the gap, the lane had it
	}
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
