package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/wire"
)

// A link is the Pub/Sub connection to one node, with the channels that come over it. When the
// connection breaks, the link makes another. The life of each connection is a session.
type link struct {
	feed   *Feed
	node   string             // "" for all nodes
	retire context.CancelFunc // ends run
	relay  *relay             // nil for a link that brings the channels of tails

	// The feed's lock guards these.
	client redislog.Client // of the node, or of all nodes
	// unsent has the channels that the session still has to subscribe to or, where another link or
	// none carries them now, to unsubscribe from.
	unsent []string
	// confirmed has the channels to which Redis has confirmed the subscription in this session.
	// Each confirmation of the link has another number. The last number is confirms.
	confirmed map[string]uint64
	confirms  uint64

	changed pace.Flag             // unsent has something
	heard   atomic.Int64          // when a connection last brought anything, as UnixNano
	failing atomic.Pointer[error] // why the last session ended; nil once the next brings something
	breaks  chan error            // an error here ends the session
}

const subscribeBatch = 512

func newLink(f *Feed, node string) *link {
	l := &link{feed: f, node: node, changed: pace.NewFlag(), breaks: make(chan error, 1)}
	l.heard.Store(time.Now().UnixNano())
	return l
}

// sendLocked makes the session subscribe to a channel that came, or unsubscribe from one that went.
func (l *link) sendLocked(name string) {
	l.unsent = append(l.unsent, name)
	l.changed.Set()
}

// run keeps a session until the feed ends or the link is retired.
func (l *link) run(ctx context.Context) {
	var retry pace.Backoff
	for {
		began := time.Now()
		err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		l.failing.Store(&err)
		l.feed.Reconnects.Add(1)
		l.feed.Warn("a Pub/Sub connection broke; connecting again", err)
		if time.Since(began) > 5*time.Second {
			retry = pace.Backoff{}
		}
		select {
		case <-retry.After():
		case <-ctx.Done():
			return
		}
		l.giveBack()
	}
}

// giveBack makes the channels of the link stray again, since another node may have them now. A link
// to all nodes keeps its channels.
func (l *link) giveBack() {
	f := l.feed
	if l.node == "" {
		return
	}
	f.Log.Reload(f.ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, carrier := range f.carrier {
		if carrier == l {
			delete(f.carrier, name)
			f.stray = append(f.stray, name)
		}
	}
	f.strays.Set()
}

// These errors end a session whose connection is open.
var (
	errSilent = errors.New("no answer to a ping on the Pub/Sub connection")
	errDeaf   = errors.New("the Pub/Sub connection does not bring what is in the logs: its server is not the one that is published to")
	errMoved  = errors.New("a channel has moved to another node")
)

// session is the life of one Pub/Sub connection. Whatever goes wrong, the answer is the same: close
// the connection, question every tail, begin another session.
func (l *link) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := l.feed
	f.mu.Lock()
	l.confirmed = make(map[string]uint64)
	l.unsent = l.unsent[:0]
	for name, carrier := range f.carrier {
		if carrier == l {
			l.unsent = append(l.unsent, name)
		}
	}
	client := l.client
	f.mu.Unlock()
	l.changed.Set()
	select {
	case <-l.breaks: // that error was meant for the session before
	default:
	}

	pubsub := f.Log.PubSub(ctx, client)
	broke := make(chan error, 1)
	received := make(chan struct{})
	f.Spawn(func() {
		defer close(received)
		broke <- l.receive(ctx, pubsub)
	})
	defer func() {
		cancel()
		pubsub.Close()
		<-received
		l.question()
	}()

	freshness := f.Freshness
	ping := time.NewTicker(freshness / 5)
	defer ping.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broke:
			return err
		case err := <-l.breaks:
			return err
		case <-l.changed:
			if err := l.subscribe(ctx, pubsub); err != nil {
				return err
			}
		case now := <-ping.C:
			if min(l.silence(), now.Sub(began)) > freshness/2 {
				return errSilent
			}
			if err := pubsub.Ping(ctx); err != nil {
				return err
			}
		}
	}
}

// silence is for how long no connection of the link has brought anything.
func (l *link) silence() time.Duration {
	return time.Duration(time.Now().UnixNano() - l.heard.Load())
}

// health fails when no connection of the link has brought anything for longer than a bound.
func (l *link) health(bound time.Duration) error {
	silence := l.silence()
	if silence <= bound {
		return nil
	}
	err := errSilent
	if last := l.failing.Load(); last != nil {
		err = *last
	}
	return redislog.Error(redislog.ErrUnavailable, fmt.Errorf("nothing received for %s: %w", silence.Round(time.Millisecond), err))
}

// subscribe sends the channels that came or went to Redis, many in one command.
func (l *link) subscribe(ctx context.Context, pubsub *redis.PubSub) error {
	if l.relay != nil {
		return pubsub.PSubscribe(ctx, l.relay.patterns...)
	}
	f := l.feed
	f.mu.Lock()
	names := l.unsent
	l.unsent = nil
	var come, gone []string
	for _, name := range names {
		switch {
		case name == "":
		case f.carrier[name] == l:
			come = append(come, name)
		default:
			gone = append(gone, name)
			delete(l.confirmed, name)
		}
	}
	f.mu.Unlock()
	subscribe, unsubscribe, batch := pubsub.Subscribe, pubsub.Unsubscribe, subscribeBatch
	if f.Log.Sharded {
		// One command takes channels of one slot only.
		subscribe, unsubscribe, batch = pubsub.SSubscribe, pubsub.SUnsubscribe, 1
	}
	for names := range slices.Chunk(gone, batch) {
		if err := unsubscribe(ctx, names...); err != nil {
			return err
		}
	}
	for names := range slices.Chunk(come, batch) {
		if err := subscribe(ctx, names...); err != nil {
			return err
		}
	}
	return nil
}

// receive reads the connection until that fails. go-redis may connect again by itself, with or
// without an error. Then the confirmations come a second time.
func (l *link) receive(ctx context.Context, pubsub *redis.PubSub) error {
	for {
		message, err := pubsub.Receive(ctx)
		if err != nil {
			return err
		}
		l.heard.Store(time.Now().UnixNano())
		l.failing.Store(nil)
		switch m := message.(type) {
		case *redis.Message:
			if l.relay != nil {
				l.overhear(m.Channel, m.Payload)
			} else {
				l.deliver(m.Channel, m.Payload)
			}
		case *redis.Subscription:
			switch m.Kind {
			case "subscribe", "ssubscribe":
				l.confirm(m.Channel)
			case "sunsubscribe":
				// A channel that the link has given up itself is not confirmed any more.
				if l.isConfirmed(m.Channel) {
					return fmt.Errorf("%w: %s", errMoved, m.Channel)
				}
			}
		}
	}
}

// end makes the session end with this error. Any goroutine may call it.
func (l *link) end(err error) {
	select {
	case l.breaks <- err:
	default: // the session is about to end
	}
}

// confirm takes Redis' word that the connection brings the channel from here on. What was published
// before is in the log: the tail is filled from there.
func (l *link) confirm(name string) {
	f := l.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if u := f.tails[name]; u != nil && f.carrier[name] == l {
		l.confirms++
		l.confirmed[name] = l.confirms
		u.tail.Cut()
		f.wantLocked(u.tail, true)
	}
}

func (l *link) isConfirmed(name string) bool {
	l.feed.mu.RLock()
	defer l.feed.mu.RUnlock()
	return l.confirmed[name] != 0
}

// question questions every tail of the link, because the connection is gone.
func (l *link) question() {
	f := l.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(l.confirmed)
	for name, carrier := range f.carrier {
		if u := f.tails[name]; u != nil && carrier == l {
			u.tail.Cut()
			f.wantLocked(u.tail, true)
		}
	}
}

// deliver offers a message to its tail.
func (l *link) deliver(name, payload string) {
	f := l.feed
	f.mu.RLock()
	u := f.tails[name]
	f.mu.RUnlock()
	if u == nil {
		return // the tail was dropped meanwhile
	}
	ev, ok := f.read(payload)
	// What comes on the bus's own channel without a position is as live as ever.
	logs := f.foreign != nil && ev.Position.IsZero() && !strings.HasPrefix(u.tail.Channel, "eventbus:")
	if logs {
		u.tail.Heard()
	}
	ev.Final = ev.Final && (logs || !ev.Position.IsZero()) // what is in no log ends nothing
	switch {
	case !ok:
	case logs:
		f.foreign.put(u.tail.Channel, name, ev, len(payload))
	case !u.tail.Offer(ev):
		f.want(true, u.tail)
	}
}

// read decodes a message.
func (f *Feed) read(payload string) (ev wire.Event, ok bool) {
	ev, err := wire.Decode([]byte(payload))
	if err == nil && ev.Position.IsZero() && len(payload) > f.MaxMessage {
		err = fmt.Errorf("a message of %d bytes, more than %d", len(payload), f.MaxMessage)
	}
	if err != nil {
		f.Unreadable(err)
	}
	return ev, err == nil
}
