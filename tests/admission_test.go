package tests

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// walk begins a subscription and gives the error that it ends with. It returns once the
// subscription is open, or has ended.
func walk(t *testing.T, bus *eventbus.Bus, sub eventbus.Subscription) (ended <-chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	errs, begun := make(chan error, 1), make(chan struct{})
	go func() {
		first := true
		for _, err := range framesOf(ctx, bus, sub) {
			if first {
				first = false
				close(begun)
			}
			if err != nil {
				errs <- err
			}
		}
	}()
	<-begun
	return errs, cancel
}

func TestLimitsRefuseTheNewAndEndNoneThatIsOpen(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus := newBus(t, rdb, eventbus.WithMaxSubscribers(3), eventbus.WithMaxPerIdentity(2))
		of := func(who string) eventbus.Subscription {
			return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(uuid.New())}, Identity: who}
		}
		refused := func(sub eventbus.Subscription, limit string, max int) {
			t.Helper()
			ended, _ := walk(t, bus, sub)
			err := <-ended
			require.ErrorIs(t, err, eventbus.ErrLimit)
			var le *eventbus.LimitError
			require.ErrorAs(t, err, &le)
			require.Equal(t, eventbus.LimitError{Limit: limit, Got: max + 1, Max: max}, *le)
			require.NotContains(t, err.Error(), "ann")
		}
		first, stop := walk(t, bus, of("ann"))
		second, _ := walk(t, bus, of("ann"))
		refused(of("ann"), eventbus.LimitPerIdentity, 2)
		third, _ := walk(t, bus, of("bob"))
		refused(of("bob"), eventbus.LimitSubscribers, 3)
		refused(of(""), eventbus.LimitSubscribers, 3)
		require.Equal(t, eventbus.Refused{Subscribers: 2, PerIdentity: 1}, bus.Stats().Refused)
		stop()
		require.ErrorIs(t, <-first, context.Canceled)
		require.Eventually(t, func() bool { return bus.Stats().Active == 2 }, time.Minute, time.Millisecond)
		fourth, _ := walk(t, bus, of("ann")) // there is room again
		for _, open := range []<-chan error{second, third, fourth} {
			require.Empty(t, open)
		}
	})
}

func TestLimitsAreCounted(t *testing.T) {
	bus := newBus(t, onMiniredis(t), quiet(), eventbus.WithMaxChannels(1), eventbus.WithMaxEventSize(1024))
	project := uuid.New()
	two := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New())}
	ended, _ := walk(t, bus, eventbus.Subscription{Channels: two})
	for limit, err := range map[string]error{
		eventbus.LimitChannels:  <-ended,
		"channels of a publish": bus.Publish(deadline(t), message(t, project, "x"), two[1]),
		eventbus.LimitEventSize: bus.Publish(deadline(t), message(t, project, strings.Repeat("x", 2000))),
	} {
		le, ok := errors.AsType[*eventbus.LimitError](err)
		require.True(t, ok, limit)
		require.True(t, strings.HasPrefix(limit, le.Limit), limit)
		require.Greater(t, le.Got, le.Max)
	}
	require.Equal(t, eventbus.Refused{Channels: 2, EventSize: 1}, bus.Stats().Refused)
}

// TestHandlerAtALimit: an EventSource is told to come back, others get a status.
func TestHandlerAtALimit(t *testing.T) {
	bus := newBus(t, onMiniredis(t), quiet(), eventbus.WithMaxPerIdentity(1), eventbus.WithMaxSubscribers(2))
	channels := []eventbus.Channel{eventbus.ProjectChannel(uuid.New())}
	server := httptest.NewServer(handler(bus, func(r *http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{
			Channels: channels, Identity: r.URL.Query().Get("who"),
		}, nil
	}))
	t.Cleanup(server.Close)
	get := func(query, accept string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(deadline(t), http.MethodGet, server.URL+query, nil)
		require.NoError(t, err)
		r.Header.Set("Accept", accept)
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	require.Equal(t, 200, get("?who=ann", "text/event-stream").StatusCode)
	refused := get("?who=ann", "application/json")
	require.Equal(t, http.StatusTooManyRequests, refused.StatusCode)
	require.NotEmpty(t, refused.Header.Get("Retry-After"))
	require.Equal(t, 200, get("?who=ann", "text/event-stream").StatusCode) // softly
	require.Equal(t, 200, get("?who=bob", "text/event-stream").StatusCode)
	require.Equal(t, http.StatusServiceUnavailable, get("?who=joe", "application/json").StatusCode)
	require.Equal(t, 2, bus.Stats().Active)

	require.Equal(t, eventbus.Refused{Subscribers: 1, PerIdentity: 2}, bus.Stats().Refused)
}

// TestRevokeReachesEveryProcess, also one whose Pub/Sub connection is cut at that moment.
func TestRevokeReachesEveryProcess(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr)
	here := newBus(t, s.Client(t), quiet())
	there := newBus(t, s.Client(t), quiet())
	cut := newBus(t, split{s.Client(t), p.Client(t)}, quiet(), eventbus.WithFreshness(500*time.Millisecond))
	sub := func(who string) eventbus.Subscription {
		return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(uuid.New())}, Identity: who}
	}
	var revoked, others []<-chan error
	for _, bus := range []*eventbus.Bus{here, there, cut} {
		for range 2 {
			ended, _ := walk(t, bus, sub("ann"))
			revoked = append(revoked, ended)
		}
		for _, who := range []string{"bob", ""} {
			ended, _ := walk(t, bus, sub(who))
			others = append(others, ended)
		}
	}
	p.SetRefuse(true)
	p.Cut()
	require.NoError(t, here.Revoke(deadline(t), "ann"))
	for _, ended := range revoked {
		require.ErrorIs(t, <-ended, eventbus.ErrRevoked)
	}
	for _, ended := range others {
		require.Empty(t, ended)
	}
	for _, key := range s.Client(t).Keys(deadline(t), "*").Val() {
		require.NotContains(t, key, "ann")
	}
	// It keeps nobody out: that is for the function that authorises.
	ended, _ := walk(t, there, sub("ann"))
	require.Empty(t, ended)
}

// TestRevokeWithoutRedis: here it counts at once; the error says that others may not know.
func TestRevokeWithoutRedis(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	bus := newBus(t, s.Client(t), quiet())
	ended, _ := walk(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(uuid.New())}, Identity: "ann"})
	s.Kill()
	err := bus.Revoke(deadline(t), "ann")
	require.ErrorIs(t, err, eventbus.ErrUnavailable)
	require.ErrorIs(t, <-ended, eventbus.ErrRevoked)
	var bad *eventbus.ValidationError
	require.ErrorAs(t, bus.Revoke(deadline(t), ""), &bad)
}

// TestRevokedStreamEnds between two frames, and its client is not let in again.
func TestRevokedStreamEnds(t *testing.T) {
	rdb := onMiniredis(t)
	bus, other := newBus(t, rdb, quiet()), newBus(t, rdb, quiet())
	allowed := make(chan bool, 1)
	allowed <- true
	channels := []eventbus.Channel{eventbus.ProjectChannel(uuid.New())}
	server := httptest.NewServer(handler(bus, func(*http.Request) (eventbus.Subscription, error) {
		ok := <-allowed
		allowed <- ok
		if !ok {
			return eventbus.Subscription{}, eventbus.ErrUnauthorized
		}
		return eventbus.Subscription{Channels: channels, Identity: "ann"}, nil
	}))
	t.Cleanup(server.Close)
	response, err := http.Get(server.URL)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Eventually(t, func() bool { return bus.Stats().Active == 1 }, time.Minute, time.Millisecond)
	<-allowed
	allowed <- false
	require.NoError(t, other.Revoke(deadline(t), "ann"))
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(body), "\n\n"))
	again, err := http.Get(server.URL)
	require.NoError(t, err)
	_ = again.Body.Close()
	require.Equal(t, http.StatusUnauthorized, again.StatusCode)
}
