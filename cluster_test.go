package eventbus_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

// startCluster starts three masters that share the slots.
func startCluster(t *testing.T) *redis.ClusterClient {
	var nodes []*server
	var addrs []string
	for range 3 {
		s := startRedis(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
		nodes, addrs = append(nodes, s), append(addrs, s.addr)
	}
	ctx := deadline(t)
	for i, s := range nodes {
		rdb := s.client(t)
		from, until := i*16384/3, (i+1)*16384/3-1
		require.NoError(t, rdb.ClusterAddSlotsRange(ctx, from, until).Err())
		host, port, err := net.SplitHostPort(addrs[0])
		require.NoError(t, err)
		require.NoError(t, rdb.ClusterMeet(ctx, host, port).Err())
	}
	for _, s := range nodes {
		rdb := s.client(t)
		require.Eventually(t, func() bool {
			return strings.Contains(rdb.ClusterInfo(ctx).Val(), "cluster_state:ok") && strings.Count(rdb.ClusterNodes(ctx).Val(), "master") == 3
		}, time.Minute, 10*time.Millisecond)
	}
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// TestClusterCarriesEventsToEveryChannel publishes to channels in several slots, and
// resumes over all of them.
func TestClusterCarriesEventsToEveryChannel(t *testing.T) {
	rdb := startCluster(t)
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
