package eventbus

import (
	"iter"
	"slices"
	"strings"
)

// What several channels of a subscription have is delivered once: here it is decided from
// which of them.
//
// An entry notes all places where its event was before, in whatever log, be it lost by now.
// An event was delivered if a lane has gone over one of these places other than in a hole:
// it was delivered there, or that entry's notes said the same of it. So the answer depends on
// the logs and on where the reader stands, not on what it remembers, and holds across a
// resume. It needs each lane to wait for those that have yet to go over such a place. They
// cannot wait for each other, if notes are true: what an entry notes was there before the entry.

// An answer to whether an event was delivered. It can be that it is not known yet.
type answer int

const (
	no answer = iota
	yes
	behind // another lane has to come to it first
	notYet // something has to be read first
)

// judge tells whether the event of a lane's next entry was delivered from an entry that it notes.
func (r *reader) judge(l *lane) answer {
	e := &l.view.entries[0]
	verdict := no
	if e.event == nil || e.foreign {
		return verdict
	}
	for name, at := range notes(e.also) {
		for _, m := range r.lanes {
			if m.tail.name != name {
				continue
			}
			at.mark = fingerprint(e.event.id)
			// What is read for one note is not to be put off by the next.
			a := r.had(l, m, at, e.event.id)
			if a == yes || a == notYet {
				return a
			}
			verdict = max(verdict, a)
		}
	}
	return verdict
}

// had tells whether lane m has gone over the event that an entry of lane l notes to be at this
// position of m's log.
func (r *reader) had(l, m *lane, at Position, id string) answer {
	pos := m.place.pos
	ahead := at.epoch > pos.epoch || at.epoch == pos.epoch && at.seq > pos.seq || pos.seq == noLog
	switch {
	case slices.ContainsFunc(m.holes, func(h hole) bool { return h.rewound() && h.after == at }):
		return yes // the log that the gap ended had it delivered, as the last one
	case slices.ContainsFunc(m.holes, func(h hole) bool { return h.has(at) }):
		return no
	case slices.ContainsFunc(m.holes, func(h hole) bool { return !h.rewound() && h.after.epoch == at.epoch && h.after.seq >= at.seq }):
		return yes // before the gap
	case m == l || at.epoch < pos.epoch && !ahead:
		return no // this subscription does not know what became of it there
	case ahead:
		return r.will(l, m, at)
	case !r.bus.log.perChannel:
		return yes
	}
	// The nodes of a cluster lose what they lose each by itself: what an entry notes
	// of another node's log may be another event by now.
	found, same, _ := m.tail.compare(at)
	_, seen := r.seen.lanes[id]
	switch {
	case found && same, seen:
		return yes
	case found:
		return no
	case m.began.epoch == at.epoch && at.seq <= m.began.seq:
		return yes // before this subscription was resumed
	case len(r.seen.order) < recentEvents:
		return no
	}
	return l.lookUp(m, at)
}

// will tells whether lane m is going to come to an event that an entry of lane l notes.
func (r *reader) will(l, m *lane, at Position) answer {
	reads, top := m.tail.lastRead() // before it is looked at: a read may end meanwhile
	found, same, end := m.tail.compare(at)
	switch {
	case found && !same:
		return no
	case found && m.place.pos.seq == noLog && at.epoch != end.epoch:
		return yes // its log has expired since
	case (found || at.epoch == end.epoch && at.seq <= end.seq) && len(m.view.entries) > 0:
		return behind
	case found || at.epoch == end.epoch && at.seq <= end.seq:
		return notYet
	}
	// The tail may not have it yet. Whatever l's view notes was in m's log before the
	// view was filled, so a read that begins from now on will tell. One may be under way.
	a := l.asks(m)
	if a.reads == 0 {
		a.reads = reads + 2
		l.asked[m] = a
	}
	if reads < a.reads || at.epoch == top.epoch && at.seq <= top.seq {
		r.bus.feed.want(true, m.tail)
		return notYet
	}
	return no
}

// turn gives the lane with the oldest event of those that need not wait for another; if
// there is none, whether any does.
func (r *reader) turn() (next *lane, waits bool) {
	if len(r.lanes) == 1 {
		l := r.lanes[0]
		if len(l.view.entries) == 0 {
			return nil, false
		}
		return l, false
	}
	var first *lane // of those that wait
	circle := true  // each for another that waits
	for _, l := range r.lanes {
		l.waits = false
	}
	for {
		next = nil
		for _, l := range r.lanes {
			if len(l.view.entries) > 0 && !l.waits && (next == nil || l.older(next)) {
				next = l
			}
		}
		if next == nil {
			break
		}
		next.verdict = r.judge(next)
		switch next.verdict {
		case no, yes:
			return next, false
		case notYet:
			circle = false
		}
		next.waits = true
		if first == nil {
			first = next
		}
	}
	if first != nil && circle {
		// Their notes are not true: a master that took over lacks what they speak of, or
		// somebody else has written them.
		first.verdict = no
		return first, false
	}
	return nil, first != nil
}

// An asked is what one lane has to find out of another's log.
type asked struct {
	loads  uint64   // the lane's, when it began to ask
	reads  int      // the other tail's, when it will have been told where that log ends; 0 not asked
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
		a.flight, a.own, _ = m.tail.pages.join(m.tail, at, true) // none if too many are under way
		l.asked[m] = a
	}
	return notYet
}

// notes gives what an entry notes: channels, and positions in their logs.
func notes(also string) iter.Seq2[string, Position] {
	return func(yield func(string, Position) bool) {
		for note := range strings.FieldsSeq(also) {
			i := strings.LastIndexByte(note, '@') // a prefix can have one too
			if pos, err := ParsePosition(note[i+1:]); err == nil && i > 0 && !yield(note[:i], pos) {
				return
			}
		}
	}
}

// maxHoles bounds what is remembered of a lane with gap after gap.
const maxHoles = 8

// pass notes that a lane passes over a hole. The other lanes go on in their logs: what their
// tails have heard may lack notes.
func (r *reader) pass(l *lane, h hole) {
	if len(r.lanes) == 1 {
		return
	}
	for _, m := range r.lanes {
		_, m.from = m.tail.end()
		if m != l && m.place.attached { // else what it has is from its log already
			m.view, m.place.attached = view{}, false
		}
	}
	l.remember(h)
	r.passed++
}

// remember keeps a hole for good: an entry can be written at any time that notes a place in it,
// or one before it in a log that is gone.
func (l *lane) remember(h hole) {
	if h.rewound() { // the numbers behind it are given again
		if slices.ContainsFunc(l.holes, func(old hole) bool { return old.has(h.after) }) {
			h.after.mark = 0 // it was passed over, not delivered
		}
		for i, old := range l.holes {
			if old.upto.epoch == h.upto.epoch && old.upto.seq > h.upto.seq {
				l.holes[i].upto.seq = h.upto.seq
			}
		}
	}
	if len(l.holes) == maxHoles {
		l.holes = slices.Delete(l.holes, 0, 1)
	}
	l.holes = append(l.holes, h)
}

// moved remembers a log that has expired in its time, with every event delivered.
func (r *reader) moved(l *lane, from Position) {
	if len(r.lanes) > 1 && from.seq > 0 && l.place.pos.seq == noLog {
		l.remember(hole{from, l.place.pos})
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
