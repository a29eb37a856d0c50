package reader

import (
	"context"
	"sync/atomic"

	"github.com/syndarix/eventbus/internal/feed"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Config is what readers work with.
type Config struct {
	Feed *feed.Feed
	Log  *redislog.Log
	// closed ends readers at once. draining ends them when they have what there is. Their causes are
	// what the readers then get.
	Closed, Draining context.Context
	Spawn            func(func()) // starts a goroutine
	Warn             func(message string, err error)
}

// Readers make readers.
type Readers struct {
	Config
	searching chan struct{} // a slot for each search of a log
	Gaps      atomic.Int64  // that readers were told of
}

// NewReaders makes the readers of a bus.
func NewReaders(c Config) *Readers {
	return &Readers{Config: c, searching: make(chan struct{}, 1)}
}

// A Subscription says what a reader reads, and from where.
type Subscription struct {
	Channels    []string // all different
	Types       []string // globs; none: all types
	After       string   // a cursor
	Oldest      bool
	LastEventID string
}

// New makes a reader that is to begin.
func (rs *Readers) New() *Reader { return &Reader{Readers: rs, waiter: pace.NewFlag()} }

// Begin sets the reader to where it begins, and waits until all its channels can be read. It is to be
// closed, with an error, too.
func (r *Reader) Begin(ctx context.Context, sub Subscription) error {
	r.types = newTypeFilter(sub.Types)
	var names []string
	for _, c := range sub.Channels {
		t := r.Feed.Acquire(c)
		r.lanes = append(r.lanes, &lane{tail: t, place: tail.Place{Waiter: r.waiter}})
		names = append(names, t.Name)
	}
	r.key = position.NewKey(names)
	for _, l := range r.lanes {
		select {
		case <-l.tail.Opened:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.Draining.Done():
			return context.Cause(r.Draining)
		}
	}
	return r.start(ctx, sub, names)
}

// start puts the lanes where the subscription begins: at the present, or elsewhere.
func (r *Reader) start(ctx context.Context, sub Subscription, names []string) error {
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
		_, err := position.DecodeCursor(id)
		pos, posErr := position.Parse(id)
		switch {
		case err == nil:
			after = id
		case posErr == nil && len(r.lanes) == 1:
			r.startAt(pos)
			return nil
		default:
			r.startAt(position.Unknown)
			return nil
		}
	}
	if after == "" {
		return nil
	}
	entries, err := position.Entries(after, names)
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
func (r *Reader) startAt(pos position.Position) {
	for _, l := range r.lanes {
		l.place.Pos, l.began = pos, position.Position{}
	}
}

func isUUID(s string) bool {
	_, err := wire.ParseUUID(s)
	return err == nil
}

// startAtEvent begins behind the event with this id.
func (r *Reader) startAtEvent(ctx context.Context, id string) error {
	for _, l := range r.lanes {
		pos, ok, err := r.Readers.find(ctx, l.tail, id)
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

// find looks for an event in a tail and then in its log, for one reader at
// a time: searching a log is the dearest thing that a client can ask for.
func (rs *Readers) find(ctx context.Context, t *tail.Tail, id string) (position.Position, bool, error) {
	if pos, ok := t.Locate(id); ok {
		return pos, true, nil
	}
	select {
	case rs.searching <- struct{}{}:
	case <-ctx.Done():
		return position.Position{}, false, context.Cause(ctx)
	}
	type answer struct {
		pos position.Position
		ok  bool
		err error
	}
	answers := make(chan answer, 1)
	rs.Spawn(func() {
		defer func() { <-rs.searching }()
		var a answer
		a.pos, a.ok, a.err = rs.Log.Find(rs.Closed, t.Channel, id)
		answers <- a
	})
	select {
	case a := <-answers:
		return a.pos, a.ok, a.err
	case <-ctx.Done():
		return position.Position{}, false, context.Cause(ctx)
	}
}

// Close gives back what the reader holds.
func (r *Reader) Close() {
	for _, l := range r.lanes {
		l.tail.Forget(&l.place)
		r.Feed.Release(l.tail)
	}
}
