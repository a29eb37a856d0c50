package feed

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
)

// The feed fills the tails: from Pub/Sub connections (link.go), and from the logs
// whenever a tail is not whole (mend.go). Plain Pub/Sub has one link per process;
// sharded Pub/Sub has one for each node of a cluster. Its goroutines:
//
//	run      gives each channel the link that carries it
//	link.run keeps a session with its node, one after the other; it subscribes and pings
//	receive  reads what a session's connection brings, and offers it to the tails
//	mend     hands tails to be filled to a worker for each node, drops cold ones
type Feed struct {
	Config
	ctx       context.Context // the feed's life
	pageBytes atomic.Int64    // of all tails

	Fills, Reconnects atomic.Int64 // reads of logs; connections that broke

	mu    sync.RWMutex     // guards following, and what links say it does
	tails map[string]*used // by name
	links map[string]*link // by node
	// carrier is the link of each channel. The name "" stands for no channel: its
	// link is there also when nobody listens to anything, for Health.
	carrier map[string]*link
	stray   []string            // channels that have no link yet
	wanted  map[*tail.Tail]bool // tails to fill; true for those that are not whole

	strays pace.Flag // stray has something
	wants  pace.Flag // wanted has something
}

// A used tail has readers, or has had some of late.
type used struct {
	tail      *tail.Tail
	readers   int
	idleSince time.Time // without readers
}

// A tail stays warm for a while after its last reader has left: readers of a
// deploy come back.
const warmFor = 30 * time.Second

// A Config is what a feed works with.
type Config struct {
	Log        *redislog.Log
	Freshness  time.Duration // what health and the checks of connections go by
	MaxMessage int           // bytes of a foreign publisher's message
	Spawn      func(func())  // starts a goroutine
	Warn       func(message string, err error)
	Unreadable func(error) // is given what is no event
}

// New makes a feed that lives as long as the context. It begins with start.
func New(ctx context.Context, c Config) *Feed {
	return &Feed{
		Config: c, ctx: ctx,
		tails:   make(map[string]*used),
		links:   make(map[string]*link),
		carrier: make(map[string]*link),
		stray:   []string{""},
		wanted:  make(map[*tail.Tail]bool),
		strays:  pace.NewFlag(),
		wants:   pace.NewFlag(),
	}
}

// Start begins the feed's work.
func (f *Feed) Start() {
	f.Spawn(func() { f.run(f.ctx) })
	f.Spawn(func() { f.mend(f.ctx) })
}

// Acquire gives the channel's tail, for a reader that will release it.
func (f *Feed) Acquire(channel string) *tail.Tail {
	name := f.Log.Name(channel)
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.tails[name]
	if u == nil {
		var t *tail.Tail
		t = tail.New(channel, name, &f.pageBytes, f.Unreadable, f.Spawn, func(r tail.Request, done func(*position.Page, error)) {
			f.Spawn(func() { done(f.Log.Read(f.ctx, f.request(t, r))) })
		})
		u = &used{tail: t}
		f.tails[name] = u
		f.stray = append(f.stray, name)
		f.strays.Set()
	}
	u.readers++
	return u.tail
}

// request asks for a page of a tail's log.
func (f *Feed) request(t *tail.Tail, r tail.Request) redislog.Request {
	return redislog.Request{Channel: t.Channel, From: r.From, Count: r.Count}
}

// Release is what a reader does at its end.
func (f *Feed) Release(t *tail.Tail) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.tails[t.Name]
	if u.readers--; u.readers == 0 {
		u.idleSince = time.Now()
	}
}

// run gives channels to links until the bus is closed.
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

// some gives those tails that a condition holds for.
func (f *Feed) some(is func(*tail.Tail) bool) (tails []*tail.Tail) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, u := range f.tails {
		if is(u.tail) {
			tails = append(tails, u.tail)
		}
	}
	return tails
}

// WakeAll wakes all readers.
func (f *Feed) WakeAll() {
	for _, t := range f.some(func(*tail.Tail) bool { return true }) {
		t.Show()
	}
}

// Channels is how many channels are listened to.
func (f *Feed) Channels() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.tails)
}

// dropCold forgets tails that nobody has read for a while, and links that carry
// nothing.
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

// Health is nil while every tail is as fresh as promised.
func (f *Feed) Health() error {
	bound := f.Freshness
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range f.links {
		if silence := l.silence(); silence > bound {
			err := errSilent
			if last := l.failing.Load(); last != nil {
				err = *last
			}
			return fmt.Errorf("%w: nothing received for %s: %w", redislog.ErrUnavailable, silence.Round(time.Millisecond), err)
		}
	}
	now := time.Now()
	for name, u := range f.tails {
		if stale := u.tail.Stale(now); stale > bound && u.readers > 0 {
			return fmt.Errorf("%w: %s may be behind for %s", redislog.ErrUnavailable, name, stale.Round(time.Millisecond))
		}
	}
	return nil
}
