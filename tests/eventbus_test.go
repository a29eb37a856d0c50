package tests

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

// message makes an event that says text.
func message(t testing.TB, project uuid.UUID, text string) eventbus.Event {
	t.Helper()
	agent := uuid.New()
	ev, err := eventbus.NewEvent(project, eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: text})
	require.NoError(t, err)
	return ev
}

// text is what message has put in.
func text(t testing.TB, ev eventbus.Event) string {
	t.Helper()
	p, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
	require.NoError(t, err)
	return p.Message
}

func TestSubscribersSeeWhatIsPublished(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus := newBus(t, rdb)
		ctx := deadline(t)
		project := uuid.New()
		channel := eventbus.ProjectChannel(project)
		start, err := bus.Cursor(ctx, channel)
		require.NoError(t, err)
		const n = 1000
		var publisher sync.WaitGroup
		defer publisher.Wait()
		publisher.Go(func() {
			for i := range n {
				if err := bus.Publish(ctx, message(t, project, fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			}
		})
		i := 0
		for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{channel}, After: start}) {
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(i), text(t, ev))
			if i++; i == n {
				break
			}
		}
	})
}
