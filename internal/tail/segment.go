package tail

import (
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// An Entry is one event as its tail, or a page of its log, holds it.
type Entry struct {
	pos     position.Position // where a reader stands who has taken it
	Event   *envelope         // nil for a log entry that could not be read: it is passed over
	Also    string            // where the event was appended before, as in append.lua
	Foreign bool              // the event is in no log

	// The frame of the event is buf[start:end] of its segment. What follows its id
	// field begins at body, and within that its payload.
	start, body, payload, payloadEnd, end int32
}

// An envelope is what has been decoded of an event, beside its payload. A ring has thousands.
type envelope struct {
	ID        string
	Type      string
	Timestamp time.Time
	project   uuid.UUID
	actor     *uuid.UUID
	actorType string
}

// A segment is a run of consecutive entries of one channel. Their frames, as a
// subscription to that one channel sends them, lie one behind the other in
// memory, so that any stretch of them is one Write. It only grows: what a view
// has shown does not change, though the segment may go on in a copy of it.
type segment struct {
	channel string            // for the frames
	first   uint64            // ordinal of entries[0] in its tail
	before  position.Position // where a reader stands who has taken none of it
	entries []Entry
	buf     []byte
}

// The buffer of a tail's first segment begins small, since most channels are quiet, and doubles.
// Where a segment has so many bytes or entries, another one begins, as large as it has become. A ring
// that is full drops a whole one: it has three quarters of its bound, at least.
const (
	leastSegmentBytes  = 4 << 10
	mostSegmentBytes   = 512 << 10
	mostSegmentEntries = tailEvents / 4 // what is passed over takes no bytes
)

// frameBytes is more than hardly any frame has besides its payload.
const frameBytes = 768

// takes tells whether another event with so much payload belongs in the segment.
func (s *segment) takes(payload int) bool {
	return len(s.entries) < mostSegmentEntries &&
		(len(s.buf) == 0 || len(s.buf)+payload+frameBytes <= mostSegmentBytes)
}

// A View is a stretch of a segment that a reader may look at without a lock. Every reader that sleeps has some
// on its stack: a few words more, and a stack is twice as large.
type View struct {
	Entries []Entry
	buf     []byte
}

// from gives the entries from the i-th on.
func (s *segment) from(i int) View {
	return View{slices.Clip(s.entries[i:]), slices.Clip(s.buf)}
}

// Event gives an event. Its payload is everybody's.
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

// Cursor is that of a subscription to this channel alone, right behind an event of the log.
func (v View) Cursor(e *Entry) string {
	return string(v.buf[int(e.start)+len(wire.IDField) : e.body-1])
}

// Frames are the frames of the entries i to j, exclusive.
func (v View) Frames(i, j int) []byte { return v.buf[v.Entries[i].start:v.Entries[j-1].end] }

// Block is what the frame of an entry has behind its id.
func (v View) Block(e *Entry) []byte { return v.buf[e.body:e.end] }

// add appends an event behind position pos, with the cursor that its channel's key makes of that.
func (s *segment) add(key position.Key, ev wire.Event, pos position.Position, also string) {
	if n := len(s.buf) + len(ev.Payload) + frameBytes; n > cap(s.buf) {
		room := min(max(2*cap(s.buf), leastSegmentBytes), mostSegmentBytes)
		if n > room { // a page, or one large event
			room = n + len(s.buf)/4
		}
		s.buf = append(make([]byte, 0, room), s.buf...)
	}
	e := Entry{pos: pos, Also: also, Foreign: ev.Position.IsZero(), start: int32(len(s.buf))}
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

// skip appends an entry for something in the log that is no event.
func (s *segment) skip(pos position.Position) {
	n := int32(len(s.buf))
	s.entries = append(s.entries, Entry{pos: pos, start: n, body: n, end: n})
}

// addLogged appends an entry of the log. It passes over what is no event, with an error.
func (s *segment) addLogged(key position.Key, e position.LogEntry) error {
	ev, err := wire.Decode(e.Event)
	if err != nil {
		s.skip(e.Pos)
		return err
	}
	ev.Position = e.Pos
	s.add(key, ev, e.Pos, e.Also)
	return nil
}
