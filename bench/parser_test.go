package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// response makes a response with records 1 to n in blocks, cut into chunks of some size;
// 0 without chunks.
func response(n, chunk int) string {
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "id: x\ndata: %s\n\n", body(record(3, i+1, time.Now())))
	}
	if chunk == 0 {
		return "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + text.String()
	}
	out := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for rest := text.String(); rest != ""; {
		size := min(chunk, len(rest))
		out += fmt.Sprintf("%x\r\n%s\r\n", size, rest[:size])
		rest = rest[size:]
	}
	return out + "0\r\n\r\n"
}

func TestParserFindsEveryRecordHoweverItIsCut(t *testing.T) {
	for _, chunk := range []int{0, 1, 7, 100, 333, 1 << 20} {
		text := response(5, chunk)
		for _, read := range []int{1, 2, 13, 34, 1000, len(text)} {
			var p parser
			next := 1
			for rest := text; rest != ""; {
				size := min(read, len(rest))
				p.feed([]byte(rest[:size]), func(r []byte) {
					publisher, number, sent := parseRecord(r)
					if publisher != 3 || number != next || sent <= 0 {
						t.Fatalf("chunks of %d, reads of %d: record %q, not number %d", chunk, read, r, next)
					}
					next++
				})
				rest = rest[size:]
			}
			if next != 6 || p.status != 200 || !p.body {
				t.Errorf("chunks of %d, reads of %d: %d records, status %d", chunk, read, next-1, p.status)
			}
		}
	}
}

// TestAStreamHasBegunWithItsText: not before, and also where the text comes in two reads.
func TestAStreamHasBegunWithItsText(t *testing.T) {
	const head, text = "HTTP/1.1 200 OK\r\n\r\nevent: state\ndata: 1\n\n", "event: live"
	for cut := 1; cut < len(text); cut++ {
		p := parser{until: text}
		for _, part := range []string{head, text[:cut]} {
			p.feed([]byte(part), func([]byte) {})
			if p.body {
				t.Fatalf("it has begun with %q", part)
			}
		}
		if p.feed([]byte(text[cut:]), func([]byte) {}); !p.body {
			t.Errorf("it has not begun: %q, then %q", text[:cut], text[cut:])
		}
	}
}

func FuzzParser(f *testing.F) {
	for _, chunk := range []int{0, 1, 100} {
		f.Add([]byte(response(2, chunk)), 3)
	}
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		var p parser
		for rest := text; len(rest) > 0; {
			n := min(max(size, 1), len(rest))
			p.feed(rest[:n], func(r []byte) { parseRecord(r) })
			rest = rest[n:]
		}
	})
}
