package eventbus

import (
	"context"

	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/wire"
)

// open begins a subscription. It waits until all its channels can be read.
func (b *Bus) open(ctx context.Context, sub Subscription) (*reader, error) {
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
	r := &reader{bus: b, waiter: pace.NewFlag()}
	if err := b.admit(r, sub.Identity); err != nil {
		b.leave()
		return nil, err
	}
	r.counted = true
	if r.named {
		b.watchOnce.Do(func() { b.spawn(b.watch) })
		if err := b.await(ctx, b.watches); err != nil {
			r.close()
			return nil, err
		}
	}
	if err := b.begin(ctx, r, sub); err != nil {
		return nil, err
	}
	return r, nil
}

// await waits for what must be there before a subscription can begin.
func (b *Bus) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.draining:
		return ErrClosed
	}
}

// newReader makes a reader of the bus's own, which no limit counts.
func (b *Bus) newReader(ctx context.Context, sub Subscription) (*reader, error) {
	r := &reader{bus: b, waiter: pace.NewFlag()}
	if err := b.begin(ctx, r, sub); err != nil {
		return nil, err
	}
	return r, nil
}

// begin sets a reader to where its subscription begins. With an error, it closes it.
func (b *Bus) begin(ctx context.Context, r *reader, sub Subscription) (err error) {
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	r.types = newTypeFilter(sub.Types)
	var names []string
	for _, c := range sub.Channels {
		t := b.feed.Acquire(c.String())
		r.lanes = append(r.lanes, &lane{tail: t, channel: c, place: tail.Place{Waiter: r.waiter}})
		names = append(names, t.Name)
	}
	r.key = position.NewKey(names)
	for _, l := range r.lanes {
		if err := b.await(ctx, l.tail.Opened); err != nil {
			return err
		}
	}
	return r.start(ctx, sub, names)
}

// start puts the lanes where the subscription begins: at the present, or elsewhere.
func (r *reader) start(ctx context.Context, sub Subscription, names []string) error {
	for _, l := range r.lanes {
		l.tail.Begin(&l.place)
		l.began = l.place.Pos
	}
	r.passed()
	after := sub.After
	switch id := sub.LastEventID; {
	case id == "":
		if sub.Oldest {
			r.startAt(position.Position{})
			return nil
		}
	case isUUID(id):
		return r.startAtEvent(ctx, id)
	default:
		cursor, err := ParseCursor(id)
		pos, posErr := position.Parse(id)
		switch {
		case err == nil:
			after = cursor
		case posErr == nil && len(r.lanes) == 1:
			r.startAt(pos)
			return nil
		default:
			r.startAt(position.Unknown)
			return nil
		}
	}
	if after.IsZero() {
		return nil
	}
	entries, err := position.Entries(after.text, names)
	if err != nil {
		return err
	}
	for i, e := range entries {
		l := r.lanes[i]
		if e != nil {
			l.place.Pos, l.began, l.hole = e.Pos, e.Began, e.Hole
			continue
		}
		// The tail may be behind: other channels may have brought what is on its way to it.
		if l.place.Pos, err = l.tail.LogEnd(ctx); err != nil {
			return err
		}
		l.began = l.place.Pos
	}
	return context.Cause(ctx)
}

// startAt puts all lanes at a position from which the first look at the log tells where they begin.
func (r *reader) startAt(pos position.Position) {
	for _, l := range r.lanes {
		l.place.Pos, l.began = pos, position.Position{}
	}
}

func isUUID(s string) bool {
	_, err := wire.ParseUUID(s)
	return err == nil
}

// startAtEvent begins behind the event with this id.
func (r *reader) startAtEvent(ctx context.Context, id string) error {
	for _, l := range r.lanes {
		pos, ok, err := r.bus.findEvent(ctx, l.tail, id)
		switch {
		case err != nil:
			return err
		case ok:
			l.place.Pos = pos
		default:
			l.place.Pos = position.Unknown
		}
		l.began = position.Position{}
	}
	return nil
}

// findEvent looks for an event in a tail and then in its log, for one reader at
// a time: searching a log is the dearest thing that a client can ask for.
func (b *Bus) findEvent(ctx context.Context, t *tail.Tail, id string) (position.Position, bool, error) {
	if pos, ok := t.Locate(id); ok {
		return pos, true, nil
	}
	select {
	case b.searching <- struct{}{}:
	case <-ctx.Done():
		return position.Position{}, false, context.Cause(ctx)
	}
	type answer struct {
		pos position.Position
		ok  bool
		err error
	}
	answers := make(chan answer, 1)
	b.spawn(func() {
		defer func() { <-b.searching }()
		var a answer
		a.pos, a.ok, a.err = b.log.Find(b.ctx, t.Channel, id)
		answers <- a
	})
	select {
	case a := <-answers:
		return a.pos, a.ok, a.err
	case <-ctx.Done():
		return position.Position{}, false, context.Cause(ctx)
	}
}

func (r *reader) close() {
	for _, l := range r.lanes {
		l.tail.Forget(&l.place)
		r.bus.feed.Release(l.tail)
	}
	if r.counted {
		r.bus.dismiss(r)
		r.bus.leave()
	}
}
