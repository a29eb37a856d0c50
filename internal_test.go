package eventbus

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
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

func TestLogTextIsTheEventWithoutPosition(t *testing.T) {
	ev := validWire(t)
	ev.Position = position.Position{Epoch: 5, Seq: 6}
	text := ev.AppendJSON(nil)
	require.NotContains(t, string(text), "position")
	require.Equal(t, string(text[:len(text)-1])+`,"position":"5-6"}`, string(ev.AppendWire(nil)))
}

// TestGapReasonsAreThoseOfTheRooms, which streams write.
func TestGapReasonsAreThoseOfTheRooms(t *testing.T) {
	for api, room := range map[GapReason]position.Reason{
		GapTrimmed: position.Trimmed, GapLost: position.Lost, GapRewound: position.Rewound, GapUnknown: position.Unreadable, GapUnlogged: position.Unlogged,
	} {
		require.EqualValues(t, room, api)
	}
}
