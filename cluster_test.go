package eventbus_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/redistest"
)

// TestClusterCarriesEventsToEveryChannel publishes to channels in several slots, and
// resumes over all of them.
func TestClusterCarriesEventsToEveryChannel(t *testing.T) {
	rdb := redistest.StartCluster(t, 3, false).Client(t)
	bus, ctx, project := newBus(t, rdb), deadline(t), uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(project)}
	for range 5 {
		channels = append(channels, eventbus.AgentChannel(uuid.New()))
	}
	sub := now(t, bus, channels...)
	live := follow(t, bus, sub)
	const n = 100
	for i := range n {
		require.NoError(t, bus.Publish(ctx, message(t, project, fmt.Sprint(i)), channels[1:]...))
	}
	for _, c := range channels {
		require.EqualValues(t, n, rdb.XLen(ctx, logKey(c)).Val())
	}
	live.count(n)
	live.exactly(countTo(0, n), 0)
	resumed := follow(t, newBus(t, rdb), sub)
	resumed.count(n)
	resumed.exactly(countTo(0, n), 0)
	raw, err := message(t, project, "foreign").MarshalJSON()
	require.NoError(t, err)
	require.NoError(t, rdb.Publish(ctx, channels[0].String(), raw).Err())
	live.count(n + 1)
}
