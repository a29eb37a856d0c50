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

// newEvent makes the commit of an event into the logs of channels.
func newEvent(channels ...string) *redislog.Commit {
	ev := sample.Event()
	c := &redislog.Commit{ID: ev.ID, Event: ev.AppendJSON(nil), Done: make(chan struct{})}
	for _, channel := range channels {
		c.Records = append(c.Records, redislog.Record{Channel: channel})
	}
	return c
}

// TestOneChannelHoldsUpNobody: where Redis has settled a part of a call, the rest goes on by
// itself.
func TestOneChannelHoldsUpNobody(t *testing.T) {
	q := newQueue([]any{"+5-1", "!OOM"}, []any{"!OOM"}, []any{"+6-1"})
	commits := []*redislog.Commit{newEvent("project:p"), newEvent("agent:a")}
	for _, c := range commits {
		c.Callers.Add(1)
	}
	left := q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, slices.Clone(commits)), true)
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
	c := newEvent("project:p")
	require.Nil(t, q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, []*redislog.Commit{c}), true))
	require.True(t, c.Closed())
	require.True(t, c.Records[0].Sure)
	require.ErrorIs(t, c.Records[0].Err, redislog.ErrUnavailable)

	q = newQueue(io.EOF, []any{"!OOM"}, []any{"=5-1"})
	c = newEvent("project:p")
	require.Nil(t, q.settle(t.Context(), time.Now(), q.Log.NewCalls("one", 1, []*redislog.Commit{c}), true))
	require.NoError(t, c.Records[0].Err)
	require.True(t, c.Records[0].Again)
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
