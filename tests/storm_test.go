package tests

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// storm is for how long TestStormOfRepeats keeps Redis still.
var storm = flag.Duration("storm", 6*time.Second, "for how long a test keeps Redis still under load")

// TestStormOfRepeats: Redis stands still under load, and callers repeat on error, as the README
// advises. Each event is in the log once, and Redis serves others at once when it goes on.
func TestStormOfRepeats(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	bus, direct, project := newBus(t, s.Client(t), quiet()), s.Client(t), uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New())}
	ctx := deadline(t)
	f := follow(t, bus, now(t, bus, channels...))
	var callers sync.WaitGroup
	n := 0
	rain := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); n++ {
			ev := message(t, project, fmt.Sprint(n))
			callers.Go(func() {
				for {
					short, cancel := context.WithTimeout(ctx, time.Second)
					err := bus.Publish(short, ev, channels[1:]...)
					cancel()
					if err == nil {
						return
					}
					if ctx.Err() != nil {
						t.Errorf("never published: %s", err)
						return
					}
				}
			})
			time.Sleep(time.Second / 300)
		}
	}
	rain(time.Second)
	s.Freeze()
	rain(*storm)
	s.Thaw()
	rain(time.Second)
	last := time.Now()
	for range 10 { // nobody else is refused, or waits
		require.NoError(t, bus.Publish(ctx, message(t, uuid.New(), "of another project")))
	}
	callers.Wait()
	t.Logf("%d events, all in their logs %s after the last was published", n, time.Since(last).Round(time.Millisecond))
	for _, c := range channels {
		require.EqualValues(t, n, direct.XLen(ctx, logKey(c)).Val())
	}
	f.count(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Len(t, f.texts, n)
	require.Empty(t, f.gaps)
}

// longLog fills the log of a project with so many events of a size.
func longLog(t testing.TB, bus *eventbus.Bus, events, size int) uuid.UUID {
	project, text := uuid.New(), strings.Repeat("x", size)
	var publishers sync.WaitGroup
	for range 16 {
		publishers.Go(func() {
			for range events/16 + 1 {
				if err := bus.Publish(context.Background(), message(t, project, text)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	publishers.Wait()
	return project
}

// redisWork is how many commands Redis has run, in scripts and without.
func redisWork(t testing.TB, rdb *redis.Client) (calls int) {
	for line := range strings.Lines(rdb.Info(deadline(t), "commandstats").Val()) {
		if name, rest, ok := strings.Cut(line, ":calls="); ok && !strings.HasSuffix(name, "_info") {
			var n int
			_, err := fmt.Sscanf(rest, "%d", &n)
			require.NoError(t, err)
			calls += n
		}
	}
	return calls
}

// TestRepeatsCostTheSameWhateverTheLog: nothing is ever searched for.
func TestRepeatsCostTheSameWhateverTheLog(t *testing.T) {
	t.Parallel()
	rdb := redistest.Start(t).Client(t)
	bus := newBus(t, rdb, eventbus.WithRetention(eventbus.Retention{}), eventbus.WithFreshness(time.Minute))
	work := make(map[string]int)
	for _, log := range []struct{ events, size int }{{100, 100}, {5_000, 100}, {200, 200_000}} {
		project := longLog(t, bus, log.events, log.size)
		opts := eventbus.PublishOptions{Idempotent: true}
		ev := message(t, project, "again")
		for _, what := range []string{"the first time", "a repeat"} {
			before := redisWork(t, rdb)
			receipt, err := bus.PublishWith(deadline(t), ev, opts)
			require.NoError(t, err)
			require.Equal(t, what == "a repeat", receipt.Repeated)
			did := redisWork(t, rdb) - before
			if have, ok := work[what]; ok {
				require.Equal(t, have, did, "%s, in a log of %d events of %d bytes", what, log.events, log.size)
			}
			work[what] = did
		}
	}
	t.Logf("commands: %v", work)
}

// BenchmarkIdempotent is what an Idempotent publish costs Redis, the first time and when it is
// repeated, in logs of several lengths and sizes of events.
func BenchmarkIdempotent(b *testing.B) {
	for _, log := range []struct{ events, size int }{{100, 100}, {10_000, 100}, {100_000, 100}, {100, 200_000}, {2_000, 200_000}} {
		rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr})
		bus, err := eventbus.New(rdb, eventbus.WithRetention(eventbus.Retention{}), eventbus.WithFreshness(time.Minute))
		require.NoError(b, err)
		project := longLog(b, bus, log.events, log.size)
		b.Run(fmt.Sprintf("log=%d/size=%d", log.events, log.size), func(b *testing.B) {
			for _, times := range []string{"first", "repeat"} {
				b.Run(times, func(b *testing.B) {
					before := scriptMicros(b, rdb)
					ev := message(b, project, "again")
					n := 0
					for ; b.Loop(); n++ {
						if times == "first" {
							ev = message(b, project, "again")
						}
						if _, err := bus.PublishWith(context.Background(), ev, eventbus.PublishOptions{Idempotent: true}); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(scriptMicros(b, rdb)-before)/float64(n), "redis-µs/op")
				})
			}
		})
		require.NoError(b, bus.Close())
		require.NoError(b, rdb.Close())
	}
}

// scriptMicros is for how long Redis has run scripts.
func scriptMicros(t testing.TB, rdb *redis.Client) (micros int) {
	for line := range strings.Lines(rdb.Info(deadline(t), "commandstats").Val()) {
		if strings.HasPrefix(line, "cmdstat_evalsha:") {
			_, rest, _ := strings.Cut(line, "usec=")
			_, err := fmt.Sscanf(rest, "%d", &micros)
			require.NoError(t, err)
		}
	}
	return micros
}
