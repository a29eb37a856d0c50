package eventbus_test

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

// newPayload gives the payload as NewEvent writes it.
func newPayload(p eventbus.Payload) (json.RawMessage, error) {
	ev, err := eventbus.NewEvent(uuid.New(), eventbus.System(), p)
	return ev.Payload, err
}

// reencode reads a payload and writes it again.
func reencode[P eventbus.Payload](raw json.RawMessage) (json.RawMessage, error) {
	var zero P
	p, err := eventbus.PayloadAs[P](eventbus.Event{Type: zero.EventType(), Payload: raw})
	if err != nil {
		return nil, err
	}
	return newPayload(p)
}

// payloadStructs has every payload struct of the schema under its Python name.
var payloadStructs = map[string]struct {
	eventType eventbus.Type
	reencode  func(json.RawMessage) (json.RawMessage, error)
}{
	"AgentSpawnedPayload":          {eventbus.AgentSpawned, reencode[eventbus.AgentSpawnedPayload]},
	"AgentStatusChangedPayload":    {eventbus.AgentStatusChanged, reencode[eventbus.AgentStatusChangedPayload]},
	"AgentMessagePayload":          {eventbus.AgentMessage, reencode[eventbus.AgentMessagePayload]},
	"AgentTerminatedPayload":       {eventbus.AgentTerminated, reencode[eventbus.AgentTerminatedPayload]},
	"IssueCreatedPayload":          {eventbus.IssueCreated, reencode[eventbus.IssueCreatedPayload]},
	"IssueUpdatedPayload":          {eventbus.IssueUpdated, reencode[eventbus.IssueUpdatedPayload]},
	"IssueAssignedPayload":         {eventbus.IssueAssigned, reencode[eventbus.IssueAssignedPayload]},
	"IssueClosedPayload":           {eventbus.IssueClosed, reencode[eventbus.IssueClosedPayload]},
	"SprintStartedPayload":         {eventbus.SprintStarted, reencode[eventbus.SprintStartedPayload]},
	"SprintCompletedPayload":       {eventbus.SprintCompleted, reencode[eventbus.SprintCompletedPayload]},
	"ApprovalRequestedPayload":     {eventbus.ApprovalRequested, reencode[eventbus.ApprovalRequestedPayload]},
	"ApprovalGrantedPayload":       {eventbus.ApprovalGranted, reencode[eventbus.ApprovalGrantedPayload]},
	"ApprovalDeniedPayload":        {eventbus.ApprovalDenied, reencode[eventbus.ApprovalDeniedPayload]},
	"WorkflowStartedPayload":       {eventbus.WorkflowStarted, reencode[eventbus.WorkflowStartedPayload]},
	"WorkflowStepCompletedPayload": {eventbus.WorkflowStepCompleted, reencode[eventbus.WorkflowStepCompletedPayload]},
	"WorkflowCompletedPayload":     {eventbus.WorkflowCompleted, reencode[eventbus.WorkflowCompletedPayload]},
	"WorkflowFailedPayload":        {eventbus.WorkflowFailed, reencode[eventbus.WorkflowFailedPayload]},
}

func TestPayloadsAreReadAndWrittenAsThePythonSchemaDoes(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range readVectors(t, "payloads.json") {
		t.Run(v.Struct+"/"+v.Case+" "+v.Field, func(t *testing.T) {
			s, ok := payloadStructs[v.Struct]
			require.True(t, ok, "no such struct")
			require.Equal(t, v.Type, s.eventType)
			out, err := s.reencode(v.Input)
			if v.Error {
				require.Equal(t, []string{v.Field}, badFields(t, err))
				return
			}
			require.NoError(t, err)
			require.JSONEq(t, string(v.Output), string(out))
			require.Equal(t, memberNames(t, v.Output), memberNames(t, out), "the order of the schema")
			again, err := s.reencode(out)
			require.NoError(t, err)
			require.Equal(t, string(out), string(again))
		})
		seen[v.Struct] = true
	}
	require.Len(t, payloadStructs, 17)
	require.Len(t, seen, 17, "every struct has vectors")
}

func TestProjectPayloadsAreAnyObject(t *testing.T) {
	for typ, reencode := range map[eventbus.Type]func(json.RawMessage) (json.RawMessage, error){
		eventbus.ProjectCreated:  reencode[eventbus.ProjectCreatedPayload],
		eventbus.ProjectUpdated:  reencode[eventbus.ProjectUpdatedPayload],
		eventbus.ProjectArchived: reencode[eventbus.ProjectArchivedPayload],
	} {
		for _, in := range []string{`{}`, `{"a":[1,{"b":null}],"ä":"<&>"}`} {
			out, err := reencode(json.RawMessage(in))
			require.NoError(t, err, typ)
			require.Equal(t, in, string(out), typ)
		}
		out, err := reencode(nil)
		require.NoError(t, err, typ)
		require.Equal(t, `{}`, string(out), typ)
	}
	require.Equal(t, eventbus.ProjectCreated, eventbus.ProjectCreatedPayload(nil).EventType())
	require.Equal(t, eventbus.ProjectUpdated, eventbus.ProjectUpdatedPayload(nil).EventType())
	require.Equal(t, eventbus.ProjectArchived, eventbus.ProjectArchivedPayload(nil).EventType())
}

func TestTheTwentyTypesAreRegistered(t *testing.T) {
	types := eventbus.Types()
	require.True(t, slices.IsSorted(types))
	schema := []eventbus.Type{eventbus.ProjectCreated, eventbus.ProjectUpdated, eventbus.ProjectArchived}
	for _, s := range payloadStructs {
		schema = append(schema, s.eventType)
	}
	require.Len(t, schema, 20)
	require.Subset(t, types, schema)
	for _, v := range readVectors(t, "events.json") {
		if strings.HasPrefix(v.Case, "type ") {
			require.Contains(t, types, eventbus.Type(strings.TrimPrefix(v.Case, "type ")))
		}
	}
	types[0] = "scribbled.over"
	require.NotContains(t, eventbus.Types(), eventbus.Type("scribbled.over"))
}

const agentID = `"agent_instance_id":"` + someActor + `"`

func messageAs(payload string) (eventbus.AgentMessagePayload, error) {
	return eventbus.PayloadAs[eventbus.AgentMessagePayload](eventbus.Event{Type: eventbus.AgentMessage, Payload: json.RawMessage(payload)})
}

func TestAbsentMessageTypeMeansInfo(t *testing.T) {
	for _, tc := range []struct{ name, member, want string }{
		{"absent", ``, "info"},
		{"empty", `,"message_type":""`, ""},
		{"another", `,"message_type":"shout"`, "shout"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := messageAs(`{` + agentID + `,"message":""` + tc.member + `}`)
			require.NoError(t, err)
			require.Equal(t, tc.want, *p.MessageType)
			raw, err := newPayload(p)
			require.NoError(t, err)
			require.Contains(t, string(raw), `"message_type":"`+tc.want+`"`)
		})
	}
	raw, err := newPayload(eventbus.AgentMessagePayload{AgentInstanceID: uuid.New()})
	require.NoError(t, err)
	require.Contains(t, string(raw), `"message_type":"info"`)
}

// A default must be each payload's own: who changes it changes no other.
func TestDefaultsAreNotShared(t *testing.T) {
	first, err := messageAs(`{` + agentID + `,"message":""}`)
	require.NoError(t, err)
	*first.MessageType = "debug"
	second, err := messageAs(`{` + agentID + `,"message":""}`)
	require.NoError(t, err)
	require.Equal(t, "info", *second.MessageType)
}

func TestNullIsRefusedWhereItIsNoValue(t *testing.T) {
	for name, in := range map[string]struct {
		as      func(json.RawMessage) (json.RawMessage, error)
		payload string
	}{
		"agent_instance_id": {reencode[eventbus.AgentMessagePayload], `{"agent_instance_id":null,"message":""}`},
		"message":           {reencode[eventbus.AgentMessagePayload], `{` + agentID + `,"message":null}`},
		"message_type":      {reencode[eventbus.AgentMessagePayload], `{` + agentID + `,"message":"","message_type":null}`},
		"metadata":          {reencode[eventbus.AgentMessagePayload], `{` + agentID + `,"message":"","metadata":null}`},
		"labels":            {reencode[eventbus.IssueCreatedPayload], `{"issue_id":"","title":"","labels":null}`},
		"changes":           {reencode[eventbus.IssueUpdatedPayload], `{"issue_id":"","changes":null}`},
		"issue_count":       {reencode[eventbus.SprintStartedPayload], `{"sprint_id":"` + someID + `","sprint_name":"","issue_count":null}`},
		"recoverable":       {reencode[eventbus.WorkflowFailedPayload], `{"workflow_id":"` + someID + `","error_message":"","recoverable":null}`},
	} {
		_, err := in.as(json.RawMessage(in.payload))
		require.Equal(t, []string{name}, badFields(t, err))
	}
	out, err := reencode[eventbus.ApprovalRequestedPayload](json.RawMessage(
		`{"approval_id":"` + someID + `","approval_type":"","description":"","requested_by":null,"timeout_minutes":null}`))
	require.NoError(t, err)
	require.Contains(t, string(out), `"requested_by":null,"timeout_minutes":null`)
}

func TestAWrongKindOfValueIsNamed(t *testing.T) {
	for _, tc := range []struct {
		as             func(json.RawMessage) (json.RawMessage, error)
		field, payload string
	}{
		{reencode[eventbus.AgentMessagePayload], "message", `{` + agentID + `,"message":7}`},
		{reencode[eventbus.AgentMessagePayload], "metadata", `{` + agentID + `,"message":"","metadata":[]}`},
		{reencode[eventbus.AgentMessagePayload], "message_type", `{` + agentID + `,"message":"","message_type":1}`},
		{reencode[eventbus.AgentMessagePayload], "agent_instance_id", `{"agent_instance_id":7,"message":""}`},
		{reencode[eventbus.IssueCreatedPayload], "labels", `{"issue_id":"","title":"","labels":["a",1]}`},
		{reencode[eventbus.IssueCreatedPayload], "labels", `{"issue_id":"","title":"","labels":"a"}`},
		{reencode[eventbus.SprintStartedPayload], "issue_count", `{"sprint_id":"` + someID + `","sprint_name":"","issue_count":1.5}`},
		{reencode[eventbus.SprintStartedPayload], "issue_count", `{"sprint_id":"` + someID + `","sprint_name":"","issue_count":99999999999999999999}`},
		{reencode[eventbus.WorkflowFailedPayload], "recoverable", `{"workflow_id":"` + someID + `","error_message":"","recoverable":"maybe"}`},
		{reencode[eventbus.WorkflowCompletedPayload], "duration_seconds", `{"workflow_id":"` + someID + `","duration_seconds":1e999}`},
	} {
		_, err := tc.as(json.RawMessage(tc.payload))
		require.Equal(t, []string{tc.field}, badFields(t, err), tc.payload)
	}
}

func TestErrorsDoNotShowPayloadValues(t *testing.T) {
	for _, payload := range []string{
		`{"agent_instance_id":"hunter2","message":""}`,
		`{` + agentID + `,"message":31337}`,
		`{` + agentID + `,"message":{"password":"hunter2"}}`,
		`{` + agentID + `,"message":"","message_type":31337}`,
	} {
		_, err := messageAs(payload)
		require.Error(t, err, payload)
		require.NotContains(t, err.Error(), "hunter2")
		require.NotContains(t, err.Error(), "31337")
	}
	_, err := reencode[eventbus.SprintStartedPayload](json.RawMessage(`{"sprint_id":"` + someID + `","sprint_name":"","issue_count":31337.5}`))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "31337")
}

func TestAllBadPayloadFieldsAreNamedAtOnceInOrder(t *testing.T) {
	_, err := messageAs(`{"metadata":7,"message_type":null,"message":null,"agent_instance_id":"x"}`)
	require.Equal(t, []string{"agent_instance_id", "message", "message_type", "metadata"}, badFields(t, err))
	p, err := messageAs(`{"metadata":{"a":1}}`)
	require.Equal(t, []string{"agent_instance_id", "message"}, badFields(t, err))
	require.Zero(t, p, "a refused payload must not be half filled in")
}

func TestPayloadNamesAreTakenAsWritten(t *testing.T) {
	_, err := messageAs(`{` + agentID + `,"Message":"x"}`)
	require.Equal(t, []string{"message"}, badFields(t, err))
	p, err := messageAs(`{` + agentID + `,"message":"x","MESSAGE":7,"extra":{"message":"y"},"message":"last"}`)
	require.NoError(t, err)
	require.Equal(t, "last", p.Message)
}

func TestPayloadAsRefusesAnotherType(t *testing.T) {
	ev := eventbus.Event{Type: eventbus.AgentSpawned, Payload: json.RawMessage(`{` + agentID + `,"message":""}`)}
	_, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
	require.Equal(t, []string{"type"}, badFields(t, err))
	_, err = eventbus.PayloadAs[eventbus.AgentSpawnedPayload](ev)
	require.Equal(t, []string{"agent_type_id", "agent_name", "role"}, badFields(t, err))
}

func TestPayloadAsRefusesWhatIsNoObject(t *testing.T) {
	for _, payload := range []string{"null", "[]", `"x"`, "7", "x", "{", "{}{}", "{\"a\":\"\xff\"}"} {
		_, err := messageAs(payload)
		require.Equal(t, []string{"payload"}, badFields(t, err), payload)
		_, err = reencode[eventbus.ProjectCreatedPayload](json.RawMessage(payload))
		require.Equal(t, []string{"payload"}, badFields(t, err), payload)
	}
	_, err := messageAs("")
	require.Equal(t, []string{"agent_instance_id", "message"}, badFields(t, err), "no payload is an empty one")
}

func TestNewEventRefusesZeroValuesThatCannotBeMeant(t *testing.T) {
	for _, tc := range []struct {
		payload eventbus.Payload
		fields  []string
	}{
		{eventbus.IssueUpdatedPayload{}, []string{"payload.changes"}},
		{eventbus.AgentSpawnedPayload{}, []string{"payload.agent_instance_id", "payload.agent_type_id"}},
		{&eventbus.ApprovalGrantedPayload{}, []string{"payload.approval_id", "payload.approved_by"}},
	} {
		_, err := newPayload(tc.payload)
		require.Equal(t, tc.fields, badFields(t, err))
	}
}

func TestZeroValuesAreValues(t *testing.T) {
	raw, err := newPayload(eventbus.IssueUpdatedPayload{Changes: map[string]any{}})
	require.NoError(t, err)
	require.Equal(t, `{"issue_id":"","changes":{}}`, string(raw))
	raw, err = newPayload(eventbus.WorkflowStepCompletedPayload{WorkflowID: uuid.MustParse(someID)})
	require.NoError(t, err)
	require.Equal(t, `{"workflow_id":"`+someID+`","step_name":"","step_number":0,"total_steps":0,"result":{}}`, string(raw))
	raw, err = newPayload(&eventbus.IssueCreatedPayload{})
	require.NoError(t, err)
	require.Equal(t, `{"issue_id":"","title":"","priority":null,"labels":[]}`, string(raw))
}

func TestNilPointerIsNoPayload(t *testing.T) {
	_, err := newPayload((*eventbus.AgentMessagePayload)(nil))
	require.Equal(t, []string{"payload"}, badFields(t, err))
}

// encoding/json refuses NaN without saying where, and replaces bad UTF-8 without
// a word: both must be named.
func TestWhatJSONCannotCarryIsNamedByItsPath(t *testing.T) {
	bad := "\xff"
	message := func(metadata map[string]any) eventbus.Payload {
		return eventbus.AgentMessagePayload{AgentInstanceID: uuid.New(), Metadata: metadata}
	}
	for _, tc := range []struct {
		path    string
		payload eventbus.Payload
	}{
		{"payload.duration_seconds", eventbus.WorkflowCompletedPayload{WorkflowID: uuid.New(), DurationSeconds: math.NaN()}},
		{"payload.duration_seconds", eventbus.WorkflowCompletedPayload{WorkflowID: uuid.New(), DurationSeconds: math.Inf(-1)}},
		{"payload.message", eventbus.AgentMessagePayload{AgentInstanceID: uuid.New(), Message: bad}},
		{"payload.message_type", eventbus.AgentMessagePayload{AgentInstanceID: uuid.New(), MessageType: &bad}},
		{"payload.labels[1]", eventbus.IssueCreatedPayload{Labels: []string{"ok", bad}}},
		{"payload.metadata.a", message(map[string]any{"a": math.Inf(1)})},
		{"payload.metadata.a", message(map[string]any{"a": float32(math.Inf(1))})},
		{"payload.metadata.a.b[1].c", message(map[string]any{"a": map[string]any{"b": []any{1, map[string]float64{"c": math.NaN()}}}})},
		{"payload.metadata.a[0][1]", message(map[string]any{"a": [][2]string{{"ok", bad}}})},
		{"payload.metadata", message(map[string]any{bad: 1})},
		{"payload.metadata.a", message(map[string]any{"a": map[string]int{bad: 1}})},
		{"payload.metadata.a", message(map[string]any{"a": &bad})},
		{"payload.metadata.raw", message(map[string]any{"raw": json.RawMessage("\"\xff\"")})},
		{"payload.metadata.raw[0]", message(map[string]any{"raw": []json.RawMessage{json.RawMessage(`{"a":`)}})},
		{"payload.metadata.raw", message(map[string]any{"raw": json.RawMessage(`NaN`)})},
		{"payload.metadata", message(map[string]any{"f": func() {}})},
		{"payload.metadata", message(map[string]any{"n": json.Number("0x1")})},
		{"payload.payload.a[0]", eventbus.ProjectCreatedPayload{"a": []any{math.NaN()}}},
		{"payload", eventbus.ProjectCreatedPayload{bad: 1}},
		{"payload", eventbus.ProjectCreatedPayload{"c": make(chan int)}},
	} {
		_, err := newPayload(tc.payload)
		require.Equal(t, []string{tc.path}, badFields(t, err), "%#v", tc.payload)
		require.True(t, utf8.ValidString(err.Error()), "%q", err)
	}
}

// A step is a value inside a payload, with fields that are promoted, renamed
// and not written at all.
type step struct {
	Named
	Seconds float64 `json:"seconds"`
	Ignored float64 `json:"-"`
}

type Named struct {
	Name string `json:"name"`
}

type stepsPayload struct {
	Steps []step `json:"steps" eventbus:"required"`
}

func (stepsPayload) EventType() eventbus.Type { return "test.steps" }

func TestNestedStructsAreCheckedAsJSONSeesThem(t *testing.T) {
	_, err := newPayload(stepsPayload{[]step{{Seconds: math.NaN()}}})
	require.Equal(t, []string{"payload.steps[0].seconds"}, badFields(t, err), "named as in JSON")
	_, err = newPayload(stepsPayload{[]step{{Named: Named{"\xff"}}}})
	require.Equal(t, []string{"payload.steps[0].name"}, badFields(t, err), "promoted fields are written too")
	raw, err := newPayload(stepsPayload{[]step{{Ignored: math.NaN()}}})
	require.NoError(t, err, "what is not written cannot be wrong")
	require.Equal(t, `{"steps":[{"name":"","seconds":0}]}`, string(raw))
}

func TestPayloadThatHoldsItselfIsRefused(t *testing.T) {
	object := map[string]any{}
	object["self"] = object
	list := []any{nil}
	list[0] = list
	for _, metadata := range []map[string]any{object, {"list": list}} {
		_, err := newPayload(eventbus.AgentMessagePayload{AgentInstanceID: uuid.New(), Metadata: metadata})
		require.Len(t, badFields(t, err), 1)
		_, err = newPayload(eventbus.ProjectUpdatedPayload(metadata))
		require.Len(t, badFields(t, err), 1)
	}
}

// With two ways into itself, a value has 2^depth paths: the first that is too
// deep must end the search.
func TestPayloadThatHoldsItselfTwiceIsRefused(t *testing.T) {
	object := map[string]any{}
	object["a"], object["b"] = object, []any{object, object}
	_, err := newPayload(eventbus.ProjectUpdatedPayload(object))
	require.NotEmpty(t, badFields(t, err))
	require.Less(t, len(err.Error()), 10_000)
}

func TestDeepPayloadsAreWrittenUpToALimit(t *testing.T) {
	nested := func(depth int) eventbus.ProjectUpdatedPayload {
		var v any = "leaf"
		for range depth {
			v = []any{v}
		}
		return eventbus.ProjectUpdatedPayload{"a": v}
	}
	_, err := newPayload(nested(400))
	require.NoError(t, err)
	_, err = newPayload(nested(100_000))
	require.Len(t, badFields(t, err), 1)
}

// Types of the registration tests. Each is used once, since what is registered
// stays for the whole run.
type (
	buildPayload struct {
		ID      uuid.UUID       `json:"id" eventbus:"required"`
		Level   *string         `json:"level" eventbus:"default=low"`
		Raw     json.RawMessage `json:"raw,omitempty"`
		Skipped string          `json:"-"`
		Plain   int
		hidden  int
	}
	buildRival     struct{ A int }
	mapPayload     map[string]int
	emptyPayload   struct{}
	oneWordPayload struct{}
	breakPayload   struct{}
	blankPayload   struct{}
	slicePayload   []int
	intKeyPayload  map[int]string
	badTagPayload  struct {
		A int `eventbus:"requierd"`
	}
	badDefaultPayload struct {
		A string `eventbus:"default=x"`
	}
	pointerPayload struct{ A int }
	customPayload  struct{ Text string }
	brokenPayload  struct{}
)

func (buildPayload) EventType() eventbus.Type      { return "build.done" }
func (buildRival) EventType() eventbus.Type        { return "build.done" }
func (mapPayload) EventType() eventbus.Type        { return "test.map" }
func (emptyPayload) EventType() eventbus.Type      { return "test.empty" }
func (oneWordPayload) EventType() eventbus.Type    { return "build" }
func (breakPayload) EventType() eventbus.Type      { return "build.done\ndata: x" }
func (blankPayload) EventType() eventbus.Type      { return "" }
func (slicePayload) EventType() eventbus.Type      { return "test.slice" }
func (intKeyPayload) EventType() eventbus.Type     { return "test.intkey" }
func (badTagPayload) EventType() eventbus.Type     { return "test.badtag" }
func (badDefaultPayload) EventType() eventbus.Type { return "test.baddefault" }
func (*pointerPayload) EventType() eventbus.Type   { return "test.pointer" }
func (customPayload) EventType() eventbus.Type     { return "test.custom" }
func (brokenPayload) EventType() eventbus.Type     { return "test.broken" }

func (p customPayload) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"t": p.Text})
}
func (p *customPayload) UnmarshalJSON(data []byte) error {
	var m map[string]string
	err := json.Unmarshal(data, &m)
	p.Text = m["t"]
	return err
}
func (brokenPayload) MarshalJSON() ([]byte, error) { return []byte("[]"), nil }

func TestOwnTypesCanBeRegistered(t *testing.T) {
	require.NoError(t, eventbus.Register[buildPayload]())
	require.Contains(t, eventbus.Types(), eventbus.Type("build.done"))
	require.NoError(t, eventbus.Register[buildPayload](), "registering again changes nothing")

	id := uuid.New()
	raw, err := newPayload(buildPayload{ID: id, Skipped: "x", hidden: 1})
	require.NoError(t, err)
	require.Equal(t, `{"id":"`+id.String()+`","level":"low","Plain":0}`, string(raw))
	p, err := eventbus.PayloadAs[buildPayload](eventbus.Event{Type: "build.done", Payload: json.RawMessage(
		`{"id":"` + id.String() + `","raw":[1, 2],"Plain":3,"Skipped":"y","-":"z","hidden":4}`)})
	require.NoError(t, err)
	low := "low"
	require.Equal(t, buildPayload{ID: id, Level: &low, Raw: json.RawMessage("[1, 2]"), Plain: 3}, p)
	_, err = newPayload(buildPayload{Raw: json.RawMessage("{")})
	require.Equal(t, []string{"payload.id", "payload.raw"}, badFields(t, err))
}

func TestATypeBelongsToOneStruct(t *testing.T) {
	require.NoError(t, eventbus.Register[buildPayload]())
	require.ErrorContains(t, eventbus.Register[buildRival](), "buildPayload")
	require.NoError(t, eventbus.Register[buildPayload]())
}

func TestMapsEmptyStructsAndOwnEncodingsCanBePayloads(t *testing.T) {
	require.NoError(t, eventbus.Register[mapPayload]())
	require.NoError(t, eventbus.Register[emptyPayload]())
	require.NoError(t, eventbus.Register[customPayload]())
	for _, tc := range []struct {
		reencode func(json.RawMessage) (json.RawMessage, error)
		in, out  string
	}{
		{reencode[mapPayload], `{"b":2,"a":1}`, `{"a":1,"b":2}`},
		{reencode[emptyPayload], `{"ignored":1}`, `{}`},
		{reencode[customPayload], `{"t":"x"}`, `{"t":"x"}`},
	} {
		out, err := tc.reencode(json.RawMessage(tc.in))
		require.NoError(t, err)
		require.Equal(t, tc.out, string(out))
	}
	_, err := reencode[mapPayload](json.RawMessage(`{"a":"x"}`))
	require.Equal(t, []string{"payload"}, badFields(t, err))
	_, err = newPayload(brokenPayload{})
	require.Equal(t, []string{"payload"}, badFields(t, err), "its own encoding is no object")
	_, err = newPayload(customPayload{"\xff"})
	require.Len(t, badFields(t, err), 1)
}

func TestRegisterRefuses(t *testing.T) {
	before := eventbus.Types()
	for name, err := range map[string]error{
		"a type of one word":       eventbus.Register[oneWordPayload](),
		"a type with a line break": eventbus.Register[breakPayload](),
		"an empty type":            eventbus.Register[blankPayload](),
		"a slice":                  eventbus.Register[slicePayload](),
		"a map with int keys":      eventbus.Register[intKeyPayload](),
		"a misspelt tag":           eventbus.Register[badTagPayload](),
		"a default for a string":   eventbus.Register[badDefaultPayload](),
		"a pointer":                eventbus.Register[*eventbus.AgentMessagePayload](),
		"a pointer method":         eventbus.Register[*pointerPayload](),
	} {
		require.Error(t, err, name)
		require.True(t, strings.HasPrefix(err.Error(), "eventbus: register "), err)
		require.NotContains(t, err.Error(), "\n", name)
	}
	require.Equal(t, before, eventbus.Types())
}

func TestRegisterRefusesAnInterface(t *testing.T) {
	require.Error(t, eventbus.Register[eventbus.Payload]())
}

// What cannot be registered cannot be written or read either.
func TestUnfitPayloadTypesAreErrorsEverywhere(t *testing.T) {
	for _, p := range []eventbus.Payload{slicePayload{1}, intKeyPayload{}, badTagPayload{}, badDefaultPayload{}} {
		_, err := newPayload(p)
		require.Error(t, err, "%T", p)
	}
	_, err := eventbus.PayloadAs[badTagPayload](eventbus.Event{Type: "test.badtag"})
	require.Error(t, err)
	_, err = eventbus.PayloadAs[*eventbus.AgentMessagePayload](eventbus.Event{Type: eventbus.AgentMessage})
	require.Error(t, err)
	_, err = eventbus.PayloadAs[eventbus.Payload](eventbus.Event{Type: eventbus.AgentMessage})
	require.Error(t, err)
}

type common struct {
	Region string `json:"region" eventbus:"required"`
}

type (
	embeddingPayload struct {
		common
		Size int `json:"size"`
	}
	embeddingPointerPayload struct {
		*Named
		Size int `json:"size"`
	}
)

func (embeddingPayload) EventType() eventbus.Type        { return "test.embedding" }
func (embeddingPointerPayload) EventType() eventbus.Type { return "test.embeddingpointer" }

func TestEmbeddedFieldsAreFields(t *testing.T) {
	out, err := reencode[embeddingPayload](json.RawMessage(`{"size":1,"region":"eu"}`))
	require.NoError(t, err)
	require.Equal(t, `{"region":"eu","size":1}`, string(out))
	_, err = reencode[embeddingPayload](json.RawMessage(`{"size":1}`))
	require.Equal(t, []string{"region"}, badFields(t, err))
}

// Whether it is refused at registration or handled, it must not panic.
func TestEmbeddedNilPointerDoesNotPanic(t *testing.T) {
	require.NotPanics(t, func() { _, _ = newPayload(embeddingPointerPayload{Size: 1}) })
	require.NotPanics(t, func() { _, _ = reencode[embeddingPointerPayload](json.RawMessage(`{"name":"x","size":1}`)) })
}

// FuzzPayload compares PayloadAs with a decoder in plain words, and what it takes
// must survive being written and read again.
func FuzzPayload(f *testing.F) {
	for _, v := range readVectors(f, "payloads.json") {
		if v.Struct == "AgentMessagePayload" {
			f.Add([]byte(v.Input))
		}
	}
	f.Add([]byte(`{` + agentID + `,"message":"\ud800","message_type":"","metadata":{"a":[1e308,{"\ud800":null}]}}`))
	f.Add([]byte(`{` + agentID + `,"message":"a","message":null,"metadata":null}`))
	f.Add([]byte("{}"))
	for _, metadata := range []string{
		strings.Repeat(`{"a":`, 9999) + "{}" + strings.Repeat(`}`, 9999), strings.Repeat(`{"a":`, 900) + "{}" + strings.Repeat(`}`, 900),
		`{"n":` + strings.Repeat("9", 400) + `}`, `{"n":1e-99999}`, `{"\udfff\ud800":"\u0000"}`, `{"a":1,"a":{},"A":[]}`,
	} {
		f.Add([]byte(`{` + agentID + `,"message":"\udc00\ud800","metadata":` + metadata + `}`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var members map[string]json.RawMessage
		if !utf8.Valid(data) || len(data) == 0 || json.Unmarshal(data, &members) != nil || members == nil {
			if len(data) > 0 {
				_, err := messageAs(string(data))
				require.Equal(t, []string{"payload"}, badFields(t, err))
			}
			return
		}
		var bad []string
		info := "info"
		want := eventbus.AgentMessagePayload{MessageType: &info}
		field := func(name string, required bool, into any) {
			raw, present := members[name]
			if required && !present || present && (string(raw) == "null" || json.Unmarshal(raw, into) != nil) {
				bad = append(bad, name)
			}
		}
		field("agent_instance_id", true, &want.AgentInstanceID)
		field("message", true, &want.Message)
		field("message_type", false, &info)
		field("metadata", false, &want.Metadata)

		got, err := messageAs(string(data))
		if bad != nil {
			require.Equal(t, bad, badFields(t, err))
			require.Zero(t, got)
			return
		}
		require.NoError(t, err)
		require.Equal(t, want, got)

		raw, err := newPayload(got)
		switch {
		case got.AgentInstanceID == uuid.Nil:
			require.Equal(t, []string{"payload.agent_instance_id"}, badFields(t, err))
			return
		case strings.Count(string(data), "{")+strings.Count(string(data), "[") > 400:
			return // may be deeper than is written
		}
		require.NoError(t, err)
		require.True(t, json.Valid(raw))
		again, err := messageAs(string(raw))
		require.NoError(t, err)
		if got.Metadata == nil {
			got.Metadata = map[string]any{}
		}
		require.Equal(t, got, again)
	})
}
