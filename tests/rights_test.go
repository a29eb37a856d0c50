package tests

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// TestWithoutRightsASubscriptionFailsForGood: nothing but a change of the server helps, and once
// there is one, subscriptions begin again.
func TestWithoutRightsASubscriptionFailsForGood(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client(t)
	require.NoError(t, admin.Do(deadline(t), "ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all").Err())
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "app", Password: "pw"})
	defer rdb.Close()
	bus := newBus(t, rdb, quiet(), eventbus.WithFreshness(200*time.Millisecond))
	mine, theirs := eventbus.UserChannel(uuid.New()), run(t)
	require.NoError(t, admin.Do(deadline(t), "ACL", "SETUSER", "app", "resetkeys", "~eventbus:*{"+mine.String()+"}*").Err())

	for range 2 { // also where the channel was asked for before
		for _, sub := range []eventbus.Subscription{{Channels: []eventbus.Channel{mine, theirs}}, {Channels: []eventbus.Channel{theirs}, Last: 1, NoFollow: true}} {
			pairs := 0
			for _, err := range bus.SubscribeWith(deadline(t), sub) {
				pairs++
				require.ErrorContains(t, err, "NOPERM")
				require.NotErrorIs(t, err, eventbus.ErrUnavailable)
			}
			require.Equal(t, 1, pairs)
		}
	}
	streams := serve(t, handler(bus, byQuery(mine, theirs)))
	requireSoftRefusal(t, streams, 250)
	joined(t, serve(t, handler(bus, byQuery(mine)))).own("stream.live")

	require.NoError(t, admin.Do(deadline(t), "ACL", "SETUSER", "app", "resetkeys", "~*").Err())
	require.Eventually(t, func() bool {
		s := connect(t, streams)
		defer s.leave()
		for {
			if b, err := s.any(); err != nil || b.Event != nil {
				return err == nil && b.Event.Type == "stream.live"
			}
		}
	}, 20*time.Second, 50*time.Millisecond)
}
