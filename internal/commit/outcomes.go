package commit

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"github.com/syndarix/eventbus/internal/position"
)

// outcomes keeps what is known of publishes whose callers have left without an answer, or got an
// error. The next publish of such an event waits for what is under way, and sends the event only to
// logs that are not known to have it. An outcome is kept for a while, and only so many are kept.
type outcomes struct {
	mu    sync.Mutex               // guards following
	of    map[string]*list.Element // by the event's id
	order list.List                // the elements are *outcome; the one put last is at the end
}

// An outcome is what is kept of the publishes of one event that have failed.
type outcome struct {
	id    string
	since time.Time
	turn  chan struct{} // one token, for the publish that may go on

	// Only the publish that has the turn may use these.
	last  *Publication
	known map[string]position.Position // by channel
}

const (
	outcomesFor  = 10 * time.Minute
	mostOutcomes = 1 << 16
)

// outcomeKey is the key of an event's id. A UUID in upper case has the same key.
func outcomeKey(id string) string { return strings.ToLower(id) }

// put keeps a publication that has failed.
func (o *outcomes) put(p *Publication) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := outcomeKey(p.id)
	if e := o.of[key]; e != nil { // p is its last publication, unless two began at once.
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

// get gives the outcome of an event, nil where there is none.
func (o *outcomes) get(id string) *outcome {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.of) == 0 { // This is the usual case.
		return nil
	}
	o.sweepLocked()
	if e := o.of[outcomeKey(id)]; e != nil {
		return e.Value.(*outcome)
	}
	return nil
}

// sweepLocked forgets outcomes that are too old or too many.
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

// drop forgets the outcome of an event that is in all its logs.
func (o *outcomes) drop(gone *outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.of[gone.id]; e != nil && e.Value == gone {
		delete(o.of, gone.id)
		o.order.Remove(e)
	}
}

// learn enters the positions that the last publication has found. Its commit must be closed.
func (o *outcome) learn() {
	for i := range o.last.Records {
		if r := &o.last.Records[i]; !r.Pos.IsZero() {
			o.known[r.Channel] = r.Pos
		}
	}
}
