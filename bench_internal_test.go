package eventbus

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/wire"
)

var (
	benchProject = uuid.MustParse("019abcde-0000-7000-8000-000000000001")
	benchPayload = AgentMessagePayload{AgentInstanceID: uuid.MustParse("019abcde-0000-7000-8000-000000000002"), Message: "an event of about 400 bytes on the wire"}
)

func benchEvent(t testing.TB) Event {
	ev, err := NewEvent(benchProject, Agent(benchPayload.AgentInstanceID), benchPayload)
	require.NoError(t, err)
	return ev
}

func benchWire(t testing.TB) wire.Event {
	ev := benchEvent(t)
	return *ev.wire()
}

// benchTail is a tail with n events.
func benchTail(t testing.TB, n int) *tail {
	c := ProjectChannel(benchProject)
	tl := newTail(c.String(), c.String(), func(error) {}, func(f func()) { go f() })
	tl.state = whole
	ev := benchWire(t)
	for i := range n {
		ev.Position = position.Position{Epoch: 1_700_000_000_000, Seq: int64(i + 1), Mark: 1}
		tl.addLocked(ev, "")
	}
	return tl
}

// A benchStream keeps up with a tail: each event is shown, wakes it, and is rendered.
type benchStream struct {
	tail   *tail
	stream stream
}

func newBenchStream(tl *tail) *benchStream {
	r := &reader{bus: &Bus{log: &redislog.Log{}}, waiter: pace.NewFlag(), key: position.NewKey([]string{tl.name})}
	r.lanes = []*lane{{tail: tl, place: place{waiter: r.waiter, pos: position.Position{Epoch: 1_700_000_000_000, Seq: 0}}}}
	l := r.lanes[0]
	l.place.attached, l.place.run, l.place.ord = true, tl.run, tl.first
	l.place.wave, l.place.upto = tl.wave, tl.first
	return &benchStream{tl, stream{reader: r}}
}

func (s *benchStream) deliver(t testing.TB) {
	ctx := context.Background()
	s.tail.mu.Lock()
	p := &s.stream.reader.lanes[0].place
	s.tail.wave++
	p.wave, p.upto = s.tail.wave, p.upto+1 // of what is there, one
	wakeAll(s.tail.waiting)
	s.tail.waiting = s.tail.waiting[:0]
	s.tail.mu.Unlock()
	st, err := s.stream.reader.step(ctx)
	if frame := s.stream.render(st); err != nil || len(frame) == 0 {
		t.Fatal("nothing was delivered", err)
	}
	if st, _ := s.stream.reader.step(ctx); len(st.entries) > 0 {
		t.Fatal("more was delivered than is shown")
	}
	select { // it sleeps, and has been woken
	case <-s.stream.reader.waiter:
	default:
	}
}

// TestDeliveryAllocatesNothing is about a stream that keeps up.
func TestDeliveryAllocatesNothing(t *testing.T) {
	s := newBenchStream(benchTail(t, 1100))
	s.deliver(t) // makes what it keeps
	require.Zero(t, testing.AllocsPerRun(1000, func() { s.deliver(t) }))
}

func BenchmarkDelivery(b *testing.B) {
	b.ReportAllocs()
	const events = tailEvents / 2
	var s *benchStream
	for n := 0; b.Loop(); n++ {
		if n%events == 0 {
			b.StopTimer()
			s = newBenchStream(benchTail(b, events))
			b.StartTimer()
		}
		s.deliver(b)
	}
}

func BenchmarkNewEvent(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := NewEvent(benchProject, Agent(benchPayload.AgentInstanceID), benchPayload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	ev := benchEvent(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := ev.Validate(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	ev := benchWire(b)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = ev.AppendJSON(buf[:0])
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkDecode(b *testing.B) {
	ev := benchWire(b)
	data := ev.AppendJSON(nil)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFrame encodes an event for all streams of its channel.
func BenchmarkFrame(b *testing.B) {
	tl := benchTail(b, 0)
	ev := benchWire(b)
	b.ReportAllocs()
	for n := int64(1); b.Loop(); n++ {
		ev.Position = position.Position{Epoch: 1_700_000_000_000, Seq: n, Mark: 1}
		tl.addLocked(ev, "")
	}
}

// BenchmarkPage encodes a page of a log.
func BenchmarkPage(b *testing.B) {
	tl, ev := benchTail(b, 0), benchWire(b)
	var page position.Page
	for i := range int64(pageEvents) {
		page.Entries = append(page.Entries, position.LogEntry{Pos: position.Position{Epoch: 1_700_000_000_000, Seq: i + 1}, Event: ev.AppendJSON(nil)})
	}
	b.ReportAllocs()
	for b.Loop() {
		encode(tl.key, &page)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pageEvents, "ns/event")
}
