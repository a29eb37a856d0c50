package eventbus

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
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

// A benchStream is a stream that keeps up.
type benchStream struct {
	tail   *tail.Tail
	stream stream
	events int64
}

func newBenchStream(t testing.TB) *benchStream {
	tl := tail.New("project:p", "project:p", new(atomic.Int64), func(error) {}, func(f func()) { go f() }, nil)
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: position.Position{Epoch: benchEpoch}}, true))
	r := &reader{bus: &Bus{log: &redislog.Log{}}, waiter: pace.NewFlag(), key: position.NewKey([]string{"project:p"})}
	r.lanes = []*lane{{tail: tl, place: tail.Place{Waiter: r.waiter}}}
	tl.Begin(&r.lanes[0].place)
	return &benchStream{tail: tl, stream: stream{reader: r}}
}

const benchEpoch = 1_700_000_000_000

// offer brings the next event.
func (s *benchStream) offer(t testing.TB) {
	s.events++
	ev := benchWire(t)
	ev.Position = position.Position{Epoch: benchEpoch, Seq: s.events}
	require.True(t, s.tail.Offer(ev))
}

// deliver renders it, and falls asleep.
func (s *benchStream) deliver(t testing.TB) {
	st, err := s.stream.reader.step(context.Background())
	if frame := s.stream.render(st); err != nil || len(frame) == 0 {
		t.Fatal("nothing was delivered", err)
	}
	if st, _ := s.stream.reader.step(context.Background()); len(st.Entries) > 0 {
		t.Fatal("more was delivered than is there")
	}
}

// TestDeliveryAllocatesNothing is about a stream that keeps up.
func TestDeliveryAllocatesNothing(t *testing.T) {
	s := newBenchStream(t)
	s.offer(t)
	s.deliver(t) // makes what it keeps
	var before, after runtime.MemStats
	allocated := uint64(0)
	for range 1000 {
		s.offer(t)
		runtime.ReadMemStats(&before)
		s.deliver(t)
		runtime.ReadMemStats(&after)
		allocated += after.Mallocs - before.Mallocs
	}
	require.Less(t, allocated, uint64(100), "in 1,000 deliveries; others run, too")
}

func BenchmarkDelivery(b *testing.B) {
	b.ReportAllocs()
	s := newBenchStream(b)
	for b.Loop() {
		b.StopTimer()
		s.offer(b)
		b.StartTimer()
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
