package eventbus

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// complaints are the names of the fields that err complains of.
func complaints(t testing.TB, err error) []string {
	t.Helper()
	var bad *ValidationError
	require.ErrorAs(t, err, &bad)
	var names []string
	for _, f := range bad.Fields {
		names = append(names, f.Field)
	}
	return names
}

func validWire(t testing.TB) wire.Event {
	ev := validEvent(t)
	return *ev.wire()
}

func validEvent(t testing.TB) Event {
	t.Helper()
	ev, err := NewEvent(uuid.New(), System(), AgentMessagePayload{AgentInstanceID: uuid.New(), Message: "x"})
	require.NoError(t, err)
	return ev
}

func TestPublishChecksEveryField(t *testing.T) {
	ev := validEvent(t)
	require.NoError(t, ev.Validate())
	require.Equal(t, []string{"id", "type", "timestamp", "project_id", "actor_type"}, complaints(t, (&Event{}).Validate()))
	for field, spoils := range map[string][]func(*Event){
		"id": {
			func(ev *Event) { ev.ID = "x" },
			func(ev *Event) { ev.ID = "{" + ev.ID + "}" },
			func(ev *Event) { ev.ID = "\xff" },
		},
		"type": {
			func(ev *Event) { ev.Type = "nobody.registered" },
			func(ev *Event) { ev.Type = "agent.message\n" },
			func(ev *Event) { ev.Type = "AGENT.MESSAGE" },
		},
		"timestamp": {
			func(ev *Event) { ev.Timestamp = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC) },
			func(ev *Event) { ev.Timestamp = time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -2*60*60)) },
			func(ev *Event) { ev.Timestamp = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC) },
		},
		"actor_type": {func(ev *Event) { ev.ActorType = "robot" }},
		"payload": {
			func(ev *Event) { ev.Payload = json.RawMessage(`[]`) },
			func(ev *Event) { ev.Payload = json.RawMessage(`null`) },
			func(ev *Event) { ev.Payload = json.RawMessage(`{`) },
			func(ev *Event) { ev.Payload = json.RawMessage("{\"\xff\":1}") },
		},
	} {
		for i, spoil := range spoils {
			ev := validEvent(t)
			spoil(&ev)
			require.Equal(t, []string{field}, complaints(t, ev.Validate()), "%s %d", field, i)
		}
	}
}

// An event made by hand must not get past its schema.
func TestPublishChecksThePayloadAgainstItsType(t *testing.T) {
	ev := validEvent(t)
	ev.Type = AgentSpawned // with the payload of agent.message
	require.Equal(t, []string{"payload.agent_type_id", "payload.agent_name", "payload.role"}, complaints(t, ev.Validate()))
	ev.Payload = nil
	require.Equal(t, []string{"payload.agent_instance_id", "payload.agent_type_id", "payload.agent_name", "payload.role"},
		complaints(t, ev.Validate()))

	data, err := os.ReadFile("testdata/payloads.json")
	require.NoError(t, err)
	var vectors []struct {
		Struct, Case, Field string
		Type                Type
		Input               json.RawMessage
		Error               bool
	}
	require.NoError(t, json.Unmarshal(data, &vectors))
	for _, v := range vectors {
		ev := validEvent(t)
		ev.Type, ev.Payload = v.Type, v.Input
		if v.Error {
			require.Equal(t, []string{"payload." + v.Field}, complaints(t, ev.Validate()), "%s %s", v.Struct, v.Case)
		} else {
			require.NoError(t, ev.Validate(), "%s %s", v.Struct, v.Case)
		}
	}
}

// What is published must be readable: the event around a payload is one more
// level, and readers skip what is too deep.
func TestWhatPublishTakesReadersCanRead(t *testing.T) {
	for _, levels := range []int{1, 9_998, 9_999, 10_000, 10_001} {
		ev := validEvent(t)
		ev.Type = ProjectUpdated
		ev.Payload = json.RawMessage(strings.Repeat(`{"a":`, levels-1) + `{"]":"}\\\""}` + strings.Repeat("}", levels-1))
		_, readable := wire.Decode(ev.wire().AppendJSON(nil))
		require.Equal(t, readable == nil, ev.Validate() == nil, "%d levels", levels)
	}
}

func TestLogTextIsTheEventWithoutCursor(t *testing.T) {
	ev := validWire(t)
	ev.Position = position.Position{Epoch: 5, Seq: 6}
	text := ev.AppendJSON(nil)
	require.NotContains(t, string(text), "cursor")
	require.Equal(t, string(text[:len(text)-1])+`,"cursor":"5-6"}`, string(ev.AppendWire(nil)))
}

func TestSegmentsKeepEventsInTheirFrames(t *testing.T) {
	key := position.NewKey([]string{"project:p"})
	s := &segment{}
	var events []wire.Event
	var early view // of what was there before the segment had to move
	for i := 1; s.takes(len(`{"a":1}`)); i++ {
		ev := validWire(t)
		if i%2 == 1 { // the others are foreign
			ev.Position = position.Position{Epoch: 7, Seq: int64(i)}
		}
		s.add(key, ev, position.Position{Epoch: 7, Seq: int64(i)}, "")
		events = append(events, ev)
		if i == 2 {
			early = s.from(0)
		}
	}
	require.LessOrEqual(t, len(events), mostSegmentEntries)
	require.LessOrEqual(t, cap(s.buf), mostSegmentBytes)
	require.Greater(t, len(s.buf), 2*leastSegmentBytes)
	v := s.from(0)
	require.Equal(t, string(v.frames(0, 2)), string(early.frames(0, 2)))
	for i, e := range v.entries {
		frame := string(v.frames(i, i+1))
		want := fmt.Sprintf("event: agent.message\ndata: %s\n\n", events[i].AppendWire(nil))
		require.Equal(t, events[i].Position.IsZero(), e.foreign)
		if !e.foreign {
			want = "id: " + v.cursor(&e) + "\n" + want
		}
		require.Equal(t, want, frame)
		require.Equal(t, string(events[i].Payload), string(v.event(&e).Payload))
	}
	require.Equal(t, string(s.buf), string(v.frames(0, len(v.entries))))

	big := validWire(t)
	big.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", mostSegmentBytes) + `"}`)
	require.False(t, s.takes(len(big.Payload)))
	s = &segment{}
	require.True(t, s.takes(len(big.Payload)), "an empty segment takes any event")
	s.add(key, big, position.Position{Epoch: 7, Seq: 99}, "")
	require.False(t, s.takes(0))
	require.Equal(t, string(big.Payload), string(s.from(0).event(&s.entries[0]).Payload))
}

// arrive is an event that comes on the channel of a tail.
func arrive(t testing.TB, pos position.Position) wire.Event {
	ev := validWire(t)
	ev.Position = pos
	return ev
}

// openTail is a whole tail of a log that ends at last.
func openTail(t testing.TB, last position.Position, onBad func(error)) *tail {
	tl := newTail(ProjectChannel(uuid.New()).String(), "p", onBad, func(f func()) { go f() })
	require.True(t, tl.fill(tl.want(), &position.Page{Last: last}, true))
	return tl
}

// TestHeldEventOfANewLog: the log is lost and begun anew while a read of the old one is
// on its way. What came of the new one waits for the next read.
func TestHeldEventOfANewLog(t *testing.T) {
	old := position.Position{Epoch: 1000, Seq: 5}
	tl := openTail(t, old, nil)
	tl.question()
	asked := tl.want()
	a := arrive(t, position.Position{Epoch: 2002, Seq: 1})
	tl.offer(a)
	require.False(t, tl.fill(asked, &position.Page{Last: old}, true))
	require.True(t, tl.fill(tl.want(), &position.Page{Last: position.Position{Epoch: 2002}}, true))
	require.Equal(t, a.Position.Seq, tl.last.Seq)
}

// TestHeldEventOfALostLog: what the channel still brings of a log that is lost is in the gap
// that readers are told of. Some have read it in that log: it must not come again.
func TestHeldEventOfALostLog(t *testing.T) {
	before, bad := position.Position{Epoch: 1000, Seq: 5}, 0
	tl := openTail(t, before, func(error) { bad++ })
	lost := &position.Page{Last: position.Position{Epoch: 2500, Seq: 1}, First: position.Position{Epoch: 2500, Seq: 1}}
	tl.question()
	for _, late := range []int64{6, 7} {
		tl.offer(arrive(t, position.Position{Epoch: before.Epoch, Seq: late}))
		require.True(t, tl.fill(tl.want(), lost, true))
	}
	require.Empty(t, tl.segments)
	require.Equal(t, lost.Last, tl.last)
	require.Equal(t, 2, bad)
}

// TestStaleTails: one is, from when it is not whole, or its log cannot be read.
func TestStaleTails(t *testing.T) {
	tl, later := openTail(t, position.Position{Epoch: 1000, Seq: 5}, nil), time.Now().Add(time.Hour)
	require.Zero(t, tl.stale(later))
	tl.question()
	require.Greater(t, tl.stale(later), 59*time.Minute)
	require.False(t, tl.fill(tl.want(), &position.Page{Last: tl.last}, false))
	require.Equal(t, behind, tl.state)
	require.Greater(t, tl.stale(later), 59*time.Minute)
	require.True(t, tl.fill(tl.want(), &position.Page{Last: tl.last}, true))
	require.Zero(t, tl.stale(later))
	tl.unfilled()
	require.Greater(t, tl.stale(later), 59*time.Minute)
}

// TestNumberGivenTwice: a master that lacked the newest event has given its number to another, and
// the channel brings only what follows that. The tail notices, and starts anew from the log.
func TestNumberGivenTwice(t *testing.T) {
	tl := openTail(t, position.Position{Epoch: 1000}, nil)
	one, two, other := arrive(t, position.Position{Epoch: 1000, Seq: 1}), arrive(t, position.Position{Epoch: 1000, Seq: 2}), arrive(t, position.Position{Epoch: 1000, Seq: 3})
	require.True(t, tl.offer(one))
	two.Prev = one.ID[28:]
	require.True(t, tl.offer(two))
	other.Prev = validEvent(t).ID[28:]
	require.False(t, tl.offer(other))
	require.Equal(t, cut, tl.state)
	require.Equal(t, two.Position.Seq, tl.last.Seq, "nothing was added")

	late := place{pos: one.Position, waiter: pace.NewFlag()}
	late.pos.Mark = position.Fingerprint(one.ID)
	require.True(t, tl.look(&late).behind, "nor is what the log may lack given to anybody")
	page := &position.Page{Last: position.Position{Epoch: 1000, Seq: 3, Mark: position.Fingerprint(other.ID)}, Asked: tl.last}
	page.Entries = []position.LogEntry{{Pos: position.Position{Epoch: 1000, Seq: 2, Mark: 77}}, {Pos: page.Last, Event: other.AppendJSON(nil)}}
	require.True(t, tl.fill(tl.want(), page, true))
	require.Empty(t, tl.segments)
	require.Equal(t, page.Last, tl.last)
}

func TestWhatIsHeldBackIsBoundedInBytes(t *testing.T) {
	tl := newTail(ProjectChannel(uuid.New()).String(), "p", nil, nil)
	for i := range 600 {
		a := arrive(t, position.Position{Epoch: 5, Seq: int64(i + 1)})
		a.Payload = []byte(`{"a":"` + strings.Repeat("x", 200<<10) + `"}`)
		tl.offer(a)
	}
	n := 0
	for _, h := range tl.held {
		n += len(h.Payload)
	}
	require.LessOrEqual(t, n, tailBytes)
	require.True(t, tl.overflow)
}

// TestMessageBeyondTheLog: what was held back before a read began, and is not in what was read, is of
// no log, or lost. The tail does not wait for it.
func TestMessageBeyondTheLog(t *testing.T) {
	bad, end := 0, position.Position{Epoch: 1000, Seq: 5}
	tl := openTail(t, end, func(error) { bad++ })
	require.False(t, tl.offer(arrive(t, position.Position{Epoch: 1000, Seq: 9})))
	require.True(t, tl.fill(tl.want(), &position.Page{Last: end}, true))
	require.Equal(t, 1, bad)
	require.True(t, tl.offer(arrive(t, position.Position{Epoch: 1000, Seq: 6})))
	require.Equal(t, whole, tl.state)
}

// TestOutcomesAreBounded in number, by dropping the oldest.
func TestOutcomesAreBounded(t *testing.T) {
	var o outcomes
	for i := range mostOutcomes + 10 {
		o.put(&publication{id: fmt.Sprint(i)})
	}
	require.Len(t, o.of, mostOutcomes)
	require.Nil(t, o.get("9"))
	kept := o.get("10")
	require.NotNil(t, kept)
	o.drop(kept)
	require.Nil(t, o.get("10"))
	require.Equal(t, mostOutcomes-1, o.order.Len())
}
