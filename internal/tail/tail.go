package tail

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Tail holds the newest events of one channel, encoded once, in a bounded ring
// of segments that all readers of the channel share. A reader has no queue: it
// comes with a place and is given what follows it.
//
// The feed fills the tail, from the channel while the tail is whole and from
// the log otherwise. What is in a tail is contiguous: where the log itself is
// not, the tail starts anew and its readers find out in the log what they miss.
type Tail struct {
	Channel string
	Name    string // of the channel in Redis
	key     position.Key
	onBad   func(error)  // is given what cannot be read
	spawn   func(func()) // starts a goroutine
	pages   pages        // older entries, read from the log

	mu       sync.Mutex        // guards following
	segments []*segment        // oldest first
	first    uint64            // ordinal of the oldest entry
	next     uint64            // ordinal that the next entry will have
	run      uint64            // raised when the tail starts anew: ordinals from before mean nothing
	foreign  uint64            // how many foreign events the tail has had
	bytes    int               // of all segments
	last     position.Position // the tail is complete up to here
	lastID   string            // of the event at last, "" if that is not known
	Opened   chan struct{}
	waves

	state state
	since time.Time // when the tail stopped being whole
	// held is what came on the channel while the tail was not whole.
	held      []wire.Event
	heldBytes int
	overflow  bool // more came than can be held
	asked     int  // how many were held when the fill under way was begun

	reads   int               // how often the log was read
	top     position.Position // where it ended at the last read, whether the tail has come so far or not
	failing time.Time         // since when it cannot be read; zero when it can

	// finds is how many fills in a row have found what a whole tail did not have, while the channel
	// brought nothing.
	finds int
}

// The ring of a tail is bounded in events and bytes; what is held back, too.
const (
	tailEvents = 4096
	tailBytes  = 2 << 20
	heldEvents = 512
)

// New makes the tail of a channel, which has this name in Redis. All tails count their pages'
// bytes in one number. read begins a read of the log, on a goroutine of its own, and spawn any other.
func New(channel, name string, pageBytes *atomic.Int64, onBad func(error), spawn func(func()), read func(Request, func(*position.Page, error))) *Tail {
	return &Tail{
		Channel: channel, Name: name, onBad: onBad, spawn: spawn,
		pages:  pages{read: read, taken: pageBytes},
		key:    position.NewKey([]string{name}),
		Opened: make(chan struct{}),
		since:  time.Now(),
	}
}

// addLoggedLocked adds an entry of the log, or passes over what is no event.
func (t *Tail) addLoggedLocked(e position.LogEntry) error {
	ev, err := wire.Decode(e.Event)
	if err != nil {
		t.roomLocked(0).skip(e.Pos)
		t.last, t.lastID = e.Pos, ""
		t.next++
		t.trimLocked()
		return err
	}
	ev.Position = e.Pos
	t.addLocked(ev, e.Also)
	return nil
}

func (t *Tail) addLocked(ev wire.Event, also string) {
	pos := ev.Position
	if pos.IsZero() {
		pos = t.last
		t.foreign++
	} else {
		t.lastID = ev.ID
	}
	s := t.roomLocked(len(ev.Payload))
	before := len(s.buf)
	s.add(t.key, ev, pos, also)
	t.bytes += len(s.buf) - before
	t.last = pos
	t.next++
	t.trimLocked()
}

// roomLocked is the segment for another event with so much payload.
func (t *Tail) roomLocked(payload int) *segment {
	if n := len(t.segments); n > 0 && t.segments[n-1].takes(payload) {
		return t.segments[n-1]
	}
	s := &segment{channel: t.Channel, first: t.next, before: t.last}
	if n := len(t.segments); n > 0 {
		full := t.segments[n-1]
		s.entries, s.buf = make([]Entry, 0, len(full.entries)), make([]byte, 0, min(len(full.buf)+frameBytes, mostSegmentBytes))
	}
	t.segments = append(t.segments, s)
	return s
}

// trimLocked drops the oldest segments of a ring that is full.
func (t *Tail) trimLocked() {
	for len(t.segments) > 1 && (t.bytes > tailBytes || t.next-t.first > tailEvents) {
		t.bytes -= len(t.segments[0].buf)
		t.segments = slices.Delete(t.segments, 0, 1)
		t.first = t.segments[0].first
	}
}

// hasLocked tells whether the tail is past pos and, as far as it still holds the
// event there, that it is the same one.
func (t *Tail) hasLocked(pos position.Position) bool {
	if pos.Epoch != t.last.Epoch || pos.Seq > t.last.Seq {
		return false
	}
	_, at, found := t.findLocked(pos)
	return !found || at.Same(pos)
}

// findLocked gives the ordinal behind the entry at pos, and what stands there,
// which can have another fingerprint.
func (t *Tail) findLocked(pos position.Position) (uint64, position.Position, bool) {
	for i := len(t.segments) - 1; i >= 0; i-- {
		s := t.segments[i]
		n := sort.Search(len(s.entries), func(n int) bool {
			p := s.entries[n].pos
			return p.Epoch > pos.Epoch || p.Epoch == pos.Epoch && p.Seq >= pos.Seq
		})
		if n < len(s.entries) && s.entries[n].pos.Epoch == pos.Epoch && s.entries[n].pos.Seq == pos.Seq && !s.entries[n].Foreign {
			return s.first + uint64(n) + 1, s.entries[n].pos, true
		}
		if s.before.Epoch == pos.Epoch && s.before.Seq == pos.Seq && i == 0 {
			return s.first, s.before, true
		}
		if s.before.Epoch == pos.Epoch && s.before.Seq < pos.Seq {
			break
		}
	}
	return 0, position.Position{}, false
}

// Another reports whether the tail has another event than this one under its number.
func (t *Tail) Another(pos position.Position) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, found := t.last, t.last.Epoch == pos.Epoch && t.last.Seq == pos.Seq
	if !found {
		_, at, found = t.findLocked(pos)
	}
	return found && !at.Same(pos)
}

// entryLocked gives the entry with this ordinal, which is in the ring.
func (t *Tail) entryLocked(ord uint64) *Entry {
	i := len(t.segments) - 1
	for t.segments[i].first > ord {
		i--
	}
	return &t.segments[i].entries[ord-t.segments[i].first]
}

// Locate gives the position of the logged event with this id, if the tail has it.
func (t *Tail) Locate(id string) (position.Position, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.segments {
		for i := range s.entries {
			if e := &s.entries[i]; e.Event != nil && e.Event.ID == id && !e.Foreign {
				return e.pos, true
			}
		}
	}
	return position.Position{}, false
}
