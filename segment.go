package eventbus

import "slices"

// An entry is one event as its tail, or a page of its log, holds it.
type entry struct {
	pos   Position // where a reader stands who has taken it
	event *Event   // nil for a log entry that could not be read: it is passed over
	also  string   // where the event was appended before, as in append.lua

	// The frame of the event is buf[start:end] of its segment, and what follows
	// its id field begins at body.
	start, body, end int
}

// foreign tells whether the event is in no log.
func (e *entry) foreign() bool { return e.event != nil && e.event.Position.IsZero() }

// A segment is a run of consecutive entries of one channel. Their frames, as a
// subscription to that one channel sends them, lie one behind the other in
// memory, so that any stretch of them is one Write. It only grows: what a view
// has shown does not change and does not move.
type segment struct {
	first   uint64   // ordinal of entries[0] in its tail
	before  Position // where a reader stands who has taken none of it
	entries []entry
	buf     []byte // never grows beyond its capacity
}

// Segments begin small, since most channels are quiet, and double up to the most.
const (
	leastSegmentBytes = 4 << 10
	mostSegmentBytes  = 256 << 10
)

// A view is a stretch of a segment that a reader may look at without a lock.
type view struct {
	entries []entry
	buf     []byte
}

// from gives the entries from the i-th on.
func (s *segment) from(i int) view {
	return view{slices.Clip(s.entries[i:]), slices.Clip(s.buf)}
}

// frames are the frames of the entries i to j, exclusive.
func (v view) frames(i, j int) []byte { return v.buf[v.entries[i].start:v.entries[j-1].end] }

// An encoder turns events of one channel into entries. It belongs to one
// goroutine, or is guarded by its tail's lock.
type encoder struct {
	channel Channel
	key     cursorKey
	scratch []byte
}

func newEncoder(c Channel, name string) encoder {
	return encoder{channel: c, key: newCursorKey([]string{name})}
}

// add appends an event behind position pos to the segment, or tells that it
// has no room for it. In an empty segment, there always is.
func (enc *encoder) add(s *segment, ev Event, pos Position, also string) bool {
	ev.Channel = enc.channel
	b := enc.scratch[:0]
	if !ev.Position.IsZero() {
		cursor := enc.key.append(nil, func(int) Position { return pos })
		ev.Cursor = Cursor{string(cursor)}
		b = appendIDField(b, ev.Cursor)
	}
	body := len(b)
	b, payload := appendBody(b, &ev)
	enc.scratch = b
	if len(s.buf)+len(b) > cap(s.buf) {
		if len(s.buf) > 0 {
			return false
		}
		s.buf = make([]byte, 0, max(len(b), cap(s.buf)))
	}
	start := len(s.buf)
	s.buf = append(s.buf, b...)
	ev.Payload = s.buf[start+payload : start+payload+len(ev.Payload) : start+payload+len(ev.Payload)]
	s.entries = append(s.entries, entry{
		pos: pos, event: &ev, also: also,
		start: start, body: start + body, end: len(s.buf),
	})
	return true
}

// skip appends an entry for something in the log that is no event.
func (enc *encoder) skip(s *segment, pos Position) {
	n := len(s.buf)
	s.entries = append(s.entries, entry{pos: pos, start: n, body: n, end: n})
}

// decode reads an event that came from Redis.
func decode(data []byte) (Event, error) {
	if err := checkObject(data); err != nil {
		return Event{}, invalid("event", "event", "%s", err)
	}
	return decodeEvent(data)
}

// addLogged appends an entry of the log.
func (enc *encoder) addLogged(s *segment, e logEntry, onBad func(error)) bool {
	ev, err := decode(e.event)
	if err != nil {
		onBad(err)
		enc.skip(s, e.pos)
		return true
	}
	ev.Position = e.pos
	return enc.add(s, ev, e.pos, e.also)
}
