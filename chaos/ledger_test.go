package chaos

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// A ledger has what was published, and an account of what each subscriber was given.
type ledger struct {
	mu       sync.Mutex // guards following
	events   map[string]*event
	accounts []*account
	written  [][]string // what each Writer has taken, in order
	retried  int
}

// An event is what its publisher knows of it.
type event struct {
	channels []string
	begun    time.Time // of its first attempt
	acked    bool
}

// An account is everything that one subscriber was given, in order, over all the
// sessions in which it went on from its last cursor.
type account struct {
	name     string
	channels []string
	since    time.Time // the subscriber began then, at the oldest event

	mu    sync.Mutex // guards following
	items []item
}

// An item is an event, or a gap where id is empty.
type item struct {
	id       string
	channel  string // an event's may be empty: a stream does not tell it
	position string
	reason   string // of a gap
	at       time.Time
	replayed bool // it was published before the session began that delivered it
}

// An entry is one of a log, as it is in the end.
type entry struct{ position, id string }

func newLedger() *ledger { return &ledger{events: make(map[string]*event)} }

func (l *ledger) publish(id string, channels []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events[id] = &event{channels: channels, begun: time.Now()}
}

// write enters what a Writer has taken, and what of it is certainly in its logs.
func (l *ledger) write(ids []string, known map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written = append(l.written, ids)
	for id := range known {
		l.events[id].acked = true
	}
}

func (l *ledger) retry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retried++
}

func (l *ledger) ack(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events[id].acked = true
}

// begun is when an event was published; the zero time for one that was not.
func (l *ledger) begun(id string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ev := l.events[id]; ev != nil {
		return ev.begun
	}
	return time.Time{}
}

func (l *ledger) open(name string, channels []string) *account {
	a := &account{name: name, channels: channels, since: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accounts = append(l.accounts, a)
	return a
}

func (a *account) add(it item) {
	it.at = time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.items = append(a.items, it)
}

func (a *account) has(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.items, func(it item) bool { return it.id == id })
}

// A balance is what is printed in the end.
type balance struct {
	published, delivered, replayed, gaps, retried, lost, duplicated, disordered int

	// rolledBack counts what was acknowledged and lost by a failover; untold, the
	// subscribers that it would have reached and that were told of no gap. Whoever was not
	// listening when it was there cannot know: nothing is missing behind their position.
	rolledBack, untold int

	// corners counts what is lost or duplicated as the docs say that it can be: see corner.
	corners int

	notes map[string][]string // what is wrong, in words; the first of each kind
}

// note adds a sentence; its format is its kind.
func (b *balance) note(format string, args ...any) { b.keep(format, fmt.Sprintf(format, args...)) }

func (b *balance) keep(kind, note string) {
	if b.notes == nil {
		b.notes = make(map[string][]string)
	}
	if len(b.notes[kind]) < 5 {
		b.notes[kind] = append(b.notes[kind], note)
	}
}

func (b *balance) add(c balance) {
	b.published += c.published
	b.delivered += c.delivered
	b.replayed += c.replayed
	b.gaps += c.gaps
	b.retried += c.retried
	b.rolledBack += c.rolledBack
	b.untold += c.untold
	b.corners += c.corners
	b.lost += c.lost
	b.duplicated += c.duplicated
	b.disordered += c.disordered
	for kind, notes := range c.notes {
		for _, n := range notes {
			b.keep(kind, n)
		}
	}
}

func (b *balance) broken() bool { return b.lost+b.duplicated+b.disordered > 0 }

const columns = "published  delivered   replayed       gaps    retried  rolled back     untold    corners       lost  duplicated  out of order"

func (b *balance) String() string {
	return fmt.Sprintf("%9d  %9d  %9d  %9d  %9d  %11d  %9d  %9d  %9d  %10d  %12d",
		b.published, b.delivered, b.replayed, b.gaps, b.retried, b.rolledBack, b.untold, b.corners, b.lost, b.duplicated, b.disordered)
}
