package tests

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

// TestRevokeFindsWhoIsOnTheWay: the identity is revoked after authorize has let it in, and before there
// is a stream to end.
func TestRevokeFindsWhoIsOnTheWay(t *testing.T) {
	for _, revoked := range []string{"alice", "somebody else"} {
		bus := newBus(t, onMiniredis(t), quiet(), eventbus.WithKeepalive(time.Hour))
		channel := eventbus.ProjectChannel(uuid.New())
		var out atomic.Bool
		var asked atomic.Int64
		server := serve(t, handler(bus, func(r *http.Request) (eventbus.Subscription, error) {
			if out.Load() && revoked == "alice" {
				return eventbus.Subscription{}, eventbus.ErrUnauthorized
			}
			if asked.Add(1) == 1 {
				if err := bus.Revoke(r.Context(), revoked); err != nil {
					t.Error(err)
				}
				out.Store(true)
			}
			return eventbus.Subscription{Channels: []eventbus.Channel{channel}, Identity: "alice"}, nil
		}))
		resp, _ := get(t, server)
		want := http.StatusUnauthorized
		if revoked != "alice" {
			want = http.StatusOK
			require.EqualValues(t, 2, asked.Load())
		}
		require.Equal(t, want, resp.StatusCode)
	}
}

// TestBodyThatNeverComes is announced, and must hold up neither the answer nor the server's end.
func TestBodyThatNeverComes(t *testing.T) {
	server := httptest.NewUnstartedServer(handler(newBus(t, onMiniredis(t)), reads(eventbus.ProjectChannel(uuid.New()))))
	server.Start()
	for _, announced := range []string{"Content-Length: 5", "Transfer-Encoding: chunked"} {
		for method, want := range map[string]int{"GET": http.StatusBadRequest, "POST": http.StatusMethodNotAllowed} {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			_, err = fmt.Fprintf(conn, "%s / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n%s\r\n\r\n", method, announced)
			require.NoError(t, err)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err)
			require.Equal(t, want, resp.StatusCode)
			_, err = io.ReadAll(resp.Body)
			require.NoError(t, err)
		}
	}
	require.NoError(t, server.Config.Shutdown(deadline(t)))
}

// flusher has a Flush, and no deadlines.
type flusher struct{ bare }

func (f flusher) Flush() { _ = http.NewResponseController(f.ResponseWriter).Flush() }

// refusing has the method for deadlines, and does not set them.
type refusing struct{ flusher }

func (refusing) SetWriteDeadline(time.Time) error { return http.ErrNotSupported }

// panicking is what echo's response is around a writer that cannot flush.
type panicking struct{ http.ResponseWriter }

func (p panicking) Flush() {
	if err := http.NewResponseController(p.ResponseWriter).Flush(); err != nil {
		panic(err)
	}
}
func (p panicking) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func TestWriterThatCannotStreamIsToldAtOnce(t *testing.T) {
	var log logBook
	bus := newBus(t, onMiniredis(t), log.option())
	h := handler(bus, reads(eventbus.ProjectChannel(uuid.New())))
	for name, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"flushes, but has no deadlines":  func(w http.ResponseWriter) http.ResponseWriter { return flusher{bare{w}} },
		"does not set deadlines":         func(w http.ResponseWriter) http.ResponseWriter { return refusing{flusher{bare{w}}} },
		"flushes around one that cannot": func(w http.ResponseWriter) http.ResponseWriter { return panicking{bare{w}} },
	} {
		server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(wrap(w), r) }))
		resp, _ := get(t, server)
		require.Equal(t, http.StatusInternalServerError, resp.StatusCode, name)
	}
	require.Contains(t, strings.Join(log.all(), "\n"), "a middleware hides")
	joined(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(panicking{w}, r) })))
}

// TestAuthorizeIsToldWhatToReturn: the log says it, since the browser cannot.
func TestAuthorizeIsToldWhatToReturn(t *testing.T) {
	for want, authorize := range map[string]func(*http.Request) (eventbus.Subscription, error){
		"authorize returned neither channels nor an error": func(*http.Request) (eventbus.Subscription, error) { return eventbus.Subscription{}, nil },
		"to refuse for good, wrap ErrUnauthorized": func(*http.Request) (eventbus.Subscription, error) {
			return eventbus.Subscription{}, errors.New("no session")
		},
	} {
		var log logBook
		bus := newBus(t, onMiniredis(t), log.option())
		_, _ = get(t, serve(t, handler(bus, authorize)))
		require.Contains(t, strings.Join(log.all(), "\n"), want)
	}
}

// TestClientsComeBackTheLaterTheMoreThereAre, about 500 a second, and streams that were told another
// time hear of it.
func TestClientsComeBackTheLaterTheMoreThereAre(t *testing.T) {
	bus := newBus(t, onMiniredis(t), eventbus.WithRetry(time.Millisecond), eventbus.WithKeepalive(20*time.Millisecond))
	server := streams(t, bus, eventbus.ProjectChannel(uuid.New()))
	first := joined(t, server)
	require.Less(t, first.Retry, 2+2*1)
	most := 0
	const n = 100
	for range n {
		s := joined(t, server)
		require.GreaterOrEqual(t, s.Retry, 1)
		require.Less(t, s.Retry, 2+2*(n+1))
		most = max(most, s.Retry)
	}
	require.Greater(t, most, n/2)
	first.until(func(b sseBlock) bool { return b.Has("retry") })
}

func TestZeroBusSaysSo(t *testing.T) {
	var bus eventbus.Bus
	ctx, c := context.Background(), eventbus.ProjectChannel(uuid.New())
	_, err := bus.Cursor(ctx, c)
	errs := []error{bus.Publish(ctx, eventbus.Event{}), bus.Revoke(ctx, "x"), bus.Health(), err}
	for _, err := range bus.Subscribe(ctx, c) {
		errs = append(errs, err)
	}
	for _, err := range bus.SubscribeSSE(ctx, eventbus.Subscription{Channels: []eventbus.Channel{c}}) {
		errs = append(errs, err)
	}
	for _, err := range errs {
		require.ErrorContains(t, err, "not made by New")
	}
	require.Len(t, errs, 6)
	require.Zero(t, bus.Stats())
	require.NoError(t, bus.Close())
	require.NoError(t, bus.Shutdown(ctx))
	resp, _ := get(t, serve(t, bus.Handler(reads(c))))
	require.Equal(t, http.StatusInternalServerError, resp.StatusCode)
}

// TestLogThatCannotBeRead is a stale tail like any other: Health says so.
func TestLogThatCannotBeRead(t *testing.T) {
	rdb := onMiniredis(t)
	bus, ctx, project := newBus(t, rdb, quiet(), fresh), deadline(t), uuid.New()
	channel := eventbus.ProjectChannel(project)
	f := follow(t, bus, now(t, bus, channel))
	require.NoError(t, bus.Publish(ctx, message(t, project, "0")))
	f.count(1)
	require.NoError(t, bus.Health())
	require.NoError(t, rdb.Del(ctx, logKey(channel)).Err())
	require.NoError(t, rdb.Set(ctx, logKey(channel), "no log", 0).Err())
	require.Eventually(t, func() bool { return bus.Health() != nil }, time.Minute, time.Millisecond)
	require.True(t, strings.Contains(bus.Health().Error(), channel.String()))
	require.NoError(t, rdb.Del(ctx, logKey(channel)).Err())
	require.Eventually(t, func() bool { return bus.Health() == nil }, time.Minute, time.Millisecond)
}
