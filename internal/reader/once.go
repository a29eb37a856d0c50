package reader

import (
	"iter"
	"strings"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/tail"
)

// The once-rule. An event that was published to several channels of a subscription is in the log of
// each. So several lanes come to it, and only one may deliver it: the lane of the channel that is
// first in the order of the publish. The others leave it out.
//
// How does a lane know? Its entry says in the field "also" where the event is in the logs that come
// earlier in the order: '<channel>@<position>' for each. If the reader has a lane for such a
// channel, that is the other lane. Call the position p. Where p is in the log of the other lane
// decides what this lane does with its entry:
//
//	the log of the other lane:
//
//	    not read     │  delivered  │  passed over  │  delivered  │  not yet read
//	─────────────────┼─────────────┼───────────────┼─────────────┼────────────────►
//	               began       hole.From       hole.Upto       place
//
//	where p is                  what the other lane does                      so this lane
//	p <= began                  nothing: the subscription began behind p      delivers the event
//	hole.From < p <= hole.Upto  nothing: a gap has passed over p              delivers the event
//	else, p <= place            it has delivered the event                    leaves it out
//	p > place                   it will deliver the event, or announce a gap  leaves it out
//
// In the last two rows this lane does the same. So the code compares p with began and the hole
// only: see delivers. Where "also" names several positions, one other lane that delivers the event
// is enough.
//
// A lane has one hole: what its gaps have passed over. A further gap moves Upto, never From. So
// where two gaps meet while another lane is behind, events between the two can come twice.
//
// A resumed subscription needs began and the holes, too, so cursors carry them. They stop when
// every lane has come to where its log ended when the last of these arose. From there on, entries
// name only positions behind began and the holes. Two exceptions are given up: an event that is
// published again, and one that was between two logs of a cluster.

// elsewhere reports whether another lane than l delivers the event of an entry of l, and gives that
// lane, and the place of the event there. Those of a foreign event are not known.
func (r *Reader) elsewhere(l *lane, e *tail.Entry) (*lane, position.Position, bool) {
	if len(r.lanes) == 1 {
		return nil, position.Position{}, false
	}
	if e.Foreign {
		return nil, position.Position{}, r.foreign.elsewhere(e.Event.ID, l)
	}
	for name, at := range places(e.Also) {
		for _, m := range r.lanes {
			if m == l || m.tail.Name != name || m.hasNoLog() || !m.delivers(at) {
				continue
			}
			// Each shard of a cluster loses events by itself. The position may now be that of
			// another event. Then this lane delivers its own.
			at.Fingerprint = position.Fingerprint(e.Event.ID)
			if !r.Log.PerChannel || !m.tail.Another(at) {
				return m, at, true
			}
		}
	}
	return nil, position.Position{}, false
}

// delivers reports whether the event at p in the lane's log is the lane's to deliver: it has been
// delivered or announced there, or will be.
func (l *lane) delivers(p position.Position) bool { return p.Beyond(l.began) && !l.hole.Has(p) }

// hasNoLog reports whether there is no log for the lane, so that it delivers nothing.
func (l *lane) hasNoLog() bool { return l.place.Pos.IsZero() && l.target.IsZero() }

// pass adds a gap to the lane's hole.
func (l *lane) pass(from, upto position.Position) {
	if l.hole == (position.Hole{}) {
		l.hole.From = from
	}
	l.hole.Upto = upto
	if l.began.Beyond(upto) {
		l.began = upto // the log went back: it gives the numbers behind upto again
	}
}

// passed says that a lane has begun, or has passed over something. Cursors then say so until every
// lane has come to where its log ends now. A read that begins from now on finds that end. The next
// read that a tail counts may be under way already, so it takes the one after that.
func (r *Reader) passed() {
	r.carries = len(r.lanes) > 1
	for _, l := range r.lanes {
		reads, _ := l.tail.LastRead()
		l.endRead = reads + 2
	}
}

// carriesHoles reports whether cursors still have to say where lanes began, and their holes. They do not
// once every lane has come to its end. Then carriesHoles drops the holes.
func (r *Reader) carriesHoles() bool {
	if !r.carries {
		return false
	}
	for _, l := range r.lanes {
		if !l.endKnown() || l.end.Beyond(l.place.Pos) {
			return true
		}
	}
	r.carries = false
	for _, l := range r.lanes {
		l.hole = position.Hole{}
	}
	return false
}

// endKnown reports whether end is known, and finds it where it can be.
func (l *lane) endKnown() bool {
	if reads, top := l.tail.LastRead(); l.endRead > 0 && reads >= l.endRead {
		l.end, l.endRead = top, 0
	}
	return l.endRead == 0
}

// places walks the places in an entry's "also": names of channels, and positions in their logs.
func places(also string) iter.Seq2[string, position.Position] {
	return func(yield func(string, position.Position) bool) {
		for place := range strings.FieldsSeq(also) {
			i := strings.LastIndexByte(place, '@') // the prefix of a channel can have an @, too
			if pos, err := position.Parse(place[i+1:]); err == nil && i > 0 && !yield(place[:i], pos) {
				return
			}
		}
	}
}

// A recent set remembers which lanes the newest foreign events came from. These have no position
// that "also" could name, so the set goes by their ids.
type recent struct {
	lanes map[string]*lane // by the id of the event
	order []string         // ids: a ring, the oldest at next
	next  int
}

const recentEvents = 1024

// elsewhere reports whether the event came from another lane than l before. An event that is new is
// remembered.
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
