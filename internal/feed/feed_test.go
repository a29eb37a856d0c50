package feed

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/redislog"
)

// TestATailThatNobodyReadsIsDroppedAfterAWhile, and its channel unsubscribed: then its log can expire.
func TestATailThatNobodyReadsIsDroppedAfterAWhile(t *testing.T) {
	rdb, err := embedded.New()
	require.NoError(t, err)
	defer rdb.Close()
	f := New(t.Context(), Config{
		Log:       redislog.New(rdb, "", false, func(string) redislog.Retention { return redislog.Retention{Events: 0, Age: 0} }),
		Freshness: time.Hour, Spawn: func(func()) {}, // nothing runs
	})
	tl := f.Acquire("project:p")
	require.NoError(t, f.route(t.Context()))
	f.Acquire("project:p")
	f.Release(tl)
	f.dropCold(time.Now().Add(2 * warmFor))
	require.Equal(t, 1, f.Channels(), "it has a reader")
	f.Release(tl)
	f.dropCold(time.Now())
	require.Equal(t, 1, f.Channels(), "it stays warm for a while")
	f.dropCold(time.Now().Add(2 * warmFor))
	require.Zero(t, f.Channels())
	require.Nil(t, f.carrier["project:p"])
	require.Contains(t, f.links[""].unsent, "project:p")
}
