package eventbus

import "sync"

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

// told remembers the stretch of a log whose unreadable entries were told of last: reads
// overlap, and readers come again, but an entry counts once.
type told struct {
	mu                 sync.Mutex // guards following
	epoch, first, last int64
}

// tell tells what is new in a taking.
func (t *told) tell(took taking, onBad func(error)) {
	if took.epoch == 0 {
		return
	}
	t.mu.Lock()
	known := t.epoch == took.epoch && took.first <= t.last+1 && took.last >= t.first-1
	first, last := t.first, t.last
	if known {
		t.first, t.last = min(first, took.first), max(last, took.last)
	} else {
		t.epoch, t.first, t.last = took.epoch, took.first, took.last
	}
	t.mu.Unlock()
	for _, b := range took.bad {
		if !known || b.seq < first || b.seq > last {
			onBad(b.err)
		}
	}
}
