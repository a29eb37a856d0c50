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
	// Closed ends readers at once. Draining does, too, but Next with drain first gives what there
	// is. The bus ends Draining first, and then wakes all readers through the feed.
	Closed, Draining context.Context
	Spawn            func(func()) // starts a goroutine
	Warn             func(message string, err error)
}

// Readers is what all readers of a bus share.
type Readers struct {
	Config
	searching chan struct{} // has one slot: a search of a log takes it
	Gaps      atomic.Int64  // how many gaps readers have come upon
}

// NewReaders makes the readers of a bus.
func NewReaders(c Config) *Readers {
	return &Readers{Config: c, searching: make(chan struct{}, 1)}
}

// A Subscription says what a reader reads, and from where. It begins now unless Oldest, After or
// LastEventID says otherwise. LastEventID takes precedence over both.
type Subscription struct {
	Channels    []string // all different
	Types       []string // globs; none: all types
	After       string   // a cursor
	Oldest      bool     // begin with the oldest event of each log
	LastEventID string   // what an SSE client sends; anything is accepted
}

// New makes a reader. The next call is Begin.
func (rs *Readers) New() *Reader { return &Reader{Readers: rs, waiter: pace.NewFlag()} }

// Begin waits until all channels can be read, and puts the reader where the subscription begins.
// Close the reader afterwards, also if Begin returns an error.
func (r *Reader) Begin(ctx context.Context, sub Subscription) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.Draining, func() { cancel(context.Cause(r.Draining)) })()
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
		}
	}
	return r.start(ctx, sub, names)
}

// start puts the lanes where the subscription begins: at the ends of the tails, or elsewhere.
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
		// The channel is new to the cursor. It begins where its log ends, not its tail: an event on
		// its way to the tail may already have been delivered from a channel of the cursor.
		if l.place.Pos, err = r.logEnd(ctx, l.tail); err != nil {
			return err
		}
		l.began = l.place.Pos
	}
	return context.Cause(ctx)
}

// startAt puts all lanes at a position. From the zero position and from Unknown, load finds in the
// log where a lane begins.
func (r *Reader) startAt(pos position.Position) {
	for _, l := range r.lanes {
		l.place.Pos, l.began = pos, position.Position{}
	}
}

// logEnd asks where the log of a tail ends, until there is an answer.
func (r *Reader) logEnd(ctx context.Context, t *tail.Tail) (position.Position, error) {
	var retry pace.Backoff
	for {
		end, err := t.LogEnd(ctx)
		if err == nil || ctx.Err() != nil {
			return end, err
		}
		r.Warn("reading a log failed; trying again", err)
		select {
		case <-retry.After():
		case <-ctx.Done():
			return end, context.Cause(ctx)
		}
	}
}

func isUUID(s string) bool {
	_, err := wire.ParseUUID(s)
	return err == nil
}

// startAtEvent begins behind the event with this id. A lane whose log does not have it begins with
// a gap.
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

// find looks for an event in a tail and then in its log. One log is searched at a time, because a
// search costs more than anything else that a client can ask for. The search goes on, and keeps its
// slot, when its reader has gone.
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

// Close gives the tails back. Call it once, at the end.
func (r *Reader) Close() {
	for _, l := range r.lanes {
		l.tail.Forget(&l.place)
		r.Feed.Release(l.tail)
	}
}
