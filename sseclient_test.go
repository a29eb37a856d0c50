package eventbus_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

// An sseParser interprets an event stream as HTML says in section 9.2.6 ("Interpreting
// an event stream"), to the letter. It takes the stream in pieces, cut anywhere.
type sseParser struct {
	LastEventID string // what the client would send when it comes back
	Retry       int    // reconnection time in ms, -1 while the stream has not set it

	line    []byte // unfinished
	lines   []string
	begun   bool // the place of the byte order mark is behind us
	afterCR bool // a LF that comes next belongs to that CR

	data, typ strings.Builder
	id        string // the last event ID buffer
}

// An sseBlock is what stands between two blank lines.
type sseBlock struct {
	Lines       []string
	Event       *sseEvent // nil where the client fires none
	LastEventID string    // what the client remembers behind it
}

// An sseEvent is what a client's listener is given.
type sseEvent struct{ Type, Data, LastEventID string }

func newSSEParser() *sseParser { return &sseParser{Retry: -1} }

// Parse takes the next piece and gives the blocks that it ends.
func (p *sseParser) Parse(piece []byte) (blocks []sseBlock) {
	for _, c := range piece {
		lf := c == '\n' && p.afterCR
		p.afterCR = c == '\r'
		switch {
		case lf: // ended already
		case c == '\n' || c == '\r':
			line := p.takeLine()
			if line == "" {
				blocks = append(blocks, p.dispatch())
				continue
			}
			p.lines = append(p.lines, line)
			p.field(line)
		default:
			p.line = append(p.line, c)
		}
	}
	return blocks
}

// Unfinished gives what the end of the stream discards.
func (p *sseParser) Unfinished() string {
	return strings.Join(append(p.lines, string(p.line)), "\n")
}

// takeLine decodes a line. No line break is part of a longer UTF-8 sequence, so this
// is the same as decoding the stream first.
func (p *sseParser) takeLine() string {
	line := string(p.line)
	p.line = p.line[:0]
	if !p.begun {
		line = strings.TrimPrefix(line, "\uFEFF")
		p.begun = true
	}
	if utf8.ValidString(line) {
		return line
	}
	return string([]rune(line)) // U+FFFD for what is wrong
}

func (p *sseParser) field(line string) {
	name, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch name {
	case "event":
		p.typ.Reset()
		p.typ.WriteString(value)
	case "data":
		p.data.WriteString(value)
		p.data.WriteByte('\n')
	case "id":
		if !strings.Contains(value, "\x00") {
			p.id = value
		}
	case "retry":
		if strings.Trim(value, "0123456789") == "" {
			if n, err := strconv.Atoi(value); err == nil {
				p.Retry = n
			}
		}
	}
}

func (p *sseParser) dispatch() sseBlock {
	p.LastEventID = p.id
	block := sseBlock{Lines: p.lines, LastEventID: p.id}
	p.lines = nil
	if p.data.Len() > 0 {
		block.Event = &sseEvent{
			Type:        p.typ.String(),
			Data:        strings.TrimSuffix(p.data.String(), "\n"),
			LastEventID: p.LastEventID,
		}
		if block.Event.Type == "" {
			block.Event.Type = "message"
		}
	}
	p.data.Reset()
	p.typ.Reset()
	return block
}

// Has tells whether the block has a field of this name.
func (b sseBlock) Has(name string) bool {
	for _, line := range b.Lines {
		if field, _, _ := strings.Cut(line, ":"); field == name {
			return true
		}
	}
	return false
}

// Comment tells whether the block is nothing but comments.
func (b sseBlock) Comment() bool {
	for _, line := range b.Lines {
		if line[0] != ':' {
			return false
		}
	}
	return true
}

// Tests of the standard's own examples and of the rules that parsers get wrong.
func TestParserOfTheTestsConforms(t *testing.T) {
	type e = sseEvent
	tests := []struct {
		name, stream string
		events       []sseEvent
		id           string
		retry        int
	}{
		{"no space, one space, two spaces", "data:a\ndata: b\ndata:  c\n\n", []e{{"message", "a\nb\n c", ""}}, "", -1},
		{"field without colon", "data\n\ndata\ndata\n\ndata:", []e{{"message", "", ""}, {"message", "\n", ""}}, "", -1},
		{"all three line ends", "data: a\r\ndata: b\rdata: c\n\r\r\n", []e{{"message", "a\nb\nc", ""}}, "", -1},
		{"CR ends a line by itself", "data: a\r\revent: x\rdata: b\r\r", []e{{"message", "a", ""}, {"x", "b", ""}}, "", -1},
		{"one byte order mark", "\uFEFFdata: a\n\n\uFEFFdata: b\n\n", []e{{"message", "a", ""}}, "", -1},
		{"only one byte order mark", "\uFEFF\uFEFFdata: a\n\n", nil, "", -1},
		{"bad UTF-8", "data: a\xFFb\n\n", []e{{"message", "a\uFFFDb", ""}}, "", -1},
		{"id stays", "id: 1\ndata: a\n\ndata: b\n\n", []e{{"message", "a", "1"}, {"message", "b", "1"}}, "1", -1},
		{"empty id resets", "id: 1\ndata: a\n\nid\ndata: b\n\n", []e{{"message", "a", "1"}, {"message", "b", ""}}, "", -1},
		{"id with NUL is ignored", "id: 1\ndata: a\n\nid: 2\x00\ndata: b\n\n", []e{{"message", "a", "1"}, {"message", "b", "1"}}, "1", -1},
		{"id without data is stored", "id: 1\n\n", nil, "1", -1},
		{"unfinished block is discarded", "id: 1\n\nid: 2\ndata: a\n", nil, "1", -1},
		{"retry", "retry: 1500\n\n", nil, "", 1500},
		{"retry without a blank line", "retry: 1500\n", nil, "", 1500},
		{"bogus retry", "retry: 1\nretry: 2x\nretry: -3\nretry: 4.0\nretry\nretry: +5\n\n", nil, "", 1},
		{"event without data", "event: x\n\ndata: a\n\n", []e{{"message", "a", ""}}, "", -1},
		{"comments and unknown fields", ": hi\nfoo: bar\n\n:\ndata: a\n Data: b\n\n", []e{{"message", "a", ""}}, "", -1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for cut := range len(test.stream) + 1 {
				p := newSSEParser()
				blocks := append(p.Parse([]byte(test.stream[:cut])), p.Parse([]byte(test.stream[cut:]))...)
				var events []sseEvent
				for _, b := range blocks {
					if b.Event != nil {
						events = append(events, *b.Event)
					}
				}
				require.Equal(t, test.events, events, "cut at %d", cut)
				require.Equal(t, test.id, p.LastEventID)
				require.Equal(t, test.retry, p.Retry)
			}
		})
	}
}

// An sseStream is a client's side of one connection.
type sseStream struct {
	*sseParser                 // has read ahead
	LastEventID string         // behind the block that was given last
	Response    *http.Response // its body is read by the stream

	t      testing.TB
	cancel context.CancelFunc
	blocks []sseBlock
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
	return &sseStream{sseParser: newSSEParser(), Response: resp, t: t, cancel: cancel, piece: make([]byte, 1024)}
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

// next gives the next block, or why there is none.
func (s *sseStream) next() (sseBlock, error) {
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
		require.Equal(s.t, want, last.text(s.t))
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

func (e sseEvent) decode(t testing.TB) eventbus.Event {
	t.Helper()
	var ev eventbus.Event
	require.NoError(t, json.Unmarshal([]byte(e.Data), &ev), e.Data)
	return ev
}

func (e sseEvent) text(t testing.TB) string {
	t.Helper()
	return text(t, e.decode(t))
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
	return serve(t, bus.Handler(reads(channels...)))
}

// reads authorises everyone to read the channels; ?type= may be given.
func reads(channels ...eventbus.Channel) func(*http.Request) (eventbus.Subscription, error) {
	return func(r *http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{Channels: channels, Types: r.URL.Query()["type"]}, nil
	}
}

// members gives the names of a JSON object, in order, and their values.
func members(t testing.TB, object string) (names []string, values map[string]json.RawMessage) {
	t.Helper()
	values = map[string]json.RawMessage{}
	d := json.NewDecoder(bufio.NewReader(strings.NewReader(object)))
	_, err := d.Token()
	require.NoError(t, err)
	for d.More() {
		name, err := d.Token()
		require.NoError(t, err)
		var value json.RawMessage
		require.NoError(t, d.Decode(&value))
		names = append(names, name.(string))
		values[name.(string)] = value
	}
	return names, values
}

// decodeInto reads JSON that has no other members than v.
func decodeInto(t testing.TB, text string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(v), text)
}
