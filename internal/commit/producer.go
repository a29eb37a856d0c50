// Package commit brings published events into their logs by group commit. The bus calls it, and it
// calls redislog.
//
//	Publish ─► batch ─► queue of its node ─► worker ─► call of append.lua
//	   ▲                                       │
//	   └─────── Done: what became of it ◄──────┘
//
// Nothing is delayed. A free worker takes what waits and makes one call of it. What comes while all
// workers have a call on the wire goes together into the next one. Each worker is a producer (see
// redislog), with one call on the wire at a time. It repeats a call whose reply is lost, unchanged,
// until Redis answers, for 10 minutes at most, even if no caller waits. What certainly has not run
// is given up sooner, unless a Writer waits for it.
//
// What a publisher sends is a batch of one event. A Writer sends batches of many, the next one when
// the last one is done. A batch is never divided between two calls, so its events keep their order.
//
// A caller that leaves without an answer, or gets an error, leaves an outcome for each event. The
// next publish of the event waits for the batch that is under way, and sends only to logs not known
// to have the event.
//
// Goroutines: four workers for each node, until the bus is closed. Where only a part of a call is
// done, or only Writers still wait for it, another goroutine repeats the rest, and the worker goes
// on as another producer. Locks: no mutex here is taken under another, but Committer.mu is held
// while Spawn is called. The turn of an outcome is taken with no mutex held, and kept while its
// publish waits for Redis.
//
//	producer.go     Committer: queues, workers, repeats
//	publish.go      one publish under way: its batches, and how long its caller waits
//	publication.go  Publication: what became of an event
//	outcomes.go     what is kept of publishes that have failed
package commit

import (
	"context"
	"crypto/rand"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/redislog"
)

// A Committer gathers what is published at the same time into common calls. Each node of a cluster
// has a queue and workers of its own, so that a node that does not answer holds up no other. It is
// safe for concurrent use.
type Committer struct {
	Config
	ctx      context.Context // the bus's life
	outcomes outcomes
	Retries  atomic.Int64 // repeated round trips

	mu     sync.Mutex              // guards following
	queues map[string]*commitQueue // by the node's address
}

// A Config is what a Committer works with.
type Config struct {
	Log     *redislog.Log
	Timeout time.Duration // how long a publish may take
	Spawn   func(func())  // starts a goroutine
}

// New makes a Committer that works until ctx ends. Publishes then get the cause of ctx.
func New(ctx context.Context, c Config) *Committer {
	return &Committer{Config: c, ctx: ctx, queues: make(map[string]*commitQueue)}
}

// A commitQueue has the batches that are to go to one node.
type commitQueue struct {
	*Committer
	wake pace.Flag

	mu      sync.Mutex // guards following
	waiting []*redislog.Batch
}

const (
	commitWorkers = 4
	// commitRecords is the most in one call, unless it has a single batch. With more, Redis and the
	// publishers wait for each other.
	commitRecords = 64
	// batchRecords is the most in one batch. A Writer that is alone waits for each of its calls, so
	// that a larger one pays.
	batchRecords = 128
	commitBytes  = 1 << 20 // the most in one call, unless one event is longer

	// commitPatience is how long a call is repeated that may have run, and how long a Writer waits.
	// What certainly has not run is given up sooner, while its publishers still wait.
	commitPatience = 10 * time.Minute
)

// queue gives the queue of a node, and starts its workers where there is none yet.
func (cs *Committer) queue(node string) *commitQueue {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if q := cs.queues[node]; q != nil {
		return q
	}
	q := &commitQueue{Committer: cs, wake: make(pace.Flag, commitWorkers)}
	cs.queues[node] = q
	for range commitWorkers {
		cs.Spawn(func() { q.work(cs.ctx) })
	}
	return q
}

// add queues a batch. All its records go to one node.
func (cs *Committer) add(ctx context.Context, b *redislog.Batch) *commitQueue {
	q := cs.queue(cs.Log.Node(ctx, cs.Log.Name(b.Commits[0].Records[0].Channel)))
	q.mu.Lock()
	q.waiting = append(q.waiting, b)
	q.mu.Unlock()
	q.wake.Set()
	return q
}

// withdraw takes a batch back that no worker has taken up, and reports whether it could.
func (q *commitQueue) withdraw(b *redislog.Batch) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, b)
	if i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
	return i >= 0
}

// work makes calls until the bus is closed. A worker is a producer in the sense of append.lua.
func (q *commitQueue) work(ctx context.Context) {
	id, number := rand.Text(), int64(0)
	for {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
		for {
			// Publishers that are about to queue get their turn, as long as that brings more.
			for n := -1; n < q.length(); {
				n = q.length()
				runtime.Gosched()
			}
			batches := q.take()
			if len(batches) == 0 {
				break
			}
			number++
			began := time.Now()
			if left := q.settle(ctx, began, q.Log.NewCalls(id, number, batches), true); left != nil {
				// One channel or one Writer must not hold up a node. What is left goes on by itself,
				// as the last call of this producer. From now on the worker is another producer.
				q.Spawn(func() { q.settle(ctx, began, left, false) })
				id, number = rand.Text(), 0
			}
		}
	}
}

// settle sends calls until their batches are done or given up. began is the time of the first
// attempt. With part, it gives the rest back in three cases: a part is done, Redis refuses all calls
// because it moves their slots, or only Writers still wait for one. They wait for so long that a
// worker would be missing.
func (q *commitQueue) settle(ctx context.Context, began time.Time, calls []*redislog.Call, part bool) (left []*redislog.Call) {
	var retry pace.Backoff
	for {
		before := open(calls)
		calls = q.Log.Send(ctx, calls)
		tried := time.Since(began)
		calls = q.giveUp(calls, tried > commitPatience, tried > q.Timeout/2)
		if len(calls) == 0 {
			return nil
		}
		moving := !slices.ContainsFunc(calls, func(c *redislog.Call) bool { return !c.Moving })
		if part && (moving || open(calls) < before || slices.ContainsFunc(calls, patient)) {
			return calls
		}
		q.Retries.Add(1)
		select {
		case <-retry.After():
		case <-ctx.Done():
			return nil
		}
	}
}

// patient reports whether only Writers wait for a call that certainly has not run.
func patient(c *redislog.Call) bool {
	return !c.Lost && !slices.ContainsFunc(c.Batches, func(b *redislog.Batch) bool { return !b.Patient.Load() })
}

func open(calls []*redislog.Call) (n int) {
	for _, c := range calls {
		n += c.Open()
	}
	return n
}

// giveUp gives up what nobody wants any longer, and gives the calls that are left. A call that may
// have run is given up only when it is late. Of one that certainly has not run, all is also given up
// when nobody waits, and when it is tiring, all but what is patient.
func (q *commitQueue) giveUp(calls []*redislog.Call, late, tiring bool) (left []*redislog.Call) {
	for _, c := range calls {
		all := late || !slices.ContainsFunc(c.Batches, func(b *redislog.Batch) bool { return b.Callers.Load() > 0 })
		if late || !c.Lost && (all || tiring) {
			c = q.Log.GiveUp(c, func(b *redislog.Batch) bool { return all || !b.Patient.Load() })
		}
		if c != nil {
			left = append(left, c)
		}
	}
	return left
}

func (q *commitQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// take takes what fits into one call off the queue. It never divides a batch, so the events of one
// caller are never in two calls at once.
func (q *commitQueue) take() []*redislog.Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, records, bytes := 0, 0, 0
	for _, b := range q.waiting {
		for _, c := range b.Commits {
			records += len(c.Records)
			bytes += len(c.Event)
		}
		if n > 0 && (records > commitRecords || bytes > commitBytes) {
			q.wake.Set() // Another worker takes the rest.
			break
		}
		n++
	}
	batches := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return batches
}
