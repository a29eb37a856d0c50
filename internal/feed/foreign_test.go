package feed

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/testing/sample"
	"github.com/syndarix/eventbus/internal/wire"
)

// newTestForeignLog makes a foreignLog whose events nobody takes. unlogged counts what is dropped.
func newTestForeignLog(t *testing.T, cluster bool) (q *foreignLog, unlogged *int) {
	log := redislog.New(nil, "", false, nil)
	log.PerChannel = cluster
	unlogged = new(int)
	f := New(t.Context(), Config{Log: log, ForeignLog: true, Unlogged: func(error) { *unlogged++ }})
	return f.foreign, unlogged
}

// TestWhatWaitsForRedisHasABound, and what is above it is counted.
func TestWhatWaitsForRedisHasABound(t *testing.T) {
	q, unlogged := newTestForeignLog(t, false)
	q.put("run:r", "run:r", sample.Event(), 2*foreignBytes) // one always fits
	q.put("run:r", "run:r", sample.Event(), 1)
	require.Equal(t, 1, *unlogged)
	q.heard[0].Err = redislog.ErrEnded
	require.True(t, q.settled(q.heard[0]))
	require.Equal(t, 2, *unlogged)
	q.heard = nil
	for range 1000 {
		q.put("run:r", "run:r", sample.Event(), foreignBytes/100)
	}
	require.Equal(t, 2+1000-len(q.heard), *unlogged)
	require.Len(t, q.heard, 99)
}

// TestAnEventIsTriedForTenMinutes, and dropped then.
func TestAnEventIsTriedForTenMinutes(t *testing.T) {
	q, unlogged := newTestForeignLog(t, false)
	q.put("run:r", "run:r", sample.Event(), 1)
	e := q.heard[0]
	e.Err = redislog.Error(redislog.ErrUnavailable, fmt.Errorf("OOM"))
	require.False(t, q.settled(e))
	e.since = e.since.Add(-foreignPatience + time.Minute)
	require.False(t, q.settled(e))
	e.since = e.since.Add(-time.Minute)
	require.True(t, q.settled(e))
	require.Equal(t, 1, *unlogged)
	require.Zero(t, q.bytes)
	require.NoError(t, q.feed.Drain(t.Context()))
}

// TestBatchesInACluster: an event is on its way to one channel's log at a time, the next one learns
// where it is, and each channel keeps its order.
func TestBatchesInACluster(t *testing.T) {
	q, _ := newTestForeignLog(t, true)
	a, b := &foreignNode{}, &foreignNode{}
	one, two := sample.Event(), sample.Event()
	for _, on := range []string{"project:p", "agent:a", "user:u"} {
		for _, ev := range []wire.Event{one, one, two} {
			q.put(on, on, ev, 1)
		}
	}
	for _, e := range q.heard {
		q.chain(e)
	}
	project, agent, user := q.heard[:3], q.heard[3:6], q.heard[6:]
	a.waiting = slices.Concat(user, project) // of one node
	b.waiting = agent
	take := func(n *foreignNode, want ...*unlogged) []*unlogged {
		got := q.take(n)
		require.Equal(t, want, got)
		return got
	}
	require.Empty(t, q.take(b), "both events were heard on another channel first")
	first := take(a, project...)
	require.Empty(t, q.take(b), "both events are on their way")
	require.Equal(t, user, a.waiting)
	for i, e := range first {
		e.Event.Position = position.Position{Epoch: 5, Seq: int64(i + 1)}
	}
	first[2].Event.Also = "run:r@7-7"
	q.learn(first)
	next := take(b, agent...)
	require.Equal(t, "project:p@5-1 project:p@5-2", next[0].Event.Also)
	require.Equal(t, "run:r@7-7 project:p@5-3", next[2].Event.Also)
	require.Empty(t, q.take(a))
	q.learn(next)
	q.learn(take(a, user...))
	require.Empty(t, q.newest)
}

// TestALoneRedisGetsTheNextEvents in their order, as many as fit into a batch.
func TestALoneRedisGetsTheNextEvents(t *testing.T) {
	q, _ := newTestForeignLog(t, false)
	for i := range 3*foreignBatch + 2 {
		q.put("run:r", "run:r", sample.Event(), 1+i/(3*foreignBatch)*(1<<20))
	}
	n := &foreignNode{waiting: q.heard}
	for i, want := range []int{foreignBatch, foreignBatch, foreignBatch, 1, 1, 0} {
		require.Len(t, q.take(n), want, i)
	}
}

// TestPlacesAreForgotten, the oldest first.
func TestPlacesAreForgotten(t *testing.T) {
	var p places
	for i := range 3 * placesEvents {
		p.add(fmt.Sprint(i), []string{"a@1-1"})
		require.NotEmpty(t, p.of(fmt.Sprint(max(0, i-placesEvents))))
	}
	require.Empty(t, p.of("0"))
	require.LessOrEqual(t, len(p.newer)+len(p.older), 2*placesEvents)
	for i := range 100 {
		p.add("x", []string{fmt.Sprint("a@1-", i), "a@1-0"})
	}
	require.Len(t, p.of("x"), 40*len("a@1-0 ")+30-1)
}
