package eventbus

import (
	"context"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/testing/sample"
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
	cmd.(interface{ SetVal(any) }).SetVal(answer)
	return nil
}

// newQueue is a queue whose calls get these answers.
func newQueue(answers ...any) *commitQueue {
	o := defaults()
	o.publishTimeout = time.Minute
	return &commitQueue{bus: &Bus{options: o, log: redislog.New(&answering{answers: answers}, "", false, o.keep)}}
}

// newEvent is an event on its way into logs.
func newEvent(channels ...string) *redislog.Commit {
	ev := sample.Event()
	c := &redislog.Commit{ID: ev.ID, Event: ev.AppendJSON(nil), Done: make(chan struct{})}
	for _, channel := range channels {
		c.Records = append(c.Records, redislog.Record{Channel: channel})
	}
	return c
}

// TestOneChannelHoldsUpNobody: where Redis has settled a part of a call, the rest goes on by itself.
func TestOneChannelHoldsUpNobody(t *testing.T) {
	q := newQueue([]any{"+5-1", "!OOM"}, []any{"!OOM"}, []any{"+6-1"})
	commits := []*redislog.Commit{newEvent("project:p"), newEvent("agent:a")}
	for _, c := range commits {
		c.Callers.Add(1)
	}
	left := q.settle(t.Context(), time.Now(), q.bus.log.NewCalls("one", 1, slices.Clone(commits)), true)
	require.Len(t, left, 1)
	require.True(t, isClosed(commits[0].Done))
	require.False(t, isClosed(commits[1].Done))
	require.Nil(t, q.settle(t.Context(), time.Now(), left, false))
	require.True(t, isClosed(commits[1].Done))
	require.NoError(t, commits[1].Records[0].Err)
	require.Equal(t, "6-1", commits[1].Records[0].Pos.String())
	require.EqualValues(t, 1, q.bus.stats.retries.Load())
}

// TestCallsThatNobodyWaitsFor are given up where they certainly have not run, and go on where they may
// have.
func TestCallsThatNobodyWaitsFor(t *testing.T) {
	q := newQueue([]any{"!OOM"})
	c := newEvent("project:p")
	require.Nil(t, q.settle(t.Context(), time.Now(), q.bus.log.NewCalls("one", 1, []*redislog.Commit{c}), true))
	require.True(t, isClosed(c.Done))
	require.True(t, c.Records[0].Sure)
	require.ErrorIs(t, c.Records[0].Err, ErrUnavailable)

	q = newQueue(io.EOF, []any{"!OOM"}, []any{"=5-1"})
	c = newEvent("project:p")
	require.Nil(t, q.settle(t.Context(), time.Now(), q.bus.log.NewCalls("one", 1, []*redislog.Commit{c}), true))
	require.NoError(t, c.Records[0].Err)
	require.True(t, c.Records[0].Again)
}
