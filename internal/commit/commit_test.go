package commit

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/testing/sample"
)

// An answering client has the answers to calls of append.lua.
type answering struct {
	redislog.Client
	answers []any // replies, or errors
}

func (c *answering) Process(_ context.Context, cmd redis.Cmder) error {
	answer := c.answers[0]
	c.answers = c.answers[1:]
	if err, ok := answer.(error); ok {
		return err
	}
	cmd.(interface{ SetVal(any) }).SetVal(answer)
	return nil
}

// newQueue makes a queue whose calls get these answers.
func newQueue(answers ...any) *commitQueue {
	log := redislog.New(&answering{answers: answers}, "", false, func(string) redislog.Retention { return redislog.Retention{Events: 0, Age: 0} })
	return &commitQueue{Committer: New(context.Background(), Config{Log: log, Timeout: time.Minute})}
}

// newBatch makes the batch of some events into the log of a channel. callers wait for it.
func newBatch(channel string, events, callers int) (*redislog.Batch, []*redislog.Commit) {
	b := &redislog.Batch{Done: make(chan struct{})}
	b.Callers.Add(int32(callers))
	for range events {
		ev := sample.Event()
		b.Commits = append(b.Commits, &redislog.Commit{ID: ev.ID, Event: ev.AppendJSON(nil), Records: []redislog.Record{{Channel: channel}}})
	}
	return b, slices.Clone(b.Commits)
}

// TestOneChannelHoldsUpNobody: where Redis has settled a part of a call, the rest goes on by
// itself.
func TestOneChannelHoldsUpNobody(t *testing.T) {
	q := newQueue([]any{"+5-1", "!OOM"}, []any{"!OOM"}, []any{"+6-1"})
	one, first := newBatch("project:p", 1, 1)
	other, second := newBatch("agent:a", 1, 1)
	commits := slices.Concat(first, second)
	left := q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, []*redislog.Batch{one, other}), true)
	require.Len(t, left, 1)
	require.True(t, commits[0].Closed())
	require.False(t, commits[1].Closed())
	require.Nil(t, q.settle(t.Context(), time.Now(), left, false))
	require.True(t, commits[1].Closed())
	require.NoError(t, commits[1].Records[0].Err)
	require.Equal(t, "6-1", commits[1].Records[0].Pos.String())
	require.EqualValues(t, 1, q.Retries.Load())
}

// TestCallsThatNobodyWaitsFor: a call that certainly has not run is given up, and one that may have
// run is repeated.
func TestCallsThatNobodyWaitsFor(t *testing.T) {
	q := newQueue([]any{"!OOM"})
	b, commits := newBatch("project:p", 1, 0)
	require.Nil(t, q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, []*redislog.Batch{b}), true))
	require.True(t, commits[0].Closed())
	require.True(t, commits[0].Records[0].Sure)
	require.ErrorIs(t, commits[0].Records[0].Err, redislog.ErrUnavailable)

	q = newQueue(io.EOF, []any{"!OOM"}, []any{"=5-1"})
	b, commits = newBatch("project:p", 1, 0)
	require.Nil(t, q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, []*redislog.Batch{b}), true))
	require.NoError(t, commits[0].Records[0].Err)
	require.True(t, commits[0].Records[0].Again)
}

// TestAPublishThatSharesACallWithAWriter is given up as early as without it, and certainly is in no
// log. The Writer's batch goes on by itself.
func TestAPublishThatSharesACallWithAWriter(t *testing.T) {
	q := newQueue([]any{"!OOM\n!OOM\n!OOM"}, []any{"!OOM\n!OOM"}, []any{"+5-1"})
	publish, published := newBatch("project:p", 1, 1)
	write, written := newBatch("project:p", 2, 1)
	write.Patient.Store(true)
	began := time.Now().Add(-q.Timeout)
	left := q.settle(t.Context(), began, q.Log.NewCalls("one", 1, []*redislog.Batch{publish, write}), true)
	<-publish.Done
	require.True(t, published[0].Records[0].Sure)
	require.ErrorIs(t, published[0].Records[0].Err, redislog.ErrUnavailable)
	require.Len(t, left, 1)
	require.False(t, written[0].Closed())
	require.Nil(t, q.settle(t.Context(), began, left, false))
	<-write.Done
	require.Equal(t, "5-1 5-2", written[0].Records[0].Pos.String()+" "+written[1].Records[0].Pos.String())
}

// TestAWriterHoldsUpNobody: its batch goes on by itself, and is given up after 10 minutes.
func TestAWriterHoldsUpNobody(t *testing.T) {
	q := newQueue([]any{"!OOM\n!OOM"}, []any{"!OOM\n!OOM"})
	b, commits := newBatch("project:p", 2, 1)
	b.Patient.Store(true)
	left := q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, []*redislog.Batch{b}), true)
	require.Len(t, left, 1)
	require.Nil(t, q.settle(t.Context(), time.Now().Add(-commitPatience), left, false))
	<-b.Done
	require.True(t, commits[1].Records[0].Sure)
}

// TestALastingErrorEndsItsBatch: what Redis refuses for now is not tried again behind it.
func TestALastingErrorEndsItsBatch(t *testing.T) {
	q := newQueue([]any{"+5-1\n!WRONGTYPE\n!OOM\n!OOM"}, []any{"+6-1"})
	b, commits := newBatch("project:p", 3, 1)
	other, others := newBatch("project:p", 1, 1)
	left := q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, []*redislog.Batch{b, other}), true)
	<-b.Done
	require.NoError(t, commits[0].Records[0].Err)
	require.ErrorContains(t, commits[1].Records[0].Err, "WRONGTYPE")
	require.True(t, commits[2].Closed())
	require.True(t, commits[2].Records[0].Sure)
	require.Nil(t, q.settle(t.Context(), time.Now(), left, false))
	require.Equal(t, "6-1", others[0].Records[0].Pos.String())
}

// TestTakeNeverDividesABatch, and takes what fits beside it.
func TestTakeNeverDividesABatch(t *testing.T) {
	q := newQueue()
	q.wake = make(pace.Flag, 1)
	for _, n := range []int{1, batchRecords, 30, 30, 10, 1} {
		b, _ := newBatch("project:p", n, 1)
		q.waiting = append(q.waiting, b)
	}
	for _, want := range [][]int{{1}, {batchRecords}, {30, 30}, {10, 1}, nil} {
		var got []int
		for _, b := range q.take() {
			got = append(got, len(b.Commits))
		}
		require.Equal(t, want, got)
	}
}

// TestFit: a batch has the same channels and is not larger than a call, and an event of unknown fate
// goes alone.
func TestFit(t *testing.T) {
	cs := newQueue().Committer
	events := func(n int, channels ...string) (evs []Event) {
		for range n {
			ev := sample.Event()
			evs = append(evs, Event{ID: ev.ID, JSON: ev.AppendJSON(nil), Channels: channels})
		}
		return evs
	}
	one, two, other := []string{"run:r"}, []string{"run:r", "user:u"}, []string{"run:s"}
	require.Equal(t, batchRecords, cs.fit(events(500, one...)))
	require.Equal(t, batchRecords/2, cs.fit(events(500, two...)))
	require.Equal(t, 3, cs.fit(slices.Concat(events(3, one...), events(3, other...))))
	large := events(3, one...)
	large[0].JSON, large[1].JSON = make([]byte, 2*commitBytes), make([]byte, 1)
	require.Equal(t, 1, cs.fit(large))
	require.Equal(t, 2, cs.fit(large[1:]))
	known := events(5, one...)
	cs.outcomes.put(&Publication{id: known[2].ID})
	require.Equal(t, 2, cs.fit(known))
	require.Equal(t, 1, cs.fit(known[2:]))
	require.Equal(t, 2, cs.fit(known[3:]))
	cs.Log.PerChannel = true
	require.Equal(t, batchRecords, cs.fit(events(500, two...)))
}

// TestOutcomesAreBounded: where there are too many, the oldest is dropped.
func TestOutcomesAreBounded(t *testing.T) {
	var o outcomes
	for i := range mostOutcomes + 10 {
		o.put(&Publication{id: fmt.Sprint(i)})
	}
	require.Len(t, o.of, mostOutcomes)
	require.Nil(t, o.get("9"))
	kept := o.get("10")
	require.NotNil(t, kept)
	o.drop(kept)
	require.Nil(t, o.get("10"))
	require.Equal(t, mostOutcomes-1, o.order.Len())
}
