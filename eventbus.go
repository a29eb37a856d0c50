package eventbus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/syndarix/eventbus/internal/commit"
	"github.com/syndarix/eventbus/internal/feed"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/reader"
	"github.com/syndarix/eventbus/internal/redislog"
)

// A Client is what the bus needs of a go-redis client. A *redis.Client is one, also one that
// redis.NewFailoverClient has made, and so is a *redis.ClusterClient. [New] refuses a *redis.Ring.
type Client interface {
	Process(ctx context.Context, cmd redis.Cmder) error
	Pipeline() redis.Pipeliner
	Subscribe(ctx context.Context, channels ...string) *redis.PubSub
}

// A Bus publishes events to the logs and channels of one Redis, and serves any number of
// subscriptions from them. A program makes one with [New] and keeps it. All methods are safe for
// concurrent use.
type Bus struct {
	options options
	log     *redislog.Log
	feed    *feed.Feed
	commits *commit.Committer
	readers *reader.Readers
	logs    *pace.Warner
	stats   counters

	admitted  admissions
	watchOnce sync.Once
	watches   chan struct{} // closed when the bus listens to revocations

	// Close ends ctx. Shutdown and Close end draining. The cause of both ends is ErrClosed.
	ctx, draining      context.Context
	cancel, startDrain func()

	over    chan struct{} // closed when all goroutines of the bus have ended
	waited  chan struct{} // closed when the first Close returns
	leaving int           // how many subscriptions were open when draining began

	mu     sync.Mutex // guards following
	drains bool
	closed bool
	inside int           // publishes, Writers with events under way, and subscriptions
	empty  chan struct{} // closed when a bus that drains has none under way
	wg     sync.WaitGroup
}

// checkTimeout bounds the check of the server in New.
const checkTimeout = 10 * time.Second

// New makes a bus over a go-redis client: a *redis.Client or a *redis.ClusterClient. The caller
// closes the client, after the bus.
//
// New tries out whether the server can do what the bus needs. The error wraps [ErrUnsupported] for
// a Redis before 7.0, a read-only replica, a *redis.Ring, and an ACL user that lacks a permission;
// the text says what to change. It wraps [ErrUnavailable] when there was no answer within 10s. Any
// other error names the option that is wrong, or says that the client is nil.
func New(client Client, opts ...Option) (*Bus, error) {
	o := defaults()
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("eventbus: new: option %d is nil", i)
		}
		opt(&o)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if v := reflect.ValueOf(client); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, fmt.Errorf("eventbus: new: the client is nil")
	}
	if _, ok := client.(*redis.Ring); ok {
		return nil, fmt.Errorf("eventbus: new: %w", redislog.Error(ErrUnsupported, errRing))
	}
	b := &Bus{
		options: o,
		log:     redislog.New(client, o.prefix, o.sharded, o.keep),
		logs:    pace.NewWarner(o.logger),
		over:    make(chan struct{}),
		waited:  make(chan struct{}),
		empty:   make(chan struct{}),
		watches: make(chan struct{}),
	}
	b.ctx, b.cancel = life(context.Background())
	b.draining, b.startDrain = life(context.Background())
	b.commits = commit.New(b.ctx, commit.Config{Log: b.log, Timeout: o.publishTimeout, Spawn: b.spawn})
	b.feed = feed.New(b.ctx, feed.Config{
		Log: b.log, Freshness: o.freshness, MaxMessage: o.maxEventSize, ForeignLog: o.foreignLog,
		Spawn: b.spawn, Warn: b.warn, Unreadable: b.unreadable, Unlogged: b.unlogged,
	})
	b.readers = reader.NewReaders(reader.Config{
		Feed: b.feed, Log: b.log, Closed: b.ctx, Draining: b.draining, Spawn: b.spawn, Warn: b.warn,
	})

	checked, cancel := context.WithTimeout(b.ctx, checkTimeout)
	defer cancel()
	probed := make(chan error, 1)
	go func() { probed <- b.log.Probe(checked) }()
	var err error
	select {
	case err = <-probed:
	case <-time.After(checkTimeout + time.Second): // a command on the wire ignores the context
		err = redislog.Error(ErrUnavailable, fmt.Errorf("no answer within %s", checkTimeout))
	}
	if err != nil {
		b.cancel()
		return nil, fmt.Errorf("eventbus: new: %w", err)
	}
	b.feed.Start()
	return b, nil
}

// life makes a context whose end has the cause ErrClosed.
func life(parent context.Context) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(parent)
	return ctx, func() { cancel(ErrClosed) }
}

// spawn runs f on a goroutine that Close waits for.
func (b *Bus) spawn(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		go f() // A reader that has not noticed yet wants it. Its calls to Redis fail at once.
		return
	}
	b.wg.Go(f)
}

var errRing = errors.New("a Ring spreads keys over servers that know nothing of each other; give New a Client or a ClusterClient")

var errNotMade = errors.New("eventbus: the bus was not made by New")

// made returns an error for the zero Bus.
func (b *Bus) made() error {
	if b.ctx == nil {
		return errNotMade
	}
	return nil
}

// enter counts a publish, a Writer at work or a subscription in. It is false when the bus is ending.
func (b *Bus) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drains {
		return false
	}
	b.inside++
	return true
}

func (b *Bus) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inside--; b.inside == 0 && b.drains {
		close(b.empty)
	}
}

func (b *Bus) isDraining() bool { return b.draining.Err() != nil }

// drain refuses what begins from now on, and wakes what waits.
func (b *Bus) drain() {
	b.mu.Lock()
	first := !b.drains
	if first {
		b.drains = true
		b.leaving = b.admitted.open()
		b.startDrain()
		if b.inside == 0 {
			close(b.empty)
		}
	}
	b.mu.Unlock()
	if first {
		b.feed.WakeAll()
	}
}

// Shutdown ends the bus in order. New publishes, writes and subscriptions get [ErrClosed]. Publishes
// under way finish, and so does what a [Writer] has taken. What a bus with [WithForeignLog] has heard
// comes into the log. Iterators deliver what there is, and end with [ErrClosed]. SSE streams end
// between two frames, after they have told their clients to come back, spread over some seconds.
// Shutdown waits for all of this, and then closes the bus. When the context ends first, it closes the
// bus at once and returns the context's cause.
//
// Shut the bus down first, and a [net/http.Server] then: its Shutdown waits for open streams.
func (b *Bus) Shutdown(ctx context.Context) error {
	if b.ctx == nil {
		return nil
	}
	b.drain()
	var err error
	select {
	case <-b.empty:
		err = b.feed.Drain(ctx)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return firstOf(err, b.Close())
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// closeWait bounds how long Close waits for goroutines that are in a call to a Redis that does not
// answer. They end with that call.
const closeWait = time.Second

// Close ends everything at once. Publishes under way return a [*PublishError]. A [Writer] that has
// events under way stops with a [*WriteError]. Subscriptions end with [ErrClosed]. Close does not
// close the client. It returns when all goroutines of the bus have ended, or after 1s where Redis
// does not answer them. The error is always nil. Closing again does nothing more.
func (b *Bus) Close() error {
	if b.ctx == nil {
		return nil
	}
	b.drain()
	b.mu.Lock()
	first := !b.closed
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	if !first {
		<-b.waited
		return nil
	}
	defer close(b.waited)
	go func() {
		b.wg.Wait()
		close(b.over)
	}()
	select {
	case <-b.over:
	case <-time.After(closeWait):
	}
	return nil
}

// Cursor gives the current position of channels, as Redis has it. It is for a page that loads a state
// by itself, and then follows the events that change it. (A stream does both, with
// [Subscription].Snapshot.) The order matters on both sides:
//
//   - The program that changes the state stores it first, and publishes the event then.
//   - The handler that renders the page takes the cursor first, and loads the state then. It hands out
//     both, and the page subscribes with the cursor (Subscription.After, or ?last_event_id=).
//
// Then no event is missing. Some may be in the state already and come again. In the other order, on
// either side, an event between the two steps is lost to the page.
//
// The error is a [*ValidationError], a [*LimitError], the context's cause, [ErrClosed], or wraps
// [ErrUnavailable].
func (b *Bus) Cursor(ctx context.Context, channels ...Channel) (Cursor, error) {
	if err := b.made(); err != nil {
		return Cursor{}, err
	}
	sub := Subscription{Channels: channels}
	if err := b.check(&sub); err != nil {
		return Cursor{}, err
	}
	if !b.enter() {
		return Cursor{}, ErrClosed
	}
	defer b.leave()
	names, requests := make([]string, len(sub.Channels)), make([]redislog.Request, len(sub.Channels))
	for i, c := range sub.Channels {
		names[i] = b.log.Name(c.String())
		requests[i] = redislog.Request{Channel: c.String()}
	}
	heads, err := b.heads(ctx, requests)
	if err != nil {
		return Cursor{}, fmt.Errorf("eventbus: cursor: %w", err)
	}
	key := position.NewKey(names)
	return Cursor{string(key.Append(nil, func(i int) position.Position { return heads[i] }))}, nil
}

// heads asks Redis where logs end now.
func (b *Bus) heads(ctx context.Context, requests []redislog.Request) ([]position.Position, error) {
	type answer struct {
		pages []*position.Page
		errs  []error
	}
	answers := make(chan answer, 1)
	b.spawn(func() {
		pages, errs := b.log.ReadMany(b.ctx, requests)
		answers <- answer{pages, errs}
	})
	select {
	case a := <-answers:
		heads := make([]position.Position, len(requests))
		for i, err := range a.errs {
			if err != nil {
				return nil, err
			}
			heads[i] = a.pages[i].Last
		}
		return heads, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-b.ctx.Done():
		return nil, ErrClosed
	}
}

// Health fails when the bus could not keep its subscribers fresh for the time of [WithFreshness].
// The error wraps [ErrUnavailable], and says for how long and why; or it is [ErrClosed]. Health
// asks nobody and answers at once: the bus finds out by itself.
func (b *Bus) Health() error {
	if err := b.made(); err != nil {
		return err
	}
	if b.isDraining() {
		return ErrClosed
	}
	if err := b.feed.Health(); err != nil {
		return fmt.Errorf("eventbus: health: %w", err)
	}
	return nil
}

// warn logs what needs attention, once per burst.
func (b *Bus) warn(message string, err error) { b.logs.Warn(message, redislog.WithoutArguments(err)) }

// unreadable counts and logs something on a channel or in a log that is no event.
func (b *Bus) unreadable(err error) {
	b.stats.unreadable.Add(1)
	b.warn("skipped what is not an event", err)
}

// unlogged counts and logs an event of a foreign publisher that cannot come into its log.
func (b *Bus) unlogged(err error) {
	b.stats.unreadable.Add(1)
	b.warn("dropped an event of a foreign publisher", err)
}
