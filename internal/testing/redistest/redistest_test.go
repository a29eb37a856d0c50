package redistest_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/internal/testing/redistest"
)

func TestSentinelsAnswerForTheirMaster(t *testing.T) {
	s := redistest.StartSentinels(t, 1)
	require.NoError(t, s.Client(t).Set(context.Background(), "a", "b", 0).Err())
	require.Equal(t, "b", s.Master.Client(t).Get(context.Background(), "a").Val())
}

func TestClusterTakesEverySlot(t *testing.T) {
	c := redistest.StartCluster(t, 3, true)
	rdb := c.Client(t)
	for _, key := range []string{"a", "b", "c", "d"} {
		require.NoError(t, rdb.Set(context.Background(), key, "x", 0).Err())
	}
}
