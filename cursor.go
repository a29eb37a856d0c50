package eventbus

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
)

// A Cursor is where a subscription stands in all its channels, as opaque text:
// what a browser keeps as its last event id. Any bus on the same Redis resumes
// from it. The zero Cursor says nothing of any channel. Cursors are comparable.
//
// The text has base64url characters only, at most 128 of them for six channels.
type Cursor struct{ text string }

// ParseCursor reads the text form. "" is the zero Cursor. The member "cursor" of an
// event's JSON is not one, but a [Position]; [Subscription].LastEventID takes that too, for one
// channel.
func ParseCursor(s string) (Cursor, error) {
	if s == "" {
		return Cursor{}, nil
	}
	if _, err := decodeCursor(s); err != nil {
		return Cursor{}, err
	}
	return Cursor{s}, nil
}

// IsZero tells whether c is the zero Cursor.
func (c Cursor) IsZero() bool { return c.text == "" }

// String returns the text form.
func (c Cursor) String() string { return c.text }

// MarshalText implements [encoding.TextMarshaler].
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.text), nil }

// UnmarshalText implements [encoding.TextUnmarshaler], as [ParseCursor] does.
func (c *Cursor) UnmarshalText(text []byte) error {
	parsed, err := ParseCursor(string(text))
	if err == nil {
		*c = parsed
	}
	return err
}

// A hole is what a gap has passed over: the stretch of a log behind one position, up to another. The
// zero hole is none.
type hole struct{ from, upto Position }

// has reports whether the event at p is in the hole.
func (h hole) has(p Position) bool { return p.beyond(h.from) && !p.beyond(h.upto) }

// The bytes of a cursor, before base64url:
//
//	version and salt    1   0xE0 + salt
//	number of channels  1
//	for each channel:
//	  hash              2   FNV-1a of the salt and the channel's name
//	  fingerprint       2
//	  seq + 1               uvarint
//	  epoch                 of the first channel a uvarint, then the zigzag
//	                        varint of the difference to the one before
//	for each channel that has one, where its subscription began (see once.go), and its hole:
//	  kind and channel  1   kind << 6 + its number, from 0
//	  hereKind              no more: it began where it stands
//	  beganKind             began: seq + 1 as a uvarint, and the difference of its
//	                        epoch to the channel's as a varint
//	  holeKind              upto as began, and from: seq + 1 as a uvarint, and the
//	                        difference of its epoch to upto's as a varint
//
// The salt, 0 to 15, is the least with which the channels' hashes differ.
//
// Cursors of before say otherwise what a subscription has passed over: any number of times
// oldHoleKind, as holeKind but the newest first, from 0-0 where it began, and with 2 bytes more where
// the log went back. And there, seq + 1 = 0 says that there was no log.
const (
	cursorVersion   = 0xE0
	maxCursorLength = 4096 // characters; 40 channels with the longest numbers fit

	oldHoleKind = 0
	hereKind    = 1
	beganKind   = 2
	holeKind    = 3
)

// A cursorEntry is what a cursor says of one channel.
type cursorEntry struct {
	hash  uint32
	pos   Position
	began Position // zero: it came there by a cursor, or that does not matter any more
	hole  hole
}

// A cursorKey encodes the cursors of a fixed list of channels. It is immutable.
type cursorKey struct {
	salt   byte
	hashes []uint32
}

func newCursorKey(names []string) cursorKey {
	for salt := byte(0); ; salt++ {
		key := cursorKey{salt: salt}
		for _, name := range names {
			key.hashes = append(key.hashes, channelHash(salt, name))
		}
		if len(names) == 1 {
			return key
		}
		distinct := slices.Clone(key.hashes)
		slices.Sort(distinct)
		if len(slices.Compact(distinct)) == len(names) || salt == 15 {
			return key
		}
	}
}

func channelHash(salt byte, name string) uint32 {
	sum := fnv1a(fnv1a(fnvBasis, []byte{salt}), name)
	return (sum ^ sum>>16) & 0xFFFF
}

// append encodes the cursor in which the i-th channel stands at position(i).
func (k cursorKey) append(b []byte, position func(i int) Position) []byte {
	var raw [256]byte
	return base64.RawURLEncoding.AppendEncode(b, k.positions(raw[:0], position))
}

// appendAll encodes the cursor of entries, with all that they say.
func (k cursorKey) appendAll(b []byte, entries []cursorEntry) []byte {
	var raw [256]byte
	out := k.positions(raw[:0], func(i int) Position { return entries[i].pos })
	number := func(p, base Position) {
		out = binary.AppendUvarint(out, uint64(p.seq+1))
		out = binary.AppendVarint(out, p.epoch-base.epoch)
	}
	for i, e := range entries {
		switch e.began {
		case Position{}:
		case e.pos:
			out = append(out, hereKind<<6|byte(i))
		default:
			out = append(out, beganKind<<6|byte(i))
			number(e.began, e.pos)
		}
		if e.hole != (hole{}) {
			out = append(out, holeKind<<6|byte(i))
			number(e.hole.upto, e.pos)
			number(e.hole.from, e.hole.upto)
		}
	}
	return base64.RawURLEncoding.AppendEncode(b, out)
}

func (k cursorKey) positions(out []byte, position func(i int) Position) []byte {
	out = append(out, cursorVersion|k.salt, byte(len(k.hashes)))
	var epoch int64
	for i, hash := range k.hashes {
		p := position(i)
		out = binary.BigEndian.AppendUint16(out, uint16(hash))
		out = binary.BigEndian.AppendUint16(out, p.mark)
		out = binary.AppendUvarint(out, uint64(p.seq+1))
		if i == 0 {
			out = binary.AppendUvarint(out, uint64(p.epoch))
		} else {
			out = binary.AppendVarint(out, p.epoch-epoch)
		}
		epoch = p.epoch
	}
	return out
}

var errCursor = errors.New("eventbus: not a cursor")

// A cursorReader takes numbers off the bytes of a cursor; the first that is not
// there, or out of bounds, sets bad.
type cursorReader struct {
	b   []byte
	bad bool
}

func (r *cursorReader) bytes(n int) []byte {
	if len(r.b) < n {
		r.b, r.bad = nil, true
		return make([]byte, n)
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

// seq reads a seq, epoch an epoch that is written as the difference to another.
func (r *cursorReader) seq() int64 {
	v, n := binary.Uvarint(r.b)
	r.bytes(max(n, 0))
	r.bad = r.bad || n <= 0 || v > maxSeq+1
	return int64(v) - 1 // -1 in cursors of before
}

func (r *cursorReader) epoch(base int64) int64 {
	v, n := binary.Varint(r.b)
	r.bytes(max(n, 0))
	epoch := base + v
	r.bad = r.bad || n <= 0 || v > maxEpoch || v < -maxEpoch || epoch < 0 || epoch > maxEpoch
	return epoch
}

func (r *cursorReader) firstEpoch() int64 {
	v, n := binary.Uvarint(r.b)
	r.bytes(max(n, 0))
	r.bad = r.bad || n <= 0 || v > maxEpoch
	return int64(v)
}

func decodeCursor(s string) ([]cursorEntry, error) {
	// The decoder of the standard library passes over line breaks.
	if len(s) > maxCursorLength || strings.ContainsAny(s, "\r\n") {
		return nil, errCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 2 || b[0]&0xF0 != cursorVersion || b[1] == 0 {
		return nil, errCursor
	}
	entries := make([]cursorEntry, b[1])
	r := cursorReader{b: b[2:]}
	for i := range entries {
		e := &entries[i]
		e.hash = uint32(binary.BigEndian.Uint16(r.bytes(2)))
		e.pos.mark = binary.BigEndian.Uint16(r.bytes(2))
		e.pos.seq = r.seq()
		if i == 0 {
			e.pos.epoch = r.firstEpoch()
		} else {
			e.pos.epoch = r.epoch(entries[i-1].pos.epoch)
		}
		if r.bad {
			return nil, errCursor
		}
	}
	for len(r.b) > 0 {
		tag := r.bytes(1)[0]
		i := int(tag & 0x3F)
		if i >= len(entries) {
			return nil, errCursor
		}
		r.passed(&entries[i], tag>>6)
		if r.bad {
			return nil, errCursor
		}
	}
	for i := range entries {
		e := &entries[i]
		// Of a log that was not there, the next one is another.
		for _, p := range []*Position{&e.pos, &e.began, &e.hole.from, &e.hole.upto} {
			p.seq = max(p.seq, 0)
		}
	}
	return entries, nil
}

// passed reads what a subscription has passed over in a channel.
func (r *cursorReader) passed(e *cursorEntry, kind byte) {
	position := func(base Position) (p Position) {
		p.seq = r.seq()
		p.epoch = r.epoch(base.epoch)
		return p
	}
	switch kind {
	case hereKind:
		e.began = e.pos
	case beganKind:
		e.began = position(e.pos)
	case holeKind:
		e.hole.upto = position(e.pos)
		e.hole.from = position(e.hole.upto)
	case oldHoleKind: // the newest first
		upto := position(e.pos)
		from := position(upto)
		if from.epoch == upto.epoch && from.seq >= upto.seq {
			r.bytes(2)
		}
		switch {
		case from.IsZero():
			e.began = upto
		case e.hole == hole{}:
			e.hole = hole{from, upto}
		default:
			e.hole.from = from
		}
	}
}

// entries gives what the cursor says of each channel, nil where it says nothing.
func (c Cursor) entries(names []string) ([]*cursorEntry, error) {
	found := make([]*cursorEntry, len(names))
	if c.IsZero() {
		return found, nil
	}
	entries, err := decodeCursor(c.text)
	if err != nil {
		return nil, err
	}
	salt, _ := base64.RawURLEncoding.DecodeString(c.text[:2])
	for i, name := range names {
		hash := channelHash(salt[0]&0x0F, name)
		for j := range entries {
			if entries[j].hash == hash {
				found[i] = &entries[j]
			}
		}
	}
	return found, nil
}
