package eventbus

import (
	"context"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// An answering client gives what it is told to as the answers to calls of append.lua.
type answering struct {
	Client
	answers []any // replies, or errors
}

func (c *answering) Process(_ context.Context, cmd redis.Cmder) error {
	answer := c.answers[0]
	c.answers = c.answers[1:]
	if err, ok := answer.(error); ok {
		return err
	}
	cmd.(onceCmd).SetVal(answer)
	return nil
}

// newQueue is a queue whose calls get these answers.
func newQueue(answers ...any) *commitQueue {
	o := defaults()
	o.publishTimeout = time.Minute
	return &commitQueue{bus: &Bus{options: o, log: newTestLog(&answering{answers: answers})}}
}

// TestOneChannelHoldsUpNobody: where Redis has settled a part of a call, the rest goes on by itself.
func TestOneChannelHoldsUpNobody(t *testing.T) {
	q := newQueue([]any{"+5-1", "!OOM"}, []any{"!OOM"}, []any{"+6-1"})
	commits := []*commit{newCommit(t, false, "project:p"), newCommit(t, false, "agent:a")}
	for _, c := range commits {
		c.callers.Add(1)
	}
	left := q.settle(t.Context(), time.Now(), q.bus.log.newAppendCalls("one", 1, slices.Clone(commits)), true)
	require.Len(t, left, 1)
	require.True(t, isClosed(commits[0].done))
	require.False(t, isClosed(commits[1].done))
	require.Nil(t, q.settle(t.Context(), time.Now(), left, false))
	require.True(t, isClosed(commits[1].done))
	require.NoError(t, commits[1].records[0].err)
	require.Equal(t, "6-1", commits[1].records[0].pos.String())
	require.EqualValues(t, 1, q.bus.stats.retries.Load())
}

// TestCallsThatNobodyWaitsFor are given up where they certainly have not run, and go on where they may
// have.
func TestCallsThatNobodyWaitsFor(t *testing.T) {
	q := newQueue([]any{"!OOM"})
	c := newCommit(t, false, "project:p")
	require.Nil(t, q.settle(t.Context(), time.Now(), q.bus.log.newAppendCalls("one", 1, []*commit{c}), true))
	require.True(t, isClosed(c.done))
	require.True(t, c.records[0].sure)
	require.ErrorIs(t, c.records[0].err, ErrUnavailable)

	q = newQueue(io.EOF, []any{"!OOM"}, []any{"=5-1"})
	c = newCommit(t, false, "project:p")
	require.Nil(t, q.settle(t.Context(), time.Now(), q.bus.log.newAppendCalls("one", 1, []*commit{c}), true))
	require.NoError(t, c.records[0].err)
	require.True(t, c.records[0].again)
}
