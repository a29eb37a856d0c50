package tests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// An answerer is a Snapshot whose answer a test can change. It counts the calls.
type answerer struct {
	calls  atomic.Int64
	answer atomic.Pointer[func(context.Context) (any, eventbus.Cursor, error)]
}

func (a *answerer) set(f func(context.Context) (any, eventbus.Cursor, error)) { a.answer.Store(&f) }

func (a *answerer) load(ctx context.Context) (any, eventbus.Cursor, error) {
	a.calls.Add(1)
	return (*a.answer.Load())(ctx)
}

// gives makes the answer a state with the cursor that belongs to it.
func (a *answerer) gives(state any, after eventbus.Cursor) {
	a.set(func(context.Context) (any, eventbus.Cursor, error) { return state, after, nil })
}

// fails makes the answer an error.
func (a *answerer) fails(err error) {
	a.set(func(context.Context) (any, eventbus.Cursor, error) { return nil, eventbus.Cursor{}, err })
}

// server serves streams that have a snapshot.
func (a *answerer) server(t testing.TB, bus *eventbus.Bus, key string, channels ...eventbus.Channel) *httptest.Server {
	return serve(t, handler(bus, func(r *http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{
			Channels: channels, Oldest: r.URL.Query().Has("oldest"), NoFollow: r.URL.Query().Has("nofollow"), Snapshot: a.load, SnapshotKey: key,
		}, nil
	}))
}

// snapshot wants the next event to be a snapshot, and gives its reason and its state.
func (s *sseStream) snapshot() (reason string, state string) {
	s.t.Helper()
	var data struct {
		Reason string          `json:"reason"`
		State  json.RawMessage `json:"state"`
	}
	decodeInto(s.t, s.own("stream.snapshot"), &data)
	requireCursor(s.t, s.LastEventID)
	return data.Reason, string(data.State)
}

func cursorOf(t testing.TB, bus *eventbus.Bus, channels ...eventbus.Channel) eventbus.Cursor {
	t.Helper()
	c, err := bus.Cursor(deadline(t), channels...)
	require.NoError(t, err)
	return c
}

// TestSnapshotAtAJoin: the stream begins with the state, and goes on right behind its cursor. There
// is no id before it.
func TestSnapshotAtAJoin(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, a, b := newBus(t, rdb), run(t), run(t)
		tokens(t, bus, a, "1", "2")
		var snap answerer
		snap.gives(map[string]any{"tokens": 2, "text": "a\nb"}, cursorOf(t, bus, a, b))
		tokens(t, bus, a, "3")
		tokens(t, bus, b, "4")
		server := snap.server(t, bus, "", a, b)
		s := connect(t, server)
		first := s.block()
		require.True(t, first.Has("retry"))
		require.False(t, first.Has("id"), "a client that came back with it would miss the snapshot")
		reason, state := s.snapshot()
		require.Equal(t, "joined", reason)
		require.Equal(t, `{"text":"a\nb","tokens":2}`, state)
		at := s.LastEventID
		s.expect("3", "4")
		require.Equal(t, `{"replayed":2}`, s.own("stream.live"))

		// Who comes back with the cursor gets no other snapshot.
		back := joined(t, server, lastEventID(at))
		require.Equal(t, at, back.LastEventID)
		back.expect("3", "4")
		require.EqualValues(t, 1, snap.calls.Load())

		// Where the program has stored no cursor, the bus takes one before the call.
		snap.set(func(context.Context) (any, eventbus.Cursor, error) {
			tokens(t, bus, a, "5")
			return "state", eventbus.Cursor{}, nil
		})
		s = connect(t, server)
		_, state = s.snapshot()
		require.Equal(t, `"state"`, state)
		s.expect("5")

		// A cursor that lacks a channel is not enough.
		snap.gives(nil, eventbus.Cursor{})
		s = connect(t, server, lastEventID(cursorOf(t, bus, a).String()))
		reason, state = s.snapshot()
		require.Equal(t, "joined null", reason+" "+state)
		s = connect(t, server, lastEventID("garbage"))
		reason, _ = s.snapshot()
		require.Equal(t, "unknown", reason)
		require.Equal(t, `{"replayed":0}`, s.own("stream.live"))
	})
}

// TestSnapshotInsteadOfAGap: for a client that comes back too late, and in an open stream.
func TestSnapshotInsteadOfAGap(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, a, b := newBus(t, rdb, eventbus.WithFreshness(200*time.Millisecond)), run(t), run(t)
		var snap answerer
		snap.gives("at first", eventbus.Cursor{})
		server := snap.server(t, bus, "key", a, b)
		s := connect(t, server)
		s.snapshot()
		s.own("stream.live")
		at := s.LastEventID
		tokens(t, bus, a, "1", "2", "3")
		s.expect("1", "2", "3")
		require.NoError(t, rdb.XTrimMaxLen(deadline(t), logKey(a), 1).Err())
		snap.gives("later", cursorOf(t, bus, a, b))
		cold := connect(t, snap.server(t, newBus(t, rdb), "", a, b), lastEventID(at))
		first := cold.block()
		require.False(t, first.Has("id"))
		reason, state := cold.snapshot()
		require.Equal(t, `trimmed "later"`, reason+" "+state)
		require.Equal(t, `{"replayed":0}`, cold.own("stream.live"))

		require.NoError(t, rdb.Del(deadline(t), logKey(a)).Err())
		snap.gives("healed", eventbus.Cursor{})
		reason, state = s.snapshot()
		require.Equal(t, `lost "healed"`, reason+" "+state)
		tokens(t, bus, a, "4")
		s.expect("4")
		require.Empty(t, s.live, "once per connection")
	})
}

// TestSnapshotThatIsTooOld: where the logs do not reach back to its cursor, a gap follows it.
func TestSnapshotThatIsTooOld(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, a := newBus(t, rdb), run(t)
		tokens(t, bus, a, "1")
		var snap answerer
		snap.gives("old", cursorOf(t, bus, a))
		tokens(t, bus, a, "2", "3", "4")
		require.NoError(t, rdb.XTrimMaxLen(deadline(t), logKey(a), 1).Err())
		s := connect(t, snap.server(t, bus, "", a))
		_, state := s.snapshot()
		require.Equal(t, `"old"`, state)
		g, _ := s.gap()
		require.Equal(t, "trimmed", g.Reason)
		s.expect("4")
		require.EqualValues(t, 2, snap.calls.Load(), "the second call could have had a newer cursor")
	})
}

func TestSnapshotWithOldest(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, a, b := newBus(t, rdb), run(t), run(t)
		var snap answerer
		snap.gives("state", eventbus.Cursor{})
		tokens(t, bus, a, "1", "2")
		server := snap.server(t, bus, "", a, b)
		joined(t, server, query("oldest", "")).expect("1", "2")
		require.Zero(t, snap.calls.Load(), "the logs have everything")
		require.NoError(t, rdb.XTrimMaxLen(deadline(t), logKey(a), 1).Err())
		connect(t, server, query("oldest", "")).snapshot()

		finite := connect(t, server, query("nofollow", ""))
		finite.snapshot()
		finite.own("stream.live")
		require.Empty(t, finite.rest())
	})
}

// TestSnapshotThatFails: a join is refused softly, or for good where the program says so. A gap is
// given as a gap.
func TestSnapshotThatFails(t *testing.T) {
	rdb := onMiniredis(t)
	bus, a := newBus(t, rdb, quiet(), eventbus.WithKeepalive(time.Minute)), run(t)
	var snap answerer
	server := snap.server(t, bus, "key", a)
	for name, answer := range map[string]func(context.Context) (any, eventbus.Cursor, error){
		"an error":        func(context.Context) (any, eventbus.Cursor, error) { return nil, eventbus.Cursor{}, errors.New("no") },
		"a panic":         func(context.Context) (any, eventbus.Cursor, error) { panic("no") },
		"a panic in JSON": func(context.Context) (any, eventbus.Cursor, error) { return panicky{}, eventbus.Cursor{}, nil },
		"a channel of Go": func(context.Context) (any, eventbus.Cursor, error) { return make(chan int), eventbus.Cursor{}, nil },
		"not a number":    func(context.Context) (any, eventbus.Cursor, error) { return math.NaN(), eventbus.Cursor{}, nil },
		"it ends itself": func(context.Context) (any, eventbus.Cursor, error) {
			runtime.Goexit()
			return nil, eventbus.Cursor{}, nil
		},
		"a bad channel": func(context.Context) (any, eventbus.Cursor, error) {
			_, err := eventbus.ParseChannel("")
			return nil, eventbus.Cursor{}, err
		},
		"no JSON": func(context.Context) (any, eventbus.Cursor, error) {
			return json.RawMessage("{"), eventbus.Cursor{}, nil
		},
		"more than 4 MiB": func(context.Context) (any, eventbus.Cursor, error) {
			return strings.Repeat("x", 4<<20), eventbus.Cursor{}, nil
		},
		"nothing, for now": func(context.Context) (any, eventbus.Cursor, error) {
			return nil, eventbus.Cursor{}, eventbus.ErrUnavailable
		},
	} {
		snap.set(answer)
		requireSoftRefusal(t, server, 250)
		for _, err := range framesOf(deadline(t), bus, eventbus.Subscription{Channels: []eventbus.Channel{a}, Snapshot: snap.load}) {
			require.ErrorContains(t, err, "eventbus: snapshot: ", name)
		}
	}
	for err, status := range map[error]int{eventbus.ErrNotFound: 404, eventbus.ErrForbidden: 403, eventbus.ErrGone: 204} {
		snap.fails(fmt.Errorf("run: %w", err))
		response, _ := get(t, server)
		require.Equal(t, status, response.StatusCode)
		require.NotEqual(t, "text/event-stream", response.Header.Get("Content-Type"))
	}

	tokens(t, bus, a, "1", "2", "3")
	at := cursorOf(t, bus, a)
	tokens(t, bus, a, "4", "5")
	require.NoError(t, rdb.XTrimMaxLen(deadline(t), logKey(a), 1).Err())
	snap.fails(errors.New("no"))
	cold := snap.server(t, newBus(t, rdb, quiet()), "", a)
	s := connect(t, cold, lastEventID(at.String()))
	require.True(t, s.block().Has("retry"))
	g, e := s.gap()
	require.Equal(t, "trimmed", g.Reason)
	s.expect("5")
	connect(t, cold, lastEventID(e.LastEventID)).expect("5")
}

// TestShutdownDoesNotWaitForASnapshot: a stream that waits for one ends at once.
func TestShutdownDoesNotWaitForASnapshot(t *testing.T) {
	bus, a := newBus(t, onMiniredis(t), eventbus.WithKeepalive(time.Hour)), run(t)
	var snap answerer
	began := make(chan bool)
	snap.set(func(ctx context.Context) (any, eventbus.Cursor, error) {
		close(began)
		<-ctx.Done()
		return nil, eventbus.Cursor{}, ctx.Err()
	})
	ended := make(chan error, 1)
	go func() {
		var last error
		for _, err := range framesOf(context.Background(), bus, eventbus.Subscription{Channels: []eventbus.Channel{a}, Snapshot: snap.load}) {
			last = err
		}
		ended <- last
	}()
	await(t, began)
	require.NoError(t, bus.Shutdown(deadline(t)))
	require.Equal(t, eventbus.ErrClosed, await(t, ended))
}

// TestForeignEventsWhileASnapshotLoads: they are in no log, and the state may lack them.
func TestForeignEventsWhileASnapshotLoads(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus, project := newBus(t, rdb), uuid.New()
		p := eventbus.ProjectChannel(project)
		var snap answerer
		snap.set(func(ctx context.Context) (any, eventbus.Cursor, error) {
			heard := make(chan bool)
			go func() {
				for range bus.Subscribe(ctx, p) {
					close(heard)
					return
				}
			}()
			for {
				ev, err := message(t, project, "f1").MarshalJSON()
				require.NoError(t, err)
				publishForeign(t, rdb, p, string(ev))
				select {
				case <-heard:
					return "before", eventbus.Cursor{}, nil
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
		s := connect(t, snap.server(t, bus, "", p))
		s.snapshot()
		s.own("stream.live")
		s.expect("f1")
	})
}

// TestAStreamThatIsRefusedWhileItsSnapshotLoads gets an answer that an EventSource understands.
func TestAStreamThatIsRefusedWhileItsSnapshotLoads(t *testing.T) {
	bus, a, b := newBus(t, onMiniredis(t), quiet()), run(t), run(t)
	var asked atomic.Int64
	server := serve(t, handler(bus, func(*http.Request) (eventbus.Subscription, error) {
		sub := eventbus.Subscription{Channels: []eventbus.Channel{a}, ValidUntil: time.Now().Add(10 * time.Millisecond)}
		sub.Snapshot = func(ctx context.Context) (any, eventbus.Cursor, error) {
			<-ctx.Done()
			return nil, eventbus.Cursor{}, ctx.Err()
		}
		if asked.Add(1)%2 == 0 {
			sub.Channels = append(sub.Channels, b)
		}
		return sub, nil
	}))
	connect(t, server).rest() // soft: 200, and text/event-stream
}

// TestACursorThatLacksAChannelIsNotAtTheEnd: the client has nothing of the other one.
func TestACursorThatLacksAChannelIsNotAtTheEnd(t *testing.T) {
	bus, a, b := newBus(t, onMiniredis(t)), run(t), run(t)
	at := end(t, bus, a, "last of a")
	end(t, bus, b, "last of b")
	var snap answerer
	snap.gives("state", eventbus.Cursor{})
	connect(t, snap.server(t, bus, "", a, b), lastEventID(at.String())).snapshot()
}

// TestAnOldCursorIsAskedAboutOnce, however many channels have logs that do not reach back to it.
func TestAnOldCursorIsAskedAboutOnce(t *testing.T) {
	rdb := onMiniredis(t)
	bus := newBus(t, rdb)
	var channels []eventbus.Channel
	for range 4 {
		channels = append(channels, run(t))
		tokens(t, bus, channels[len(channels)-1], "1")
	}
	var snap answerer
	snap.gives("state", cursorOf(t, bus, channels...))
	for _, c := range channels {
		tokens(t, bus, c, "2", "3")
		require.NoError(t, rdb.XTrimMaxLen(deadline(t), logKey(c), 1).Err())
	}
	s := connect(t, snap.server(t, newBus(t, rdb), "", channels...))
	s.snapshot()
	for range channels {
		for b := s.block(); b.Event == nil || b.Event.Type != "stream.gap"; b = s.block() {
		}
	}
	require.EqualValues(t, 2, snap.calls.Load())
}

type panicky struct{}

func (panicky) MarshalJSON() ([]byte, error) { panic("no") }

// TestKeepalivesGoOnWhileASnapshotLoads: and there is no id before the snapshot.
func TestKeepalivesGoOnWhileASnapshotLoads(t *testing.T) {
	rdb := onMiniredis(t)
	bus, a := newBus(t, rdb, eventbus.WithKeepalive(10*time.Millisecond)), run(t)
	var snap answerer
	release := make(chan bool)
	snap.set(func(context.Context) (any, eventbus.Cursor, error) { <-release; return "late", eventbus.Cursor{}, nil })
	s := connect(t, snap.server(t, bus, "", a))
	first := s.block()
	require.True(t, first.Has("retry"))
	require.False(t, first.Has("id"))
	for range 3 {
		require.True(t, s.block().Comment())
	}
	tokens(t, bus, a, "1")
	close(release)
	s.until(func(b sseBlock) bool { return b.Event != nil && b.Event.Type == "stream.snapshot" })
	s.expect("1")
}

// TestSnapshotsAreShared: by clients with the same channels and key that join at once, and by nobody
// else.
func TestSnapshotsAreShared(t *testing.T) {
	rdb := onMiniredis(t)
	bus, a, b := newBus(t, rdb), run(t), run(t)
	var snaps [4]answerer
	servers := make([]*httptest.Server, 4)
	release := make(chan bool)
	for i := range snaps {
		snaps[i].set(func(context.Context) (any, eventbus.Cursor, error) { <-release; return i, eventbus.Cursor{}, nil })
		key, channels := []string{"one", "two", "", "one"}[i], []eventbus.Channel{a, b}
		if i == 3 {
			channels = channels[:1]
		}
		servers[i] = snaps[i].server(t, bus, key, channels...)
	}
	const clients = 20
	var wg sync.WaitGroup
	for i, server := range servers {
		for range clients {
			wg.Go(func() {
				_, state := connect(t, server).snapshot()
				if state != fmt.Sprint(i) {
					t.Errorf("a client of %d got the state of %s", i, state)
				}
			})
		}
	}
	require.Eventually(t, func() bool { return bus.Stats().Active == 4*clients && snaps[2].calls.Load() == clients }, 20*time.Second, time.Millisecond)
	close(release)
	wg.Wait()
	require.EqualValues(t, 1, snaps[0].calls.Load())
	require.EqualValues(t, 1, snaps[1].calls.Load())
	require.EqualValues(t, clients, snaps[2].calls.Load(), "without a key nothing is shared")
	require.EqualValues(t, 1, snaps[3].calls.Load())
}

// TestAGapWantsANewSnapshot: one that began before the gap was seen may lack what is missing.
func TestAGapWantsANewSnapshot(t *testing.T) {
	rdb := onMiniredis(t)
	bus, a := newBus(t, rdb, eventbus.WithFreshness(200*time.Millisecond), eventbus.WithKeepalive(100*time.Millisecond)), run(t)
	var snap answerer
	snap.gives("first", eventbus.Cursor{})
	server := snap.server(t, bus, "key", a)
	s := connect(t, server)
	s.snapshot()
	release, began := make(chan bool), make(chan bool, 10)
	var n atomic.Int64
	snap.set(func(context.Context) (any, eventbus.Cursor, error) {
		call := n.Add(1)
		began <- true
		<-release
		return call, eventbus.Cursor{}, nil
	})
	joining := connect(t, server)
	await(t, began)
	tokens(t, bus, a, "1")
	s.expect("1")
	gaps := bus.Stats().Gaps
	require.NoError(t, rdb.Del(deadline(t), logKey(a)).Err())
	require.Eventually(t, func() bool { return bus.Stats().Gaps > gaps }, 20*time.Second, time.Millisecond)
	close(release)
	_, state := joining.snapshot()
	require.Equal(t, "1", state)
	reason, state := s.snapshot()
	require.Equal(t, "lost 2", reason+" "+state)
}

// TestASnapshotEndsWhenNobodyWaits: its context ends when the last client has gone.
func TestASnapshotEndsWhenNobodyWaits(t *testing.T) {
	rdb := onMiniredis(t)
	for _, key := range []string{"", "key"} {
		bus, a := newBus(t, rdb), run(t)
		var snap answerer
		ended := make(chan error, 10)
		snap.set(func(ctx context.Context) (any, eventbus.Cursor, error) {
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, eventbus.Cursor{}, ctx.Err()
		})
		server := snap.server(t, bus, key, a)
		var leave []func()
		for range 2 {
			ctx, cancel := context.WithCancel(deadline(t))
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
			require.NoError(t, err)
			go func() { _, _ = server.Client().Do(request) }()
			leave = append(leave, cancel)
		}
		require.Eventually(t, func() bool { return bus.Stats().Active == 2 && snap.calls.Load() > 0 }, 20*time.Second, time.Millisecond)
		leave[0]()
		require.Eventually(t, func() bool { return bus.Stats().Active == 1 }, 20*time.Second, time.Millisecond)
		if key != "" {
			require.Empty(t, ended, "another client waits")
		}
		leave[1]()
		await(t, ended)
	}
}

// TestTheLatestSnapshotFunctionCounts: authorize has given another one meanwhile.
func TestTheLatestSnapshotFunctionCounts(t *testing.T) {
	rdb := onMiniredis(t)
	bus, a := newBus(t, rdb, eventbus.WithKeepalive(10*time.Millisecond), eventbus.WithFreshness(200*time.Millisecond)), run(t)
	var asked atomic.Int64
	server := serve(t, handler(bus, func(*http.Request) (eventbus.Subscription, error) {
		n := asked.Add(1)
		return eventbus.Subscription{Channels: []eventbus.Channel{a}, Snapshot: func(context.Context) (any, eventbus.Cursor, error) {
			return n > 1, eventbus.Cursor{}, nil
		}}, nil
	}))
	s := connect(t, server)
	_, state := s.snapshot()
	require.Equal(t, "false", state)
	tokens(t, bus, a, "1")
	s.expect("1")
	require.Eventually(t, func() bool { return asked.Load() > 2 }, 20*time.Second, time.Millisecond)
	require.NoError(t, rdb.Del(deadline(t), logKey(a)).Err())
	_, state = s.snapshot()
	require.Equal(t, "true", state)
}

// A page appends tokens to a text, and replaces the text by a snapshot.
type page struct {
	text string
	p    *sseclient.Parser
}

func (p *page) read(t testing.TB, b []byte) {
	for _, block := range p.p.Parse(b) {
		switch {
		case block.Event == nil || block.Event.Type == "stream.live":
		case block.Event.Type == "stream.snapshot":
			var data struct{ State string }
			require.NoError(t, json.Unmarshal([]byte(block.Event.Data), &data))
			p.text = data.State
		default:
			p.text += textOf(t, *block.Event)
		}
	}
}

// TestEachTokenOnce: the page is cut at every byte of a snapshot, of what comes before and behind it,
// and comes back with the id that it has then.
func TestEachTokenOnce(t *testing.T) {
	rdb := onMiniredis(t)
	bus, a := newBus(t, rdb, eventbus.WithRetry(time.Millisecond)), run(t)
	var mu sync.Mutex
	text, after := "", cursorOf(t, bus, a)
	writes := func(token string) { // the program stores the text with its cursor
		receipt, err := bus.PublishWith(deadline(t), message(t, uuid.New(), token), eventbus.PublishOptions{Channels: []eventbus.Channel{a}, NoProject: true})
		require.NoError(t, err)
		mu.Lock()
		defer mu.Unlock()
		text, after = text+token, receipt.Cursor
	}
	load := func(context.Context) (any, eventbus.Cursor, error) {
		mu.Lock()
		defer mu.Unlock()
		return text, after, nil
	}
	writes("one ")
	whole := 0
	for cut := 0; cut <= whole; cut++ {
		pg := &page{p: sseclient.New("")}
		for left := cut; ; left = math.MaxInt {
			total := 0
			sub := eventbus.Subscription{Channels: []eventbus.Channel{a}, LastEventID: pg.p.LastEventID, Snapshot: load}
			for frame, err := range framesOf(deadline(t), bus, sub) {
				require.NoError(t, err)
				total += len(frame)
				n := min(left, len(frame))
				pg.read(t, frame[:n])
				if left -= n; left == 0 || pg.text == text {
					break
				}
			}
			whole = max(whole, min(total, 700))
			if pg.text == text && left > 0 {
				break
			}
			pg.p = sseclient.New(pg.p.LastEventID) // what was not dispatched is forgotten
			if cut%50 == 0 {
				writes(".")
			}
		}
		require.Equal(t, text, pg.text, "cut at %d", cut)
	}
	require.Greater(t, whole, 100)
}
