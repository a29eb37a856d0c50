package reader

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/testing/sample"
)

// TestAReaderSleepsWhileALogCannotBeRead: while Redis is away, a reader has one channel from the tail (in doubt, but anyway), and another
// whose place is behind the ring: it tries the log again now and then, and sleeps in between.
func TestAReaderSleepsWhileALogCannotBeRead(t *testing.T) {
	var warned atomic.Int64
	away := func(_ tail.Request, done func(*position.Page, error)) {
		go done(nil, errors.New("away"))
	}
	at := func(seq int64) position.Position { return position.Position{Epoch: 1000, Seq: seq} }
	newTail := func(name string) *tail.Tail {
		tl := tail.New(name, name, new(tail.Memory), func(error) {}, func(f func()) { go f() }, away)
		require.True(t, tl.Fill(tl.Want(), &position.Page{Last: at(5)}, true))
		return tl
	}
	a, b := newTail("a:a"), newTail("b:b")
	r := &Reader{Readers: NewReaders(Config{Log: &redislog.Log{}, Closed: context.Background(), Draining: context.Background(),
		Warn: func(string, error) { warned.Add(1) }}), waiter: pace.NewFlag(), key: position.NewKey([]string{"a:a", "b:b"})}
	for _, tl := range []*tail.Tail{a, b} {
		r.lanes = append(r.lanes, &lane{tail: tl, place: tail.Place{Waiter: r.waiter}})
		tl.Begin(&r.lanes[len(r.lanes)-1].place)
	}
	r.lanes[1].place.Pos = at(1) // behind the ring
	ev := sample.Event()
	ev.Position = at(6)
	require.True(t, a.Offer(ev))
	a.Cut() // the connection broke before the reader looked
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	defer r.WakeOn(ctx)()
	st, err := r.Next(ctx, false)
	require.NoError(t, err)
	require.Len(t, st.Entries, 1)
	for range r.Events(st) {
	}
	warned.Store(0)
	_, err = r.Next(ctx, false)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, warned.Load(), int64(50))
}
