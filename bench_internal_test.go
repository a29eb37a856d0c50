package eventbus

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
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
