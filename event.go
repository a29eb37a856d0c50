package eventbus

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/schema"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Type names what happened, as "{domain}.{action}". The domain "stream" belongs to the bus
// itself.
type Type string

// The 20 types of the schema. The payload of each is the Go type of the same name with "Payload"
// behind it. [Register] adds a program's own types.
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

// An ActorType says what kind of actor caused an event.
type ActorType string

// The actor types.
const (
	ActorAgent  ActorType = "agent"
	ActorUser   ActorType = "user"
	ActorSystem ActorType = "system"
)

// An Actor is what caused an event, for [NewEvent].
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

// An Event is something that happened. The first seven fields are the event as it is published. The
// others say where a delivered event was found.
//
// Its JSON form is the wire format: one object with the members id, type, timestamp, project_id,
// actor_id (null when absent), actor_type, payload and, for an event from a log, position, in this
// order.
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

	// Channel is the channel that the event was delivered from. It is zero for an event that was
	// not delivered.
	Channel Channel
	// Position is the event's place in the log of Channel. It is zero for an event that is in no
	// log: one that was not published yet, or one of a foreign publisher.
	Position Position
	// Cursor resumes the subscription, with all its channels, right behind this event. It is zero
	// for an event that no subscription has delivered.
	Cursor Cursor
}

// NewEvent makes an event of the type that the payload belongs to, with a new UUIDv7 and the
// present time. Set ID or Timestamp afterwards to bring your own. The error is a [*ValidationError]
// that names every bad field: no project, an unknown actor type, a payload that lacks a required
// field or has NaN or invalid UTF-8 in it. NewEvent does not check whether the type is registered;
// Publish does.
func NewEvent(project uuid.UUID, actor Actor, payload Payload) (Event, error) {
	p := problems{subject: "event"}
	if project == uuid.Nil {
		p.Add("project_id", "is required")
	}
	if !wire.KnownActor(string(actor.Type)) {
		p.Add("actor_type", "%s is not one of agent, user, system", rawjson.Excerpt(string(actor.Type)))
	}
	ev := Event{
		Timestamp: now(),
		ProjectID: project,
		ActorID:   actor.ID,
		ActorType: actor.Type,
	}
	if isNil(payload) { // Its method could not be called.
		p.Add("payload", "is required")
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
			p.Add(payloadPath(f.Field), "%s", f.Problem)
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

// Validate reports whether [Bus.Publish] would take the event: every field is there and
// well-formed, the type is registered, and the payload has what its struct requires. It does not
// check the size. The error is a [*ValidationError] that names every bad field.
func (ev Event) Validate() error {
	p := problems{subject: "event"}
	if ev.ID == "" {
		p.Add("id", "is required")
	} else if _, err := wire.ParseUUID(ev.ID); err != nil {
		p.Add("id", "%s is not a UUID", rawjson.Excerpt(ev.ID))
	}
	s, known := schema.Registered(string(ev.Type))
	if ev.Type == "" {
		p.Add("type", "is required")
	} else if !known {
		p.Add("type", "%s is not registered; Register[YourPayload] does that", rawjson.Excerpt(string(ev.Type)))
	}
	if ev.Timestamp.IsZero() {
		p.Add("timestamp", "is required")
	} else if y := ev.Timestamp.UTC().Year(); y < 1 || y > 9999 {
		p.Add("timestamp", "has the year %d, outside 1 to 9999", y)
	}
	if ev.ProjectID == uuid.Nil {
		p.Add("project_id", "is required")
	}
	if ev.ActorType == "" {
		p.Add("actor_type", "is required")
	} else if !wire.KnownActor(string(ev.ActorType)) {
		p.Add("actor_type", "%s is not one of agent, user, system", rawjson.Excerpt(string(ev.ActorType)))
	}
	if known {
		for _, f := range s.Check(ev.Payload) {
			p.Add(payloadPath(f.Field), "%s", f.Problem)
		}
	} else if len(ev.Payload) > 0 {
		if err := rawjson.CheckObject(ev.Payload); err != nil {
			p.Add("payload", "%s", err)
		}
	}
	// Readers take no JSON that nests deeper than encoding/json does, and the
	// event is one level more.
	if len(p.Faults) == 0 && len(ev.Payload) >= rawjson.MaxNesting && !json.Valid(ev.wire().AppendJSON(nil)) {
		p.Add("payload", "nests too deep")
	}
	return p.err()
}

// MarshalJSON returns the wire format. It does not check whether the event could be published. It
// fails with a [*ValidationError] where the result would not be JSON.
func (ev Event) MarshalJSON() ([]byte, error) {
	if len(ev.Payload) > 0 {
		if err := rawjson.CheckObject(ev.Payload); err != nil {
			return nil, invalid("event", "payload", "%s", err)
		}
	}
	if !utf8.ValidString(ev.ID) {
		return nil, invalid("event", "id", "%s", rawjson.ErrNotUTF8)
	}
	return ev.wire().AppendWire(nil), nil
}

// UnmarshalJSON reads the wire format, and the data of an event stream. It also reads what other
// publishers write: unknown members are ignored, of a repeated member the last one counts, a
// timestamp may have an offset or no zone (then it is UTC), and any well-formed type is taken. The
// error is a [*ValidationError] that names every bad field.
func (ev *Event) UnmarshalJSON(data []byte) error {
	parsed, err := wire.Decode(slices.Clone(data))
	var faults rawjson.Faults
	if errors.As(err, &faults) {
		return (&problems{"event", faults}).err()
	}
	*ev = eventOf(&parsed)
	ev.Channel, _ = ParseChannel(parsed.Channel) // "" elsewhere than in an event stream
	return nil
}

// wire gives the event as it travels.
func (ev *Event) wire() *wire.Event {
	return &wire.Event{
		ID: ev.ID, Type: string(ev.Type), Timestamp: ev.Timestamp, ProjectID: ev.ProjectID, ActorID: ev.ActorID,
		ActorType: string(ev.ActorType), Payload: ev.Payload, Position: ev.Position.place(),
	}
}

// eventOf gives an event that has travelled.
func eventOf(ev *wire.Event) Event {
	return Event{
		ID: ev.ID, Type: Type(ev.Type), Timestamp: ev.Timestamp, ProjectID: ev.ProjectID, ActorID: ev.ActorID,
		ActorType: ActorType(ev.ActorType), Payload: ev.Payload, Position: positionOf(ev.Position),
	}
}
