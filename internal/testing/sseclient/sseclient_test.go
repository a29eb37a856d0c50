package sseclient

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Tests of the standard's own examples and of the rules that parsers get wrong.
func TestParserOfTheTestsConforms(t *testing.T) {
	type e = Event
	tests := []struct {
		name, stream string
		events       []Event
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
				p := New("")
				blocks := append(p.Parse([]byte(test.stream[:cut])), p.Parse([]byte(test.stream[cut:]))...)
				var events []Event
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
