package tests

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// TestOldMasterThatStillAnswersIsNoticed leaves the feed on a server that answers every
// ping, but is not the one that is published to any more. New connections would go to
// the right one.
func TestOldMasterThatStillAnswersIsNoticed(t *testing.T) {
	old, master := redistest.Start(t), redistest.Start(t)
	feed := redistest.StartProxy(t, old.Addr)
	bus, project := newBus(t, split{master.Client(t), feed.Client(t)}, eventbus.WithFreshness(500*time.Millisecond)), uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	require.Eventually(t, func() bool {
		return old.Client(t).PubSubNumSub(deadline(t), "project:"+project.String()).Val()["project:"+project.String()] == 1
	}, time.Minute, 10*time.Millisecond)
	feed.SetTarget(master.Addr)
	publisher := newBus(t, master.Client(t))
	i := 0
	require.Eventually(t, func() bool {
		require.NoError(t, publisher.Publish(deadline(t), message(t, project, fmt.Sprint(i))))
		i++
		return bus.Stats().Reconnects > 0
	}, time.Minute, 20*time.Millisecond)
	require.Eventually(t, func() bool {
		return master.Client(t).PubSubNumSub(deadline(t), "project:"+project.String()).Val()["project:"+project.String()] == 1
	}, time.Minute, 10*time.Millisecond)
	f.count(i)
	f.exactly(countTo(0, i), 0)
	require.NoError(t, bus.Health())
}

// TestBusyFeedIsNotTakenForDeaf compares tails with their logs all the time while
// events come: what is on its way is no reason to connect anew.
func TestBusyFeedIsNotTakenForDeaf(t *testing.T) {
	s := redistest.Start(t)
	var log lockedBuffer
	bus := newBus(t, s.Client(t), eventbus.WithFreshness(100*time.Millisecond), eventbus.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	publisher, project := newBus(t, s.Client(t)), uuid.New()
	f := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	const n = 3000
	for i := range n {
		require.NoError(t, publisher.Publish(deadline(t), message(t, project, fmt.Sprint(i))))
	}
	f.count(n)
	f.exactly(countTo(0, n), 0)
	require.NotContains(t, log.String(), "does not bring")
}

// A lockedBuffer takes what is logged.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }
