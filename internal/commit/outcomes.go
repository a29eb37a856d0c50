package commit

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"github.com/syndarix/eventbus/internal/position"
)

// The outcomes are of publishes whose callers have left without an answer, or got an error. Who
// publishes such an event again waits for what is under way, and brings it only into logs that are
// not known to have it. The newest are kept, for a while.
type outcomes struct {
	mu    sync.Mutex               // guards following
	of    map[string]*list.Element // by id of the event
	order list.List                // of *outcome; the one put last at the end
}

type outcome struct {
	id    string
	since time.Time
	turn  chan struct{} // has one token: for who publishes the event now

	// Whoever has the turn may look at these.
	last  *Publication
	known map[string]position.Position // by channel
}

const (
	outcomesFor  = 10 * time.Minute
	mostOutcomes = 1 << 16
)

// outcomeKey is the same for a UUID in upper case.
func outcomeKey(id string) string { return strings.ToLower(id) }

// put keeps a publication that has failed.
func (o *outcomes) put(p *Publication) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := outcomeKey(p.id)
	if e := o.of[key]; e != nil { // p is its last
		e.Value.(*outcome).since = time.Now()
		o.order.MoveToBack(e)
		return
	}
	if o.of == nil {
		o.of = make(map[string]*list.Element)
	}
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	o.of[key] = o.order.PushBack(&outcome{id: key, since: time.Now(), turn: turn, last: p, known: make(map[string]position.Position)})
	o.sweepLocked()
}

// get gives what is kept of an event; nil if it is nothing.
func (o *outcomes) get(id string) *outcome {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.of) == 0 { // nearly always
		return nil
	}
	o.sweepLocked()
	if e := o.of[outcomeKey(id)]; e != nil {
		return e.Value.(*outcome)
	}
	return nil
}

// sweepLocked forgets those that are too old or too many.
func (o *outcomes) sweepLocked() {
	for e := o.order.Front(); e != nil; e = o.order.Front() {
		oldest := e.Value.(*outcome)
		if len(o.of) <= mostOutcomes && time.Since(oldest.since) <= outcomesFor {
			return
		}
		delete(o.of, oldest.id)
		o.order.Remove(e)
	}
}

// drop forgets an event that is in all its logs.
func (o *outcomes) drop(gone *outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.of[gone.id]; e != nil && e.Value == gone {
		delete(o.of, gone.id)
		o.order.Remove(e)
	}
}

// learn takes what is known from the last publication. Its commit is settled.
func (o *outcome) learn() {
	for i := range o.last.Records {
		if r := &o.last.Records[i]; !r.Pos.IsZero() {
			o.known[r.Channel] = r.Pos
		}
	}
}
