package eventbus

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// A Position is a place in the log of one channel: right behind one event. The
// log numbers its events without holes; the epoch is the Redis time in
// milliseconds at which the log was created, so that a log that was lost and
// begun anew is not mistaken for the old one. The text form is the ID of the
// entry in the Redis stream, "<epoch>-<seq>", such as "1763868000000-42".
//
// The zero Position stands before everything that there is. Positions are
// comparable.
type Position struct {
	// epoch and seq name the last event that lies behind. seq is 0 before the
	// first event of an epoch, and noLog when there was no log at the time epoch.
	epoch int64
	seq   int64
	// mark is the fingerprint of the event that epoch and seq name: after a
	// failover, a number can be given again to another event. 0 is not known.
	mark uint16
}

// unknown is the position of a reader whose place cannot be told: a gap, and then
// everything that there is.
var unknown = Position{mark: 1}

// noLog as the seq of a Position says that there was no log; its epoch is when.
const noLog = -1

// IsZero tells whether p is the zero Position.
func (p Position) IsZero() bool { return p == Position{} }

// String returns the text form, "" for the zero Position.
func (p Position) String() string {
	if p.IsZero() {
		return ""
	}
	return string(p.append(nil))
}

func (p Position) append(b []byte) []byte {
	b = strconv.AppendInt(b, p.epoch, 10)
	b = append(b, '-')
	return strconv.AppendInt(b, max(p.seq, 0), 10)
}

// same tells whether p and q are one place: unequal fingerprints say no, an
// unknown one says nothing.
func (p Position) same(q Position) bool {
	return p.epoch == q.epoch && p.seq == q.seq && (p.mark == q.mark || p.mark == 0 || q.mark == 0)
}

// follows tells whether p is the place right behind q in the same epoch, or the
// first one of a log where q says that there was none.
func (p Position) follows(q Position) bool {
	if q.seq == noLog {
		return p.seq == 1
	}
	return p.epoch == q.epoch && p.seq == q.seq+1
}

// The longest epoch is 48 bits of milliseconds, which lasts until the year 10889.
const (
	maxEpoch = 1<<48 - 1
	maxSeq   = 1<<53 - 1
)

var errPosition = errors.New("eventbus: not a position of the form <epoch>-<seq>")

// ParsePosition reads the text form.
func ParsePosition(s string) (Position, error) {
	e, q, ok := strings.Cut(s, "-")
	epoch, err1 := strconv.ParseUint(e, 10, 48)
	seq, err2 := strconv.ParseUint(q, 10, 53)
	if !ok || err1 != nil || err2 != nil || epoch == 0 || e[0] == '+' || q[0] == '+' {
		return Position{}, errPosition
	}
	return Position{epoch: int64(epoch), seq: int64(seq)}, nil
}

// fingerprint is the mark of the event with this id; never 0.
func fingerprint[T string | []byte](id T) uint16 {
	sum := fnv1a(fnvBasis, id)
	return max(uint16(sum>>16)^uint16(sum), 1)
}

const fnvBasis = 2166136261

// fnv1a is the 32-bit FNV-1a hash, as of hash/fnv but without a copy of the text.
func fnv1a[T string | []byte](sum uint32, text T) uint32 {
	for i := range len(text) {
		sum = (sum ^ uint32(text[i])) * 16777619
	}
	return sum
}

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

// A hole is a stretch of a log, behind one position and up to another, that a
// subscription passes over: what was there before it began, or a gap. A zero after
// stands for everything before upto. If after is not before upto, the log went back: the
// old one reached after, with this mark, and the one that took its place reaches upto.
type hole struct{ after, upto Position }

func (h hole) rewound() bool { return h.after.epoch == h.upto.epoch && h.after.seq >= h.upto.seq }

// has tells whether the event at p is in the hole.
func (h hole) has(p Position) bool {
	switch {
	case p.epoch == h.upto.epoch && h.rewound():
		return p.seq <= h.upto.seq
	case p.epoch == h.upto.epoch:
		return p.seq <= h.upto.seq && (h.after.epoch != p.epoch || p.seq > h.after.seq)
	case p.epoch == h.after.epoch:
		return p.seq > h.after.seq
	}
	return h.after.epoch < p.epoch && p.epoch < h.upto.epoch
}

// The bytes of a cursor, before base64url:
//
//	version and salt    1   0xE0 + salt
//	number of channels  1
//	for each channel:
//	  hash              2   FNV-1a of the salt and the channel's name
//	  fingerprint       2
//	  seq + 1               uvarint; 0 is noLog
//	  epoch                 of the first channel a uvarint, then the zigzag
//	                        varint of the difference to the one before
//	for each hole that the subscription has passed over, the newest first:
//	  channel           1   its number, from 0
//	  upto                  seq + 1 as a uvarint, and the difference of its
//	                        epoch to the channel's as a varint
//	  after                 seq + 1 as a uvarint, and the difference of its
//	                        epoch to upto's as a varint
//	  fingerprint       2   of after, only if that is not before upto
//
// The salt, 0 to 15, is the least with which the channels' hashes differ.
const (
	cursorVersion   = 0xE0
	maxCursorLength = 1024 // characters; 40 channels with the longest numbers fit

	// Holes are rare. The oldest are left out where the text would grow beyond what
	// a browser sends across origins without asking first.
	shortCursor = 96 // bytes, which are 128 characters
)

// A cursorEntry is the position of one channel in a cursor.
type cursorEntry struct {
	hash  uint32
	pos   Position
	holes []hole
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

// append encodes the cursor in which the i-th channel stands at position(i), and
// has passed over holes[i].
func (k cursorKey) append(b []byte, position func(i int) Position, holes ...[]hole) []byte {
	var raw [256]byte
	out := append(raw[:0], cursorVersion|k.salt, byte(len(k.hashes)))
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
	limit := shortCursor
	if len(k.hashes) > 6 {
		limit = maxCursorLength * 3 / 4
	}
	for n := range maxHoles {
		for i := range holes {
			if n >= len(holes[i]) {
				continue
			}
			h := holes[i][len(holes[i])-1-n]
			short := len(out)
			out = append(out, byte(i))
			out = binary.AppendUvarint(out, uint64(h.upto.seq+1))
			out = binary.AppendVarint(out, h.upto.epoch-position(i).epoch)
			out = binary.AppendUvarint(out, uint64(h.after.seq+1))
			out = binary.AppendVarint(out, h.after.epoch-h.upto.epoch)
			if h.rewound() {
				out = binary.BigEndian.AppendUint16(out, h.after.mark)
			}
			if len(out) > limit {
				out = out[:short]
			}
		}
	}
	return base64.RawURLEncoding.AppendEncode(b, out)
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
	return int64(v) - 1
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
		i := int(r.bytes(1)[0])
		if i >= len(entries) {
			return nil, errCursor
		}
		var h hole
		h.upto.seq = r.seq()
		h.upto.epoch = r.epoch(entries[i].pos.epoch)
		h.after.seq = r.seq()
		h.after.epoch = r.epoch(h.upto.epoch)
		if h.rewound() {
			h.after.mark = binary.BigEndian.Uint16(r.bytes(2))
		}
		if r.bad || len(entries[i].holes) == maxHoles {
			return nil, errCursor
		}
		entries[i].holes = append(entries[i].holes, h)
	}
	for i := range entries {
		slices.Reverse(entries[i].holes)
	}
	return entries, nil
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
