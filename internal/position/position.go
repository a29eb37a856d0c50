// Package position says where a reader stands.
//
// A Position is a place in one log. A cursor is text that has the positions of all channels of a
// subscription. A Page is a part of a log as a read found it, and Page.Resume is the one rule of
// what a gap is: readers and fills go by it alike.
//
// Parse and DecodeCursor are the door for text from outside: they refuse what no log can have. They
// still read cursors of an earlier version, because browsers keep them.
//
// The package only computes. It has no state, no locks and no goroutines. Every other package may
// call it.
//
//	position.go  positions, their text, and the fingerprints of events
//	cursor.go    the bytes of a cursor, both ways
//	page.go      pages of a log, and what a gap is
package position

import (
	"errors"
	"strconv"
	"strings"
)

// A Position is a place in the log of one channel, right behind one event. The log numbers its
// events and leaves no number out. The epoch is Redis' time in milliseconds at which the log was
// created, or more where that clock has stepped back. The zero Position stands before everything.
type Position struct {
	// Epoch and Seq name the event before the place. Seq is 0 before the first event of an epoch.
	Epoch int64
	Seq   int64
	// Fingerprint is the fingerprint of the event that Epoch and Seq name, because a failover can give its
	// number again to another event. 0 means unknown.
	Fingerprint uint16
}

// Unknown stands for a place that is not known. Its reader gets a gap, then all that there is.
var Unknown = Position{Fingerprint: 1}

// IsZero reports whether p is the zero Position.
func (p Position) IsZero() bool { return p == Position{} }

// String returns the text form, "" for the zero Position.
func (p Position) String() string {
	if p.IsZero() {
		return ""
	}
	return string(p.Append(nil))
}

// Append appends the text form.
func (p Position) Append(b []byte) []byte {
	b = strconv.AppendInt(b, p.Epoch, 10)
	b = append(b, '-')
	return strconv.AppendInt(b, p.Seq, 10)
}

// Same reports whether p and q are one place. Known fingerprints must be equal.
func (p Position) Same(q Position) bool {
	return p.Epoch == q.Epoch && p.Seq == q.Seq && (p.Fingerprint == q.Fingerprint || p.Fingerprint == 0 || q.Fingerprint == 0)
}

// Follows reports whether p is one event further than q, in the same epoch.
func (p Position) Follows(q Position) bool { return p.Epoch == q.Epoch && p.Seq == q.Seq+1 }

// Beyond reports whether p is further on than q. A later epoch is further on.
func (p Position) Beyond(q Position) bool {
	return p.Epoch > q.Epoch || p.Epoch == q.Epoch && p.Seq > q.Seq
}

// These bound positions from outside. 48 bits of milliseconds last until the year 10889.
const (
	MaxEpoch = 1<<48 - 1
	MaxSeq   = 1<<53 - 1
)

// errPosition is the error of Parse.
var errPosition = errors.New("eventbus: not a position of the form <epoch>-<seq>")

// Parse reads the text form.
func Parse(s string) (Position, error) {
	e, q, ok := strings.Cut(s, "-")
	epoch, err1 := strconv.ParseUint(e, 10, 48)
	seq, err2 := strconv.ParseUint(q, 10, 53)
	if !ok || err1 != nil || err2 != nil || epoch == 0 || e[0] == '+' || q[0] == '+' {
		return Position{}, errPosition
	}
	return Position{Epoch: int64(epoch), Seq: int64(seq)}, nil
}

// Fingerprint gives the fingerprint of the event with this id. It is never 0.
func Fingerprint[T string | []byte](id T) uint16 {
	sum := fnv1a(fnvBasis, id)
	return max(uint16(sum>>16)^uint16(sum), 1)
}

const fnvBasis = 2166136261

// fnv1a computes the 32-bit FNV-1a hash. hash/fnv would need a copy of the text.
func fnv1a[T string | []byte](sum uint32, text T) uint32 {
	for i := range len(text) {
		sum = (sum ^ uint32(text[i])) * 16777619
	}
	return sum
}
