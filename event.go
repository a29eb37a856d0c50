package eventbus

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// A Type names what happened, as "{domain}.{action}".
type Type string

// The 20 types of the schema. Their payloads are the structs of the same name
// with "Payload" behind it. [Register] adds a program's own.
const (
	AgentSpawned       Type = "agent.spawned"
	AgentStatusChanged Type = "agent.status_changed"
	AgentMessage       Type = "agent.message"
	AgentTerminated    Type = "agent.terminated"

	IssueCreated  Type = "issue.created"
	IssueUpdated  Type = "issue.updated"
	IssueAssigned Type = "issue.assigned"
	IssueClosed   Type = "issue.closed"

	SprintStarted   Type = "sprint.started"
	SprintCompleted Type = "sprint.completed"

	ApprovalRequested Type = "approval.requested"
	ApprovalGranted   Type = "approval.granted"
	ApprovalDenied    Type = "approval.denied"

	ProjectCreated  Type = "project.created"
	ProjectUpdated  Type = "project.updated"
	ProjectArchived Type = "project.archived"

	WorkflowStarted       Type = "workflow.started"
	WorkflowStepCompleted Type = "workflow.step_completed"
	WorkflowCompleted     Type = "workflow.completed"
	WorkflowFailed        Type = "workflow.failed"
)

// maxTypeLength bounds a type's name; the longest of the schema has 23 bytes.
const maxTypeLength = 128

// wellFormed tells whether t is two or more words of letters, digits, "_" and
// "-" with dots between: what readers accept, known or not. The domain "stream" is
// taken: in an event stream, stream.gap is what the bus itself has to say.
func (t Type) wellFormed() bool {
	if len(t) > maxTypeLength || strings.Count(string(t), ".") == 0 || strings.HasPrefix(string(t), "stream.") {
		return false
	}
	for word := range strings.SplitSeq(string(t), ".") {
		if word == "" {
			return false
		}
		for i := range len(word) {
			c := word[i]
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-') {
				return false
			}
		}
	}
	return true
}

// An ActorType tells what kind of actor caused an event.
type ActorType string

// The actor types.
const (
	ActorAgent  ActorType = "agent"
	ActorUser   ActorType = "user"
	ActorSystem ActorType = "system"
)

func (t ActorType) known() bool { return t == ActorAgent || t == ActorUser || t == ActorSystem }

// An Actor is who caused an event, for [NewEvent].
type Actor struct {
	// Type is required.
	Type ActorType
	// ID is nil when no particular agent or user is meant.
	ID *uuid.UUID
}

// Agent is the agent with this id as actor.
func Agent(id uuid.UUID) Actor { return Actor{ActorAgent, &id} }

// User is the user with this id as actor.
func User(id uuid.UUID) Actor { return Actor{ActorUser, &id} }

// System is the system itself as actor; it has no id.
func System() Actor { return Actor{Type: ActorSystem} }

// An Event is something that happened. The first seven fields are the event, as
// it is published; the others say where a delivered event was found.
//
// Its JSON form is the wire format: one object with the members id, type,
// timestamp, project_id, actor_id (null when absent), actor_type, payload and,
// for an event from a log, cursor (its Position), in this order.
type Event struct {
	// ID identifies the event: a UUID; [NewEvent] sets a UUIDv7.
	ID string
	// Type is a registered type when publishing, any well-formed one when reading.
	Type Type
	// Timestamp is when it happened. It is kept in UTC to the microsecond.
	Timestamp time.Time
	// ProjectID is the project that the event belongs to.
	ProjectID uuid.UUID
	// ActorID is the agent or user who caused the event, nil when there is none.
	ActorID *uuid.UUID
	// ActorType is what caused it.
	ActorType ActorType
	// Payload is a JSON object; nil means {}. [PayloadAs] decodes it.
	Payload json.RawMessage

	// Channel is the channel that the event was delivered from; zero for one
	// that was not.
	Channel Channel
	// Position is the event's place in the log of Channel. It is zero for an
	// event that is in no log: one not published yet, or one of a foreign
	// publisher, which only did a Redis PUBLISH.
	Position Position
	// Cursor resumes the subscription, with all its channels, right behind this
	// event. It is zero for an event that was not delivered by a subscription. (The
	// member "cursor" of an event's JSON is its Position.)
	Cursor Cursor
}

// NewEvent makes an event of the type that the payload belongs to, with a new
// UUIDv7 and the present time; set ID or Timestamp afterwards to bring your own.
// The error is a [*ValidationError] that names every bad field: no project, an
// unknown actor type, a payload with a required field missing, with NaN or
// invalid UTF-8 inside. Whether its type is registered, Publish checks.
func NewEvent(project uuid.UUID, actor Actor, payload Payload) (Event, error) {
	p := problems{subject: "event"}
	if project == uuid.Nil {
		p.add("project_id", "is required")
	}
	if !actor.Type.known() {
		p.add("actor_type", "%s is not one of agent, user, system", excerpt(string(actor.Type)))
	}
	ev := Event{
		Timestamp: now(),
		ProjectID: project,
		ActorID:   actor.ID,
		ActorType: actor.Type,
	}
	if isNil(payload) { // its method could not be called either
		p.add("payload", "is required")
		return Event{}, p.err()
	}
	ev.Type = payload.EventType()
	raw, err := encodePayload(payload)
	if err != nil {
		var bad *ValidationError
		if !errors.As(err, &bad) {
			return Event{}, err
		}
		for _, f := range bad.Fields {
			p.add(payloadPath(f.Field), "%s", f.Problem)
		}
	}
	if err := p.err(); err != nil {
		return Event{}, err
	}
	ev.Payload = raw
	id, err := uuid.NewV7()
	if err != nil {
		return Event{}, fmt.Errorf("eventbus: new event: %w", err)
	}
	ev.ID = id.String()
	return ev, nil
}

// now is the present time as an event carries it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// payloadPath is the path in the event of a field of its payload.
func payloadPath(field string) string {
	if field == "payload" {
		return field
	}
	return "payload." + field
}

// Validate tells whether [Bus.Publish] would take the event, but for its size: every
// field is there and well-formed, the type is registered, and the payload has what
// its struct requires. The error is a [*ValidationError] that names every bad field.
func (ev *Event) Validate() error {
	p := problems{subject: "event"}
	if ev.ID == "" {
		p.add("id", "is required")
	} else if _, err := parseUUID(ev.ID); err != nil {
		p.add("id", "%s is not a UUID", excerpt(ev.ID))
	}
	s, known := registered(ev.Type)
	if ev.Type == "" {
		p.add("type", "is required")
	} else if !known {
		p.add("type", "%s is not registered; Register[YourPayload] does that", excerpt(string(ev.Type)))
	}
	if ev.Timestamp.IsZero() {
		p.add("timestamp", "is required")
	} else if y := ev.Timestamp.UTC().Year(); y < 1 || y > 9999 {
		p.add("timestamp", "has the year %d, outside 1 to 9999", y)
	}
	if ev.ProjectID == uuid.Nil {
		p.add("project_id", "is required")
	}
	if ev.ActorType == "" {
		p.add("actor_type", "is required")
	} else if !ev.ActorType.known() {
		p.add("actor_type", "%s is not one of agent, user, system", excerpt(string(ev.ActorType)))
	}
	if known {
		for _, f := range s.check(ev.Payload) {
			p.add(payloadPath(f.Field), "%s", f.Problem)
		}
	} else if len(ev.Payload) > 0 {
		if err := checkObject(ev.Payload); err != nil {
			p.add("payload", "%s", err)
		}
	}
	// Readers take no JSON that nests deeper than encoding/json does, and the
	// event is one level more.
	if len(p.fields) == 0 && len(ev.Payload) >= maxNesting && !validJSON(ev.appendJSON(nil)) {
		p.add("payload", "nests too deep")
	}
	return p.err()
}

// appendJSON appends the event without its cursor; it is valid.
func (ev *Event) appendJSON(b []byte) []byte {
	b = slices.Grow(b, 320+len(ev.Type)+len(ev.Payload)) // and room for a cursor
	b = append(b, `{"id":`...)
	b = appendString(b, ev.ID)
	b = append(b, `,"type":`...)
	b = appendString(b, string(ev.Type))
	b = append(b, `,"timestamp":"`...)
	b = appendTime(b, ev.Timestamp)
	b = append(b, `","project_id":"`...)
	b = appendUUID(b, ev.ProjectID)
	b = append(b, `","actor_id":`...)
	if ev.ActorID == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, '"')
		b = appendUUID(b, *ev.ActorID)
		b = append(b, '"')
	}
	b = append(b, `,"actor_type":`...)
	b = appendString(b, string(ev.ActorType))
	b = append(b, `,"payload":`...)
	if len(ev.Payload) == 0 {
		b = append(b, "{}"...)
	} else {
		b = append(b, oneLine(ev.Payload)...)
	}
	return append(b, '}')
}

// appendWire appends the event as it travels on a channel, with its cursor when
// it has a position.
func (ev *Event) appendWire(b []byte) []byte {
	b = ev.appendJSON(b)
	if ev.Position.IsZero() {
		return b
	}
	b = append(b[:len(b)-1], `,"cursor":"`...)
	b = ev.Position.append(b)
	return append(b, `"}`...)
}

// appendTime appends a time as RFC 3339 in UTC, to the microsecond. (AppendFormat
// takes ten times as long.)
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 { // Validate refuses it, MarshalJSON does not
		return t.AppendFormat(b, "2006-01-02T15:04:05.999999Z")
	}
	hour, minute, second := t.Clock()
	b = appendDigits(b, year, 4)
	b = appendDigits(append(b, '-'), int(month), 2)
	b = appendDigits(append(b, '-'), day, 2)
	b = appendDigits(append(b, 'T'), hour, 2)
	b = appendDigits(append(b, ':'), minute, 2)
	b = appendDigits(append(b, ':'), second, 2)
	if micros := t.Nanosecond() / 1000; micros > 0 {
		b = appendDigits(append(b, '.'), micros, 6)
	}
	return append(b, 'Z')
}

// appendDigits appends a number in so many digits.
func appendDigits(b []byte, n, digits int) []byte {
	b = append(b, "000000"[:digits]...)
	for i := len(b) - 1; n > 0 && digits > 0; i, digits = i-1, digits-1 {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}

func appendUUID(b []byte, u uuid.UUID) []byte {
	for i, octet := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, hexDigits[octet>>4], hexDigits[octet&15])
	}
	return b
}

const hexDigits = "0123456789abcdef"

// MarshalJSON returns the wire format. It does not check that the event could
// be published, but fails with a [*ValidationError] where the result would not be JSON.
func (ev Event) MarshalJSON() ([]byte, error) {
	if len(ev.Payload) > 0 {
		if err := checkObject(ev.Payload); err != nil {
			return nil, invalid("event", "payload", "%s", err)
		}
	}
	if !utf8.ValidString(ev.ID) {
		return nil, invalid("event", "id", "%s", errNotUTF8)
	}
	return ev.appendWire(nil), nil
}

// UnmarshalJSON reads the wire format, also of publishers that write it
// differently: unknown members are ignored, of a repeated one the last counts,
// timestamps may have an offset or no zone (then UTC), any well-formed type is
// taken. The error is a [*ValidationError] that names every bad field.
func (ev *Event) UnmarshalJSON(data []byte) error {
	parsed, err := decode(slices.Clone(data))
	if err == nil {
		*ev = parsed
	}
	return err
}

// decode reads an event. Its payload shares memory with data.
func decode(data []byte) (Event, error) {
	var ev Event
	var id, typ, timestamp, project, actor, actorType, payload, position []byte
	err := eachMember(data, func(name, value []byte) {
		switch string(name) {
		case "id":
			id = value
		case "type":
			typ = value
		case "timestamp":
			timestamp = value
		case "project_id":
			project = value
		case "actor_id":
			actor = value
		case "actor_type":
			actorType = value
		case "payload":
			payload = value
		case "cursor":
			position = value
		}
	})
	if err != nil {
		return Event{}, invalid("event", "event", "%s", err)
	}

	p := problems{subject: "event"}
	text := func(field string, value []byte) ([]byte, bool) {
		switch {
		case value == nil:
			p.add(field, "is required")
		case value[0] != '"':
			p.add(field, "is not a string")
		default:
			return unquote(value), true
		}
		return nil, false
	}
	if s, ok := text("id", id); ok {
		ev.ID = string(s)
	}
	if s, ok := text("type", typ); ok {
		if ev.Type, ok = registeredName(s); !ok {
			if ev.Type = Type(s); !ev.Type.wellFormed() {
				p.add("type", "%s is not of the form domain.action", excerpt(string(s)))
			}
		}
	}
	if s, ok := text("timestamp", timestamp); ok {
		var err error
		if ev.Timestamp, err = parseTime(s); err != nil {
			p.add("timestamp", "%s is not an RFC 3339 time", excerpt(string(s)))
		}
	}
	if s, ok := text("project_id", project); ok {
		var err error
		if ev.ProjectID, err = readUUID(s); err != nil {
			p.add("project_id", "%s is not a UUID", excerpt(string(s)))
		}
	}
	if actor != nil && string(actor) != "null" {
		if s, ok := text("actor_id", actor); ok {
			u, err := readUUID(s)
			if err != nil {
				p.add("actor_id", "%s is not a UUID", excerpt(string(s)))
			}
			ev.ActorID = &u
		}
	}
	if s, ok := text("actor_type", actorType); ok {
		switch string(s) {
		case string(ActorAgent):
			ev.ActorType = ActorAgent
		case string(ActorUser):
			ev.ActorType = ActorUser
		case string(ActorSystem):
			ev.ActorType = ActorSystem
		default:
			ev.ActorType = ActorType(s)
			p.add("actor_type", "%s is not one of agent, user, system", excerpt(string(s)))
		}
	}
	switch {
	case payload == nil:
		ev.Payload = json.RawMessage("{}")
	case payload[0] != '{':
		p.add("payload", "%s", errNotObject)
	default:
		ev.Payload = oneLine(payload)
	}
	if len(position) > 2 && position[0] == '"' {
		// A position that cannot be read is none: the event is then foreign.
		ev.Position, _ = ParsePosition(string(unquote(position)))
	}
	return ev, p.err()
}

// timeLayouts are the forms in which timestamps come: RFC 3339, without a zone,
// and both with a blank, as Python's str(datetime) has it. Fractions of seconds
// are read without standing in a layout.
var timeLayouts = []string{
	time.RFC3339,
	"2006-01-02T15:04:05",
	"2006-01-02 15:04:05Z07:00",
	"2006-01-02 15:04:05",
}

var errYear = errors.New("the year is outside 1 to 9999")

func parseTime(text []byte) (t time.Time, err error) {
	if t, ok := parseWireTime(text); ok {
		return t, nil
	}
	s := string(text)
	for _, layout := range timeLayouts {
		if t, err = time.Parse(layout, s); err == nil {
			t = t.UTC().Truncate(time.Microsecond)
			if y := t.Year(); y < 1 || y > 9999 { // RFC 3339 has no way to write it
				return time.Time{}, errYear
			}
			return t, nil
		}
	}
	return time.Time{}, err
}

// parseWireTime reads a time as appendTime writes it, and nothing else.
func parseWireTime(s []byte) (time.Time, bool) {
	const form = "0000-00-00T00:00:00.000000Z"
	if len(s) != len(form) && len(s) != len("0000-00-00T00:00:00Z") || s[len(s)-1] != 'Z' {
		return time.Time{}, false
	}
	var parts [7]int // year, month, day, hour, minute, second, microseconds
	part := 0
	for i, c := range s[:len(s)-1] {
		switch {
		case form[i] == '0' && c >= '0' && c <= '9':
			parts[part] = 10*parts[part] + int(c-'0')
		case form[i] != '0' && c == form[i]:
			part++
		default:
			return time.Time{}, false
		}
	}
	t := time.Date(parts[0], time.Month(parts[1]), parts[2], parts[3], parts[4], parts[5], parts[6]*1000, time.UTC)
	// What does not exist, Date takes for another: the 31st of June is the 1st of July.
	same := t.Year() == parts[0] && t.Month() == time.Month(parts[1]) && t.Day() == parts[2] && parts[3] < 24 && parts[4] < 60 && parts[5] < 60
	return t, same && parts[0] > 0
}
