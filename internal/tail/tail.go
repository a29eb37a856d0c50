// Package tail keeps the newest events of a channel in memory, for all readers in this process.
//
// A Tail is a bounded ring of encoded frames that all its readers share. A reader has no queue,
// only a Place. It asks for what follows, at its own pace. Between two entries of a ring, no entry
// of the log is missing. A reader that the ring does not reach back to gets pages of the log. When
// many readers want the same page, it is read once.
//
// The feed makes a tail and fills it (Offer, Heard, Cut, Want, Fill). A reader reads it (Begin, Look,
// After, Forget). fill.go has a picture of a tail's states.
//
// Goroutines: the feed passes in the functions that start them. One goroutine wakes the readers of
// a large wave, and each read of a page has its own. A timer runs tick when a wave has to wait.
//
// Locks are taken in this order: the feed's, the tail's mu, the mu of its pages. A tail holds its
// mu while it clears its pages. Nothing takes a tail's mu while it holds that of the pages.
//
//	tail.go     the ring: what is added, dropped and found
//	segment.go  a run of entries, with their frames in one buffer
//	fill.go     the states, and what a tail takes from the channel and from the log
//	place.go    where a reader stands, and what it is given there
//	wave.go     how readers are woken
//	pages.go    older entries, read from the log
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

// A Tail holds the newest events of one channel, encoded once, in a bounded ring of segments.
//
// The feed fills it: from the channel while the tail is whole, from the log otherwise. Where
// entries are missing, the tail starts anew at the log's end. Its readers then ask the log what
// they have missed.
type Tail struct {
	Channel string
	Name    string // the channel's name in Redis
	key     position.Key
	onBad   func(error)  // gets an error for each entry or message that is left out
	spawn   func(func()) // starts a goroutine
	pages   pages        // older entries, read from the log

	mu       sync.Mutex        // guards the fields below but Opened
	segments []*segment        // the ring, oldest segment first
	first    uint64            // ordinal of the oldest entry
	next     uint64            // ordinal of the entry to come
	run      uint64            // raised when the tail starts anew: then older ordinals mean nothing
	foreign  uint64            // number of foreign events so far
	memory   *Memory           // counts the ring
	bytes    int               // size of all segments
	last     position.Position // the tail is complete up to here
	lastID   string            // id of the event at last, "" if unknown
	ended    bool              // the log ends with the event at last
	ahead    bool              // a reader sleeps at an event that the log had and the ring has not
	Opened   chan struct{}     // closed by the first fill, or when the log cannot be read for good
	opened   bool              // Opened is closed
	refused  error             // why the log cannot be read for good; nil once it can
	waves

	state state
	since time.Time // since when the tail is not whole
	// held are the logged events that came on the channel while the tail was not whole.
	held      []wire.Event
	heldBytes int
	overflow  bool // more came than can be held
	asked     int  // number of events held when the fill under way began

	reads   int               // number of fills so far
	top     position.Position // end of the log at the last fill; the tail may not have come so far
	failing time.Time         // since when the log cannot be read, zero if it can

	// finds counts the fills that found new entries though the tail was whole. A logged event on
	// the channel sets it to 0, and so do Heard and Cut.
	finds int
}

// A Memory bounds what all tails of a bus keep. Its zero value is ready.
type Memory struct {
	pages, rings atomic.Int64 // bytes
}

const (
	ringBytes      = 3 << 20   // the most in a ring
	ringsBytes     = 128 << 20 // the most in all rings, but
	leastRingBytes = 128 << 10 // each ring may have this, however many there are
	heldEvents     = 512
	heldBytes      = 2 << 20
)

// New makes the tail of a channel. read starts a read of the log on another goroutine, and spawn any
// other goroutine. Both can be called under a lock of the tail, onBad never is.
func New(channel, name string, m *Memory, onBad func(error), spawn func(func()), read func(Request, func(*position.Page, error))) *Tail {
	return &Tail{
		Channel: channel, Name: name, onBad: onBad, spawn: spawn, memory: m,
		pages:  pages{read: read, taken: &m.pages},
		key:    position.NewKey([]string{name}),
		Opened: make(chan struct{}),
		since:  time.Now(),
	}
}

// addLoggedLocked adds an entry of the log. Where that is no event, its entry in the ring has no
// frame, and the error says why.
func (t *Tail) addLoggedLocked(e position.LogEntry) error {
	ev, err := wire.Decode(e.Event)
	if err != nil {
		t.roomLocked(0).skip(e)
		t.last, t.lastID, t.ended = e.Pos, "", e.Final
		t.addedLocked(entryBytes)
		return err
	}
	ev.Position, ev.Also, ev.Final = e.Pos, e.Also, e.Final
	t.addLocked(ev)
	return nil
}

func (t *Tail) addLocked(ev wire.Event) {
	pos := ev.Position
	if pos.IsZero() {
		pos = t.last
		t.foreign++
	} else {
		t.lastID, t.ended = ev.ID, ev.Final
	}
	s := t.roomLocked(len(ev.Payload))
	before := s.size()
	s.add(t.key, ev, pos)
	t.last = pos
	t.addedLocked(s.size() - before)
}

// addedLocked counts a new entry, for which the segments have grown by so many bytes.
func (t *Tail) addedLocked(bytes int) {
	t.next++
	t.growLocked(bytes)
	for len(t.segments) > 1 && (t.bytes > ringBytes || t.bytes > leastRingBytes && t.memory.rings.Load() > ringsBytes) {
		t.growLocked(-t.segments[0].size())
		t.segments = slices.Delete(t.segments, 0, 1)
		t.first = t.segments[0].first
	}
}

func (t *Tail) growLocked(bytes int) {
	t.bytes += bytes
	t.memory.rings.Add(int64(bytes))
}

// clearLocked drops the ring.
func (t *Tail) clearLocked() {
	t.growLocked(-t.bytes)
	t.segments, t.first = nil, t.next
	t.pages.clear()
}

// Drop gives up what the tail keeps. It may not be used any more.
func (t *Tail) Drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clearLocked()
	t.memory = new(Memory) // A message may still be on its way here.
}

// roomLocked gives the segment for the next event, which has a payload of so many bytes.
func (t *Tail) roomLocked(payload int) *segment {
	if n := len(t.segments); n > 0 && t.segments[n-1].takes(payload) {
		return t.segments[n-1]
	}
	most := t.bytes
	if t.memory.rings.Load() > ringsBytes {
		most = min(most, leastRingBytes/4)
	}
	s := newSegment(t.Channel, most, payload)
	s.first, s.before = t.next, t.last
	t.segments = append(t.segments, s)
	t.growLocked(s.size())
	return s
}

// hasLocked reports whether the tail has had the event at pos. Where the ring still has an entry
// there, the fingerprints must agree.
func (t *Tail) hasLocked(pos position.Position) bool {
	if pos.Epoch != t.last.Epoch || pos.Seq > t.last.Seq {
		return false
	}
	_, at, found := t.findLocked(pos)
	return !found || at.Same(pos)
}

// findLocked finds the entry with the epoch and number of pos, or the place right before the oldest
// entry. It gives the ordinal behind it, and its position, which can have another fingerprint.
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

// Another reports whether the tail has a different event at the epoch and number of pos.
func (t *Tail) Another(pos position.Position) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, found := t.last, t.last.Epoch == pos.Epoch && t.last.Seq == pos.Seq
	if !found {
		_, at, found = t.findLocked(pos)
	}
	return found && !at.Same(pos)
}

// entryLocked gives the entry with this ordinal. It must be in the ring.
func (t *Tail) entryLocked(ord uint64) *Entry {
	i := len(t.segments) - 1
	for t.segments[i].first > ord {
		i--
	}
	return &t.segments[i].entries[ord-t.segments[i].first]
}

// Locate gives the position of the logged event with this id, if the ring has it.
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
