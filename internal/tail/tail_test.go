package tail

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/testing/sample"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
	"github.com/syndarix/eventbus/internal/wire"
)

func TestSegmentsKeepEventsInTheirFrames(t *testing.T) {
	key := position.NewKey([]string{"project:p"})
	s := newSegment("project:p", mostSegmentBytes, 0)
	var events []wire.Event
	var early View
	for i := 1; s.takes(len(`{"a":1}`)); i++ {
		ev := sample.Event()
		if i%2 == 1 { // the others are foreign
			ev.Position = position.Position{Epoch: 7, Seq: int64(i)}
		}
		s.add(key, ev, position.Position{Epoch: 7, Seq: int64(i)})
		events = append(events, ev)
		if i == 2 {
			early = s.from(0)
		}
	}
	require.Equal(t, mostSegmentBytes, cap(s.buf), "the buffer never moves")
	require.Greater(t, len(s.buf), mostSegmentBytes/2)
	v := s.from(0)
	require.Equal(t, string(v.Frames(0, 2)), string(early.Frames(0, 2)))
	for i, e := range v.Entries {
		frame := string(v.Frames(i, i+1))
		data := strings.TrimSuffix(string(events[i].AppendWire(nil)), "}") + `,"channel":"project:p"}`
		want := "event: agent.message\ndata: " + data + "\n\n"
		require.Equal(t, events[i].Position.IsZero(), e.Foreign)
		if !e.Foreign {
			want = "id: " + v.Cursor(&e) + "\n" + want
		}
		require.Equal(t, want, frame)
		require.Equal(t, string(events[i].Payload), string(v.Event(&e).Payload))
	}
	require.Equal(t, string(s.buf), string(v.Frames(0, len(v.Entries))))

	big := sample.Event()
	big.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", mostSegmentBytes) + `"}`)
	require.False(t, s.takes(len(big.Payload)))
	s = newSegment("project:p", 0, len(big.Payload))
	room := cap(s.buf)
	s.add(key, big, position.Position{Epoch: 7, Seq: 99})
	require.Equal(t, room, cap(s.buf))
	require.False(t, s.takes(0))
	require.Equal(t, string(big.Payload), string(s.from(0).Event(&s.entries[0]).Payload))
}

// arrive makes an event that comes on the channel of a tail.
func arrive(t testing.TB, pos position.Position) wire.Event {
	ev := sample.Event()
	ev.Position = pos
	return ev
}

// openTail makes a whole tail of a log that ends at last.
func openTail(t testing.TB, last position.Position, onBad func(error)) *Tail {
	tl := New("project:p", "project:p", new(Memory), onBad, func(f func()) { go f() }, nil)
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: last}, true))
	return tl
}

// TestHeldEventOfANewLog: the log is lost and begins anew while a read of the old one is under way.
// The new log's message waits for the next read.
func TestHeldEventOfANewLog(t *testing.T) {
	old := position.Position{Epoch: 1000, Seq: 5}
	tl := openTail(t, old, nil)
	tl.Cut()
	asked := tl.Want()
	a := arrive(t, position.Position{Epoch: 2002, Seq: 1})
	tl.Offer(a)
	require.False(t, tl.Fill(asked, &position.Page{Last: old}, true))
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: position.Position{Epoch: 2002}}, true))
	require.Equal(t, a.Position.Seq, tl.last.Seq)
}

// TestHeldEventOfALostLog: the channel still brings events of a log that is lost. They are in the
// gap that readers get. Some readers have had them from that log: they must not come again.
func TestHeldEventOfALostLog(t *testing.T) {
	before, bad := position.Position{Epoch: 1000, Seq: 5}, 0
	tl := openTail(t, before, func(error) { bad++ })
	lost := &position.Page{Last: position.Position{Epoch: 2500, Seq: 1}, First: position.Position{Epoch: 2500, Seq: 1}}
	tl.Cut()
	for _, late := range []int64{6, 7} {
		tl.Offer(arrive(t, position.Position{Epoch: before.Epoch, Seq: late}))
		require.True(t, tl.Fill(tl.Want(), lost, true))
	}
	require.Empty(t, tl.segments)
	require.Equal(t, lost.Last, tl.last)
	require.Equal(t, 2, bad)
}

// TestStaleTails: a tail is stale from when it is not whole, or its log cannot be read.
func TestStaleTails(t *testing.T) {
	tl, later := openTail(t, position.Position{Epoch: 1000, Seq: 5}, nil), time.Now().Add(time.Hour)
	require.Zero(t, tl.Stale(later))
	tl.Cut()
	require.Greater(t, tl.Stale(later), 59*time.Minute)
	require.False(t, tl.Fill(tl.Want(), &position.Page{Last: tl.last}, false))
	require.Equal(t, behind, tl.state)
	require.Greater(t, tl.Stale(later), 59*time.Minute)
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: tl.last}, true))
	require.Zero(t, tl.Stale(later))
	tl.Unfilled(nil)
	require.Greater(t, tl.Stale(later), 59*time.Minute)
}

// TestNumberGivenTwice: a master that lacked the newest event has given its number to another one.
// The channel brings only what follows that. The tail notices it, and starts anew from the log.
func TestNumberGivenTwice(t *testing.T) {
	tl := openTail(t, position.Position{Epoch: 1000}, nil)
	one, two, other := arrive(t, position.Position{Epoch: 1000, Seq: 1}), arrive(t, position.Position{Epoch: 1000, Seq: 2}), arrive(t, position.Position{Epoch: 1000, Seq: 3})
	require.True(t, tl.Offer(one))
	two.Prev = one.ID[28:]
	require.True(t, tl.Offer(two))
	other.Prev = sample.Event().ID[28:]
	require.False(t, tl.Offer(other))
	require.Equal(t, cut, tl.state)
	require.Equal(t, two.Position.Seq, tl.last.Seq, "nothing was added")

	late := Place{Pos: one.Position, Waiter: pace.NewFlag()}
	late.Pos.Fingerprint = position.Fingerprint(one.ID)
	require.True(t, tl.Look(&late).Behind, "nor is what the log may lack given to anybody")
	page := &position.Page{Last: position.Position{Epoch: 1000, Seq: 3, Fingerprint: position.Fingerprint(other.ID)}, Asked: tl.last}
	page.Entries = []position.LogEntry{{Pos: position.Position{Epoch: 1000, Seq: 2, Fingerprint: 77}}, {Pos: page.Last, Event: other.AppendJSON(nil)}}
	require.True(t, tl.Fill(tl.Want(), page, true))
	require.Empty(t, tl.segments)
	require.Equal(t, page.Last, tl.last)
}

func TestWhatIsHeldBackIsBoundedInBytes(t *testing.T) {
	tl := New("project:p", "project:p", new(Memory), nil, nil, nil)
	for i := range 600 {
		a := arrive(t, position.Position{Epoch: 5, Seq: int64(i + 1)})
		a.Payload = []byte(`{"a":"` + strings.Repeat("x", 200<<10) + `"}`)
		tl.Offer(a)
	}
	n := 0
	for _, h := range tl.held {
		n += len(h.Payload)
	}
	require.LessOrEqual(t, n, heldBytes)
	require.True(t, tl.overflow)
}

// TestReaderAheadOfItsTail: a reader has read an event from the log that the channel has not brought.
// Then the log loses it. The tail has missed nothing, but the reader has to look at the log again.
func TestReaderAheadOfItsTail(t *testing.T) {
	end := position.Position{Epoch: 1000, Seq: 5}
	tl := openTail(t, end, nil)
	ahead := Place{Pos: position.Position{Epoch: 1000, Seq: 6}, Waiter: pace.NewFlag()}
	require.True(t, tl.Look(&ahead).Behind)
	ahead.AtEnd = true // The log ended there.
	require.False(t, tl.Look(&ahead).Behind)
	require.Empty(t, ahead.Waiter)
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: end}, true))
	require.Len(t, ahead.Waiter, 1)
	require.True(t, tl.Look(&ahead).Behind)
}

// TestMessageBeyondTheLog: a message was held before a read began, and the read does not find it.
// It never was in the log, or is lost. The tail does not wait for it.
func TestMessageBeyondTheLog(t *testing.T) {
	bad, end := 0, position.Position{Epoch: 1000, Seq: 5}
	tl := openTail(t, end, func(error) { bad++ })
	require.False(t, tl.Offer(arrive(t, position.Position{Epoch: 1000, Seq: 9})))
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: end}, true))
	require.Equal(t, 1, bad)
	require.True(t, tl.Offer(arrive(t, position.Position{Epoch: 1000, Seq: 6})))
	require.Equal(t, whole, tl.state)
}

// TestRingsOfManyChannels: the rings of many busy channels have a bound together.
func TestRingsOfManyChannels(t *testing.T) {
	memory := new(Memory)
	kept := func(tl *Tail) (bytes int) {
		for _, s := range tl.segments {
			bytes += s.size()
		}
		require.Equal(t, bytes, tl.bytes)
		return bytes
	}
	fill := func(n int) (tails []*Tail) {
		for i := range n {
			tl := New("run:r", "run:r", memory, nil, nil, nil)
			require.True(t, tl.Fill(tl.Want(), &position.Page{Last: position.Position{Epoch: 5}}, true))
			for seq := range 20 {
				ev := arrive(t, position.Position{Epoch: 5, Seq: int64(seq + 1)})
				ev.Payload = []byte(`{"a":"` + strings.Repeat("x", 100<<10) + `"}`)
				require.True(t, tl.Offer(ev))
			}
			tails = append(tails, tl)
			if i == 0 {
				require.Greater(t, kept(tl), ringBytes/2)
			}
		}
		return tails
	}
	tails := fill(150)
	sum := 0
	for _, tl := range tails {
		sum += kept(tl)
	}
	require.EqualValues(t, sum, memory.rings.Load())
	require.Less(t, sum, ringsBytes+len(tails)*leastRingBytes)
	require.Greater(t, sum, ringsBytes*3/4)

	for _, tl := range tails[:149] {
		tl.Drop()
		require.True(t, tl.Offer(arrive(t, position.Position{Epoch: 5, Seq: 21})), "a message was on its way")
	}
	require.EqualValues(t, kept(tails[149]), memory.rings.Load())
	tails[149].Fill(tails[149].Want(), &position.Page{Last: position.Position{Epoch: 9, Seq: 1}}, true)
	require.Zero(t, memory.rings.Load())
	require.Empty(t, tails[149].segments)
	fill(1)
}

// benchTail makes a whole tail with n events.
func benchTail(t testing.TB, n int) *Tail {
	tl := New("project:p", "project:p", new(Memory), func(error) {}, func(f func()) { go f() }, nil)
	tl.state = whole
	ev := sample.Event()
	for i := range n {
		ev.Position = position.Position{Epoch: 1_700_000_000_000, Seq: int64(i + 1), Fingerprint: 1}
		tl.addLocked(ev)
	}
	return tl
}

// BenchmarkFrame encodes an event for all streams of its channel.
func BenchmarkFrame(b *testing.B) {
	tl := benchTail(b, 0)
	ev := sample.Event()
	b.ReportAllocs()
	for n := int64(1); b.Loop(); n++ {
		ev.Position = position.Position{Epoch: 1_700_000_000_000, Seq: n, Fingerprint: 1}
		tl.addLocked(ev)
	}
}

// BenchmarkPage encodes a page of a log.
func BenchmarkPage(b *testing.B) {
	tl, ev := benchTail(b, 0), sample.Event()
	var page position.Page
	for i := range int64(pageEvents) {
		page.Entries = append(page.Entries, position.LogEntry{Pos: position.Position{Epoch: 1_700_000_000_000, Seq: i + 1}, Event: ev.AppendJSON(nil)})
	}
	b.ReportAllocs()
	for b.Loop() {
		tl.encode(&page)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pageEvents, "ns/event")
}

// FuzzFrame: whatever text is in an event, a conforming parser gets exactly that event out of its
// frame, and nothing else.
func FuzzFrame(f *testing.F) {
	f.Add("550e8400-e29b-41d4-a716-446655440000", "agent.message", "message", "hello", uint8(0), true)
	f.Add("", "a.b", "", "line\nline\r\nline\rdata: x\n\nid: y\n\n", uint8(1), true)
	f.Add("id\nid: 2\n\n", "x.y-z_0", "\u2028", "\u2028\u2029\u0085\x00\uFEFF", uint8(2), false)
	f.Add("\xff\xfe", "agent.message\ndata: x", "k", "\xed\xa0\x80", uint8(3), true)
	f.Add("\r", "stream.gap", "cursor", `","cursor":"1-1"}`, uint8(2), true)
	f.Add(strings.Repeat("\r\n\n\r", 100), "a.b\r", "\U0010FFFF\uFFFE", strings.Repeat("data: x\n\n", 1000), uint8(1), false)
	f.Add("\x00", "a.b:c", ": comment", "retry: 1\rid: \x00\r\r", uint8(3), true)
	pos := position.Position{Epoch: 1763868000000, Seq: 42}
	f.Fuzz(func(t *testing.T, id, typ, key, value string, lines uint8, logged bool) {
		members := map[string]any{
			"id": id, "type": typ, "timestamp": "2024-01-15T10:30:00.123456Z",
			"project_id": "550e8400-e29b-41d4-a716-446655440001", "actor_type": "system",
			"payload": map[string]any{key: value, "list": []any{value, 1.5, nil}},
		}
		data, err := json.Marshal(members)
		require.NoError(t, err)
		if end := []string{"", "\n", "\r", "\r\n"}[lines%4]; end != "" { // some write JSON on many lines
			var b bytes.Buffer
			require.NoError(t, json.Indent(&b, data, "", " "))
			data = bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte(end))
		}
		at := pos
		if !logged {
			at = position.Position{}
		}
		event, err := wire.Decode(data)
		if err != nil {
			if len(typ) <= 128 && !strings.HasPrefix(typ, "stream.") {
				require.NotRegexp(t, `^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$`, typ, "refused: %s", err)
			}
			return
		}
		event.Position = at
		s := &segment{channel: "project:p"}
		s.add(position.NewKey([]string{"project:p"}), event, at)
		frame, v := s.buf, s.from(0)
		require.True(t, utf8.Valid(frame))

		// The parser gets the stream by characters, then whole, with blocks around the frame.
		var blocks []sseclient.Block
		p := sseclient.New("")
		for _, c := range "id: before\n\n" + string(frame) + ":\n\n" {
			blocks = append(blocks, p.Parse([]byte(string(c)))...)
		}
		require.Equal(t, blocks, sseclient.New("").Parse([]byte("id: before\n\n"+string(frame)+":\n\n")))
		require.Len(t, blocks, 3)
		require.Empty(t, p.Unfinished())
		e := blocks[1].Event
		require.NotNil(t, e)
		require.Equal(t, typ, e.Type)
		if logged {
			require.Equal(t, v.Cursor(&v.Entries[0]), e.LastEventID)
			require.Equal(t, e.LastEventID, p.LastEventID)
		} else {
			require.Equal(t, "before", e.LastEventID)
		}
		names, _ := sseclient.Members(t, e.Data)
		order := []string{"id", "type", "timestamp", "project_id", "actor_id", "actor_type", "payload"}
		if logged {
			order = append(order, "position")
		}
		require.Equal(t, append(order, "channel"), names)

		members["actor_id"], members["channel"] = nil, "project:p"
		if logged {
			members["position"] = pos.String()
		}
		want, err := json.Marshal(members)
		require.NoError(t, err)
		require.JSONEq(t, string(want), e.Data)
		// An iterator gets the same payload.
		_, values := sseclient.Members(t, e.Data)
		require.Equal(t, string(values["payload"]), string(v.Event(&v.Entries[0]).Payload))
	})
}
