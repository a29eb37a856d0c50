package tests

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"os"
	"strings"
	"sync"
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
	if args := strings.Fields(os.Getenv(writeEnv)); len(args) == 3 {
		fmt.Fprintln(os.Stderr, writeProcess(args[0], args[1], args[2]))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// eachRedis runs a test on miniredis and on a real redis-server, at the same time.
func eachRedis(t *testing.T, test func(t *testing.T, rdb redis.UniversalClient)) {
	eachRedisAlone(t, func(t *testing.T, rdb redis.UniversalClient) {
		t.Parallel()
		test(t, rdb)
	})
}

// eachRedisAlone is eachRedis for a test that measures something of the whole process.
func eachRedisAlone(t *testing.T, test func(t *testing.T, rdb redis.UniversalClient)) {
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

// streamOptions are those of the streams that a test opens, by bus.
var streamOptions sync.Map

// newBus makes a bus that ends with the test. Options of event streams are for handler and framesOf.
func newBus(t testing.TB, client eventbus.Client, opts ...any) *eventbus.Bus {
	t.Helper()
	var ofBus []eventbus.Option
	var ofStreams []eventbus.SSEOption
	for _, opt := range opts {
		switch opt := opt.(type) {
		case eventbus.Option:
			ofBus = append(ofBus, opt)
		case eventbus.SSEOption:
			ofStreams = append(ofStreams, opt)
		default:
			require.Fail(t, "no option", "%T", opt)
		}
	}
	bus, err := eventbus.New(client, ofBus...)
	require.NoError(t, err)
	streamOptions.Store(bus, ofStreams)
	t.Cleanup(func() {
		require.NoError(t, bus.Close())
		streamOptions.Delete(bus)
	})
	return bus
}

func streamOptionsOf(bus *eventbus.Bus) []eventbus.SSEOption {
	opts, _ := streamOptions.Load(bus)
	list, _ := opts.([]eventbus.SSEOption)
	return list
}

// handler serves the streams of a bus.
func handler(bus *eventbus.Bus, authorize func(*http.Request) (eventbus.Subscription, error)) http.Handler {
	return bus.Handler(authorize, streamOptionsOf(bus)...)
}

// framesOf walks the frames of a stream.
func framesOf(ctx context.Context, bus *eventbus.Bus, sub eventbus.Subscription) iter.Seq2[eventbus.Frame, error] {
	return bus.SubscribeSSE(ctx, sub, streamOptionsOf(bus)...)
}

// deadline is a context for things that must happen, however slow the machine is.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+*away)
	t.Cleanup(cancel)
	return ctx
}
