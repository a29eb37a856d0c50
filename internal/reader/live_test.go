package reader

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/testing/sample"
	"github.com/syndarix/eventbus/internal/wire"
)

func at(seq int64) position.Position { return position.Position{Epoch: 1000, Seq: seq} }

// eventAt makes an event at a position.
func eventAt(seq int64) wire.Event {
	ev := sample.Event()
	ev.Position = at(seq)
	return ev
}

// entryAt makes an entry of a log.
func entryAt(seq int64) position.LogEntry {
	ev := sample.Event()
	p := at(seq)
	p.Fingerprint = position.Fingerprint(ev.ID)
	return position.LogEntry{Pos: p, Event: ev.AppendJSON(nil)}
}

// readerOf makes a reader of tails that nobody has filled, with logs that read gives pages of.
func readerOf(t *testing.T, read func(tail.Request) *position.Page, names ...string) *Reader {
	r := &Reader{Readers: NewReaders(Config{Log: &redislog.Log{}, Closed: context.Background(), Draining: context.Background(),
		Spawn: func(f func()) { go f() }, Warn: func(string, error) {}}), waiter: pace.NewFlag(), key: position.NewKey(names)}
	for _, name := range names {
		tl := tail.New(name, name, new(tail.Memory), func(err error) { t.Error(err) }, func(f func()) { go f() },
			func(q tail.Request, done func(*position.Page, error)) { go func() { done(read(q), nil) }() })
		r.lanes = append(r.lanes, &lane{tail: tl, place: tail.Place{Waiter: r.waiter}})
	}
	return r
}

// liveReaderOf makes a reader that stands at the ends of its tails, at number 0.
func liveReaderOf(t *testing.T, read func(tail.Request) *position.Page, names ...string) *Reader {
	r := readerOf(t, read, names...)
	for _, l := range r.lanes {
		require.True(t, l.tail.Fill(l.tail.Want(), &position.Page{Last: at(0)}, true))
		l.tail.Begin(&l.place)
	}
	r.live = true
	return r
}

// TestNoFollowLeavesOutWhatComesMeanwhile: the log has more than 5 events by the time it is read.
func TestNoFollowLeavesOutWhatComesMeanwhile(t *testing.T) {
	r := readerOf(t, func(q tail.Request) *position.Page {
		p := &position.Page{Last: at(5), First: at(1), Asked: q.From}
		if q.Count > 0 {
			for p.Last = at(8); len(p.Entries) < 8; {
				p.Entries = append(p.Entries, entryAt(int64(len(p.Entries)+1)))
			}
		}
		return p
	}, "run:a")
	r.noFollow = true
	require.NoError(t, r.start(t.Context(), Subscription{Oldest: true, NoFollow: true}, []string{"run:a"}))
	n := 0
	for {
		st, err := r.Next(t.Context(), true)
		if err != nil {
			require.Equal(t, ErrDone, err)
			break
		}
		for range r.Events(st) {
			n++
		}
	}
	require.Equal(t, 5, n)
}

// TestTheEndWaitsForTheLaneThatDeliversTheLastEvent: the other channel's message is still on its way.
func TestTheEndWaitsForTheLaneThatDeliversTheLastEvent(t *testing.T) {
	r := liveReaderOf(t, nil, "project:p", "run:a")
	last := eventAt(1)
	in := last
	in.Also, in.Final = "project:p@1000-1", true
	require.True(t, r.lanes[1].tail.Offer(in))
	next := func() step {
		r.ring() // there is a timeout if there is nothing else
		st, err := r.Next(t.Context(), false)
		require.NoError(t, err)
		return st
	}
	st := next()
	require.Len(t, st.Entries, 1)
	for range r.Events(st) {
		t.Fatal("the event is the other lane's to deliver")
	}
	require.True(t, next().timeout, "the end comes behind the event")
	require.True(t, r.lanes[0].tail.Offer(last))
	delivered := 0
	for st = next(); len(st.Entries) > 0; st = next() {
		for range r.Events(st) {
			delivered++
		}
	}
	require.Equal(t, 1, delivered)
	require.True(t, st.end)
	require.Equal(t, 1, st.Channel)
}

// TestAnEndThatWasLostIsSaidAgain: a new master lacks the last event. What follows is delivered, and
// the log's new end, too.
func TestAnEndThatWasLostIsSaidAgain(t *testing.T) {
	r := liveReaderOf(t, func(q tail.Request) *position.Page { return &position.Page{Last: at(0), Asked: q.From} }, "run:a", "run:b")
	last := eventAt(1)
	last.Final = true
	tl := r.lanes[0].tail
	require.True(t, tl.Offer(last))
	next := func() step {
		st, err := r.Next(t.Context(), false)
		require.NoError(t, err)
		for range r.Events(st) {
		}
		return st
	}
	require.Len(t, next().Entries, 1)
	require.True(t, next().end)
	tl.Cut()
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: at(0), Asked: at(1)}, true))
	require.Equal(t, position.Rewound, next().Gap.Reason)
	again := eventAt(1)
	again.Final = true
	require.True(t, tl.Offer(again))
	require.Len(t, next().Entries, 1)
	require.True(t, next().end)
}

// trimmedMeanwhile gives the state of a log with 10 events, and pages of what is left of it: the
// events from first on.
func trimmedMeanwhile(first int64) func(tail.Request) *position.Page {
	return func(q tail.Request) *position.Page {
		p := &position.Page{Last: at(10), First: at(1), Asked: q.From}
		if q.Count > 0 {
			p.First = at(first)
			for i := first; i <= 10; i++ {
				p.Entries = append(p.Entries, entryAt(i))
			}
		}
		return p
	}
}

func TestOldestWithASnapshotWhereTheFirstEventGoesMeanwhile(t *testing.T) {
	r := readerOf(t, trimmedMeanwhile(5), "run:a")
	require.NoError(t, r.start(t.Context(), Subscription{Oldest: true, Snapshot: true, Live: true}, []string{"run:a"}))
	require.False(t, r.due)
	st, err := r.Next(t.Context(), true)
	require.NoError(t, err)
	require.NotNil(t, st.Gap, "it brings a snapshot")
}

func TestLastWhereItsFirstEventGoesMeanwhile(t *testing.T) {
	r := readerOf(t, trimmedMeanwhile(8), "run:a")
	require.NoError(t, r.start(t.Context(), Subscription{Last: 6}, []string{"run:a"}))
	st, err := r.Next(t.Context(), true)
	require.NoError(t, err)
	require.Nil(t, st.Gap)
	require.Len(t, st.Entries, 3)
}

// TestLiveWhereTheLogWentBackInFrontOfTheReader: the log does not come to where it ended before. A
// later read of the tail shows that.
func TestLiveWhereTheLogWentBackInFrontOfTheReader(t *testing.T) {
	r := liveReaderOf(t, func(q tail.Request) *position.Page { return &position.Page{Last: at(10), Asked: q.From} }, "run:a")
	require.NoError(t, r.start(t.Context(), Subscription{LastEventID: at(0).String(), Live: true}, []string{"run:a"}))
	r.live = false
	tl := r.lanes[0].tail
	for range 2 {
		r.ring()
		st, err := r.Next(t.Context(), true)
		require.NoError(t, err)
		require.True(t, st.timeout)
		require.True(t, tl.Fill(tl.Want(), &position.Page{Last: at(0)}, true))
	}
	st, err := r.Next(t.Context(), true)
	require.NoError(t, err)
	require.True(t, st.live)
}

// TestBlockOfASnapshotIsShared by the streams at the same cursor: many can join with a large state.
func TestBlockOfASnapshotIsShared(t *testing.T) {
	f := &flight{state: []byte(`{"a":1}`)}
	one, two := f.block("c", "joined"), f.block("c", "joined")
	require.Same(t, &one[0], &two[0])
	require.Equal(t, len(one), cap(one), "an append cannot reach what others have")
	for _, other := range [][]byte{f.block("d", "joined"), f.block("d", "lost")} {
		require.NotEqual(t, string(one), string(other))
	}
	require.Contains(t, string(f.block("d", "lost")), `id: d
event: stream.snapshot
data: {"reason":"lost","state":{"a":1}}`)
}
