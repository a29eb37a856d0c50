// Package position knows places in logs: positions, the cursors that cover the channels of a
// subscription, and the one rule of what a gap is. It has no state; everybody may call it.
package position

import (
	"errors"
	"strconv"
	"strings"
)

// A Position is a place in the log of one channel: right behind one event. The log numbers its
// events without holes; the epoch is the Redis time in milliseconds at which the log was created, or
// more where a clock has stepped back. The zero Position stands before everything that there is.
type Position struct {
	// Epoch and Seq name the last event that lies behind. Seq is 0 before the
	// first event of an epoch.
	Epoch int64
	Seq   int64
	// Mark is the fingerprint of the event that Epoch and Seq name: after a
	// failover, a number can be given again to another event. 0 is not known.
	Mark uint16
}

// Unknown is the position of a reader whose place cannot be told: a gap, and then
// everything that there is.
var Unknown = Position{Mark: 1}

// IsZero tells whether p is the zero Position.
func (p Position) IsZero() bool { return p == Position{} }

// String returns the text form, "" for the zero Position.
func (p Position) String() string {
	if p.IsZero() {
		return ""
	}
	return string(p.Append(nil))
}

func (p Position) Append(b []byte) []byte {
	b = strconv.AppendInt(b, p.Epoch, 10)
	b = append(b, '-')
	return strconv.AppendInt(b, p.Seq, 10)
}

// Same tells whether p and q are one place: unequal fingerprints say no, an
// unknown one says nothing.
func (p Position) Same(q Position) bool {
	return p.Epoch == q.Epoch && p.Seq == q.Seq && (p.Mark == q.Mark || p.Mark == 0 || q.Mark == 0)
}

// Follows reports whether p is the place right behind q in the same epoch.
func (p Position) Follows(q Position) bool { return p.Epoch == q.Epoch && p.Seq == q.Seq+1 }

// Beyond reports whether p is further on than q.
func (p Position) Beyond(q Position) bool {
	return p.Epoch > q.Epoch || p.Epoch == q.Epoch && p.Seq > q.Seq
}

// The longest epoch is 48 bits of milliseconds, which lasts until the year 10889.
const (
	MaxEpoch = 1<<48 - 1
	MaxSeq   = 1<<53 - 1
)

// ErrPosition is the error of Parse.
var ErrPosition = errors.New("eventbus: not a position of the form <epoch>-<seq>")

// Parse reads the text form.
func Parse(s string) (Position, error) {
	e, q, ok := strings.Cut(s, "-")
	epoch, err1 := strconv.ParseUint(e, 10, 48)
	seq, err2 := strconv.ParseUint(q, 10, 53)
	if !ok || err1 != nil || err2 != nil || epoch == 0 || e[0] == '+' || q[0] == '+' {
		return Position{}, ErrPosition
	}
	return Position{Epoch: int64(epoch), Seq: int64(seq)}, nil
}

// Fingerprint is the mark of the event with this id; never 0.
func Fingerprint[T string | []byte](id T) uint16 {
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
