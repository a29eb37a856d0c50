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

// The commits gather what is published at the same time into common calls. There
// is no delay: a worker that is free takes what there is, and what comes while
// all are on the wire goes together into the next call. Each node of a cluster has a
// queue and workers of its own, so that one that does not answer holds up nothing else.
type Committer struct {
	Config
	ctx      context.Context // their life
	outcomes outcomes
	Retries  atomic.Int64 // calls that were made again

	mu     sync.Mutex // guards following
	queues map[string]*commitQueue
}

// A Config is what commits work with.
type Config struct {
	Log     *redislog.Log
	Timeout time.Duration // of a publish
	Spawn   func(func())  // starts a goroutine
}

// New makes commits that live as long as the context, whose cause is what publishes then get.
func New(ctx context.Context, c Config) *Committer {
	return &Committer{Config: c, ctx: ctx, queues: make(map[string]*commitQueue)}
}

// A commitQueue is what is to go to one node.
type commitQueue struct {
	*Committer
	wake pace.Flag

	mu      sync.Mutex // guards following
	waiting []*redislog.Commit
}

const (
	commitWorkers = 4
	commitRecords = 64      // in one call; with more, Redis and the publishers wait for each other
	commitBytes   = 1 << 20 // in one call, unless one record is longer

	// commitPatience is for how long a call is repeated that may have run. One that certainly has not
	// is given up sooner, while its callers still wait for the answer.
	commitPatience = 10 * time.Minute
)

// queue gives the queue of a node.
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

// add queues a commit, whose records go to one node.
func (cs *Committer) add(ctx context.Context, c *redislog.Commit) *commitQueue {
	q := cs.queue(cs.Log.Node(ctx, cs.Log.Name(c.Records[0].Channel)))
	q.mu.Lock()
	q.waiting = append(q.waiting, c)
	q.mu.Unlock()
	q.wake.Set()
	return q
}

// withdraw takes a commit back that no worker has taken up, and reports whether it could.
func (q *commitQueue) withdraw(c *redislog.Commit) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, c)
	if i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
	return i >= 0
}

// work makes calls until the bus is closed. A worker is a producer, as append.lua has it.
func (q *commitQueue) work(ctx context.Context) {
	id, number := rand.Text(), int64(0)
	for {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
		for {
			for n := -1; n < q.length(); { // as long as it brings more
				n = q.length()
				runtime.Gosched()
			}
			batch := q.take()
			if len(batch) == 0 {
				break
			}
			number++
			began := time.Now()
			if left := q.settle(ctx, began, q.Log.NewCalls(id, number, batch), true); left != nil {
				// One channel must not hold up a node: what is left goes on by itself, as the last
				// call of this producer, and the worker is another one from now on.
				q.Spawn(func() { q.settle(ctx, began, left, false) })
				id, number = rand.Text(), 0
			}
		}
	}
}

// settle repeats calls, which began then, until it is known what became of their commits. If part says so, it gives
// back what is left as soon as Redis has settled a part of them, or only moves their slots.
func (q *commitQueue) settle(ctx context.Context, began time.Time, calls []*redislog.Call, part bool) (left []*redislog.Call) {
	var retry pace.Backoff
	for {
		before := unsettled(calls)
		if calls = q.Log.Send(ctx, calls); len(calls) == 0 {
			return nil
		}
		moving := !slices.ContainsFunc(calls, func(c *redislog.Call) bool { return !c.Moving })
		if part && (moving || unsettled(calls) < before) {
			return calls
		}
		tried := time.Since(began)
		if calls = slices.DeleteFunc(calls, func(c *redislog.Call) bool {
			return giveUp(c, tried > commitPatience, tried > q.Timeout/2)
		}); len(calls) == 0 {
			return nil
		}
		q.Retries.Add(1)
		select {
		case <-retry.After():
		case <-ctx.Done():
			return nil
		}
	}
}

func unsettled(calls []*redislog.Call) (n int) {
	for _, c := range calls {
		n += len(c.Commits)
	}
	return n
}

// giveUp ends a call: when it is late, or when it is tiring, or nobody waits, and it has certainly not
// run. Its commits keep the error of the last attempt.
func giveUp(c *redislog.Call, late, tiring bool) bool {
	awaited := slices.ContainsFunc(c.Commits, func(c *redislog.Commit) bool { return c.Callers.Load() > 0 })
	if !late && (c.Lost || awaited && !tiring) {
		return false
	}
	for _, commit := range c.Commits {
		commit.Close()
	}
	return true
}

func (q *commitQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// take gives what fits into one call.
func (q *commitQueue) take() []*redislog.Commit {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, records, bytes := 0, 0, 0
	for _, c := range q.waiting {
		records += len(c.Records)
		bytes += len(c.Event)
		if n > 0 && (records > commitRecords || bytes > commitBytes) {
			q.wake.Set() // for another worker
			break
		}
		n++
	}
	batch := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return batch
}
