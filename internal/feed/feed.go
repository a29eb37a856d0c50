// Package feed keeps the tails of a process true to their logs. Pub/Sub connections bring the
// newest events. Whenever a tail may lack something, the feed reads its log. The bus makes one Feed
// and asks for its Health. Readers acquire and release the tails of their channels.
//
//	goroutine  number              work
//	run        1                   gives each channel to the link that carries it
//	mend       1                   decides which tails are filled when; drops cold tails and links
//	fill       1 per node at most  reads up to 64 logs in one round trip, and fills their tails
//	foreign    1, with ForeignLog  gives foreign events to the nodes of their logs
//	settle     1 per node at most  brings up to 64 foreign events into their logs
//	link.run   1 per link, relay   keeps a session with its node: subscribes and pings
//	receive    1 per session       reads the connection, and offers its events to the tails
//	a read     1 per page          reads a page or the end of a log, for the readers of one tail
//
// All of them end with the context of the feed. link.run ends earlier when its link carries nothing
// any more, and receive when its session ends.
//
// The feed has one lock, which also guards fields of its links. It is taken before a tail's lock,
// never while that is held. The foreignLog has one of its own, and takes no other under it. No call
// to Redis is made under a lock.
//
//	feed.go     the Feed: its tails and links, and Health
//	link.go     a Pub/Sub connection: sessions, confirmations, and what it brings
//	mend.go     fills and comparisons
//	foreign.go  how foreign events come into their logs
//	relay.go    a link that hears all channels of some kinds
package feed

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
)

// A Feed fills the tails of a process. Plain Pub/Sub needs one link. Sharded Pub/Sub needs one for
// each node of a cluster.
//
//	 ┌──PUBLISH──► link ──Offer──┐
//	log                          ├──► tail ──► readers
//	 └───read────► fill ──Fill───┘
type Feed struct {
	Config
	ctx    context.Context // the feed's life
	memory tail.Memory     // of all tails

	foreign *foreignLog // nil unless ForeignLog is set

	Fills, Reconnects atomic.Int64 // how many logs fills have read; how many connections broke

	mu     sync.RWMutex     // guards following, and the fields of links that say so
	tails  map[string]*used // by name
	made   int              // how many tails there were so far
	links  map[string]*link // by node
	relays map[*link]bool
	// carrier is the link of each channel. The name "" stands for no channel. Its link stays when
	// nobody listens to anything, so that Health always has a connection to judge by.
	carrier map[string]*link
	stray   []string            // channels that have no link yet
	wanted  map[*tail.Tail]bool // tails to fill; true means urgently

	strays pace.Flag // stray has something
	wants  pace.Flag // wanted has something
}

// A used tail has readers, or had some a short time ago.
type used struct {
	tail      *tail.Tail
	readers   int
	idleSince time.Time // when the last reader left
	part      int       // the tail is compared with those that have the same
}

// warmFor is how long a tail stays after its last reader has left. Readers that a deployment has
// cut off come back soon.
const warmFor = 30 * time.Second

// A Config is what a feed works with.
type Config struct {
	Log        *redislog.Log
	Freshness  time.Duration // how long a tail may be behind before Health fails
	MaxMessage int           // most bytes of a foreign publisher's message
	ForeignLog bool          // foreign events come into the log
	// Spawn starts a goroutine. It must not wait: it is called under the locks of feed and tails.
	Spawn      func(func())
	Warn       func(message string, err error)
	Unreadable func(error) // gets the error for each message or entry that is no event
	Unlogged   func(error) // gets the error for each foreign event that cannot come into its log
}

// New makes a feed that lives as long as the context. It does nothing before Start.
func New(ctx context.Context, c Config) *Feed {
	f := &Feed{
		Config: c, ctx: ctx,
		tails:   make(map[string]*used),
		links:   make(map[string]*link),
		relays:  make(map[*link]bool),
		carrier: make(map[string]*link),
		stray:   []string{""},
		wanted:  make(map[*tail.Tail]bool),
		strays:  pace.NewFlag(),
		wants:   pace.NewFlag(),
	}
	if c.ForeignLog {
		f.foreign = newForeignLog(f)
	}
	return f
}

// Start begins the feed's work. It is called once.
func (f *Feed) Start() {
	f.Spawn(func() { f.run(f.ctx) })
	f.Spawn(func() { f.mend(f.ctx) })
	if f.foreign != nil {
		f.Spawn(func() { f.foreign.run(f.ctx) })
	}
}

// Acquire gives a reader the tail of a channel. The reader releases it at its end.
func (f *Feed) Acquire(channel string) *tail.Tail {
	name := f.Log.Name(channel)
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.tails[name]
	if u == nil {
		f.made++
		u = &used{tail: f.newTail(channel, false), part: f.made % compareParts}
		f.tails[name] = u
		f.stray = append(f.stray, name)
		f.strays.Set()
	}
	u.readers++
	return u.tail
}

// Peek gives a tail to a reader that only wants what a log has now. Nobody fills it: the reader gets
// everything from the log, and begins none. The reader releases it.
func (f *Feed) Peek(channel string) *tail.Tail { return f.newTail(channel, true) }

func (f *Feed) newTail(channel string, peek bool) *tail.Tail {
	return tail.New(channel, f.Log.Name(channel), &f.memory, f.Unreadable, f.Spawn, func(r tail.Request, done func(*position.Page, error)) {
		f.Spawn(func() {
			done(f.Log.Read(f.ctx, redislog.Request{Channel: channel, From: r.From, Count: r.Count, Peek: peek}))
		})
	})
}

// Release says that a reader does not need the tail any more.
func (f *Feed) Release(t *tail.Tail) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.tails[t.Name]
	if u == nil || u.tail != t { // it came from Peek
		t.Drop()
		return
	}
	if u.readers--; u.readers == 0 {
		u.idleSince = time.Now()
	}
}

// run gives stray channels to links until the context ends.
func (f *Feed) run(ctx context.Context) {
	var retry pace.Backoff
	var again <-chan time.Time
	f.strays.Set()
	for {
		select {
		case <-f.strays:
		case <-again:
		case <-ctx.Done():
			return
		}
		again = nil
		if err := f.route(ctx); err != nil && ctx.Err() == nil {
			f.Warn("finding the node of a channel failed; trying again", err)
			again = retry.After()
		} else {
			retry = pace.Backoff{}
		}
	}
}

// route gives every stray channel to the link of its node.
func (f *Feed) route(ctx context.Context) error {
	f.mu.Lock()
	names := f.stray
	f.stray = nil
	f.mu.Unlock()
	for i, name := range names {
		node, client, err := f.Log.Carrier(ctx, name)
		f.mu.Lock()
		if err != nil {
			f.stray = append(f.stray, names[i:]...)
			f.mu.Unlock()
			return err
		}
		if f.tails[name] != nil || name == "" {
			l := f.links[node]
			if l == nil {
				l = newLink(f, node)
				f.links[node] = l
				ctx, cancel := context.WithCancel(ctx)
				l.retire = cancel
				f.Spawn(func() { l.run(ctx) })
			}
			l.client = client
			f.carrier[name] = l
			l.sendLocked(name)
		}
		f.mu.Unlock()
	}
	return nil
}

// some gives the tails for which a condition holds. The condition is called under the feed's lock.
func (f *Feed) some(is func(*used) bool) (tails []*tail.Tail) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, u := range f.tails {
		if is(u) {
			tails = append(tails, u.tail)
		}
	}
	return tails
}

// WakeAll wakes all readers.
func (f *Feed) WakeAll() {
	for _, t := range f.some(func(*used) bool { return true }) {
		t.Wake()
	}
}

// Channels is how many channels the process listens to.
func (f *Feed) Channels() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.tails)
}

// dropCold drops tails that nobody has read for a while, and links that carry nothing.
func (f *Feed) dropCold(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, u := range f.tails {
		u.tail.Expire(now)
		if u.readers == 0 && now.Sub(u.idleSince) > warmFor {
			delete(f.tails, name)
			u.tail.Drop()
			if l := f.carrier[name]; l != nil {
				delete(f.carrier, name)
				l.sendLocked(name)
			}
		}
	}
	carries := make(map[*link]bool, len(f.links))
	for _, l := range f.carrier {
		carries[l] = true
	}
	for node, l := range f.links {
		if !carries[l] {
			l.retire()
			delete(f.links, node)
		}
	}
}

// Health is nil while the tails are fresh. It fails when, for longer than Freshness, a link has
// brought nothing, a tail with readers may have been behind, or foreign events wait for their log.
func (f *Feed) Health() error {
	bound := f.Freshness
	if f.foreign != nil {
		if err := f.foreign.health(bound); err != nil {
			return err
		}
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, links := range []iter.Seq[*link]{maps.Values(f.links), maps.Keys(f.relays)} {
		for l := range links {
			if err := l.health(bound); err != nil {
				return err
			}
		}
	}
	now := time.Now()
	for name, u := range f.tails {
		if stale := u.tail.Stale(now); stale > bound && u.readers > 0 {
			return redislog.Error(redislog.ErrUnavailable, fmt.Errorf("%s may be behind for %s", name, stale.Round(time.Millisecond)))
		}
	}
	return nil
}
