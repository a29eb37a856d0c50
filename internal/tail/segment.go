package tail

import (
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// An Entry is one event in a tail, or in a page of the log.
type Entry struct {
	pos     position.Position // where a reader stands right behind the entry
	Event   *envelope         // nil for an entry of the log that is no event: readers pass over it
	Also    string            // the entry's also
	Foreign bool              // the event is in no log
	Final   bool              // the log ends with the event

	// These are offsets in the segment's buf. The frame is buf[start:end]. Without its id field it
	// is buf[body:end].
	start, body, payload, payloadEnd, end int32
}

// An envelope has the decoded members of an event but the payload. A ring has thousands.
type envelope struct {
	ID        string
	Type      string
	Timestamp time.Time
	project   uuid.UUID
	actor     *uuid.UUID
	actorType string
}

// A segment is a run of consecutive entries of one channel. Their frames lie one behind the other
// in memory, as a subscription to that one channel sends them: any stretch of them is one Write. A
// segment only gets entries. What a view shows never changes.
type segment struct {
	channel string            // the channel's text, as it is in the frames
	first   uint64            // ordinal of entries[0] in its tail
	before  position.Position // where a reader stands right before entries[0]
	entries []Entry
	buf     []byte
}

// A new segment has room for as much as the ring has already: most channels are quiet. Buffers do not
// grow, because busy channels that began together would all copy theirs at the same time. A full
// ring drops a whole segment.
const (
	leastSegmentBytes = 4 << 10
	mostSegmentBytes  = ringBytes / 4
)

const (
	frameBytes = 768 // room for a frame without its payload; hardly any frame needs more
	entryBytes = 256 // about what an Entry and its envelope take
)

// newSegment makes the next segment of a ring, with so many bytes at most, or room for an event with
// a payload of so many.
func newSegment(channel string, most, payload int) *segment {
	room := max(min(most, mostSegmentBytes), leastSegmentBytes, payload+frameBytes)
	return &segment{
		channel: channel,
		buf:     make([]byte, 0, room),
		entries: make([]Entry, 0, room/(payload+frameBytes)),
	}
}

func (s *segment) size() int { return cap(s.buf) + entryBytes*len(s.entries) }

// takes reports whether an event with a payload of so many bytes still belongs in the segment. The
// number of entries is bounded, too, because one that is passed over has no bytes.
func (s *segment) takes(payload int) bool {
	return len(s.buf)+payload+frameBytes <= cap(s.buf) && len(s.entries) < cap(s.buf)/64
}

// Beyond reports whether the entry is further on in the log than p.
func (e *Entry) Beyond(p position.Position) bool { return e.pos.Beyond(p) }

// A View is a stretch of a segment that a reader may look at without a lock. Every sleeping reader
// has views on its stack: a few more words in each would double the stack.
type View struct {
	Entries []Entry
	buf     []byte
}

// from gives a view of the entries from the i-th on.
func (s *segment) from(i int) View {
	return View{slices.Clip(s.entries[i:]), slices.Clip(s.buf)}
}

// Event gives the event of an entry. All readers share its payload, and none may change it.
func (v View) Event(e *Entry) wire.Event {
	ev := wire.Event{
		ID: e.Event.ID, Type: e.Event.Type, Timestamp: e.Event.Timestamp, ProjectID: e.Event.project,
		ActorType: e.Event.actorType, Payload: v.buf[e.payload:e.payloadEnd:e.payloadEnd],
	}
	if e.Event.actor != nil {
		actor := *e.Event.actor
		ev.ActorID = &actor
	}
	if !e.Foreign {
		ev.Position = e.pos
	}
	return ev
}

// Cursor gives the cursor right behind an entry, for a subscription to this channel alone. A
// foreign event has none.
func (v View) Cursor(e *Entry) string {
	return string(v.buf[int(e.start)+len(wire.IDField) : e.body-1])
}

// Frames gives the frames of v.Entries[i:j].
func (v View) Frames(i, j int) []byte {
	end := v.Entries[j-1].end
	return v.buf[v.Entries[i].start:end:end]
}

// Block gives the frame of an entry without its id field.
func (v View) Block(e *Entry) []byte { return v.buf[e.body:e.end] }

// add appends an event and its frame. A reader right behind it stands at pos. key makes the cursor
// of that position.
func (s *segment) add(key position.Key, ev wire.Event, pos position.Position) {
	e := Entry{pos: pos, Foreign: ev.Position.IsZero(), start: int32(len(s.buf))}
	if !e.Foreign {
		e.Also, e.Final = ev.Also, ev.Final
	}
	e.Event = &envelope{ev.ID, ev.Type, ev.Timestamp, ev.ProjectID, ev.ActorID, ev.ActorType}
	if !e.Foreign {
		s.buf = append(s.buf, wire.IDField...)
		s.buf = key.Append(s.buf, func(int) position.Position { return pos })
		s.buf = append(s.buf, '\n')
	}
	e.body = int32(len(s.buf))
	body, payload := wire.AppendBody(s.buf, &ev, s.channel)
	s.buf, e.payload, e.payloadEnd, e.end = body, int32(payload), int32(payload+len(ev.Payload)), int32(len(body))
	s.entries = append(s.entries, e)
}

// skip appends an entry without a frame, for an entry of the log that is no event.
func (s *segment) skip(e position.LogEntry) {
	n := int32(len(s.buf))
	s.entries = append(s.entries, Entry{pos: e.Pos, Final: e.Final, start: n, body: n, end: n})
}

// addLogged appends an entry of the log. Where that is no event, the error says why.
func (s *segment) addLogged(key position.Key, e position.LogEntry) error {
	ev, err := wire.Decode(e.Event)
	if err != nil {
		s.skip(e)
		return err
	}
	ev.Position, ev.Also, ev.Final = e.Pos, e.Also, e.Final
	s.add(key, ev, e.Pos)
	return nil
}
