package eventbus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
)

// The feed fills the tails: from Pub/Sub connections (link.go), and from the logs
// whenever a tail is not whole (mend.go). Plain Pub/Sub has one link per process;
// sharded Pub/Sub has one for each node of a cluster. Its goroutines:
//
//	run      gives each channel the link that carries it
//	link.run keeps a session with its node, one after the other; it subscribes and pings
//	receive  reads what a session's connection brings, and offers it to the tails
//	mend     hands tails to be filled to a worker for each node, drops cold ones
type feed struct {
	bus *Bus
	log *redislog.Log

	mu    sync.RWMutex // guards following, and what links say it does
	tail  map[string]*tail
	links map[string]*link // by node
	// carrier is the link of each channel. The name "" stands for no channel: its
	// link is there also when nobody listens to anything, for Health.
	carrier map[string]*link
	stray   []string       // channels that have no link yet
	wanted  map[*tail]bool // tails to fill; true for those that are not whole

	strays pace.Flag // stray has something
	wants  pace.Flag // wanted has something
}

// A tail stays warm for a while after its last reader has left: readers of a
// deploy come back.
const warmFor = 30 * time.Second

func newFeed(b *Bus) *feed {
	return &feed{
		bus: b, log: b.log,
		tail:    make(map[string]*tail),
		links:   make(map[string]*link),
		carrier: make(map[string]*link),
		stray:   []string{""},
		wanted:  make(map[*tail]bool),
		strays:  pace.NewFlag(),
		wants:   pace.NewFlag(),
	}
}

// acquire gives the channel's tail, for a reader that will release it.
func (f *feed) acquire(channel string) *tail {
	name := f.log.Name(channel)
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tail[name]
	if t == nil {
		t = newTail(channel, name, f.bus.unreadable, f.bus.spawn)
		t.pages.taken = &f.bus.pageBytes
		t.pages.read = func(r redislog.Request, done func(*position.Page, error)) {
			f.bus.spawn(func() { done(f.log.Read(f.bus.ctx, r)) })
		}
		f.tail[name] = t
		f.stray = append(f.stray, name)
		f.strays.Set()
	}
	t.readers++
	return t
}

// release is what a reader does at its end.
func (f *feed) release(t *tail) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.readers--; t.readers == 0 {
		t.idleSince = time.Now()
	}
}

// run gives channels to links until the bus is closed.
func (f *feed) run(ctx context.Context) {
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
			f.bus.warn("finding the node of a channel failed; trying again", err)
			again = retry.After()
		} else {
			retry = pace.Backoff{}
		}
	}
}

// route gives every stray channel to the link of its node.
func (f *feed) route(ctx context.Context) error {
	f.mu.Lock()
	names := f.stray
	f.stray = nil
	f.mu.Unlock()
	for i, name := range names {
		node, client, err := f.log.Carrier(ctx, name)
		f.mu.Lock()
		if err != nil {
			f.stray = append(f.stray, names[i:]...)
			f.mu.Unlock()
			return err
		}
		if f.tail[name] != nil || name == "" {
			l := f.links[node]
			if l == nil {
				l = newLink(f, node)
				f.links[node] = l
				ctx, cancel := context.WithCancel(ctx)
				l.retire = cancel
				f.bus.spawn(func() { l.run(ctx) })
			}
			l.client = client
			f.carrier[name] = l
			l.sendLocked(name)
		}
		f.mu.Unlock()
	}
	return nil
}

// tails gives those that a condition holds for.
func (f *feed) tails(is func(*tail) bool) (tails []*tail) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, t := range f.tail {
		if is(t) {
			tails = append(tails, t)
		}
	}
	return tails
}

// dropCold forgets tails that nobody has read for a while, and links that carry
// nothing.
func (f *feed) dropCold(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, t := range f.tail {
		t.pages.expire(now)
		if t.readers == 0 && now.Sub(t.idleSince) > warmFor {
			delete(f.tail, name)
			t.pages.clear()
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

// health is nil while every tail is as fresh as promised.
func (f *feed) health() error {
	bound := f.bus.options.freshness
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range f.links {
		if silence := l.silence(); silence > bound {
			err := errSilent
			if last := l.failing.Load(); last != nil {
				err = *last
			}
			return fmt.Errorf("eventbus: %w: nothing received for %s: %w", ErrUnavailable, silence.Round(time.Millisecond), err)
		}
	}
	now := time.Now()
	for _, t := range f.tail {
		if stale := t.stale(now); stale > bound && t.readers > 0 {
			return fmt.Errorf("eventbus: %w: %s may be behind for %s", ErrUnavailable, t.name, stale.Round(time.Millisecond))
		}
	}
	return nil
}
