package tests

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

type (
	sseParser = sseclient.Parser
	sseBlock  = sseclient.Block
	sseEvent  = sseclient.Event
)

// An sseStream is a client's side of one connection.
type sseStream struct {
	*sseParser                 // has read ahead
	LastEventID string         // behind the block that was given last
	Response    *http.Response // its body is read by the stream

	t      testing.TB
	cancel context.CancelFunc
	blocks []sseBlock
	live   []string // the data of each stream.live
	piece  []byte
}

// A with changes a request before it is sent.
type with func(*http.Request)

func lastEventID(id string) with {
	return func(r *http.Request) { r.Header.Set("Last-Event-ID", id) }
}

func query(name, value string) with {
	return func(r *http.Request) {
		q := r.URL.Query()
		q.Set(name, value)
		r.URL.RawQuery = q.Encode()
	}
}

// get sends a request as an EventSource does. The body ends with the test.
func get(t testing.TB, s *httptest.Server, change ...with) (*http.Response, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "text/event-stream")
	for _, c := range change {
		c(req)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = resp.Body.Close()
	})
	return resp, cancel
}

// connect opens a stream, and fails where an EventSource would give up.
func connect(t testing.TB, s *httptest.Server, change ...with) *sseStream {
	t.Helper()
	resp, cancel := get(t, s, change...)
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("status %d: %s", resp.StatusCode, body)
	}
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	return &sseStream{sseParser: sseclient.New(""), Response: resp, t: t, cancel: cancel, piece: make([]byte, 1024)}
}

// joined opens a stream and reads the block with which it begins.
func joined(t testing.TB, s *httptest.Server, change ...with) *sseStream {
	t.Helper()
	stream := connect(t, s, change...)
	first := stream.block()
	require.Nil(t, first.Event)
	require.True(t, first.Has("retry"))
	return stream
}

// next gives the next block, or why there is none. It notes a stream.live, and passes over it: most
// tests are about the events around it.
func (s *sseStream) next() (sseBlock, error) {
	b, err := s.any()
	if err == nil && b.Event != nil && b.Event.Type == "stream.live" {
		s.live = append(s.live, b.Event.Data)
		return s.next()
	}
	return b, err
}

func (s *sseStream) any() (sseBlock, error) {
	for len(s.blocks) == 0 {
		n, err := s.Response.Body.Read(s.piece)
		s.blocks = s.Parse(s.piece[:n])
		if err != nil && len(s.blocks) == 0 {
			return sseBlock{}, err
		}
	}
	b := s.blocks[0]
	s.blocks = s.blocks[1:]
	s.LastEventID = b.LastEventID
	return b, nil
}

func (s *sseStream) block() sseBlock {
	s.t.Helper()
	b, err := s.next()
	require.NoError(s.t, err, "the stream ended")
	return b
}

// until skips blocks up to one that is as wanted.
func (s *sseStream) until(wanted func(sseBlock) bool) sseBlock {
	s.t.Helper()
	for {
		if b := s.block(); wanted(b) {
			return b
		}
	}
}

// event gives what the next listener would be called with.
func (s *sseStream) event() sseEvent {
	s.t.Helper()
	return *s.until(func(b sseBlock) bool { return b.Event != nil }).Event
}

// expect wants events with these texts, in this order, and gives the last one.
func (s *sseStream) expect(texts ...string) (last sseEvent) {
	s.t.Helper()
	for _, want := range texts {
		last = s.event()
		require.Equal(s.t, "agent.message", last.Type, last.Data)
		require.Equal(s.t, want, textOf(s.t, last))
	}
	return last
}

// rest gives the blocks up to the end of the stream, which must lie between two.
func (s *sseStream) rest() []sseBlock {
	s.t.Helper()
	blocks := s.drain()
	require.Empty(s.t, s.Unfinished(), "the stream ended inside a block")
	return blocks
}

// drain gives the blocks up to the end of the stream, wherever that lies.
func (s *sseStream) drain() (blocks []sseBlock) {
	s.t.Helper()
	for {
		b, err := s.next()
		if err == io.EOF {
			return blocks
		}
		require.NoError(s.t, err)
		blocks = append(blocks, b)
	}
}

// leave closes the connection.
func (s *sseStream) leave() {
	s.cancel()
	_ = s.Response.Body.Close()
}

func decode(t testing.TB, e sseEvent) eventbus.Event {
	t.Helper()
	var ev eventbus.Event
	require.NoError(t, json.Unmarshal([]byte(e.Data), &ev), e.Data)
	return ev
}

func textOf(t testing.TB, e sseEvent) string {
	t.Helper()
	return text(t, decode(t, e))
}

// A gapData is the data of a stream.gap event.
type gapData struct{ Channel, Reason, From string }

// gap wants the next event to be a gap.
func (s *sseStream) gap() (gapData, sseEvent) {
	s.t.Helper()
	e := s.event()
	require.Equal(s.t, "stream.gap", e.Type, e.Data)
	var g gapData
	decodeInto(s.t, e.Data, &g)
	return g, e
}

// serve runs a handler on a server that ends with the test.
func serve(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// streams serves a subscription to whoever asks.
func streams(t testing.TB, bus *eventbus.Bus, channels ...eventbus.Channel) *httptest.Server {
	t.Helper()
	return serve(t, handler(bus, reads(channels...)))
}

// reads authorises everyone to read the channels; ?type= may be given.
func reads(channels ...eventbus.Channel) func(*http.Request) (eventbus.Subscription, error) {
	return func(r *http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{Channels: channels, Types: r.URL.Query()["type"]}, nil
	}
}

// decodeInto reads JSON that has no other members than v.
func decodeInto(t testing.TB, text string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(v), text)
}
