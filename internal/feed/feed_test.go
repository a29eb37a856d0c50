package feed

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/testing/sample"
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

// TestChannelsThatEndLeaveNothing: 10,000 runs come and go, and the memory returns to where it was.
func TestChannelsThatEndLeaveNothing(t *testing.T) {
	rdb, err := embedded.New()
	require.NoError(t, err)
	defer rdb.Close()
	f := New(t.Context(), Config{
		Log:       redislog.New(rdb, "", false, func(string) redislog.Retention { return redislog.Retention{} }),
		Freshness: time.Hour, Spawn: func(func()) {}, Unreadable: func(err error) { t.Error(err) },
	})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	lives := func(n int) {
		last := sample.Event()
		last.Position, last.Final = position.Position{Epoch: 1000, Seq: 1}, true
		for i := range n {
			tl := f.Acquire(fmt.Sprint("run:", i))
			require.True(t, tl.Fill(tl.Want(), &position.Page{Last: position.Position{Epoch: 1000}}, true))
			require.True(t, tl.Offer(last))
			f.Release(tl)
		}
	}
	drop := func() {
		f.dropCold(time.Now().Add(2 * warmFor))
		require.NoError(t, f.route(t.Context()))
		require.Zero(t, f.Channels())
	}
	lives(10_000)
	drop()
	before := heap()
	lives(10_000)
	during := heap()
	drop()
	require.Less(t, heap()-before, (during-before)/10)
}
