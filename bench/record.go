package main

import (
	"strconv"
	"time"
)

// A record is what an event carries for the load: "~#pp:ssssssss:ttttttttttttttttttt~",
// the publisher, the event's number of that publisher, from 1, and the Unix time in
// nanoseconds. Nothing else in an event has a tilde.
const recordLength = len("~#pp:ssssssss:ttttttttttttttttttt~")

func record(publisher, number int, at time.Time) string {
	b := []byte("~#00:00000000:0000000000000000000~")
	enter(b[2:4], int64(publisher))
	enter(b[5:13], int64(number))
	enter(b[14:33], at.UnixNano())
	return string(b)
}

// enter writes the digits of n at the end of b.
func enter(b []byte, n int64) {
	for i := len(b) - 1; n > 0; i, n = i-1, n/10 {
		b[i] = byte('0' + n%10)
	}
}

func digits(b []byte) int64 {
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func parseRecord(b []byte) (publisher, number int, sent int64) {
	return int(digits(b[2:4])), int(digits(b[5:13])), digits(b[14:33])
}

// padding behind a record makes an event of ours about 300 bytes long; without, it has 250.
const padding = "................................"

// bodyHead, a text and bodyTail are an event for contestants that take bytes, as long as one of
// ours with this text.
const (
	bodyHead = `{"id":"019abcde-0000-7000-8000-000000000000","type":"bench.tick","timestamp":"2026-01-01T00:00:00.000000Z",` +
		`"project_id":"019abcde-0000-7000-8000-000000000000","actor_id":null,"actor_type":"system","payload":{"n":"`
	bodyTail = `"}}`
)

func body(text string) []byte { return []byte(bodyHead + text + bodyTail) }
