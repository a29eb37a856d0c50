package eventbus_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

// A vector is an input, with what the Python schema makes of it: an output, or
// an error that names a field.
type vector struct {
	Case   string          `json:"case"`
	Struct string          `json:"struct"` // payloads.json only
	Type   eventbus.Type   `json:"type"`   // payloads.json only
	Input  json.RawMessage `json:"input"`
	Output json.RawMessage `json:"output"`
	Error  bool            `json:"error"`
	Field  string          `json:"field"`
}

func readVectors(t testing.TB, file string) []vector {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	require.NoError(t, err)
	var vectors []vector
	require.NoError(t, json.Unmarshal(data, &vectors))
	require.NotEmpty(t, vectors)
	return vectors
}

// badFields are the names of the fields that err complains of, in its order.
func badFields(t testing.TB, err error) []string {
	t.Helper()
	var bad *eventbus.ValidationError
	require.ErrorAs(t, err, &bad)
	require.NotEmpty(t, bad.Fields)
	var names []string
	for _, f := range bad.Fields {
		require.NotEmpty(t, f.Problem)
		require.Contains(t, err.Error(), f.Field+" "+f.Problem)
		names = append(names, f.Field)
	}
	return names
}

// memberNames are the names of an object's members, as they stand.
func memberNames(t testing.TB, object []byte) []string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(object))
	_, err := dec.Token()
	require.NoError(t, err)
	var names []string
	for dec.More() {
		name, err := dec.Token()
		require.NoError(t, err)
		names = append(names, name.(string))
		var value json.RawMessage
		require.NoError(t, dec.Decode(&value))
	}
	return names
}

// wireOrder is the order of the members of an event that is in no log.
var wireOrder = []string{"id", "type", "timestamp", "project_id", "actor_id", "actor_type", "payload"}

const (
	someID      = "550e8400-e29b-41d4-a716-446655440000"
	someProject = "550e8400-e29b-41d4-a716-446655440001"
	someActor   = "550e8400-e29b-41d4-a716-446655440002"
)

// eventJSON is a valid event, with members replaced, by name, and left out
// where the replacement is "".
func eventJSON(replaced map[string]string) string {
	members := map[string]string{
		"id": `"` + someID + `"`, "type": `"agent.message"`, "timestamp": `"2024-01-15T10:30:00Z"`,
		"project_id": `"` + someProject + `"`, "actor_id": `"` + someActor + `"`, "actor_type": `"agent"`,
		"payload": `{"message":"hi"}`,
	}
	var parts []string
	for _, name := range wireOrder {
		value := members[name]
		if r, ok := replaced[name]; ok {
			value = r
		}
		if value != "" {
			parts = append(parts, `"`+name+`":`+value)
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// parseEvent decodes past encoding/json, which has checked the text itself
// before it calls UnmarshalJSON.
func parseEvent(text string) (eventbus.Event, error) {
	var ev eventbus.Event
	err := ev.UnmarshalJSON([]byte(text))
	return ev, err
}

func TestEventsAreReadAndWrittenAsThePythonSchemaDoes(t *testing.T) {
	for _, v := range readVectors(t, "events.json") {
		t.Run(v.Case, func(t *testing.T) {
			var ev eventbus.Event
			err := json.Unmarshal(v.Input, &ev)
			if v.Error {
				require.Equal(t, []string{v.Field}, badFields(t, err))
				require.Zero(t, ev, "a refused event must not be half filled in")
				return
			}
			require.NoError(t, err)
			out, err := json.Marshal(ev)
			require.NoError(t, err)
			require.JSONEq(t, string(v.Output), string(out))
			require.Equal(t, wireOrder, memberNames(t, out))

			var again eventbus.Event
			require.NoError(t, json.Unmarshal(v.Output, &again))
			first, err := json.Marshal(again)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(first, &again))
			second, err := json.Marshal(again)
			require.NoError(t, err)
			require.Equal(t, string(first), string(second))
		})
	}
}

func TestEventFromALogHasItsPositionLast(t *testing.T) {
	text := strings.TrimSuffix(eventJSON(nil), "}") + `,"position":"1763868000000-42"}`
	ev, err := parseEvent(text)
	require.NoError(t, err)
	require.Equal(t, "1763868000000-42", ev.Position.String())
	out, err := ev.MarshalJSON()
	require.NoError(t, err)
	require.Equal(t, text, string(out))
	require.Equal(t, append(slices.Clone(wireOrder), "position"), memberNames(t, out))
}

func TestTheDataOfAnEventStreamSaysItsChannel(t *testing.T) {
	channel := eventbus.AgentChannel(uuid.New())
	ev, err := parseEvent(strings.TrimSuffix(eventJSON(nil), "}") + `,"position":"1-1","channel":"` + channel.String() + `"}`)
	require.NoError(t, err)
	require.Equal(t, channel, ev.Channel)
}

func TestThePositionWasCalledCursorBefore(t *testing.T) {
	ev, err := parseEvent(strings.TrimSuffix(eventJSON(nil), "}") + `,"cursor":"1763868000000-42"}`)
	require.NoError(t, err)
	require.Equal(t, "1763868000000-42", ev.Position.String())
}

// The script puts the position in; what a foreign publisher writes there must not
// cost the event.
func TestUnreadablePositionIsNone(t *testing.T) {
	for _, position := range []string{`null`, `7`, `""`, `"x"`, `"5"`, `{}`, `"99999999999999999999-1"`} {
		ev, err := parseEvent(strings.TrimSuffix(eventJSON(nil), "}") + `,"position":` + position + `}`)
		require.NoError(t, err, position)
		require.True(t, ev.Position.IsZero(), position)
	}
}

func TestMissingRequiredFieldIsNamed(t *testing.T) {
	for _, name := range []string{"id", "type", "timestamp", "project_id", "actor_type"} {
		for _, value := range []string{"", "null", "7", "[]", "{}", "true"} {
			_, err := parseEvent(eventJSON(map[string]string{name: value}))
			require.Equal(t, []string{name}, badFields(t, err), "%s: %s", name, value)
		}
	}
}

func TestOptionalFieldsMayBeAbsent(t *testing.T) {
	ev, err := parseEvent(eventJSON(map[string]string{"actor_id": "", "payload": ""}))
	require.NoError(t, err)
	require.Nil(t, ev.ActorID)
	out, err := ev.MarshalJSON()
	require.NoError(t, err)
	require.Contains(t, string(out), `"actor_id":null,`)
	require.Contains(t, string(out), `"payload":{}}`)
}

func TestAllBadFieldsAreNamedAtOnceInWireOrder(t *testing.T) {
	_, err := parseEvent(`{"payload":[],"actor_type":"robot","actor_id":1,"project_id":"x","timestamp":"now","type":"x"}`)
	require.Equal(t, wireOrder, badFields(t, err))
}

func TestEventDecoderRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, field, value string
	}{
		{"a type of one word", "type", `"agent"`},
		{"a type with an empty word", "type", `"agent."`},
		{"a type with a blank", "type", `"agent. message"`},
		// A line break would end the field of an SSE frame.
		{"a type with a line feed", "type", `"agent.message\ndata: x"`},
		{"a type with a carriage return", "type", `"agent.message\r"`},
		{"a type beyond ASCII", "type", `"agent.größe"`},
		{"a type without end", "type", `"` + strings.Repeat("a", 200) + `.b"`},
		{"an actor type in upper case", "actor_type", `"AGENT"`},
		{"an empty actor type", "actor_type", `""`},
		{"an empty actor id", "actor_id", `""`},
		{"an actor id that is a number", "actor_id", `5`},
		{"a date alone", "timestamp", `"2024-01-15"`},
		{"the 30th of February", "timestamp", `"2024-02-30T00:00:00Z"`},
		{"an empty timestamp", "timestamp", `""`},
		{"a null payload", "payload", `null`},
		{"a payload of text", "payload", `"{}"`},
		{"a payload of true", "payload", `true`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parseEvent(eventJSON(map[string]string{tc.field: tc.value}))
			require.Equal(t, []string{tc.field}, badFields(t, err))
		})
	}
}

func TestEventDecoderTakesAnyWellFormedType(t *testing.T) {
	for _, typ := range []string{"deploy.finished", "a.b", "Agent.Message", "a.b.c", "x-1.y_2"} {
		ev, err := parseEvent(eventJSON(map[string]string{"type": `"` + typ + `"`}))
		require.NoError(t, err, typ)
		require.Equal(t, eventbus.Type(typ), ev.Type)
	}
}

func TestWhatIsNoObjectIsNoEvent(t *testing.T) {
	for _, text := range []string{"", " ", "null", "[]", `"x"`, "7", "{", "}", "{}{}", "{} x", `{"id"}`, "\x00", "\xff", "{\"id\":\"\xff\"}"} {
		_, err := parseEvent(text)
		require.Equal(t, []string{"event"}, badFields(t, err), "%q", text)
	}
	_, err := parseEvent("{}")
	require.Equal(t, []string{"id", "type", "timestamp", "project_id", "actor_type"}, badFields(t, err))
}

func TestTruncatedEventIsRefused(t *testing.T) {
	for _, v := range readVectors(t, "events.json") {
		if v.Error {
			continue
		}
		text := string(bytes.TrimSpace(v.Input))
		for i := range len(text) {
			_, err := parseEvent(text[:i])
			require.Error(t, err, text[:i])
		}
	}
}

// Readers must take what any depth of nesting comes to, on a stack that does not
// grow with it, and agree with encoding/json on where it ends.
func TestDeeplyNestedEvent(t *testing.T) {
	nested := func(depth int) string {
		return eventJSON(map[string]string{"payload": strings.Repeat(`{"a":`, depth-1) + "{}" + strings.Repeat("}", depth-1)})
	}
	ev, err := parseEvent(nested(9_999)) // 10,000 with the event itself
	require.NoError(t, err)
	out, err := ev.MarshalJSON()
	require.NoError(t, err)
	_, err = parseEvent(string(out))
	require.NoError(t, err)
	for _, depth := range []int{10_000, 10_001, 1_000_000} {
		_, err = parseEvent(nested(depth))
		require.Equal(t, []string{"event"}, badFields(t, err))
	}
}

func TestUnknownMembersAreIgnored(t *testing.T) {
	want, err := parseEvent(eventJSON(nil))
	require.NoError(t, err)
	for _, extra := range []string{
		`"trace":"abc"`, `"":0`, `"a\"b}":"]}\\"`, `"x":{"id":"other","y":[{"type":1}]}`,
		`"ID":"other"`, `"Type":7`, `"PAYLOAD":[]`, `"Payload":null`, // names are taken as they are written
	} {
		got, err := parseEvent("{" + extra + "," + eventJSON(nil)[1:])
		require.NoError(t, err, extra)
		require.Equal(t, want, got, extra)
		got, err = parseEvent(strings.TrimSuffix(eventJSON(nil), "}") + " , " + extra + "\n}")
		require.NoError(t, err, extra)
		require.Equal(t, want, got, extra)
	}
}

func TestNamesAreCaseSensitive(t *testing.T) {
	_, err := parseEvent(strings.Replace(eventJSON(nil), `"id"`, `"ID"`, 1))
	require.Equal(t, []string{"id"}, badFields(t, err))
	ev, err := parseEvent(strings.Replace(eventJSON(nil), `"id"`, `"\u0069d"`, 1))
	require.NoError(t, err, "an escape is another spelling of the same name")
	require.Equal(t, someID, ev.ID)
}

func TestOfARepeatedMemberTheLastCounts(t *testing.T) {
	ev, err := parseEvent(`{"id":"first","payload":{"a":1},` + strings.TrimSuffix(eventJSON(nil), "}")[1:] + `,"id":"last","payload":{"b":2}}`)
	require.NoError(t, err)
	require.Equal(t, "last", ev.ID)
	require.Equal(t, `{"b":2}`, string(ev.Payload))
	_, err = parseEvent(strings.TrimSuffix(eventJSON(nil), "}") + `,"id":7}`)
	require.Equal(t, []string{"id"}, badFields(t, err))
}

func TestTimestampsAreReadAsUTCToTheMicrosecond(t *testing.T) {
	for _, tc := range []struct{ in, out string }{
		{"2024-01-15T10:30:00Z", "2024-01-15T10:30:00Z"},
		{"2024-01-15T10:30:00+00:00", "2024-01-15T10:30:00Z"},
		{"2024-01-15T12:30:00+02:00", "2024-01-15T10:30:00Z"},
		{"2024-01-15T23:30:00-11:00", "2024-01-16T10:30:00Z"},
		{"2024-01-15T10:30:00", "2024-01-15T10:30:00Z"},
		{"2024-01-15 10:30:00", "2024-01-15T10:30:00Z"},
		{"2024-01-15 10:30:00Z", "2024-01-15T10:30:00Z"},
		{"2024-01-15 10:30:00.25+05:30", "2024-01-15T05:00:00.250000Z"},
		{"2024-01-15T10:30:00.1", "2024-01-15T10:30:00.100000Z"},
		{"2024-01-15T10:30:00.123456Z", "2024-01-15T10:30:00.123456Z"},
		{"2024-01-15T10:30:00.123456999Z", "2024-01-15T10:30:00.123456Z"}, // cut, not rounded
		{"2024-01-15T10:30:00.000000999Z", "2024-01-15T10:30:00Z"},
		{"2024-01-15T10:30:00.999999999999Z", "2024-01-15T10:30:00.999999Z"},
		{"1969-12-31T23:59:59.9999999Z", "1969-12-31T23:59:59.999999Z"},
		{"0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"},
		{"9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			ev, err := parseEvent(eventJSON(map[string]string{"timestamp": `"` + tc.in + `"`}))
			require.NoError(t, err)
			require.Equal(t, time.UTC, ev.Timestamp.Location())
			require.Zero(t, ev.Timestamp.Nanosecond()%1000)
			out, err := ev.MarshalJSON()
			require.NoError(t, err)
			require.Contains(t, string(out), `"timestamp":"`+tc.out+`"`)
		})
	}
}

// What has a year of three or five digits in UTC cannot be written in RFC 3339.
func TestTimestampsOutsideFourDigitYearsAreRefused(t *testing.T) {
	for _, s := range []string{"0000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "10000-01-01T00:00:00Z"} {
		_, err := parseEvent(eventJSON(map[string]string{"timestamp": `"` + s + `"`}))
		require.Equal(t, []string{"timestamp"}, badFields(t, err), s)
	}
}

func TestTimestampsAreWrittenInUTC(t *testing.T) {
	ev, err := parseEvent(eventJSON(nil))
	require.NoError(t, err)
	ev.Timestamp = time.Date(2024, 1, 15, 12, 30, 0, 1999, time.FixedZone("", 2*60*60))
	out, err := ev.MarshalJSON()
	require.NoError(t, err)
	require.Contains(t, string(out), `"timestamp":"2024-01-15T10:30:00.000001Z"`)
}

// An SSE frame ends at a line break, and a foreign publisher may indent.
func TestEventsAreWrittenOnOneLine(t *testing.T) {
	ev, err := parseEvent(eventJSON(map[string]string{"id": `"a\nb"`, "payload": "{\n\t\"text\": \"a\\nb\u2028\",\r\n \"n\": [1,\n2]}"}))
	require.NoError(t, err)
	out, err := ev.MarshalJSON()
	require.NoError(t, err)
	require.NotContains(t, string(out), "\n")
	require.NotContains(t, string(out), "\r")
	require.JSONEq(t, `{"text":"a\nb\u2028","n":[1,2]}`, string(ev.Payload))
}

// Python keeps integers of any size, and so must what passes through.
func TestPayloadsPassThroughUntouched(t *testing.T) {
	const payload = `{"n":123456789012345678901234567890,"f":1.10,"e":1E400,"s":"\u00e9\ud800<&>","d":1,"d":2}`
	ev, err := parseEvent(eventJSON(map[string]string{"payload": payload}))
	require.NoError(t, err)
	out, err := ev.MarshalJSON()
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(out), `"payload":`+payload+`}`), string(out))
}

func TestDecodedEventSharesNoMemoryWithItsInput(t *testing.T) {
	data := []byte(eventJSON(nil))
	var ev eventbus.Event
	require.NoError(t, ev.UnmarshalJSON(data))
	for i := range data {
		data[i] = 'x'
	}
	require.Equal(t, `{"message":"hi"}`, string(ev.Payload))
	require.Equal(t, someID, ev.ID)
}

func TestMarshalRefusesWhatWouldNotBeJSON(t *testing.T) {
	ev, err := parseEvent(eventJSON(nil))
	require.NoError(t, err)
	for _, payload := range []string{"[]", "null", "x", `{"a":`, "{}{}", "{\"a\":\"\xff\"}"} {
		bad := ev
		bad.Payload = json.RawMessage(payload)
		_, err := bad.MarshalJSON()
		require.Equal(t, []string{"payload"}, badFields(t, err), payload)
	}
	bad := ev
	bad.ID = "\xff"
	_, err = bad.MarshalJSON()
	require.Equal(t, []string{"id"}, badFields(t, err))
	bad = ev
	bad.Payload = nil
	out, err := bad.MarshalJSON()
	require.NoError(t, err)
	require.Contains(t, string(out), `"payload":{}}`)
}

func TestNewEventIsComplete(t *testing.T) {
	project, agent := uuid.New(), uuid.New()
	before := time.Now()
	ev, err := eventbus.NewEvent(project, eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: "<done>"})
	require.NoError(t, err)
	id, err := uuid.Parse(ev.ID)
	require.NoError(t, err)
	require.EqualValues(t, 7, id.Version())
	require.Equal(t, eventbus.AgentMessage, ev.Type)
	require.Equal(t, project, ev.ProjectID)
	require.Equal(t, &agent, ev.ActorID)
	require.Equal(t, eventbus.ActorAgent, ev.ActorType)
	require.Equal(t, time.UTC, ev.Timestamp.Location())
	require.Zero(t, ev.Timestamp.Nanosecond()%1000)
	require.WithinRange(t, ev.Timestamp, before.Add(-time.Microsecond), time.Now())
	require.Equal(t, `{"agent_instance_id":"`+agent.String()+`","message":"<done>","message_type":"info","metadata":{}}`, string(ev.Payload))
	require.True(t, ev.Position.IsZero())
	require.True(t, ev.Cursor.IsZero())

	system, err := eventbus.NewEvent(project, eventbus.System(), eventbus.ProjectArchivedPayload(nil))
	require.NoError(t, err)
	require.Nil(t, system.ActorID)
	require.Equal(t, "{}", string(system.Payload))
	require.NotEqual(t, ev.ID, system.ID)
}

func TestNewEventNamesEveryBadField(t *testing.T) {
	_, err := eventbus.NewEvent(uuid.Nil, eventbus.Actor{Type: "robot"}, eventbus.WorkflowCompletedPayload{DurationSeconds: math.NaN()})
	require.Equal(t, []string{"project_id", "actor_type", "payload.workflow_id", "payload.duration_seconds"}, badFields(t, err))
	_, err = eventbus.NewEvent(uuid.Nil, eventbus.Actor{}, nil)
	require.Equal(t, []string{"project_id", "actor_type", "payload"}, badFields(t, err))
}

func TestValidationErrorsCanBeMatchedByField(t *testing.T) {
	_, err := parseEvent(eventJSON(map[string]string{"id": "", "type": ""}))
	var field eventbus.FieldError
	require.ErrorAs(t, err, &field)
	require.Equal(t, eventbus.FieldError{Field: "id", Problem: "is required"}, field)
	require.EqualError(t, err, "eventbus: event: id is required; type is required")
}

// A log of errors must neither grow with hostile input nor break its lines.
func TestErrorsQuoteOnlyAnExcerpt(t *testing.T) {
	_, err := parseEvent(eventJSON(map[string]string{"type": `"` + strings.Repeat(`\n`, 10_000) + `"`}))
	require.Less(t, len(err.Error()), 300)
	require.NotContains(t, err.Error(), "\n")
}

// referenceEvent is the decoder of the contract in the plainest words.
func referenceEvent(data []byte) (fields map[string]string, ok bool) {
	var members map[string]json.RawMessage // of a repeated name, the last is kept
	if !utf8.Valid(data) || json.Unmarshal(data, &members) != nil || members == nil {
		return nil, false
	}
	text := func(name string) (string, bool) {
		var s *string
		err := json.Unmarshal(members[name], &s)
		if err != nil || s == nil {
			return "", false
		}
		return *s, true
	}
	fields = map[string]string{"actor_id": ""}
	ok = true
	for _, name := range []string{"id", "type", "timestamp", "project_id", "actor_type"} {
		s, present := text(name)
		fields[name] = s
		ok = ok && present
	}
	ok = ok && len(fields["type"]) <= 128 && !strings.HasPrefix(fields["type"], "stream.") && regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$`).MatchString(fields["type"])
	ok = ok && slices.Contains([]string{"agent", "user", "system"}, fields["actor_type"])

	// One layout: with a T, and with a zone.
	stamp := fields["timestamp"]
	if len(stamp) > 10 && stamp[10] == ' ' {
		stamp = stamp[:10] + "T" + stamp[11:]
	}
	at, err := time.Parse(time.RFC3339, stamp)
	if err != nil {
		at, err = time.Parse(time.RFC3339, stamp+"Z")
	}
	at = at.UTC()
	ok = ok && err == nil && at.Year() >= 1 && at.Year() <= 9999
	fields["timestamp"] = at.Truncate(time.Microsecond).Format(time.RFC3339Nano)

	parse := func(s string) (uuid.UUID, error) {
		if len(s) == 38 && !(strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}")) {
			return uuid.Nil, errors.New("38 characters, but no braces")
		}
		return uuid.Parse(s)
	}
	project, err := parse(fields["project_id"])
	ok = ok && err == nil
	fields["project_id"] = project.String()
	if raw, present := members["actor_id"]; present && string(raw) != "null" {
		s, isText := text("actor_id")
		actor, err := parse(s)
		ok = ok && isText && err == nil
		fields["actor_id"] = actor.String()
	}
	payload, present := members["payload"]
	ok = ok && (!present || payload[0] == '{')
	return fields, ok
}

// FuzzDecodeEvent compares the decoder with a plainer one, and what it takes must
// come out as one line that means the same.
func FuzzDecodeEvent(f *testing.F) {
	for _, v := range readVectors(f, "events.json") {
		f.Add([]byte(v.Input))
	}
	f.Add([]byte(strings.TrimSuffix(eventJSON(nil), "}") + `,"position":"1763868000000-42"}`))
	f.Add([]byte(eventJSON(map[string]string{"payload": "{\n\"a\": [\"]}\\\"\", {}]\r\n}", "timestamp": `"2024-01-15 10:30:00.5"`})))
	f.Add([]byte(`{"\u0069d":"\ud800","id":7,"id":"x"}`))
	for _, replaced := range []map[string]string{
		{"type": `"stream.gap"`}, {"type": `"agent.message\n"`}, {"id": `"\ud800\udc00\udfff\r\n"`}, {"id": `"\u0000\u2028"`},
		{"project_id": `"x550e8400-e29b-41d4-a716-446655440001x"`}, {"project_id": `"{550e8400-e29b-41d4-a716-446655440001}"`},
		{"payload": strings.Repeat(`{"a":[`, 4999) + strings.Repeat(`]}`, 4999)}, {"payload": strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat(`}`, 10_000)},
		{"payload": `{"n":-` + strings.Repeat("9", 5000) + `.0e+99999}`}, {"payload": `{"\ud83d":"\ude00","":{"":""},"a":"\\\"}]"}`},
		{"timestamp": `"9999-12-31T23:59:59.9999999-23:59"`}, {"timestamp": `"0001-01-01T00:00:00+23:59"`},
	} {
		f.Add([]byte(eventJSON(replaced)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var ev eventbus.Event
		err := ev.UnmarshalJSON(data)
		fields, ok := referenceEvent(data)
		if !ok {
			badFields(t, err) // fails where there is none
			require.Zero(t, ev)
			return
		}
		require.NoError(t, err)
		actor := ""
		if ev.ActorID != nil {
			actor = ev.ActorID.String()
		}
		require.Equal(t, fields, map[string]string{
			"id": ev.ID, "type": string(ev.Type), "timestamp": ev.Timestamp.Format(time.RFC3339Nano),
			"project_id": ev.ProjectID.String(), "actor_id": actor, "actor_type": string(ev.ActorType),
		})

		out, err := ev.MarshalJSON()
		require.NoError(t, err)
		require.True(t, json.Valid(out), "%s", out)
		require.Equal(t, -1, bytes.IndexAny(out, "\r\n"), "%s", out)
		var again eventbus.Event
		require.NoError(t, again.UnmarshalJSON(out))
		require.Equal(t, ev, again)
	})
}

func TestEventErrorsAreNotNested(t *testing.T) {
	var ev eventbus.Event
	err := json.Unmarshal([]byte(`{}`), &ev)
	require.Equal(t, 1, strings.Count(err.Error(), "eventbus: "), fmt.Sprint(err))
	require.False(t, errors.Is(err, eventbus.ErrClosed))
}
