package feed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/wire"
)

// A foreignLog brings the events of foreign publishers into their logs. Only then do readers get
// them, as if a message with a position had come.
//
//	link, relay ──put──► heard ──► the queue of a node ──► log
//	                                                        └──Offer──► tail
//
// Each node of a cluster has its own queue, so that a node that does not answer holds up no other.
// A node gets one batch at a time, and the next one when that is settled. So a log gets the events
// of a channel in the order in which they were heard. To repeat a batch does no harm: see
// foreign.lua.
type foreignLog struct {
	feed *Feed
	news pace.Flag // heard has something

	// These belong to run, and are used in a cluster only.
	newest map[string]*unlogged // what was heard last and is not settled, by id
	known  places

	mu      sync.Mutex // guards following
	heard   []*unlogged
	bytes   int                // of all events that are not settled
	open    int                // how many these are
	failing map[string]failure // nodes whose last attempt has failed
	closing bool               // Drain was called: nothing more is taken
	empty   chan struct{}      // closed when nothing is open any more, after Drain
}

// An unlogged event was heard, and is not in its log yet.
type unlogged struct {
	redislog.Foreign
	name  string // the channel's name in Redis
	id    string // as in the name of a marker
	since time.Time
	size  int
	after *unlogged // in a cluster: the same event on another channel, heard before
	done  bool      // in a cluster: another event may have waited for this one
}

// A failure says since when Redis does not take what was heard, and why.
type failure struct {
	since time.Time
	err   error
}

// A foreignNode is the queue of a node.
type foreignNode struct {
	waiting, batch []*unlogged // what is to go to the node, and what is on its way
}

const (
	foreignBatch = 64       // events in a round trip
	foreignBytes = 64 << 20 // of all events that are not settled
	foreignCost  = 512      // bytes that each counts beside its message
	foreignID    = 128      // the most bytes of an id
	// foreignPatience is how long an event is tried. Its marker lives as long.
	foreignPatience = 10 * time.Minute
)

func newForeignLog(f *Feed) *foreignLog {
	return &foreignLog{
		feed: f, news: pace.NewFlag(), newest: make(map[string]*unlogged), failing: make(map[string]failure), empty: make(chan struct{}),
	}
}

var errTooMuch = errors.New("too many events of foreign publishers wait for Redis")

// put takes an event that was heard on a channel. size is the size of its message.
func (q *foreignLog) put(channel, name string, ev wire.Event, size int) {
	if n := len(ev.ID); n == 0 || n > foreignID {
		q.feed.Unreadable(fmt.Errorf("the id of a foreign event has %d bytes, not 1 to %d", n, foreignID))
		return
	}
	ev.Also, ev.Prev = "", "" // a foreign publisher cannot know them
	if strings.HasPrefix(channel, "project:") {
		ev.Final = false // a project's channel cannot end
	}
	e := &unlogged{
		Foreign: redislog.Foreign{Channel: channel, Event: ev},
		name:    name, id: redislog.MarkerID(ev.ID), since: time.Now(), size: size + foreignCost,
	}
	q.mu.Lock()
	full := q.bytes+e.size > foreignBytes && q.open > 0
	if !full && !q.closing {
		q.heard = append(q.heard, e)
		q.bytes += e.size
		q.open++
	}
	q.mu.Unlock()
	if full {
		q.feed.Unlogged(fmt.Errorf("%s: %w", channel, errTooMuch))
	}
	q.news.Set()
}

// run sends what was heard to the nodes until the context ends.
func (q *foreignLog) run(ctx context.Context) {
	nodes := make(map[string]*foreignNode)
	done := make(chan *foreignNode)
	for {
		select {
		case <-q.news:
		case n := <-done:
			q.learn(n.batch)
			n.batch = nil
		case <-ctx.Done():
			return
		}
		q.mu.Lock()
		heard := q.heard
		q.heard = nil
		q.mu.Unlock()
		for _, e := range heard {
			node := q.feed.Log.Node(ctx, e.name)
			if nodes[node] == nil {
				nodes[node] = &foreignNode{}
			}
			nodes[node].waiting = append(nodes[node].waiting, e)
			q.chain(e)
		}
		for node, n := range nodes {
			if n.batch != nil {
				continue
			}
			if n.batch = q.take(n); n.batch == nil {
				if len(n.waiting) == 0 {
					delete(nodes, node)
				}
				continue
			}
			q.feed.Spawn(func() {
				q.settle(ctx, node, n.batch)
				select {
				case done <- n:
				case <-ctx.Done():
				}
			})
		}
	}
}

// chain finds out what an event has to wait for. In a cluster, each entry can only say where the
// event is already. So it comes into the logs of its channels one after the other, in the order in
// which it was heard, which is the same for most buses.
func (q *foreignLog) chain(e *unlogged) {
	if !q.feed.Log.PerChannel {
		return
	}
	if last := q.newest[e.id]; last != nil && last.name == e.name {
		e.after = last.after
	} else {
		e.after = last
	}
	q.newest[e.id] = e
}

// take takes the next batch off a queue. Where an event has to wait, the rest of its channel waits
// behind it.
func (q *foreignLog) take(n *foreignNode) (batch []*unlogged) {
	var held []*unlogged
	channels := make(map[string]bool) // of held
	i, bytes := 0, 0
	for ; i < len(n.waiting) && len(batch) < foreignBatch && bytes < 1<<20; i++ {
		e := n.waiting[i]
		if q.feed.Log.PerChannel {
			if e.after != nil && !e.after.done || channels[e.name] {
				channels[e.name] = true
				held = append(held, e)
				continue
			}
			e.after = nil
			e.Event.Also = q.known.of(e.id)
		}
		e.JSON = e.Event.AppendJSON(nil)
		bytes += e.size
		batch = append(batch, e)
	}
	copy(n.waiting[i-len(held):i], held)
	n.waiting = n.waiting[i-len(held):]
	return batch
}

// settle brings a batch into its logs. What Redis refuses for now is tried again, in order.
func (q *foreignLog) settle(ctx context.Context, node string, batch []*unlogged) {
	var retry pace.Backoff
	for left := slices.Clone(batch); ; {
		calls := make([]*redislog.Foreign, len(left))
		for i, e := range left {
			calls[i] = &e.Foreign
		}
		q.feed.Log.AppendForeign(ctx, calls)
		if ctx.Err() != nil {
			return
		}
		left = slices.DeleteFunc(left, q.settled)
		q.note(node, left)
		if len(left) == 0 {
			return
		}
		select {
		case <-retry.After():
		case <-ctx.Done():
			return
		}
	}
}

// settled reports whether an event needs no other attempt. Where it is in its log, the tail gets
// it.
func (q *foreignLog) settled(e *unlogged) bool {
	f := q.feed
	switch {
	case e.Err == nil:
		f.mu.RLock()
		u := f.tails[e.name]
		f.mu.RUnlock()
		if u != nil && (e.Differs || !u.tail.Offer(e.Event)) {
			f.want(true, u.tail)
		}
	case errors.Is(e.Err, redislog.ErrUnavailable) && time.Since(e.since) < foreignPatience:
		return false
	default:
		f.Unlogged(fmt.Errorf("%s: %w", e.Channel, e.Err))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= e.size
	if q.open--; q.open == 0 && q.closing {
		close(q.empty)
	}
	return true
}

// note notes whether a node takes what was heard. left is what it did not take.
func (q *foreignLog) note(node string, left []*unlogged) {
	q.mu.Lock()
	last, failed := q.failing[node]
	switch {
	case len(left) == 0:
		delete(q.failing, node)
	case !failed:
		last.since = time.Now()
		fallthrough
	default:
		last.err = left[0].Err
		q.failing[node] = last
	}
	q.mu.Unlock()
	if len(left) > 0 {
		q.feed.Warn("bringing foreign events into the log failed; trying again", left[0].Err)
	}
}

// health fails when Redis has not taken what was heard for longer than a bound.
func (q *foreignLog) health(bound time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range q.failing {
		if d := time.Since(f.since); d > bound {
			return redislog.Error(redislog.ErrUnavailable, fmt.Errorf("foreign events wait for %s: %w", d.Round(time.Millisecond), f.err))
		}
	}
	return nil
}

// Drain takes no more events of foreign publishers, and waits until those that were heard are
// settled, or the context ends.
func (f *Feed) Drain(ctx context.Context) error {
	q := f.foreign
	if q == nil {
		return nil
	}
	q.mu.Lock()
	if !q.closing {
		q.closing = true
		if q.open == 0 {
			close(q.empty)
		}
	}
	q.mu.Unlock()
	select {
	case <-q.empty:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-f.ctx.Done():
		return nil
	}
}

// learn remembers in which logs of a cluster the events of a batch are.
func (q *foreignLog) learn(batch []*unlogged) {
	if !q.feed.Log.PerChannel {
		return
	}
	for _, e := range batch {
		if e.done = true; q.newest[e.id] == e {
			delete(q.newest, e.id)
		}
		if e.Err == nil {
			q.known.add(e.id, strings.Fields(e.Event.Also+" "+e.name+"@"+e.Event.Position.String()))
		}
	}
}

// The places of the newest events are text for also, by id. When newer is full it becomes older.
type places struct{ newer, older map[string]string }

const (
	placesEvents = 4096
	placesMost   = 40 // of an event; no subscription has more channels
)

func (p *places) of(id string) string { return cmp.Or(p.newer[id], p.older[id]) }

func (p *places) add(id string, at []string) {
	all := strings.Fields(p.of(id))
	for _, place := range at {
		if len(all) < placesMost && !slices.Contains(all, place) {
			all = append(all, place)
		}
	}
	if p.newer == nil || len(p.newer) >= placesEvents {
		p.newer, p.older = make(map[string]string), p.newer
	}
	p.newer[id] = strings.Join(all, " ")
}
