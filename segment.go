package eventbus

import "slices"

// An entry is one event as its tail, or a page of its log, holds it.
type entry struct {
	pos   Position // where a reader stands who has taken it
	event *Event   // without its payload; nil for a log entry that could not be read: it is passed over
	also  string   // where the event was appended before, as in append.lua

	// The frame of the event is buf[start:end] of its segment. What follows its id
	// field begins at body, and within that its payload.
	start, body, payload, payloadEnd, end int
}

// foreign tells whether the event is in no log.
func (e *entry) foreign() bool { return e.event != nil && e.event.Position.IsZero() }

// A segment is a run of consecutive entries of one channel. Their frames, as a
// subscription to that one channel sends them, lie one behind the other in
// memory, so that any stretch of them is one Write. It only grows: what a view
// has shown does not change, though the segment may go on in a copy of it.
type segment struct {
	first   uint64   // ordinal of entries[0] in its tail
	before  Position // where a reader stands who has taken none of it
	entries []entry
	buf     []byte
}

// The buffer of a segment begins small, since most channels are quiet, and doubles. A
// tail begins a new segment where one has so many bytes or entries.
const (
	leastSegmentBytes  = 4 << 10
	mostSegmentBytes   = 256 << 10
	mostSegmentEntries = tailEvents / 8 // what is passed over takes no bytes
)

// frameBytes is more than hardly any frame has besides its payload.
const frameBytes = 768

// takes tells whether another event with so much payload belongs in the segment.
func (s *segment) takes(payload int) bool {
	return len(s.entries) < mostSegmentEntries &&
		(len(s.buf) == 0 || len(s.buf)+payload+frameBytes <= mostSegmentBytes)
}

// A view is a stretch of a segment that a reader may look at without a lock.
type view struct {
	entries []entry
	buf     []byte
}

// from gives the entries from the i-th on.
func (s *segment) from(i int) view {
	return view{slices.Clip(s.entries[i:]), slices.Clip(s.buf)}
}

// event gives an event with its payload, which is everybody's.
func (v view) event(e *entry) Event {
	ev := *e.event
	ev.Payload = v.buf[e.payload:e.payloadEnd:e.payloadEnd]
	return ev
}

// frames are the frames of the entries i to j, exclusive.
func (v view) frames(i, j int) []byte { return v.buf[v.entries[i].start:v.entries[j-1].end] }

// An encoder turns events of one channel into entries. It belongs to one
// goroutine, or is guarded by its tail's lock.
type encoder struct {
	channel Channel
	key     cursorKey
}

func newEncoder(c Channel, name string) encoder {
	return encoder{channel: c, key: newCursorKey([]string{name})}
}

// add appends an event behind position pos to the segment.
func (enc *encoder) add(s *segment, ev Event, pos Position, also string) {
	if n := len(ev.Payload) + frameBytes; n > cap(s.buf)-len(s.buf) {
		s.buf = slices.Grow(s.buf, max(n, cap(s.buf), leastSegmentBytes))
	}
	ev.Channel = enc.channel
	e := entry{pos: pos, event: &ev, also: also, start: len(s.buf)}
	if !ev.Position.IsZero() {
		s.buf = append(s.buf, "id: "...)
		cursor := len(s.buf)
		s.buf = enc.key.append(s.buf, func(int) Position { return pos })
		ev.Cursor = Cursor{string(s.buf[cursor:])}
		s.buf = append(s.buf, '\n')
	}
	e.body = len(s.buf)
	s.buf, e.payload = appendBody(s.buf, &ev)
	e.payloadEnd, e.end = e.payload+len(ev.Payload), len(s.buf)
	ev.Payload = nil
	s.entries = append(s.entries, e)
}

// skip appends an entry for something in the log that is no event.
func (enc *encoder) skip(s *segment, pos Position) {
	n := len(s.buf)
	s.entries = append(s.entries, entry{pos: pos, start: n, body: n, end: n})
}

// addLogged appends an entry of the log.
func (enc *encoder) addLogged(s *segment, e logEntry, onBad func(error)) {
	ev, err := decode(e.event)
	if err != nil {
		onBad(err)
		enc.skip(s, e.pos)
		return
	}
	ev.Position = e.pos
	enc.add(s, ev, e.pos, e.also)
}
