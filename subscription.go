package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"time"

	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/reader"
)

// A Subscription says what is to be read. Only Channels is required. With the other fields zero, it
// begins now and takes all types.
type Subscription struct {
	// Channels are read, 32 at most: see [WithMaxChannels]. The same channel twice counts once.
	Channels []Channel
	// Types are globs such as "agent.*", as [path.Match] takes them. An event whose type matches
	// none of them is left out. Without any, all types are read. There are at most 32, of at most
	// 128 bytes each.
	Types []string
	// After is the cursor to resume from. With the zero Cursor the subscription begins now. A
	// channel that the cursor does not cover begins now. Keep all channels that it covers: without
	// one, events that are in several channels may be missing or come twice.
	After Cursor
	// Oldest begins with the oldest event of each log. It cannot be combined with After.
	Oldest bool
	// Last begins so many events before the end of each log, or with the oldest event where there are
	// fewer. Events that Types leaves out count, too. It cannot be combined with After, Oldest or
	// Snapshot.
	Last int
	// NoFollow ends the subscription where the logs ended when it began: what a page shows first. A
	// channel without a log has nothing, and gets no log. The subscription also ends for a channel
	// whose log was replaced, or has lost events in a failover. Over SSE the response ends with
	// stream.live: it is for fetch, not for EventSource, which would come back.
	NoFollow bool
	// LastEventID resumes from what an SSE client sends: a cursor, the ID of an event that a log of
	// one of the channels still has, or, with one channel, a position. Anything else is a gap with
	// [GapUnknown] in every channel. It takes precedence over After, Oldest and Last. [Bus.Handler]
	// sets it from the request.
	LastEventID string
	// Identity says who reads, in whatever way the program names its users. [WithMaxPerIdentity]
	// limits how many subscriptions an identity may have open, and [Bus.Revoke] ends them. Without
	// an identity, neither applies. It has at most 1,024 bytes, and leaves the process only as a
	// SHA-256 hash.
	Identity string
	// ValidUntil is for [Bus.Handler]: authorize is called again at this time, too, and not only at
	// keepalives. It may be zero.
	ValidUntil time.Time
	// Snapshot is for event streams: it loads the state of all Channels together, for a client that
	// has none. The stream gives it as stream.snapshot, and goes on right behind it: see
	// [Bus.SubscribeSSE]. It is called when a client comes without a cursor that can be read and
	// covers all channels, and instead of each gap. With Oldest it is called only where a log was
	// trimmed: otherwise the client reads from the first event on.
	//
	// state is encoded as JSON, 4 MiB at most. after is the cursor that the program has stored with
	// the state, such as [Writer.Flush] and [Receipt] give it: nothing is missing behind it and
	// nothing comes twice. With the zero Cursor, the bus has taken the cursor before the call; store
	// the state first then, and publish the event after that. What the state has already may come
	// again.
	//
	// A call fails after 30s, with an error, and when it panics. Its context ends when no client
	// waits for it any more.
	Snapshot func(ctx context.Context) (state any, after Cursor, err error)
	// SnapshotKey lets streams of the same Channels share calls of Snapshot, if they have the same
	// key. Put into it whatever the state depends on, such as tenant and role: what one user may see
	// must not reach another. Without a key, nothing is shared. It has at most 1,024 bytes.
	SnapshotKey string
}

const maxIdentity, maxSnapshotKey = 1024, 1024

// check refuses a subscription that cannot be read.
func (s *Subscription) check(o *options) error {
	p := problems{subject: "subscription"}
	if len(s.Channels) == 0 {
		p.Add("channels", "is empty")
	}
	for i, c := range s.Channels {
		if problem := c.problem(); problem != "" {
			p.Add(fmt.Sprintf("channels[%d]", i), "%s", problem)
		}
	}
	s.Channels = distinct(s.Channels)
	if len(s.Types) > reader.MaxGlobs {
		p.Add("types", "has %d globs, more than %d", len(s.Types), reader.MaxGlobs)
	}
	for i, t := range s.Types {
		if len(t) > reader.MaxGlobLength {
			p.Add(fmt.Sprintf("types[%d]", i), "has %d bytes, more than %d", len(t), reader.MaxGlobLength)
		} else if _, err := path.Match(t, ""); err != nil || t == "" {
			p.Add(fmt.Sprintf("types[%d]", i), "%s is not a glob", rawjson.Excerpt(t))
		}
	}
	if len(s.Identity) > maxIdentity {
		p.Add("identity", "has %d bytes, more than %d", len(s.Identity), maxIdentity)
	}
	if s.Oldest && !s.After.IsZero() {
		p.Add("oldest", "and after are both set")
	}
	switch {
	case s.Last < 0:
		p.Add("last", "is negative")
	case s.Last > 0 && !s.After.IsZero():
		p.Add("last", "and after are both set")
	case s.Last > 0 && s.Oldest:
		p.Add("last", "and oldest are both set")
	case s.Last > 0 && s.Snapshot != nil:
		p.Add("last", "and snapshot are both set: a stream with a snapshot goes on behind it")
	}
	if len(s.SnapshotKey) > maxSnapshotKey {
		p.Add("snapshot_key", "has %d bytes, more than %d", len(s.SnapshotKey), maxSnapshotKey)
	}
	if err := p.err(); err != nil {
		return err
	}
	if len(s.Channels) > o.maxChannels {
		return &LimitError{LimitChannels, len(s.Channels), o.maxChannels}
	}
	return nil
}

// distinct leaves out channels that come again.
func distinct(channels []Channel) []Channel {
	var out []Channel
	for _, c := range channels {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// Subscribe walks the events of channels from now on:
//
//	for ev, err := range bus.Subscribe(ctx, eventbus.ProjectChannel(id)) {
//		if gap, ok := errors.AsType[*eventbus.GapError](err); ok {
//			reload(gap.Channel) // events are missing here; the walk goes on
//			continue
//		}
//		if err != nil {
//			return err // the last pair: why the walk has ended
//		}
//		show(ev)
//	}
//
// Within a channel, events come in the order of its log. Each comes once, also where it was
// published to several of the channels. Nothing happens before the range begins, and "now" is that
// moment.
//
// The walk goes on after a gap, until every channel has ended (see [PublishOptions].Ends): then it
// ends without an error. Any other error is the last: the cause of the
// context's end, [ErrClosed], [ErrRevoked], a [*LimitError], or a [*ValidationError] for the
// channels. While Redis is away, the walk waits. A loop body that takes its time delays nobody else
// and costs no memory: the walk is behind then, and reads from the log what it has missed.
//
// The iterator is for one goroutine. To range over it again is a new subscription, which begins
// now.
func (b *Bus) Subscribe(ctx context.Context, channels ...Channel) iter.Seq2[Event, error] {
	return b.SubscribeWith(ctx, Subscription{Channels: channels})
}

// SubscribeWith is [Bus.Subscribe] with all that a [Subscription] can say: it resumes from a
// cursor, begins with older events, ends where the logs end, or keeps some types only. Keep
// Event.Cursor of the last event that was dealt with: a subscription with that as After goes on
// right behind it.
func (b *Bus) SubscribeWith(ctx context.Context, sub Subscription) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if sub.Snapshot != nil {
			yield(Event{}, invalid("subscription", "snapshot", "is for event streams: an iterator gets events only"))
			return
		}
		r, err := b.open(ctx, sub, false)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer r.close()
		defer r.WakeOn(ctx)()
		for {
			st, err := r.Next(ctx, true)
			if err == reader.ErrDone {
				return
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
			if st.Gap != nil && !yield(Event{}, r.gapError(st.Gap)) {
				return
			}
			for found, cursor := range r.Events(st) {
				ev := eventOf(&found)
				ev.Payload, ev.Channel, ev.Cursor = bytes.Clone(ev.Payload), r.channels[st.Channel], Cursor{cursor}
				if !yield(ev, nil) {
					return
				}
			}
		}
	}
}

// A subscriber is a reader that counts against the limits.
type subscriber struct {
	*reader.Reader
	bus      *Bus
	channels []Channel // by the reader's lanes
	named    bool      // whether it has an identity
	identity identity
}

// open begins a subscription, as a stream or not. It waits until all its channels can be read.
func (b *Bus) open(ctx context.Context, sub Subscription, stream bool) (*subscriber, error) {
	if err := b.made(); err != nil {
		return nil, err
	}
	if err := b.check(&sub); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !b.enter() {
		return nil, ErrClosed
	}
	s := &subscriber{Reader: b.readers.New(), bus: b, channels: sub.Channels}
	if err := b.admit(s, sub.Identity); err != nil {
		b.leave()
		return nil, err
	}
	err := b.watched(ctx, s)
	if err == nil {
		err = s.Begin(ctx, reader.Subscription{
			Channels: channelTexts(sub.Channels), Types: sub.Types, LastEventID: sub.LastEventID, After: sub.After.text,
			Oldest: sub.Oldest, Last: sub.Last, NoFollow: sub.NoFollow, Live: stream, Snapshot: sub.Snapshot != nil,
		})
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// check refuses a subscription that cannot be read, and counts where that is for a limit.
func (b *Bus) check(sub *Subscription) error {
	err := sub.check(&b.options)
	if errors.Is(err, ErrLimit) {
		b.stats.refusedChannels.Add(1)
	}
	return err
}

// watched waits until the bus listens to revocations, if they can concern the subscriber.
func (b *Bus) watched(ctx context.Context, s *subscriber) error {
	if !s.named {
		return nil
	}
	b.watchOnce.Do(func() { b.spawn(b.watch) })
	select {
	case <-b.watches:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.draining.Done():
		return ErrClosed
	}
}

func (s *subscriber) close() {
	s.Reader.Close()
	s.bus.dismiss(s)
	s.bus.leave()
}

// gapError is a gap as callers get it.
func (s *subscriber) gapError(g *reader.Gap) *GapError {
	return &GapError{Channel: s.channels[g.Channel], Reason: GapReason(g.Reason), From: positionOf(g.From), Cursor: Cursor{g.Cursor}}
}

// snapshot is the subscription's Snapshot as readers call it, nil where there is none.
func (s *Subscription) snapshot() *reader.Snapshot {
	load := s.Snapshot
	if load == nil {
		return nil
	}
	return &reader.Snapshot{Key: s.SnapshotKey, Load: func(ctx context.Context) (any, string, error) {
		state, after, err := load(ctx)
		return state, after.text, err
	}}
}

func channelTexts(channels []Channel) []string {
	texts := make([]string, len(channels))
	for i, c := range channels {
		texts[i] = c.String()
	}
	return texts
}
