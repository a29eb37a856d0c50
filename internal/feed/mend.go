package feed

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
)

const (
	fillBatch    = 64 // how many logs one round trip reads at most
	compareParts = 8  // tails are compared in parts: all at once would hold up what is published
)

// want asks for tails to be filled. That is urgent where they may be behind, but not for a
// comparison.
func (f *Feed) want(urgent bool, tails ...*tail.Tail) {
	if len(tails) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range tails {
		f.wantLocked(t, urgent)
	}
}

func (f *Feed) wantLocked(t *tail.Tail, urgent bool) {
	f.wanted[t] = f.wanted[t] || urgent
	f.wants.Set()
}

// A fillQueue has the tails of one node that are to be filled. Each node has its own queue, so that
// a node that does not answer holds up no others.
type fillQueue struct {
	urgent, routine map[*tail.Tail]bool
	busy            bool // a batch is under way
}

// take gives the next batch, the urgent ones first.
func (q *fillQueue) take() (batch []*tail.Tail) {
	for _, set := range []map[*tail.Tail]bool{q.urgent, q.routine} {
		for t := range set {
			if len(batch) == fillBatch {
				return batch
			}
			delete(set, t)
			batch = append(batch, t)
		}
	}
	return batch
}

// A filled reports the end of a batch to mend.
type filled struct {
	queue         *fillQueue
	batch, failed []*tail.Tail
}

// mend has tails filled: at once where they may be behind, and all of them now and then, to compare
// them with their logs. It does not need Pub/Sub: while that is away, events come from the logs.
func (f *Feed) mend(ctx context.Context) {
	freshness := f.Freshness
	care := time.NewTicker(freshness / 10)
	defer care.Stop()
	compare := time.NewTicker(freshness * 2 / 5 / compareParts)
	defer compare.Stop()
	part := 0
	queues := make(map[string]*fillQueue) // by node
	done := make(chan filled)
	var retry pace.Backoff
	failed, retried := make(map[*tail.Tail]bool), make(map[*tail.Tail]bool)
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wants:
		case <-again:
			again = nil
			f.want(true, slices.Collect(maps.Keys(failed))...)
			failed, retried = make(map[*tail.Tail]bool), failed
		case now := <-care.C:
			f.dropCold(now)
			f.want(true, f.some(func(u *used) bool { return u.tail.Stale(now) > 0 && !failed[u.tail] })...)
		case <-compare.C:
			// The logs have what a connection that looks alive has not brought. Tails without
			// readers are compared too, because a read extends the life of the log.
			part = (part + 1) % compareParts
			f.want(false, f.some(func(u *used) bool { return u.part == part })...)
		case d := <-done:
			d.queue.busy = false
			for _, t := range d.failed {
				failed[t] = true
			}
			if len(failed) == 0 && slices.ContainsFunc(d.batch, func(t *tail.Tail) bool { return retried[t] }) {
				retry = pace.Backoff{}
			} else if len(failed) > 0 && again == nil {
				again = retry.After()
			}
		}
		f.sort(ctx, queues)
		for node, q := range queues {
			if q.busy {
				continue
			}
			batch := q.take()
			if len(batch) == 0 {
				delete(queues, node)
				continue
			}
			q.busy = true
			f.Spawn(func() {
				d := filled{q, batch, f.fill(ctx, batch)}
				select {
				case done <- d:
				case <-ctx.Done():
				}
			})
		}
	}
}

// sort moves the wanted tails into the queues of their nodes.
func (f *Feed) sort(ctx context.Context, queues map[string]*fillQueue) {
	f.mu.Lock()
	wanted := f.wanted
	f.wanted = make(map[*tail.Tail]bool)
	for t := range wanted {
		if u := f.tails[t.Name]; u == nil || u.tail != t {
			delete(wanted, t) // the tail was dropped
		}
	}
	f.mu.Unlock()
	for t, urgent := range wanted {
		node := f.Log.Node(ctx, t.Name)
		q := queues[node]
		if q == nil {
			q = &fillQueue{urgent: make(map[*tail.Tail]bool), routine: make(map[*tail.Tail]bool)}
			queues[node] = q
		}
		if urgent {
			q.urgent[t] = true
			delete(q.routine, t)
		} else if !q.urgent[t] {
			q.routine[t] = true
		}
	}
}

// fill brings tails up to the ends of their logs. It gives back those whose log could not be read.
func (f *Feed) fill(ctx context.Context, tails []*tail.Tail) (failed []*tail.Tail) {
	asked, requests := make([]tail.Request, len(tails)), make([]redislog.Request, len(tails))
	listened := make([]confirmation, len(tails))
	for i, t := range tails {
		listened[i] = f.confirmation(t)
		asked[i] = t.Want()
		requests[i] = redislog.Request{Channel: t.Channel, From: asked[i].From, Count: asked[i].Count}
	}
	pages, errs := f.Log.ReadMany(ctx, requests)
	f.Fills.Add(int64(len(tails)))
	for i, t := range tails {
		if errs[i] != nil {
			f.Warn("filling from a log failed; trying again", errs[i])
			refused := errs[i]
			if errors.Is(refused, redislog.ErrUnavailable) || ctx.Err() != nil {
				refused = nil
			}
			t.Unfilled(refused)
			failed = append(failed, t)
			continue
		}
		// The fill makes the tail whole only if one confirmation held during all of the read.
		// Otherwise an event could come after the read and before the channel is listened to.
		listens := listened[i].number != 0 && f.confirmation(t) == listened[i]
		if !t.Fill(asked[i], pages[i], listens) && listens {
			f.want(true, t)
		}
		if listens && t.Deaf() {
			listened[i].link.end(errDeaf)
		}
	}
	return failed
}

// A confirmation is Redis' word that a link brings a channel. With the number 0 there is none.
type confirmation struct {
	link   *link
	number uint64
}

func (f *Feed) confirmation(t *tail.Tail) confirmation {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if l := f.carrier[t.Name]; l != nil {
		return confirmation{l, l.confirmed[t.Name]}
	}
	return confirmation{}
}
