package position

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
)

// A Hole is what a gap has passed over in one channel: the events behind From, up to Upto. The zero
// Hole is none.
type Hole struct{ From, Upto Position }

// Has reports whether the event at p is in the hole.
func (h Hole) Has(p Position) bool { return p.Beyond(h.From) && !p.Beyond(h.Upto) }

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
//	for each channel that has them: where it began (see reader/once.go), and its hole:
//	  kind and channel  1   kind << 6 + its number, from 0
//	  hereKind              no more: it began where it stands
//	  beganKind             began: seq + 1 as a uvarint, and the difference of its
//	                        epoch to the channel's as a varint
//	  holeKind              upto as began, and from: seq + 1 as a uvarint, and the
//	                        difference of its epoch to upto's as a varint
//
// The salt is the smallest of 0 to 15 with which the hashes of the channels differ.
//
// Cursors of an earlier version have any number of holes for a channel, the newest first. Each is
// written as oldHoleKind, in the form of holeKind, and has 2 more bytes where the log went back. A
// hole from 0-0 says that the subscription began where the hole ends. In these cursors, seq + 1 = 0
// says that there was no log.
const (
	cursorVersion   = 0xE0
	MaxCursorLength = 4096 // characters; 40 channels with the longest numbers fit

	oldHoleKind = 0
	hereKind    = 1
	beganKind   = 2
	holeKind    = 3
)

// An Entry is what a cursor says of one channel.
type Entry struct {
	hash  uint32
	Pos   Position
	Began Position // where the subscription began; zero if by a cursor, or if it no longer matters
	Hole  Hole
}

// A Key encodes cursors of a fixed list of channels. It never changes.
type Key struct {
	salt   byte
	hashes []uint32
}

// NewKey makes the key of channels with these names in Redis.
func NewKey(names []string) Key {
	for salt := byte(0); ; salt++ {
		key := Key{salt: salt}
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

// Append appends the cursor in which the i-th channel stands at position(i).
func (k Key) Append(b []byte, position func(i int) Position) []byte {
	var raw [256]byte
	return base64.RawURLEncoding.AppendEncode(b, k.positions(raw[:0], position))
}

// AppendAll appends the cursor of entries, with where the subscription began, and the holes.
func (k Key) AppendAll(b []byte, entries []Entry) []byte {
	var raw [256]byte
	out := k.positions(raw[:0], func(i int) Position { return entries[i].Pos })
	number := func(p, base Position) {
		out = binary.AppendUvarint(out, uint64(p.Seq+1))
		out = binary.AppendVarint(out, p.Epoch-base.Epoch)
	}
	for i, e := range entries {
		switch e.Began {
		case Position{}:
		case e.Pos:
			out = append(out, hereKind<<6|byte(i))
		default:
			out = append(out, beganKind<<6|byte(i))
			number(e.Began, e.Pos)
		}
		if e.Hole != (Hole{}) {
			out = append(out, holeKind<<6|byte(i))
			number(e.Hole.Upto, e.Pos)
			number(e.Hole.From, e.Hole.Upto)
		}
	}
	return base64.RawURLEncoding.AppendEncode(b, out)
}

func (k Key) positions(out []byte, position func(i int) Position) []byte {
	out = append(out, cursorVersion|k.salt, byte(len(k.hashes)))
	var epoch int64
	for i, hash := range k.hashes {
		p := position(i)
		out = binary.BigEndian.AppendUint16(out, uint16(hash))
		out = binary.BigEndian.AppendUint16(out, p.Fingerprint)
		out = binary.AppendUvarint(out, uint64(p.Seq+1))
		if i == 0 {
			out = binary.AppendUvarint(out, uint64(p.Epoch))
		} else {
			out = binary.AppendVarint(out, p.Epoch-epoch)
		}
		epoch = p.Epoch
	}
	return out
}

// errCursor is the error for text that is no cursor.
var errCursor = errors.New("eventbus: not a cursor")

// A cursorReader takes numbers from a cursor. One that is missing or out of bounds sets bad.
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

// seq reads the Seq of a position.
func (r *cursorReader) seq() int64 {
	v, n := binary.Uvarint(r.b)
	r.bytes(max(n, 0))
	r.bad = r.bad || n <= 0 || v > MaxSeq+1
	return int64(v) - 1 // can be -1 in cursors of an earlier version
}

// epoch reads an epoch that is written as its difference to base.
func (r *cursorReader) epoch(base int64) int64 {
	v, n := binary.Varint(r.b)
	r.bytes(max(n, 0))
	epoch := base + v
	r.bad = r.bad || n <= 0 || v > MaxEpoch || v < -MaxEpoch || epoch < 0 || epoch > MaxEpoch
	return epoch
}

func (r *cursorReader) firstEpoch() int64 {
	v, n := binary.Uvarint(r.b)
	r.bytes(max(n, 0))
	r.bad = r.bad || n <= 0 || v > MaxEpoch
	return int64(v)
}

// DecodeCursor reads the text of a cursor.
func DecodeCursor(s string) ([]Entry, error) {
	// The decoder ignores line breaks, so one cursor would have many texts.
	if len(s) > MaxCursorLength || strings.ContainsAny(s, "\r\n") {
		return nil, errCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 2 || b[0]&0xF0 != cursorVersion || b[1] == 0 {
		return nil, errCursor
	}
	entries := make([]Entry, b[1])
	r := cursorReader{b: b[2:]}
	for i := range entries {
		e := &entries[i]
		e.hash = uint32(binary.BigEndian.Uint16(r.bytes(2)))
		e.Pos.Fingerprint = binary.BigEndian.Uint16(r.bytes(2))
		e.Pos.Seq = r.seq()
		if i == 0 {
			e.Pos.Epoch = r.firstEpoch()
		} else {
			e.Pos.Epoch = r.epoch(entries[i-1].Pos.Epoch)
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
		// Where there was no log, any log is another one by now: 0 serves as well as -1.
		for _, p := range []*Position{&e.Pos, &e.Began, &e.Hole.From, &e.Hole.Upto} {
			p.Seq = max(p.Seq, 0)
		}
	}
	return entries, nil
}

// passed reads where a subscription began in a channel, or its hole there.
func (r *cursorReader) passed(e *Entry, kind byte) {
	position := func(base Position) (p Position) {
		p.Seq = r.seq()
		p.Epoch = r.epoch(base.Epoch)
		return p
	}
	switch kind {
	case hereKind:
		e.Began = e.Pos
	case beganKind:
		e.Began = position(e.Pos)
	case holeKind:
		e.Hole.Upto = position(e.Pos)
		e.Hole.From = position(e.Hole.Upto)
	case oldHoleKind: // the newest first
		upto := position(e.Pos)
		from := position(upto)
		if from.Epoch == upto.Epoch && from.Seq >= upto.Seq {
			r.bytes(2)
		}
		switch {
		case from.IsZero():
			e.Began = upto
		case e.Hole == Hole{}:
			e.Hole = Hole{from, upto}
		default:
			e.Hole.From = from
		}
	}
}

// Entries gives what a cursor says of each channel, by name in Redis; nil where it says nothing.
func Entries(cursor string, names []string) ([]*Entry, error) {
	found := make([]*Entry, len(names))
	if cursor == "" {
		return found, nil
	}
	entries, err := DecodeCursor(cursor)
	if err != nil {
		return nil, err
	}
	salt, _ := base64.RawURLEncoding.DecodeString(cursor[:2])
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
