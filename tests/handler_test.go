package tests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// onMiniredis gives a client of an embedded Redis, for what does not depend on Redis.
func onMiniredis(t testing.TB) *embedded.Redis {
	t.Helper()
	rdb, err := embedded.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

// numbers gives the texts "from" to "to", exclusive.
func numbers(from, to int) (texts []string) {
	for i := from; i < to; i++ {
		texts = append(texts, fmt.Sprint(i))
	}
	return texts
}

func TestStreamHeaders(t *testing.T) {
	s := connect(t, streams(t, newBus(t, onMiniredis(t)), eventbus.ProjectChannel(uuid.New())))
	h := s.Response.Header
	require.Equal(t, []string{"text/event-stream"}, h["Content-Type"])
	require.Equal(t, []string{"no-store, no-transform"}, h["Cache-Control"])
	require.Equal(t, []string{"no"}, h["X-Accel-Buffering"])
	require.NotContains(t, h, "Connection")
	require.NotContains(t, h, "Content-Length")
}

// EventSource polyfills, curl and servers that call each other ask for anything.
func TestStreamWhateverIsAccepted(t *testing.T) {
	server := streams(t, newBus(t, onMiniredis(t)), eventbus.ProjectChannel(uuid.New()))
	for _, accept := range []string{"", "*/*", "application/json"} {
		joined(t, server, func(r *http.Request) { r.Header.Set("Accept", accept) })
	}
}

// Each way to resume goes on exactly behind what was seen, on the process that
// served it before and on another one.
func TestResumeGoesOnExactly(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		project := uuid.New()
		channel := eventbus.ProjectChannel(project)
		bus := newBus(t, rdb)
		server := streams(t, bus, channel)

		s := joined(t, server)
		beginning := s.LastEventID
		publish(t, bus, project, nil, numbers(0, 10)...)
		seen := s.expect(numbers(0, 5)...)
		s.leave()
		publish(t, bus, project, nil, numbers(10, 15)...)

		ways := []struct {
			name string
			way  with
			next int
		}{
			{"Last-Event-ID", lastEventID(seen.LastEventID), 5},
			{"?last_event_id=", query("last_event_id", seen.LastEventID), 5},
			{"the first block's id, before any event", lastEventID(beginning), 0},
			{"the UUID of an event", lastEventID(decode(t, seen).ID), 5},
			{"the UUID of an event in the query", query("last_event_id", decode(t, seen).ID), 5},
			{"a position", lastEventID(decode(t, seen).Position.String()), 5},
			{"header before query", func(r *http.Request) {
				lastEventID(seen.LastEventID)(r)
				query("last_event_id", beginning)(r)
			}, 5},
		}
		// Elsewhere there is no tail yet that reaches back: then it is in the log.
		var live []*sseStream
		for _, w := range ways {
			for _, server := range []*httptest.Server{server, streams(t, newBus(t, rdb), channel)} {
				t.Log(w.name)
				s := joined(t, server, w.way)
				s.expect(numbers(w.next, 15)...)
				live = append(live, s)
			}
		}
		publish(t, bus, project, nil, "live")
		for _, s := range live {
			s.expect("live")
		}
	})
}

func newest(t testing.TB, rdb redis.UniversalClient, c eventbus.Channel) string {
	t.Helper()
	entries, err := rdb.XRevRangeN(t.Context(), logOf(c), "+", "-", 1).Result()
	require.NoError(t, err)
	return entries[0].ID
}

func TestGarbageAsLastEventIDIsAGapAndThenEverything(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		project, agent := uuid.New(), uuid.New()
		both := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(agent)}
		bus := newBus(t, rdb)
		publish(t, bus, project, nil, "a", "b")
		publish(t, bus, project, both[1:], "c")
		publish(t, bus, uuid.New(), both[1:], "d")

		garbage := []string{"garbage", "42", "0-0", "undefined", "7d444840-9dc0-11d1-b245-5ffdce74fad2", strings.Repeat("A", 5000), "4A", "Zürich", "-", "1-1-1"}
		for _, id := range garbage {
			t.Run(fmt.Sprintf("%.12s", id), func(t *testing.T) {
				s := joined(t, streams(t, bus, both[0]), query("last_event_id", id))
				gap, e := s.gap()
				require.Equal(t, gapData{both[0].String(), "unknown", ""}, gap)
				s.expect("a", "b", "c")

				// The gap's id goes on from there, and is told once.
				joined(t, streams(t, bus, both[0]), lastEventID(e.LastEventID)).expect("a", "b", "c")

				s = joined(t, streams(t, bus, both...), query("last_event_id", id))
				first, _ := s.gap()
				second, _ := s.gap()
				require.ElementsMatch(t, []gapData{{both[0].String(), "unknown", ""}, {both[1].String(), "unknown", ""}}, []gapData{first, second})
				s.expect("a", "b", "c", "d")
			})
		}
	})
}

func TestCursorOfOtherChannels(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		project, agent, user := uuid.New(), uuid.New(), uuid.New()
		p, a, u := eventbus.ProjectChannel(project), eventbus.AgentChannel(agent), eventbus.UserChannel(user)
		bus := newBus(t, rdb)
		elsewhere := uuid.New()
		publish(t, bus, project, nil, "p0") // then there are logs
		publish(t, bus, elsewhere, []eventbus.Channel{a}, "a0")
		s := joined(t, streams(t, bus, p, a))
		publish(t, bus, project, nil, "p1")
		publish(t, bus, elsewhere, []eventbus.Channel{a}, "a1")
		publish(t, bus, project, nil, "p2")
		s.expect("p1", "a1")
		cursor := s.LastEventID
		publish(t, bus, elsewhere, []eventbus.Channel{u}, "u1")
		publish(t, bus, elsewhere, []eventbus.Channel{a}, "a2")

		// Fewer channels: what is asked for goes on.
		joined(t, streams(t, bus, p), lastEventID(cursor)).expect("p2")
		joined(t, streams(t, bus, a), lastEventID(cursor)).expect("a2")

		// More channels: a new one begins now, and the cursor then covers all.
		server := streams(t, newBus(t, rdb), u, p, a)
		s = joined(t, server, lastEventID(cursor))
		s.expect("p2", "a2")
		publish(t, bus, elsewhere, []eventbus.Channel{u}, "u2")
		id := s.expect("u2").LastEventID
		publish(t, bus, elsewhere, []eventbus.Channel{u, a}, "last")
		s.expect("last")
		joined(t, server, lastEventID(id)).expect("last")
		joined(t, streams(t, bus, a, u, p), lastEventID(id)).expect("last")
	})
}

func TestKeepaliveIsACommentWhereNothingMoved(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus := newBus(t, rdb, eventbus.WithKeepalive(20*time.Millisecond))
		project := uuid.New()
		s := joined(t, streams(t, bus, eventbus.ProjectChannel(project)))
		publish(t, bus, project, nil, "a")
		s.expect("a")
		for range 3 {
			b := s.block()
			require.True(t, b.Comment(), "%q", b.Lines)
			require.NotEmpty(t, b.Lines)
		}
		publish(t, bus, project, nil, "b")
		s.expect("b")
	})
}

func TestKeepaliveMovesTheCursorOverWhatIsLeftOut(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		project, user := uuid.New(), uuid.New()
		for name, channels := range map[string][]eventbus.Channel{
			"one channel":  {eventbus.ProjectChannel(project)},
			"two channels": {eventbus.ProjectChannel(project), eventbus.UserChannel(user)},
		} {
			t.Run(name, func(t *testing.T) {
				bus := newBus(t, rdb, eventbus.WithKeepalive(20*time.Millisecond))
				server := streams(t, bus, channels...)
				publish(t, bus, project, channels[1:], "before") // so that there are logs
				s := joined(t, server, query("type", "issue.*"))
				for range 2 {
					before := s.LastEventID
					publish(t, bus, project, channels[1:], "a", "b")
					for s.LastEventID == before {
						b := s.block()
						require.Nil(t, b.Event, "an event that was to be left out")
						if !b.Comment() {
							require.Len(t, b.Lines, 1)
							require.True(t, b.Has("id"))
						}
					}
				}
				// The keepalive may have come between two events; not for long.
				s.until(sseBlock.Comment)
				issue, err := eventbus.NewEvent(project, eventbus.System(), eventbus.IssueClosedPayload{IssueID: "X-1", Resolution: "fixed"})
				require.NoError(t, err)
				require.NoError(t, bus.Publish(deadline(t), issue))
				require.Equal(t, "issue.closed", joined(t, server, lastEventID(s.LastEventID)).event().Type)
				require.Equal(t, issue.ID, decode(t, s.event()).ID)
			})
		}
	})
}

func TestGapWhereRetentionHasTrimmed(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		retention := eventbus.WithRetention(eventbus.Retention{Events: 100, Age: time.Hour})
		project := uuid.New()
		channel := eventbus.ProjectChannel(project)
		bus := newBus(t, rdb, retention)
		s := joined(t, streams(t, bus, channel))
		publish(t, bus, project, nil, "0")
		seen := s.expect("0")
		s.leave()
		const n = 500
		publish(t, bus, project, nil, numbers(1, n)...)

		oldest, err := rdb.XRangeN(t.Context(), logOf(channel), "-", "+", 1).Result()
		require.NoError(t, err)
		length, err := rdb.XLen(t.Context(), logOf(channel)).Result()
		require.NoError(t, err)
		require.Less(t, length, int64(n-1), "nothing was trimmed")
		kept := numbers(n-int(length), n)

		server := streams(t, newBus(t, rdb, retention), channel)
		s = joined(t, server, lastEventID(seen.LastEventID))
		gap, e := s.gap()
		require.Equal(t, gapData{channel.String(), "trimmed", decode(t, seen).Position.String()}, gap)
		first := s.expect(kept[0])
		require.Equal(t, oldest[0].ID, decode(t, first).Position.String())
		s.expect(kept[1:]...)

		joined(t, server, lastEventID(e.LastEventID)).expect(kept...)
	})
}

func TestGapWhereTheLogWasLost(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		project := uuid.New()
		channel := eventbus.ProjectChannel(project)
		bus := newBus(t, rdb)
		server := streams(t, bus, channel)
		s := joined(t, server)
		publish(t, bus, project, nil, "0", "1", "2")
		seen := s.expect("0", "1")
		two := s.expect("2")
		require.NoError(t, rdb.Del(t.Context(), logOf(channel)).Err())
		publish(t, bus, project, nil, "3", "4")

		// The open stream, and who comes back, here and elsewhere.
		gap, _ := s.gap()
		require.Equal(t, gapData{channel.String(), "lost", decode(t, two).Position.String()}, gap)
		s.expect("3", "4")
		for _, server := range []*httptest.Server{server, streams(t, newBus(t, rdb), channel)} {
			s := joined(t, server, lastEventID(seen.LastEventID))
			gap, e := s.gap()
			require.Equal(t, gapData{channel.String(), "lost", decode(t, seen).Position.String()}, gap)
			s.expect("3", "4")
			joined(t, server, lastEventID(e.LastEventID)).expect("3", "4")
		}
	})
}

func TestNobodyReadsWithoutAuthorization(t *testing.T) {
	server := serve(t, handler(newBus(t, onMiniredis(t)), nil))
	resp, _ := get(t, server)
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
}

func TestRefusals(t *testing.T) {
	bus := newBus(t, onMiniredis(t), quiet(), eventbus.WithRetry(1500*time.Millisecond), eventbus.WithMaxChannels(2))
	channel := eventbus.ProjectChannel(uuid.New())
	bad := &eventbus.ValidationError{Subject: "query", Fields: []eventbus.FieldError{{Field: "agent", Problem: "is not a UUID"}}}
	three := []eventbus.Channel{channel, eventbus.UserChannel(uuid.New()), eventbus.AgentChannel(uuid.New())}
	tests := []struct {
		name   string
		sub    eventbus.Subscription
		err    error
		status int
		field  string
	}{
		{"unauthorized", eventbus.Subscription{}, eventbus.ErrUnauthorized, 401, ""},
		{"forbidden", eventbus.Subscription{}, eventbus.ErrForbidden, 403, ""},
		{"not found", eventbus.Subscription{}, eventbus.ErrNotFound, 404, ""},
		{"gone", eventbus.Subscription{}, eventbus.ErrGone, 204, ""},
		{"wrapped", eventbus.Subscription{}, fmt.Errorf("session 42: %w", eventbus.ErrUnauthorized), 401, ""},
		{"refused in spite of channels", eventbus.Subscription{Channels: three[:1]}, eventbus.ErrForbidden, 403, ""},
		{"bad request", eventbus.Subscription{}, bad, 400, "agent"},
		{"bad request, wrapped", eventbus.Subscription{}, fmt.Errorf("parse: %w", bad), 400, "agent"},
		{"no channels", eventbus.Subscription{}, nil, 500, ""},
		{"no cookie", eventbus.Subscription{}, fmt.Errorf("session: %w", http.ErrNoCookie), 401, ""},
		{"too many channels", eventbus.Subscription{Channels: three}, nil, 400, "channels"},
		{"zero channel", eventbus.Subscription{Channels: make([]eventbus.Channel, 1)}, nil, 400, "channels[0]"},
		{"bad glob", eventbus.Subscription{Channels: three[:1], Types: []string{"agent.["}}, nil, 400, "types[0]"},
		{"a long glob", eventbus.Subscription{Channels: three[:1], Types: []string{"*", strings.Repeat("*", 129)}}, nil, 400, "types[1]"},
		{"too many globs", eventbus.Subscription{Channels: three[:1], Types: slices.Repeat([]string{"*"}, 33)}, nil, 400, "types"},
		{"other error", eventbus.Subscription{}, errors.New("secret: database is away"), 0, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := serve(t, handler(bus, func(*http.Request) (eventbus.Subscription, error) { return test.sub, test.err }))
			if test.status == 0 {
				requireSoftRefusal(t, server, 1500)
				return
			}
			resp, _ := get(t, server)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, test.status, resp.StatusCode)
			if test.status == http.StatusNoContent {
				require.Empty(t, body)
				return
			}
			require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
			require.NotContains(t, string(body), "session 42")
			var problem struct {
				Title  string
				Status int
				Errors []struct{ Field, Detail string }
			}
			require.NoError(t, json.Unmarshal(body, &problem))
			require.Equal(t, test.status, problem.Status)
			require.Equal(t, http.StatusText(test.status), problem.Title)
			if test.field != "" {
				require.NotEmpty(t, problem.Errors)
				require.Equal(t, test.field, problem.Errors[0].Field)
				require.NotEmpty(t, problem.Errors[0].Detail)
			}
		})
	}
	require.Zero(t, bus.Stats().Active)
}

// requireSoftRefusal wants what makes an EventSource come back later, with what it
// has, and tells anyone else with 503.
func requireSoftRefusal(t *testing.T, server *httptest.Server, retry int) {
	t.Helper()
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		resp, _ := get(t, server, func(r *http.Request) { r.Header.Set("Accept", "application/json") })
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("status %d, %s", resp.StatusCode, body)
		}
		var seconds int
		if _, err := fmt.Sscan(resp.Header.Get("Retry-After"), &seconds); err != nil || seconds*1000 < retry {
			t.Errorf("Retry-After: %q", resp.Header.Get("Retry-After"))
		}
		if strings.Contains(string(body), "secret") {
			t.Errorf("the body shows the error: %s", body)
		}
	})
	s := connect(t, server)
	for _, b := range s.rest() {
		require.Nil(t, b.Event)
	}
	require.GreaterOrEqual(t, s.Retry, 8*retry)
	require.Less(t, s.Retry, 16*retry)
	require.Equal(t, "no-store, no-transform", s.Response.Header.Get("Cache-Control"))
}

// A parser begins each connection without a last event id, and keeps what that says
// when the first blank line comes: a refusal must not make the client forget its own.
func TestSoftRefusalKeepsTheLastEventID(t *testing.T) {
	bus := newBus(t, onMiniredis(t))
	server := streams(t, bus, eventbus.ProjectChannel(uuid.New()))
	s := joined(t, server)
	id := s.LastEventID
	s.leave()
	require.NoError(t, bus.Shutdown(deadline(t)))
	for _, way := range []with{lastEventID(id), query("last_event_id", id)} {
		s = connect(t, server, way)
		for _, b := range s.drain() {
			require.Equal(t, id, b.LastEventID)
		}
		require.Positive(t, s.Retry)
	}
}

// A gate is an authorisation that a test changes while streams are open.
type gate struct {
	answer atomic.Value // of func() (eventbus.Subscription, error)
	asked  atomic.Int64
}

func (g *gate) set(answer func() (eventbus.Subscription, error)) { g.answer.Store(answer) }

func (g *gate) authorize(*http.Request) (eventbus.Subscription, error) {
	defer g.asked.Add(1) // after the answer was looked up
	return g.answer.Load().(func() (eventbus.Subscription, error))()
}

func TestAuthorizationIsAskedAgain(t *testing.T) {
	channels := []eventbus.Channel{eventbus.ProjectChannel(uuid.New()), eventbus.UserChannel(uuid.New())}
	other := eventbus.UserChannel(uuid.New())
	allow := func(channels ...eventbus.Channel) func() (eventbus.Subscription, error) {
		return func() (eventbus.Subscription, error) { return eventbus.Subscription{Channels: channels}, nil }
	}
	refuse := func(err error) func() (eventbus.Subscription, error) {
		return func() (eventbus.Subscription, error) { return eventbus.Subscription{}, err }
	}
	tests := []struct {
		name string
		then func() (eventbus.Subscription, error)
		ends bool
	}{
		{"logout", refuse(eventbus.ErrUnauthorized), true},
		{"forbidden", refuse(fmt.Errorf("wrapped: %w", eventbus.ErrForbidden)), true},
		{"gone", refuse(eventbus.ErrGone), true},
		{"bad request", refuse(&eventbus.ValidationError{Subject: "query", Fields: []eventbus.FieldError{{Field: "a", Problem: "b"}}}), true},
		{"fewer channels", allow(channels[0]), true},
		{"more channels", allow(channels[0], channels[1], other), true},
		{"other channels", allow(channels[0], other), true},
		{"other types", func() (eventbus.Subscription, error) {
			return eventbus.Subscription{Channels: channels, Types: []string{"issue.*"}}, nil
		}, true},
		{"temporary error", refuse(errors.New("database is away")), false},
		{"other order, one twice", allow(channels[1], channels[0], channels[1]), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bus := newBus(t, onMiniredis(t), quiet(), eventbus.WithKeepalive(20*time.Millisecond))
			var g gate
			g.set(allow(channels...))
			s := joined(t, serve(t, handler(bus, g.authorize)))
			for g.asked.Load() < 3 {
				s.block()
			}
			g.set(test.then)
			if test.ends {
				for _, b := range s.rest() {
					require.Nil(t, b.Event)
				}
				return
			}
			for seen := g.asked.Load(); g.asked.Load() < seen+3; {
				s.block()
			}
			publish(t, bus, projectOf(channels[0]), nil, "still there")
			s.expect("still there")
			g.set(refuse(eventbus.ErrUnauthorized))
			s.rest()
		})
	}
}

// A busy stream never is silent for a keepalive time; it is asked about all the same.
func TestBusyStreamIsAskedAboutToo(t *testing.T) {
	bus := newBus(t, onMiniredis(t), eventbus.WithKeepalive(50*time.Millisecond))
	project := uuid.New()
	var g gate
	g.set(func() (eventbus.Subscription, error) {
		return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}}, nil
	})
	s := joined(t, serve(t, handler(bus, g.authorize)))
	ctx, stop := context.WithCancel(deadline(t))
	var publisher sync.WaitGroup
	defer publisher.Wait()
	defer stop()
	publisher.Go(func() {
		for ctx.Err() == nil {
			if err := bus.Publish(ctx, message(t, project, "busy")); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	s.event()
	g.set(func() (eventbus.Subscription, error) { return eventbus.Subscription{}, eventbus.ErrUnauthorized })
	s.rest()
}

func TestValidUntilAsksEarlier(t *testing.T) {
	for _, test := range []struct {
		name  string
		first time.Duration // ValidUntil of the first answer, 0 for none
	}{{"from the start", 20 * time.Millisecond}, {"in the past", -time.Second}} {
		t.Run(test.name, func(t *testing.T) {
			bus := newBus(t, onMiniredis(t), eventbus.WithKeepalive(time.Hour))
			channel := eventbus.ProjectChannel(uuid.New())
			var asked atomic.Int64
			s := joined(t, serve(t, handler(bus, func(*http.Request) (eventbus.Subscription, error) {
				switch asked.Add(1) {
				case 1:
					return eventbus.Subscription{Channels: []eventbus.Channel{channel}, ValidUntil: time.Now().Add(test.first)}, nil
				case 2:
					return eventbus.Subscription{Channels: []eventbus.Channel{channel}, ValidUntil: time.Now().Add(20 * time.Millisecond)}, nil
				}
				return eventbus.Subscription{}, eventbus.ErrUnauthorized
			})))
			hang := time.AfterFunc(20*time.Second, s.cancel)
			defer hang.Stop()
			_, err := s.next()
			require.ErrorIs(t, err, io.EOF, "asked %d times only", asked.Load())
			require.EqualValues(t, 3, asked.Load())
		})
	}
}

// An event that comes after the time at which the client may no longer read is kept
// from it, and not counted as seen.
func TestNothingIsSentOnceRefused(t *testing.T) {
	bus := newBus(t, onMiniredis(t), eventbus.WithKeepalive(time.Hour))
	project := uuid.New()
	expired := make(chan struct{})
	var asked atomic.Int64
	server := serve(t, handler(bus, func(*http.Request) (eventbus.Subscription, error) {
		if asked.Add(1) > 1 {
			<-expired
			return eventbus.Subscription{}, eventbus.ErrUnauthorized
		}
		return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}, ValidUntil: time.Now()}, nil
	}))
	s := joined(t, server)
	publish(t, bus, project, nil, "secret")
	close(expired)
	hang := time.AfterFunc(20*time.Second, s.cancel)
	defer hang.Stop()
	require.Empty(t, s.rest())
}

func TestShutdownSpreadsTheClients(t *testing.T) {
	bus := newBus(t, onMiniredis(t), eventbus.WithRetry(time.Second))
	project := uuid.New()
	server := streams(t, bus, eventbus.ProjectChannel(project))
	var all []*sseStream
	for range 16 {
		all = append(all, joined(t, server))
	}
	publish(t, bus, project, nil, "a")
	for _, s := range all {
		s.expect("a")
		s.sseParser.Retry = -1
	}
	require.NoError(t, bus.Shutdown(deadline(t)))
	retries := map[int]bool{}
	for _, s := range all {
		id := s.LastEventID
		blocks := s.rest()
		require.Len(t, blocks, 1)
		require.Len(t, blocks[0].Lines, 1)
		require.GreaterOrEqual(t, s.Retry, 1000)
		require.Less(t, s.Retry, 2000+16*2)
		require.Equal(t, id, s.LastEventID)
		retries[s.Retry] = true
	}
	require.Greater(t, len(retries), 4, "all of them come back at the same time")
	requireSoftRefusal(t, server, 1000)
	require.NoError(t, bus.Shutdown(deadline(t)))
}

// watched tells when a handler has returned.
func watched(h http.Handler) (http.Handler, <-chan *http.Request) {
	ended := make(chan *http.Request, 100)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		ended <- r
	}), ended
}

func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-deadline(t).Done():
		t.Fatal("waited in vain")
		panic("unreachable")
	}
}

func TestCloseEndsHandlers(t *testing.T) {
	bus := newBus(t, onMiniredis(t))
	h, ended := watched(handler(bus, reads(eventbus.ProjectChannel(uuid.New()))))
	s := joined(t, serve(t, h))
	require.NoError(t, bus.Close())
	await(t, ended)
	s.rest()
	require.Zero(t, bus.Stats().Active)
}

func TestClientThatLeavesEndsTheHandler(t *testing.T) {
	bus := newBus(t, onMiniredis(t))
	h, ended := watched(handler(bus, reads(eventbus.ProjectChannel(uuid.New()))))
	server := serve(t, h)
	a, b := joined(t, server), joined(t, server)
	require.Equal(t, 2, bus.Stats().Active)
	a.leave()
	await(t, ended)
	require.Equal(t, 1, bus.Stats().Active)
	b.leave()
	await(t, ended)
	require.Zero(t, bus.Stats().Active)
}

func TestOnlyGET(t *testing.T) {
	server := streams(t, newBus(t, onMiniredis(t)), eventbus.ProjectChannel(uuid.New()))
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead} {
		resp, _ := get(t, server, func(r *http.Request) { r.Method = method })
		require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
		require.Equal(t, "GET", resp.Header.Get("Allow"))
	}
}

// bare hides everything but the three methods, as careless middleware does.
type bare struct{ http.ResponseWriter }

// open does so with a way through.
type open struct{ bare }

func (o open) Unwrap() http.ResponseWriter { return o.ResponseWriter }

func TestMiddlewareThatHidesFlushIsToldAtOnce(t *testing.T) {
	bus := newBus(t, onMiniredis(t), quiet())
	h := handler(bus, func(*http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(uuid.New())}}, nil
	})
	wrap := func(w func(http.ResponseWriter) http.ResponseWriter) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { h.ServeHTTP(w(rw), r) })
	}
	for name, h := range map[string]http.Handler{
		"wrapper":             wrap(func(w http.ResponseWriter) http.ResponseWriter { return bare{w} }),
		"wrapper of wrapper":  wrap(func(w http.ResponseWriter) http.ResponseWriter { return open{bare{bare{w}}} }),
		"http.TimeoutHandler": http.TimeoutHandler(h, time.Minute, ""),
	} {
		t.Run(name, func(t *testing.T) {
			resp, _ := get(t, serve(t, h))
			require.Equal(t, http.StatusInternalServerError, resp.StatusCode)
			require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
		})
	}
	recorder := httptest.NewRecorder() // which cannot stream, but be refused
	handler(bus, nil).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Equal(t, http.StatusForbidden, recorder.Code)

	joined(t, serve(t, wrap(func(w http.ResponseWriter) http.ResponseWriter { return open{bare{w}} })))
	joined(t, serve(t, wrap(func(w http.ResponseWriter) http.ResponseWriter { return open{bare{open{bare{w}}}} })))
}

func TestServersWriteTimeoutDoesNotCutAStream(t *testing.T) {
	bus := newBus(t, onMiniredis(t), eventbus.WithKeepalive(50*time.Millisecond))
	project := uuid.New()
	server := httptest.NewUnstartedServer(handler(bus, reads(eventbus.ProjectChannel(project))))
	server.Config.WriteTimeout = 100 * time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	s := joined(t, server)
	for range 6 { // one after the other, each at least a keepalive time later
		s.until(func(b sseBlock) bool { return b.Event == nil })
	}
	publish(t, bus, project, nil, "a")
	s.expect("a")
}

func TestHTTP2(t *testing.T) {
	bus := newBus(t, onMiniredis(t), eventbus.WithKeepalive(300*time.Millisecond), eventbus.WithWriteTimeout(100*time.Millisecond))
	project := uuid.New()
	server := httptest.NewUnstartedServer(handler(bus, reads(eventbus.ProjectChannel(project))))
	server.EnableHTTP2 = true
	server.Config.WriteTimeout = 500 * time.Millisecond
	server.StartTLS()
	t.Cleanup(server.Close)
	s := joined(t, server)
	require.Equal(t, 2, s.Response.ProtoMajor)
	require.NotContains(t, s.Response.Header, "Connection")
	for range 3 { // longer than the write timeout lies between them
		s.until(func(b sseBlock) bool { return b.Event == nil })
	}
	publish(t, bus, project, nil, "a")
	id := s.expect("a").LastEventID
	s.leave()
	publish(t, bus, project, nil, "b")
	s = joined(t, server, lastEventID(id))
	s.expect("b")
	require.NoError(t, bus.Shutdown(deadline(t)))
	require.Len(t, s.rest(), 1)
}

func TestClientThatStopsReadingIsCutAndDelaysNobody(t *testing.T) {
	bus := newBus(t, onMiniredis(t), eventbus.WithWriteTimeout(500*time.Millisecond))
	project := uuid.New()
	h, ended := watched(handler(bus, reads(eventbus.ProjectChannel(project))))
	server := serve(t, h)

	good := joined(t, server)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	_, err = fmt.Fprintf(conn, "GET /?dead HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	for bus.Stats().Active < 2 {
		publish(t, bus, project, nil, "waiting")
	}

	ctx := deadline(t)
	cut := make(chan string)
	go func() {
		defer close(cut)
		big := strings.Repeat("x", 200_000)
		for {
			select {
			case r := <-ended:
				cut <- r.URL.RawQuery
				return
			default:
			}
			if err := bus.Publish(ctx, message(t, project, big)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	// The other one gets everything in the meantime, and what comes afterwards.
	got := make(chan struct{})
	go func() {
		defer close(got)
		for {
			b, err := good.next()
			if err != nil {
				t.Error(err)
				return
			}
			if b.Event != nil && strings.Contains(b.Event.Data, `"message":"the end"`) {
				return
			}
		}
	}()
	require.Equal(t, "dead", await(t, cut))
	publish(t, bus, project, nil, "the end")
	await(t, got)
	require.Equal(t, 1, bus.Stats().Active)
	require.Zero(t, bus.Stats().Gaps)
}

func TestRedisAwayAtConnectIsASoftRefusal(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	bus := newBus(t, server.Client(t), quiet())
	warm := uuid.New()
	s := joined(t, streams(t, bus, eventbus.ProjectChannel(warm)))
	server.Kill()
	requireSoftRefusal(t, streams(t, bus, eventbus.ProjectChannel(uuid.New())), 250)

	// What is listened to already can be opened: it goes on once Redis is back.
	joined(t, streams(t, bus, eventbus.ProjectChannel(warm)))
	s.leave()
}

func TestOpenStreamsOutlastRedis(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	bus := newBus(t, server.Client(t), quiet(), eventbus.WithKeepalive(20*time.Millisecond))
	project, agent := uuid.New(), uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(agent)}
	one, two := joined(t, streams(t, bus, channels[0])), joined(t, streams(t, bus, channels...))
	publish(t, bus, project, channels[1:], "a", "b")
	one.expect("a", "b")
	two.expect("a", "b")

	for round := range 2 {
		broken := bus.Stats().Reconnects
		server.Kill()
		// They stay open, and get keepalives.
		for bus.Stats().Reconnects < broken+2 {
			require.Nil(t, one.block().Event)
			require.Nil(t, two.block().Event)
		}
		server.Restart(t)
		// Somebody else is back sooner.
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr})
		other, err := eventbus.New(rdb, quiet())
		require.NoError(t, err)
		texts := numbers(10*round, 10*round+10)
		publish(t, other, project, channels[1:], texts...)
		one.expect(texts...)
		two.expect(texts...)
		require.NoError(t, other.Close())
		require.NoError(t, rdb.Close())
	}
	publish(t, bus, project, nil, "z")
	one.expect("z")
	two.expect("z")
	require.Zero(t, bus.Stats().Gaps)
}

// A countingHook counts the commands that a client sends, and its round trips.
type countingHook struct{ sent, trips *atomic.Int64 }

func (h countingHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h countingHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.sent.Add(1)
		h.trips.Add(1)
		return next(ctx, cmd)
	}
}

func (h countingHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.sent.Add(int64(len(cmds)))
		h.trips.Add(1)
		return next(ctx, cmds)
	}
}

// A pipeWriter is a ResponseWriter whose other end is a function.
type pipeWriter struct {
	header  http.Header
	status  int
	written func([]byte)
}

func (w *pipeWriter) Header() http.Header { return w.header }
func (w *pipeWriter) WriteHeader(s int)   { w.status = s }
func (w *pipeWriter) Flush()              {}

func (w *pipeWriter) SetWriteDeadline(time.Time) error { return nil }

func (w *pipeWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.written(b)
	return len(b), nil
}

// Whatever a client sends as its last event id, it gets a stream that brings what
// happens next, after a bounded number of calls to Redis; what it was told of as the
// cursor is one, and what it misses it is told of.
func FuzzLastEventID(f *testing.F) {
	rdb, err := embedded.New()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = rdb.Close() })
	var sent atomic.Int64
	rdb.AddHook(countingHook{&sent, new(atomic.Int64)})
	bus := newBus(f, rdb, quiet(), eventbus.WithFreshness(time.Hour), eventbus.WithRetention(eventbus.Retention{Events: 50, Age: time.Hour}))
	project := uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.UserChannel(uuid.New())}
	for range 60 {
		publish(f, bus, project, channels[1:], "before")
	}
	for n := range channels {
		cursor, err := bus.Cursor(deadline(f), channels[:n+1]...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(cursor.String(), n == 0)
	}
	at := newest(f, rdb, channels[0])
	epoch, _, _ := strings.Cut(at, "-")
	for _, id := range []string{"", "garbage", at, epoch + "-0", epoch + "-5", epoch + "-999999", "1-1", "0-0", "281474976710655-9007199254740991",
		uuid.NewString(), strings.ToUpper(uuid.NewString()), "4A", "4AAAAAAAAAA", strings.Repeat("4", 1024), "\x00\xff\n"} {
		f.Add(id, true)
		f.Add(id, false)
	}
	for _, seq := range extremes { // and with holes, of the first, the second and no channel
		e := []forgedEntry{forgedAt(f, channels[0], at), forgedAt(f, channels[1], newest(f, rdb, channels[1]))}
		holes := []forgedHole{{0, seq, 0, seq - 1, 0}, {1, 3, 0, seq, 0}}
		f.Add(forged{entries: e, holes: holes}.String(), false)
		f.Add(forged{entries: e, holes: append(holes, forgedHole{2, seq, seq, seq, seq})}.String(), true)
		e[0].seq, e[1].epoch = seq, seq
		f.Add(forged{entries: e, holes: holes}.String(), false)
	}
	handlers := []http.Handler{handler(bus, reads(channels...)), handler(bus, reads(channels[:1]...))}
	f.Fuzz(func(t *testing.T, id string, one bool) {
		h := handlers[0]
		if one {
			h = handlers[1]
		}
		ctx, cancel := context.WithCancel(deadline(t))
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		r.Header["Last-Event-Id"] = []string{id}
		p := sseclient.New("")
		var marker eventbus.Event // what has happened last
		happens := func() {
			marker = message(t, project, "marker")
			if err := bus.Publish(ctx, marker, channels[1:]...); err != nil {
				t.Error(err)
				cancel()
			}
		}
		got := map[string]int{}
		before := sent.Load()
		w := &pipeWriter{header: http.Header{}, written: func(b []byte) {
			for _, b := range p.Parse(b) {
				requireCursor(t, b.LastEventID)
				switch {
				case b.Event == nil:
					if marker.ID == "" {
						happens() // the stream stands
					}
				case b.Event.Type == "stream.live":
				case b.Event.Type == "stream.gap":
					happens() // what had happened may be in the gap
				default:
					id := decode(t, *b.Event).ID
					if got[id]++; id == marker.ID {
						cancel()
					}
				}
			}
		}}
		h.ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.status)
		require.Equal(t, "text/event-stream", w.header.Get("Content-Type"))
		require.Contains(t, got, marker.ID, "what happened next did not come")
		for id, n := range got {
			require.Equal(t, 1, n, "event %s came %d times", id, n)
		}
		require.Empty(t, p.Unfinished())
		require.Less(t, sent.Load()-before, int64(20))
		if _, err := eventbus.ParseCursor(p.LastEventID); err != nil {
			t.Errorf("id %q: %s", p.LastEventID, err)
		}
	})
}
