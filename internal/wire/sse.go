package wire

import (
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"time"
)

// IDField begins the line whose cursor a client remembers.
const IDField = "id: "

// Keepalive is a block that a client ignores: a comment.
const Keepalive = ": keepalive\n\n"

// AppendID appends the field that makes a cursor the client's last event id.
func AppendID(b []byte, cursor string) []byte {
	b = append(b, IDField...)
	b = append(b, cursor...)
	return append(b, '\n')
}

// AppendBody appends the block of an event from this channel, without the id field. It also gives
// the offset of the event's payload in body. The payload must be on one line.
func AppendBody(b []byte, ev *Event, channel string) (body []byte, payload int) {
	b = append(b, "event: "...)
	b = append(b, ev.Type...) // well-formed, so without line breaks
	b = append(b, "\ndata: "...)
	b = ev.AppendWire(b)
	tail := len("}")
	if !ev.Position.IsZero() {
		tail += len(`,"position":""`) + len(ev.Position.String())
	}
	payload = len(b) - tail - len(ev.Payload)
	b = append(b[:len(b)-1], `,"channel":"`...)
	b = append(b, channel...) // no character of it needs an escape
	return append(b, "\"}\n\n"...), payload
}

// AppendSnapshot appends the block of a snapshot. state is JSON on one line, and cursor is where the
// stream goes on.
func AppendSnapshot(b []byte, cursor, reason string, state []byte) []byte {
	b = append(AppendID(b, cursor), `event: stream.snapshot
data: {"reason":"`...)
	b = append(append(b, reason...), `","state":`...) // a reason needs no escape
	return append(append(b, state...), "}\n\n"...)
}

// AppendLive appends the block that says that a client has what was in the logs: so many events.
func AppendLive(b []byte, replayed int) []byte {
	b = append(b, "event: stream.live\ndata: {\"replayed\":"...)
	return append(strconv.AppendInt(b, int64(replayed), 10), "}\n\n"...)
}

// AppendEnd appends the block that says that a channel has ended.
func AppendEnd(b []byte, cursor, channel string) []byte {
	b = append(AppendID(b, cursor), "event: stream.end\ndata: {\"channel\":\""...)
	return append(append(b, channel...), "\"}\n\n"...) // no character of a channel needs an escape
}

// AppendGap appends the block of a gap. cursor is where the stream goes on.
func AppendGap(b []byte, cursor, channel, reason, from string) []byte {
	data, _ := json.Marshal(struct { // strings only: cannot fail
		Channel string `json:"channel"`
		Reason  string `json:"reason"`
		From    string `json:"from"`
	}{channel, reason, from})
	b = AppendID(b, cursor)
	b = append(b, "event: stream.gap\ndata: "...)
	b = append(b, data...)
	return append(b, "\n\n"...)
}

// AppendRetry appends the field that says after what time a client is to come back when the stream
// has ended. The time is random, in [least, most), so that many clients do not come back at once.
func AppendRetry(b []byte, least, most time.Duration) []byte {
	millis := least.Milliseconds()
	if spread := (most - least).Milliseconds(); spread > 0 {
		millis += rand.Int64N(spread)
	}
	b = append(b, "retry: "...)
	b = strconv.AppendInt(b, millis, 10)
	return append(b, '\n')
}
