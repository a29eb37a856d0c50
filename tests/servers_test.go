package tests

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

func TestMain(m *testing.M) {
	if addrs := strings.Fields(os.Getenv(serveEnv)); len(addrs) == 2 {
		if err := serveProcess(addrs[0], addrs[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// eachRedis runs a test on miniredis and on a real redis-server.
func eachRedis(t *testing.T, test func(t *testing.T, rdb redis.UniversalClient)) {
	t.Run("miniredis", func(t *testing.T) {
		rdb, err := embedded.New()
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, rdb.Close()) })
		test(t, rdb)
	})
	t.Run("redis", func(t *testing.T) {
		test(t, redistest.Start(t).Client(t))
	})
}

// newBus makes a bus that ends with the test.
func newBus(t testing.TB, client eventbus.Client, opts ...eventbus.Option) *eventbus.Bus {
	t.Helper()
	bus, err := eventbus.New(client, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close()) })
	return bus
}

// deadline is a context for things that must happen, however slow the machine is.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+*away)
	t.Cleanup(cancel)
	return ctx
}
