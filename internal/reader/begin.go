package reader

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

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
	snapshots snapshots
	Gaps      atomic.Int64 // how many gaps readers have come upon
}

// NewReaders makes the readers of a bus.
func NewReaders(c Config) *Readers {
	return &Readers{Config: c, searching: make(chan struct{}, 1), snapshots: snapshots{flights: make(map[string]*flight)}}
}

// A Subscription says what a reader reads, and from where. It begins now unless LastEventID, After,
// Oldest or Last says otherwise; of these, the first that is set counts.
type Subscription struct {
	Channels    []string // all different
	Types       []string // globs; none: all types
	LastEventID string   // what an SSE client sends; anything is accepted
	After       string   // a cursor
	Oldest      bool     // begin with the oldest event of each log
	Last        int      // begin so many events before the end of each log
	NoFollow    bool     // end where the logs ended when the subscription began
	Live        bool     // say when everything is read that was in the logs when it began
	// Snapshot says that the program has a state for a reader that does not come back with a cursor.
	Snapshot bool
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
	r.noFollow, r.live = sub.NoFollow, !sub.Live && !sub.NoFollow
	acquire := r.Feed.Acquire
	if sub.NoFollow {
		acquire = r.Feed.Peek
	}
	var names []string
	for _, c := range sub.Channels {
		t := acquire(c)
		r.lanes = append(r.lanes, &lane{tail: t, place: tail.Place{Waiter: r.waiter}})
		names = append(names, t.Name)
	}
	r.key = position.NewKey(names)
	for _, l := range r.lanes {
		if sub.NoFollow {
			continue // the log says where the lane begins and ends
		}
		select {
		case <-l.tail.Opened:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := l.tail.Refused(); err != nil {
			return err
		}
	}
	return r.start(ctx, sub, names)
}

// start puts the lanes where the subscription begins: at the ends of the tails, or elsewhere.
func (r *Reader) start(ctx context.Context, sub Subscription, names []string) error {
	for _, l := range r.lanes {
		l.tail.Begin(&l.place)
		l.began, l.target = l.place.Pos, l.place.Pos
	}
	r.passed()
	resumes := sub.LastEventID != "" || sub.After != ""
	if err := r.askLogs(ctx, sub, resumes); err != nil {
		return err
	}
	switch {
	case resumes:
		if err := r.resume(ctx, sub, names); err != nil {
			return err
		}
	case sub.Oldest && sub.Snapshot: // what is trimmed from now on is a gap
		for _, l := range r.lanes {
			l.place.Pos, l.began = l.log.Origin(), l.log.Origin()
			r.due = r.due || l.place.Pos.Seq > 0
		}
	case sub.Oldest:
		r.startAt(position.Position{})
	default:
		for _, l := range r.lanes {
			l.startBefore(int64(sub.Last))
		}
		r.due = sub.Snapshot
	}
	return context.Cause(ctx)
}

// liveWait is how long a reader waits to learn where the logs end if it can do without.
const liveWait = time.Second

// askLogs asks where the logs end now, unless the subscription begins now. A resumed stream needs it
// only to say when it is live, and does not wait for a Redis that is away.
func (r *Reader) askLogs(ctx context.Context, sub Subscription, resumes bool) error {
	must := sub.NoFollow || !resumes && (sub.Last > 0 || sub.Oldest && sub.Snapshot)
	if !must && !(sub.Live && (resumes || sub.Oldest)) {
		return nil
	}
	asked, cancel := ctx, context.CancelFunc(func() {})
	if !must {
		asked, cancel = context.WithTimeout(ctx, liveWait)
	}
	defer cancel()
	for _, l := range r.lanes {
		if err := r.askLog(asked, l, must); err != nil && must {
			return err
		}
	}
	return context.Cause(ctx)
}

// askLog asks where the log of a lane ends now; with must, until there is an answer.
func (r *Reader) askLog(ctx context.Context, l *lane, must bool) error {
	var retry pace.Backoff
	for {
		page, err := l.tail.State(ctx)
		if err == nil {
			l.log, l.target = page, page.Last
			return nil
		}
		if ctx.Err() != nil || !must || !errors.Is(err, redislog.ErrUnavailable) {
			return err
		}
		r.Warn("reading a log failed; trying again", err)
		select {
		case <-retry.After():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// startBefore puts a lane so many events before the end of its log. With none, it stays where the
// tail ends, unless the log was asked.
func (l *lane) startBefore(n int64) {
	if l.log == nil {
		return
	}
	l.place.Pos = l.log.Last
	if origin := l.log.Origin(); n > 0 && l.log.Last.Seq-n > origin.Seq {
		l.place.Pos, l.last = position.Position{Epoch: l.log.Last.Epoch, Seq: l.log.Last.Seq - n}, true
	} else if n > 0 && origin.Seq < l.log.Last.Seq {
		l.place.Pos = position.Position{} // the oldest, also if that is another one by now
	}
	l.began = l.place.Pos
}

// resume puts the lanes where a cursor says, or what a client has sent as its last event id.
func (r *Reader) resume(ctx context.Context, sub Subscription, names []string) error {
	after := sub.After
	if id := sub.LastEventID; id != "" {
		_, err := position.DecodeCursor(id)
		pos, posErr := position.Parse(id)
		switch {
		case isUUID(id):
			return r.startAtEvent(ctx, id)
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
	entries, err := position.Entries(after, names)
	if err != nil {
		return err
	}
	for i, e := range entries {
		l := r.lanes[i]
		if e != nil {
			l.place.Pos, l.began, l.hole, l.unchecked = e.Pos, e.Began, e.Hole, r.noFollow
			continue
		}
		// The channel is new to the cursor. It begins where its log ends, not its tail: an event on
		// its way to the tail may already have been delivered from a channel of the cursor.
		if l.log == nil {
			if err := r.askLog(ctx, l, true); err != nil {
				return err
			}
		}
		l.startBefore(0)
		r.due, r.uncovered = sub.Snapshot, true
	}
	return nil
}

// startAt puts all lanes at a position. From the zero position and from Unknown, load finds in the
// log where a lane begins.
func (r *Reader) startAt(pos position.Position) {
	for _, l := range r.lanes {
		l.place.Pos, l.began = pos, position.Position{}
	}
}

// AtEnd reports whether all channels have ended, and a reader that has resumed is behind their last
// events.
func (r *Reader) AtEnd() bool {
	return !r.uncovered && !slices.ContainsFunc(r.lanes, func(l *lane) bool {
		return !l.tail.Ended(l.place.Pos) && !(l.log != nil && l.log.Ended && l.place.Pos.Same(l.log.Last))
	})
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
	r.leave()
	for _, l := range r.lanes {
		l.tail.Forget(&l.place)
		r.Feed.Release(l.tail)
	}
}
