package embedded_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ExampleNew() {
	rdb, err := embedded.New()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer bus.Close()
	fmt.Println(bus.Health())
	// Output: <nil>
}

func TestKeysExpire(t *testing.T) {
	rdb, err := embedded.New()
	require.NoError(t, err)
	ctx := context.Background()
	require.NoError(t, rdb.Set(ctx, "short", 1, 100*time.Millisecond).Err())
	require.NoError(t, rdb.Set(ctx, "long", 1, time.Hour).Err())
	require.Eventually(t, func() bool { return rdb.Exists(ctx, "short").Val() == 0 }, time.Minute, 5*time.Millisecond)
	require.EqualValues(t, 1, rdb.Exists(ctx, "long").Val())
	require.NoError(t, rdb.Close())
	require.NoError(t, rdb.Close())
}
