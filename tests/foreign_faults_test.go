package tests

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// TestReplyToAForeignAppendIsLost: the connection breaks between the call and its answer. The event
// is in the log once, and delivered once.
func TestReplyToAForeignAppendIsLost(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	rdb, project := s.Client(t), uuid.New()
	c, a := eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New())
	bus := newBus(t, split{p.Client(t), rdb}, eventbus.WithForeignLog(), quiet())
	f := follow(t, bus, now(t, bus, c, a))
	var lost atomic.Int64
	for i := range 20 {
		ev := message(t, project, fmt.Sprint(i))
		var did atomic.Bool
		p.SetOnReply(func(asked, _ []byte) bool {
			if bytes.Contains(asked, []byte(ev.ID)) && did.CompareAndSwap(false, true) {
				lost.Add(1)
				return false
			}
			return true
		})
		shout(t, rdb, 1, c, foreign(t, ev))
		shout(t, rdb, 1, a, foreign(t, ev))
		f.count(i + 1)
	}
	require.EqualValues(t, 20, lost.Load())
	require.Eventually(t, func() bool { return rdb.XLen(deadline(t), logKey(a)).Val() == 20 }, time.Minute, time.Millisecond)
	publish(t, bus, project, nil, "20")
	f.count(21)
	f.exactly(countTo(0, 21), 0)
	require.EqualValues(t, 21, rdb.XLen(deadline(t), logKey(c)).Val())
}

// TestRedisIsRestartedBeforeTheAppend: what was heard comes into the new log.
func TestRedisIsRestartedBeforeTheAppend(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	rdb, project := s.Client(t), uuid.New()
	c := eventbus.ProjectChannel(project)
	bus := newBus(t, split{p.Client(t), rdb}, eventbus.WithForeignLog(), quiet())
	f := follow(t, bus, now(t, bus, c))
	shout(t, rdb, 1, c, foreign(t, message(t, project, "0")))
	f.count(1)
	p.SetRefuse(true)
	p.Cut()
	for i := 1; i < 10; i++ {
		shout(t, rdb, 1, c, foreign(t, message(t, project, fmt.Sprint(i))))
	}
	shout(t, rdb, 1, c, "junk") // it comes behind them
	settle(t, bus, 1)
	s.Kill()
	s.Restart(t)
	p.SetRefuse(false)
	f.count(10)
	f.exactly(countTo(0, 10), 1) // the log that was there is lost
	require.EqualValues(t, 9, rdb.XLen(deadline(t), logKey(c)).Val())
}

// TestRedisRefusesForeignEvents for a while: Health says so. Then they come, in order.
func TestRedisRefusesForeignEvents(t *testing.T) {
	rdb := redistest.Start(t).Client(t)
	project := uuid.New()
	bus := newBus(t, rdb, eventbus.WithForeignLog(), eventbus.WithFreshness(time.Second), quiet())
	c := eventbus.ProjectChannel(project)
	f := follow(t, bus, now(t, bus, c))
	shout(t, rdb, 1, c, foreign(t, message(t, project, "0")))
	f.count(1)
	require.NoError(t, rdb.ConfigSet(deadline(t), "maxmemory", "1").Err())
	const n = 500
	for i := 1; i < n; i++ {
		shout(t, rdb, 1, c, foreign(t, message(t, project, fmt.Sprint(i))))
	}
	require.Eventually(t, func() bool {
		err := bus.Health()
		return err != nil && strings.Contains(err.Error(), "foreign events wait for") && strings.Contains(err.Error(), "OOM")
	}, time.Minute, time.Millisecond)
	require.ErrorIs(t, bus.Health(), eventbus.ErrUnavailable)
	f.exactly([]string{"0"}, 0)
	require.NoError(t, rdb.ConfigSet(deadline(t), "maxmemory", "0").Err())
	f.count(n)
	f.exactly(countTo(0, n), 0)
	require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, time.Millisecond)
	require.Zero(t, bus.Stats().Unreadable)
}

// TestShutdownBringsInWhatWasHeard, though Redis is slow.
func TestShutdownBringsInWhatWasHeard(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	rdb, project := s.Client(t), uuid.New()
	c := eventbus.ProjectChannel(project)
	bus := newBus(t, split{p.Client(t), rdb}, eventbus.WithForeignLog(), quiet())
	relay(t, bus)
	p.SetDelay(50 * time.Millisecond)
	pipe := rdb.Pipeline()
	const n = 1000
	listened(t, rdb, 1, c)
	for i := range n {
		pipe.Publish(deadline(t), c.String(), foreign(t, message(t, project, fmt.Sprint(i))))
	}
	pipe.Publish(deadline(t), c.String(), "junk") // it comes behind them
	_, err := pipe.Exec(deadline(t))
	require.NoError(t, err)
	settle(t, bus, 1)
	require.Less(t, rdb.XLen(deadline(t), logKey(c)).Val(), int64(n))
	require.NoError(t, bus.Shutdown(deadline(t)))
	require.EqualValues(t, n, rdb.XLen(deadline(t), logKey(c)).Val())

	frozen := newBus(t, split{p.Client(t), rdb}, eventbus.WithForeignLog(), quiet())
	relay(t, frozen)
	listened(t, rdb, 1, c)
	p.Freeze()
	defer p.Thaw()
	shout(t, rdb, 1, c, foreign(t, message(t, project, "stuck")))
	shout(t, rdb, 1, c, "junk")
	settle(t, frozen, 1)
	ctx, cancel := context.WithCancel(deadline(t))
	cancel()
	require.ErrorIs(t, frozen.Shutdown(ctx), context.Canceled)
}

// TestTheBusesOwnChannelHasNoForeignEvents: revocations are for buses.
func TestTheBusesOwnChannelHasNoForeignEvents(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx := newBus(t, rdb, eventbus.WithForeignLog(), quiet()), deadline(t)
		project := uuid.New()
		c := eventbus.ProjectChannel(project)
		f := follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{c}, Identity: "me", Oldest: true})
		publish(t, bus, project, nil, "0")
		f.count(1)
		own := rdb.PubSubChannels(ctx, "eventbus:*").Val()
		require.Len(t, own, 1)
		require.NoError(t, rdb.Publish(ctx, own[0], foreign(t, message(t, uuid.New(), "x"))).Err())
		settle(t, bus, 1) // it is no revocation
		require.Zero(t, rdb.XLen(ctx, "eventbus:log:{"+own[0]+"}").Val())
		require.NoError(t, newBus(t, rdb, eventbus.WithForeignLog()).Revoke(ctx, "me"))
		<-f.done
	})
}

// TestABusThatTakesLessIsNotDeaf: another bus logs what is too large for this one, which finds it
// there only.
func TestABusThatTakesLessIsNotDeaf(t *testing.T) {
	rdb, project := redistest.Start(t).Client(t), uuid.New()
	var log lockedBuffer
	c := eventbus.ProjectChannel(project)
	large := newBus(t, rdb, eventbus.WithForeignLog())
	small := newBus(t, rdb, eventbus.WithForeignLog(), eventbus.WithMaxEventSize(1<<10), eventbus.WithFreshness(100*time.Millisecond), eventbus.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	follow(t, large, now(t, large, c))
	f := follow(t, small, now(t, small, c))
	big := strings.Repeat("x", 2<<10)
	for i := range 10 {
		shout(t, rdb, 2, c, foreign(t, message(t, project, big)))
		f.count(i + 1)
	}
	require.NotContains(t, log.String(), "does not bring")
	require.Zero(t, small.Stats().Reconnects)
}
