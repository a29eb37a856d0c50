package reader

import (
	"context"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/testing/sample"
)

// A benchStream is a stream that keeps up.
type benchStream struct {
	tail   *tail.Tail
	stream Stream
	events int64
}

func newBenchStream(t testing.TB) *benchStream {
	tl := tail.New("project:p", "project:p", new(tail.Memory), func(error) {}, func(f func()) { go f() }, nil)
	require.True(t, tl.Fill(tl.Want(), &position.Page{Last: position.Position{Epoch: benchEpoch}}, true))
	r := &Reader{Readers: NewReaders(Config{Log: &redislog.Log{}}), waiter: pace.NewFlag(), key: position.NewKey([]string{"project:p"})}
	r.lanes = []*lane{{tail: tl, place: tail.Place{Waiter: r.waiter}}}
	tl.Begin(&r.lanes[0].place)
	return &benchStream{tail: tl, stream: Stream{Reader: r}}
}

const benchEpoch = 1_700_000_000_000

// offer brings the next event.
func (s *benchStream) offer(t testing.TB) {
	s.events++
	ev := sample.Event()
	ev.Position = position.Position{Epoch: benchEpoch, Seq: s.events}
	require.True(t, s.tail.Offer(ev))
}

// deliver renders the event, and falls asleep.
func (s *benchStream) deliver(t testing.TB) {
	st, err := s.stream.step(context.Background())
	if frame, _ := s.stream.render(st); err != nil || len(frame) == 0 {
		t.Fatal("nothing was delivered", err)
	}
	if st, _ := s.stream.step(context.Background()); len(st.Entries) > 0 {
		t.Fatal("more was delivered than is there")
	}
}

// TestDeliveryAllocatesNothing is about a stream that keeps up.
func TestDeliveryAllocatesNothing(t *testing.T) {
	s := newBenchStream(t)
	s.offer(t)
	s.deliver(t) // the first delivery allocates what the stream keeps
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
