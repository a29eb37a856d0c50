package eventbus

import (
	"slices"
	"sync"
)

// A taking is a stretch of a log that was read, and what in it could not be.
type taking struct {
	epoch, first, last int64
	bad                []badEntry
}

type badEntry struct {
	seq int64
	err error
}

// add takes the entry that follows.
func (t *taking) add(p Position) {
	if t.epoch == 0 {
		t.epoch, t.first = p.epoch, p.seq
	}
	t.last = p.seq
}

// told remembers the stretches of a log whose unreadable entries were told of last: reads
// overlap, and readers come again, but an entry counts once.
type told struct {
	mu        sync.Mutex // guards following
	epoch     int64
	stretches []stretch // apart from each other; the one told of last at the end
}

type stretch struct{ first, last int64 }

// mostStretches is well more than there are reads of a log at the same time.
const mostStretches = 4 * pageFlights

// tell tells what is new in a taking.
func (t *told) tell(took taking, onBad func(error)) {
	if took.epoch == 0 {
		return
	}
	for _, err := range t.add(took) {
		onBad(err)
	}
}

func (t *told) add(took taking) (fresh []error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.epoch != took.epoch {
		t.epoch, t.stretches = took.epoch, nil
	}
	for _, b := range took.bad {
		if !slices.ContainsFunc(t.stretches, func(s stretch) bool { return s.first <= b.seq && b.seq <= s.last }) {
			fresh = append(fresh, b.err)
		}
	}
	whole := stretch{took.first, took.last}
	t.stretches = slices.DeleteFunc(t.stretches, func(s stretch) bool {
		touches := s.first <= whole.last+1 && s.last >= whole.first-1
		if touches {
			whole = stretch{min(s.first, whole.first), max(s.last, whole.last)}
		}
		return touches
	})
	if len(t.stretches) == mostStretches {
		t.stretches = slices.Delete(t.stretches, 0, 1)
	}
	t.stretches = append(t.stretches, whole)
	return fresh
}
