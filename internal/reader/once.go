package reader

import (
	"iter"
	"strings"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/tail"
)

// What several channels of a subscription have is delivered once, from the first of them in the
// order of the publish. Entries in the other logs note where it is: '<channel>@<position>' for each log
// earlier in that order. What a lane does with such an entry depends on where the other lane, that
// of the noted channel, stands:
//
//	noted position p            what the other lane has done with the event     here it is
//	p <= began                  nothing: the subscription began behind it       delivered
//	hole.from < p <= hole.upto  nothing: a gap has passed over it               delivered
//	p <= place                  delivered it                                    left out
//	p > place                   it will deliver it, or announce that it is lost  left out
//
// There is one hole for a lane. A further gap moves its end, so where two gaps meet while another lane
// is behind, what was between them can come twice.
//
// Cursors say where lanes began, and their holes, until every lane has come to where its log ended
// when the last of them arose: no entry behind that notes a place in them.

// elsewhere reports whether another lane than l delivers an entry of l.
func (r *Reader) elsewhere(l *lane, e *tail.Entry) bool {
	if len(r.lanes) == 1 {
		return false
	}
	if e.Foreign {
		return r.foreign.elsewhere(e.Event.ID, l)
	}
	for name, at := range notes(e.Also) {
		for _, m := range r.lanes {
			if m == l || m.tail.Name != name || !m.delivers(at) {
				continue
			}
			// The shards of a cluster lose what they lose each by itself: what is noted may be
			// another event by now.
			at.Mark = position.Fingerprint(e.Event.ID)
			if !r.Log.PerChannel || !m.tail.Another(at) {
				return true
			}
		}
	}
	return false
}

// delivers reports whether the lane has delivered what is at p in its log, or will.
func (l *lane) delivers(p position.Position) bool { return p.Beyond(l.began) && !l.hole.Has(p) }

// pass makes a gap part of the lane's hole.
func (l *lane) pass(from, upto position.Position) {
	if l.hole == (position.Hole{}) {
		l.hole.From = from
	}
	l.hole.Upto = upto
	if l.began.Beyond(upto) {
		l.began = upto // the log went back: the numbers behind it are given again
	}
}

// passed says that a lane began, or passed over something. The ends of the logs are found by reads
// that begin from now on; one may be under way.
func (r *Reader) passed() {
	r.open = len(r.lanes) > 1
	for _, l := range r.lanes {
		reads, _ := l.tail.LastRead()
		l.endRead = reads + 2
	}
}

// isOpen reports whether a lane can still come upon an entry that notes a place where another lane
// has passed.
func (r *Reader) isOpen() bool {
	if !r.open {
		return false
	}
	for _, l := range r.lanes {
		if reads, top := l.tail.LastRead(); l.endRead > 0 && reads >= l.endRead {
			l.end, l.endRead = top, 0
		}
		if l.endRead > 0 || l.end.Beyond(l.place.Pos) {
			return true
		}
	}
	r.open = false
	for _, l := range r.lanes {
		l.hole = position.Hole{}
	}
	return false
}

// notes gives what an entry notes: channels, and positions in their logs.
func notes(also string) iter.Seq2[string, position.Position] {
	return func(yield func(string, position.Position) bool) {
		for note := range strings.FieldsSeq(also) {
			i := strings.LastIndexByte(note, '@') // a prefix can have one too
			if pos, err := position.Parse(note[i+1:]); err == nil && i > 0 && !yield(note[:i], pos) {
				return
			}
		}
	}
}

// A recent set remembers from which lane foreign events were delivered last: they have no position
// that an entry could note.
type recent struct {
	lanes map[string]*lane
	order []string // a ring, oldest at next
	next  int
}

const recentEvents = 1024

// elsewhere reports whether the event was delivered from another lane than l, and
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
