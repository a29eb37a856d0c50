package tests

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// textsIn gives the texts of the messages in a log, in order.
func textsIn(t testing.TB, rdb redis.UniversalClient, c eventbus.Channel) (texts []string) {
	t.Helper()
	entries, err := rdb.XRange(deadline(t), logKey(c), "-", "+").Result()
	require.NoError(t, err)
	for _, e := range entries {
		var ev eventbus.Event
		require.NoError(t, ev.UnmarshalJSON([]byte(e.Values["event"].(string))))
		texts = append(texts, text(t, ev))
	}
	return texts
}

func TestWriterKeepsTheOrderOfItsCalls(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, ctx, project, r := newBus(t, rdb), deadline(t), uuid.New(), run(t)
		w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}})
		const n = 2000
		for i := range n {
			require.NoError(t, w.Write(ctx, message(t, project, fmt.Sprint(i))))
		}
		_, err := w.Flush(ctx)
		require.NoError(t, err)
		for _, c := range []eventbus.Channel{r, eventbus.ProjectChannel(project)} {
			require.Equal(t, countTo(0, n), textsIn(t, rdb, c))
		}
	})
}

// BenchmarkWriter
func BenchmarkWriter(b *testing.B) {
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr})
	b.Cleanup(func() { _ = rdb.Close() })
	bus, ctx, project := newBus(b, rdb), context.Background(), uuid.New()
	r, err := eventbus.NewChannel("run", uuid.NewString())
	require.NoError(b, err)
	ev := message(b, project, strings.Repeat("x", 1))
	raw, err := ev.MarshalJSON()
	require.NoError(b, err)
	script, name := redis.NewScript(appendSource(b)), "run:"+uuid.UUID{1}.String()
	require.NoError(b, script.Load(ctx, rdb).Err())
	calls := 0
	args := func() ([]string, []any) {
		calls++
		return []string{"eventbus:log:{" + name + "}", "eventbus:producers:{" + name + "}"},
			[]any{1, "p", calls, "PUBLISH", 600_000, name, 10_000, 64 << 20, 86_400_000, 0, 1, "1", raw}
	}
	const batch = 4096
	var ours, hand, piped time.Duration
	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{r}, NoProject: true})
	n := 0
	for b.Loop() {
		began := time.Now()
		for range batch {
			if err := w.Write(ctx, ev); err != nil {
				b.Fatal(err)
			}
		}
		_, err := w.Flush(ctx)
		require.NoError(b, err)
		ours += time.Since(began)
		began = time.Now()
		for range batch / 16 {
			keys, args := args()
			require.NoError(b, script.EvalSha(ctx, rdb, keys, args...).Err())
		}
		hand += time.Since(began) * 16
		began = time.Now()
		for range batch / 64 {
			pipe := rdb.Pipeline()
			for range 64 {
				keys, args := args()
				script.EvalSha(ctx, pipe, keys, args...)
			}
			_, err := pipe.Exec(ctx)
			require.NoError(b, err)
		}
		piped += time.Since(began)
		n += batch
	}
	b.ReportMetric(float64(n)/ours.Seconds(), "events/s")
	b.ReportMetric(hand.Seconds()/ours.Seconds(), "ratio-byhand")
	b.ReportMetric(piped.Seconds()/ours.Seconds(), "ratio-piped")
	b.ReportMetric(float64(len(raw)), "bytes")
	b.ReportMetric(0, "ns/op")
}
