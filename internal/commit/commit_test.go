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
