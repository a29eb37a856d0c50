package eventbus

import (
	"context"

	"github.com/syndarix/eventbus/internal/reader"
)

// A subscriber is a reader that the limits count.
type subscriber struct {
	*reader.Reader
	bus      *Bus
	channels []Channel // of the reader's lanes
	named    bool      // it was admitted under this identity
	identity identity
}

// open begins a subscription. It waits until all its channels can be read.
func (b *Bus) open(ctx context.Context, sub Subscription) (*subscriber, error) {
	if err := b.made(); err != nil {
		return nil, err
	}
	if err := sub.check(&b.options); err != nil {
		if len(sub.Channels) > b.options.maxChannels {
			b.stats.refusedChannels.Add(1)
		}
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
			Channels: channelTexts(sub.Channels), Types: sub.Types, After: sub.After.text, Oldest: sub.Oldest, LastEventID: sub.LastEventID,
		})
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// watched waits until revocations are listened to, which the subscriber may need.
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

func channelTexts(channels []Channel) []string {
	texts := make([]string, len(channels))
	for i, c := range channels {
		texts[i] = c.String()
	}
	return texts
}
