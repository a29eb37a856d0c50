package eventbus

import (
	"errors"
	"strconv"
	"strings"
)

// A Position is a place in the log of one channel: right behind one event. The
// log numbers its events without holes; the epoch is the Redis time in
// milliseconds at which the log was created, or more where a clock has stepped back, so that a log
// that was lost and begun anew is not mistaken for the old one. The text form is the ID of the
// entry in the Redis stream, "<epoch>-<seq>", such as "1763868000000-42".
//
// The zero Position stands before everything that there is. Positions are
// comparable.
type Position struct {
	// epoch and seq name the last event that lies behind. seq is 0 before the
	// first event of an epoch.
	epoch int64
	seq   int64
	// mark is the fingerprint of the event that epoch and seq name: after a
	// failover, a number can be given again to another event. 0 is not known.
	mark uint16
}

// unknown is the position of a reader whose place cannot be told: a gap, and then
// everything that there is.
var unknown = Position{mark: 1}

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
	return strconv.AppendInt(b, p.seq, 10)
}

// same tells whether p and q are one place: unequal fingerprints say no, an
// unknown one says nothing.
func (p Position) same(q Position) bool {
	return p.epoch == q.epoch && p.seq == q.seq && (p.mark == q.mark || p.mark == 0 || q.mark == 0)
}

// follows reports whether p is the place right behind q in the same epoch.
func (p Position) follows(q Position) bool { return p.epoch == q.epoch && p.seq == q.seq+1 }

// beyond reports whether p is further on than q.
func (p Position) beyond(q Position) bool {
	return p.epoch > q.epoch || p.epoch == q.epoch && p.seq > q.seq
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
