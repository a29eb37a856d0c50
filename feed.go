package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// The feed fills the tails: from one Pub/Sub connection per process, and from the
// logs whenever a tail is in doubt. It has three goroutines, all started by New:
//
//	run       keeps a session with Redis, one after the other; it subscribes and pings
//	receive   reads what the session's connection brings, and offers it to the tails
//	mend      fills tails in doubt, compares the others with their logs, drops cold ones
type feed struct {
	bus  *Bus
	log  *redisLog
	mu   sync.RWMutex // guards following
	tail map[string]*tail
	// unsent are channels that the session has yet to subscribe to or, if their
	// tail is gone, to unsubscribe from.
	unsent    []string
	confirmed map[string]bool // channels that Redis has confirmed in this session
	doubtful  map[*tail]bool  // tails to fill

	changed chan struct{} // unsent has something
	doubts  chan struct{} // doubtful has something
	prior   []note        // where the event that came last has come on; used by receive alone
	heard   atomic.Int64  // when the connection last brought anything, UnixNano
	failing atomic.Pointer[error]
}

// A tail stays warm for a while after its last reader has left: readers of a
// deploy come back.
const (
	warmFor        = 30 * time.Second
	subscribeBatch = 512
	fillBatch      = 64
)

func newFeed(b *Bus) *feed {
	f := &feed{
		bus: b, log: b.log,
		tail:     make(map[string]*tail),
		doubtful: make(map[*tail]bool),
		changed:  make(chan struct{}, 1),
		doubts:   make(chan struct{}, 1),
	}
	f.heard.Store(time.Now().UnixNano())
	return f
}

// signal sets a flag that somebody waits for.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// acquire gives the channel's tail, for a reader that will release it.
func (f *feed) acquire(c Channel) *tail {
	name := f.log.name(c)
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tail[name]
	if t == nil {
		t = newTail(c, name, f.bus.options.keep(c.Kind()).Age, f.bus.unreadable)
		t.pages.taken = &f.bus.pageBytes
		t.pages.read = func(r readRequest, done func(*logPage, error)) {
			f.bus.spawn(func() { done(f.log.read(f.bus.ctx, r)) })
		}
		f.tail[name] = t
		f.unsent = append(f.unsent, name)
		signal(f.changed)
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

// run keeps a session until the bus is closed.
func (f *feed) run(ctx context.Context) {
	var retry backoff
	for {
		began := time.Now()
		err := f.session(ctx)
		if ctx.Err() != nil {
			return
		}
		f.failing.Store(&err)
		f.bus.stats.reconnects.Add(1)
		f.bus.warn("the Pub/Sub connection broke; connecting again", err)
		if time.Since(began) > 5*time.Second {
			retry = backoff{}
		}
		select {
		case <-retry.after():
		case <-ctx.Done():
			return
		}
	}
}

// errSilent ends a session whose connection is open but brings nothing.
var errSilent = errors.New("no answer to a ping on the Pub/Sub connection")

// session is the life of one Pub/Sub connection. Whatever goes wrong with it, the
// answer is the same: close it, doubt every tail, begin another one.
func (f *feed) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	pubsub := f.log.client.Subscribe(ctx)
	broke := make(chan error, 1)
	received := make(chan struct{})
	f.bus.spawn(func() {
		defer close(received)
		broke <- f.receive(ctx, pubsub)
	})
	defer func() {
		cancel()
		pubsub.Close()
		<-received
		f.question()
	}()

	f.mu.Lock()
	f.confirmed = make(map[string]bool)
	f.unsent = f.unsent[:0]
	for name := range f.tail {
		f.unsent = append(f.unsent, name)
	}
	f.mu.Unlock()
	signal(f.changed)

	freshness := f.bus.options.freshness
	ping := time.NewTicker(freshness / 5)
	defer ping.Stop()
	f.heard.Store(time.Now().UnixNano())
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broke:
			return err
		case <-f.changed:
			if err := f.subscribe(ctx, pubsub); err != nil {
				return err
			}
		case <-ping.C:
			if f.silence() > freshness/2 {
				return errSilent
			}
			if err := pubsub.Ping(ctx); err != nil {
				return err
			}
		}
	}
}

// silence tells for how long the connection has brought nothing.
func (f *feed) silence() time.Duration {
	return time.Duration(time.Now().UnixNano() - f.heard.Load())
}

// subscribe tells Redis of the channels that came or went, many at a time.
func (f *feed) subscribe(ctx context.Context, pubsub *redis.PubSub) error {
	f.mu.Lock()
	names := f.unsent
	f.unsent = nil
	var come, gone []string
	for _, name := range names {
		if f.tail[name] != nil {
			come = append(come, name)
		} else {
			gone = append(gone, name)
			delete(f.confirmed, name)
		}
	}
	f.mu.Unlock()
	for batch := range slices.Chunk(gone, subscribeBatch) {
		if err := pubsub.Unsubscribe(ctx, batch...); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(come, subscribeBatch) {
		if err := pubsub.Subscribe(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// receive reads the connection. go-redis may connect again by itself before it
// returns an error, or without one: then confirmations come a second time.
func (f *feed) receive(ctx context.Context, pubsub *redis.PubSub) error {
	for {
		message, err := pubsub.Receive(ctx)
		if err != nil {
			return err
		}
		f.heard.Store(time.Now().UnixNano())
		f.failing.Store(nil)
		switch m := message.(type) {
		case *redis.Message:
			f.deliver(m.Channel, m.Payload)
		case *redis.Subscription:
			if m.Kind == "subscribe" {
				f.confirm(m.Channel)
			}
		}
	}
}

// confirm notes that the channel is listened to from here on; what came before
// is in the log.
func (f *feed) confirm(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tail[name]
	if t == nil {
		return
	}
	f.confirmed[name] = true
	t.question()
	f.doubtful[t] = true
	signal(f.doubts)
}

// A note says that an event is in the log of a channel. Messages of one event on
// several channels come one behind the other, as one script has published them: so
// the feed knows of an event what its log entries have in writing.
type note struct {
	id   string
	name string
	pos  Position
}

// notes gives what is known of an event that now comes on a channel.
func (f *feed) notes(ev *Event, name string) string {
	also := ""
	if len(f.prior) > 0 && f.prior[0].id == ev.ID {
		for _, n := range f.prior {
			also += " " + n.name + "@" + n.pos.String()
		}
	} else {
		f.prior = f.prior[:0]
	}
	f.prior = append(f.prior, note{ev.ID, name, ev.Position})
	return also
}

// deliver offers a message to its tail.
func (f *feed) deliver(name, payload string) {
	f.mu.RLock()
	t := f.tail[name]
	f.mu.RUnlock()
	if t == nil {
		return // it was unsubscribed meanwhile
	}
	ev, err := decode([]byte(payload))
	if err == nil && ev.Position.IsZero() && len(payload) > f.bus.options.maxEventSize {
		err = fmt.Errorf("message of %d bytes: %w", len(payload), ErrTooLarge)
	}
	if err != nil {
		f.bus.unreadable(err)
		return
	}
	also := ""
	if !ev.Position.IsZero() {
		also = f.notes(&ev, name)
	}
	if !t.offer(ev, also) {
		f.wantFill(t)
	}
}

// question puts every tail in doubt.
func (f *feed) question() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.confirmed)
	for _, t := range f.tail {
		t.question()
		f.doubtful[t] = true
	}
}

// mend fills tails in doubt as soon as they are, and looks after all of them now
// and then. It does not need the Pub/Sub connection: while that is away, events
// come from the logs, later but none the less.
func (f *feed) mend(ctx context.Context) {
	freshness := f.bus.options.freshness
	care := time.NewTicker(freshness / 10)
	defer care.Stop()
	compare := time.NewTicker(freshness * 2 / 5)
	defer compare.Stop()
	var retry backoff
	var failed []*tail
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.doubts:
		case <-again:
			again = nil
			f.wantFill(failed...)
			failed = nil
		case now := <-care.C:
			f.dropCold(now)
			f.wantFill(f.tails(func(t *tail) bool { return t.stale(now) > 0 })...)
		case <-compare.C:
			// What a connection that looks alive has not brought is in the logs.
			failed = append(failed, f.fill(ctx, f.tails(func(t *tail) bool { return t.readers > 0 }))...)
		}
		for {
			tails := f.takeDoubtful()
			if len(tails) == 0 {
				break
			}
			failed = append(failed, f.fill(ctx, tails)...)
		}
		if len(failed) == 0 {
			retry = backoff{}
		} else if again == nil {
			again = retry.after()
		}
	}
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

// wantFill notes tails that are to be filled.
func (f *feed) wantFill(tails ...*tail) {
	if len(tails) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range tails {
		f.doubtful[t] = true
	}
	signal(f.doubts)
}

func (f *feed) takeDoubtful() []*tail {
	f.mu.Lock()
	defer f.mu.Unlock()
	var tails []*tail
	for t := range f.doubtful {
		delete(f.doubtful, t)
		if f.tail[t.name] == t {
			tails = append(tails, t)
		}
	}
	return tails
}

// fill brings tails up to their logs' ends, and gives back those whose log could not
// be read.
func (f *feed) fill(ctx context.Context, tails []*tail) (failed []*tail) {
	for batch := range slices.Chunk(tails, fillBatch) {
		if ctx.Err() != nil {
			return nil
		}
		requests := make([]readRequest, len(batch))
		listened := make([]bool, len(batch))
		for i, t := range batch {
			listened[i] = f.listens(t)
			requests[i] = t.want()
		}
		pages, errs := f.log.readMany(ctx, requests)
		f.bus.stats.fills.Add(int64(len(batch)))
		for i, t := range batch {
			if errs[i] != nil {
				f.bus.warn("filling from a log failed; trying again", errs[i])
				failed = append(failed, t)
				continue
			}
			// The read counts as whole only if the channel was listened to all along.
			listened := listened[i] && f.listens(t)
			if !t.fill(requests[i], pages[i], listened) && listened {
				f.wantFill(t)
			}
		}
	}
	return failed
}

// listens tells whether Redis has confirmed the subscription to the tail's channel.
func (f *feed) listens(t *tail) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.confirmed[t.name]
}

// dropCold forgets tails that nobody has read for a while.
func (f *feed) dropCold(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, t := range f.tail {
		t.pages.expire(now)
		if t.readers == 0 && now.Sub(t.idleSince) > warmFor {
			delete(f.tail, name)
			t.pages.clear()
			f.unsent = append(f.unsent, name)
			signal(f.changed)
		}
	}
}

// health is nil while every tail is as fresh as promised.
func (f *feed) health() error {
	bound := f.bus.options.freshness
	if silence := f.silence(); silence > bound {
		err := errSilent
		if last := f.failing.Load(); last != nil {
			err = *last
		}
		return fmt.Errorf("eventbus: %w: nothing received for %s: %w", ErrUnavailable, silence.Round(time.Millisecond), err)
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	now := time.Now()
	for _, t := range f.tail {
		if stale := t.stale(now); stale > bound && t.readers > 0 {
			return fmt.Errorf("eventbus: %w: %s may be behind for %s", ErrUnavailable, t.name, stale.Round(time.Millisecond))
		}
	}
	return nil
}
