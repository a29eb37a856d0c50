package eventbus

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/schema"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Payload is the part of an event that depends on its type. Its Go type decides the event's type,
// so EventType must give the same answer for every value, also for the zero value. A payload is a
// struct, or a map with string keys.
//
// The json tags of a payload struct name its fields. On the wire every field is present: a nil
// slice is [], a nil map {}, a nil pointer null. Two more tags say what a field means:
//
//   - eventbus:"required": the field must be present when a payload is read. "", 0 and false are
//     values. A nil UUID and a nil map cannot be meant, so they are refused when a payload is written.
//   - eventbus:"default=TEXT", on a *string: nil, and absence, mean TEXT.
type Payload interface {
	EventType() Type
}

// Register makes the type of P's events known. Every bus in the program then accepts them, and
// checks their payload against P. A program calls it for its own types, usually before it makes a
// bus. Only publishers need it: subscribers get every well-formed type, and [PayloadAs] needs no
// registration.
//
// The error says that P's type is not of the form domain.action, that it belongs to another struct,
// or that P is neither a struct nor a map with string keys. To register P again changes nothing.
// Register is safe for concurrent use.
func Register[P Payload]() error {
	t := reflect.TypeFor[P]()
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return fmt.Errorf("eventbus: register %s: it must be the struct itself, not a pointer or an interface", t)
	}
	var zero P
	return register(t, zero.EventType())
}

func register(t reflect.Type, typ Type) error {
	if !wire.WellFormed(string(typ)) {
		return fmt.Errorf("eventbus: register %s: type %s is not of the form domain.action, or its domain is stream", t, rawjson.Excerpt(string(typ)))
	}
	if err := schema.Register(string(typ), t); err != nil {
		return fmt.Errorf("eventbus: register %s: %w", t, err)
	}
	return nil
}

// PayloadAs decodes the payload of an event into the struct of its type, and fills in the defaults
// of the schema:
//
//	msg, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
//
// Fields that the struct does not have are ignored. The error is a [*ValidationError] that names
// every missing or malformed field, or "type" when the event is of another type than P's.
func PayloadAs[P Payload](ev Event) (P, error) {
	var payload P
	s, err := schema.Of(reflect.TypeFor[P]())
	if err != nil {
		return payload, fmt.Errorf("eventbus: payload of %s: %w", ev.Type, err)
	}
	if want := payload.EventType(); ev.Type != want {
		return payload, invalid("payload of "+string(want), "type", "is %s, not %s", rawjson.Excerpt(string(ev.Type)), want)
	}
	p := problems{subject: "payload of " + string(ev.Type)}
	raw := ev.Payload
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	if p.Faults = s.Decode(raw, reflect.ValueOf(&payload).Elem()); len(p.Faults) > 0 {
		var zero P
		return zero, p.err()
	}
	return payload, nil
}

// Types returns the registered types in alphabetical order.
func Types() []Type {
	var types []Type
	for _, name := range schema.Names() {
		types = append(types, Type(name))
	}
	return types
}

// isNil reports whether there is no payload, not even behind the interface.
func isNil(payload Payload) bool {
	v := reflect.ValueOf(payload)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// encodePayload gives the JSON of a payload, every field present.
func encodePayload(payload Payload) (json.RawMessage, error) {
	v := reflect.ValueOf(payload)
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil, invalid("payload", "payload", "is nil")
		}
		v = v.Elem()
	}
	s, err := schema.Of(v.Type())
	if err != nil {
		return nil, fmt.Errorf("eventbus: payload of %s: %w", payload.EventType(), err)
	}
	p := problems{subject: "payload"}
	raw, faults := s.Encode(v)
	p.Faults = faults
	return raw, p.err()
}

func init() {
	for _, p := range []Payload{
		AgentSpawnedPayload{}, AgentStatusChangedPayload{}, AgentMessagePayload{}, AgentTerminatedPayload{},
		IssueCreatedPayload{}, IssueUpdatedPayload{}, IssueAssignedPayload{}, IssueClosedPayload{},
		SprintStartedPayload{}, SprintCompletedPayload{},
		ApprovalRequestedPayload{}, ApprovalGrantedPayload{}, ApprovalDeniedPayload{},
		ProjectCreatedPayload{}, ProjectUpdatedPayload{}, ProjectArchivedPayload{},
		WorkflowStartedPayload{}, WorkflowStepCompletedPayload{}, WorkflowCompletedPayload{}, WorkflowFailedPayload{},
	} {
		if err := register(reflect.TypeOf(p), p.EventType()); err != nil {
			panic(err)
		}
	}
}

// AgentSpawnedPayload is the payload of [AgentSpawned].
type AgentSpawnedPayload struct {
	AgentInstanceID uuid.UUID `json:"agent_instance_id" eventbus:"required"` // the spawned instance
	AgentTypeID     uuid.UUID `json:"agent_type_id" eventbus:"required"`
	AgentName       string    `json:"agent_name" eventbus:"required"` // for people to read
	Role            string    `json:"role" eventbus:"required"`       // such as "product_owner", "engineer"
}

// AgentStatusChangedPayload is the payload of [AgentStatusChanged].
type AgentStatusChangedPayload struct {
	AgentInstanceID uuid.UUID `json:"agent_instance_id" eventbus:"required"`
	PreviousStatus  string    `json:"previous_status" eventbus:"required"`
	NewStatus       string    `json:"new_status" eventbus:"required"`
	Reason          *string   `json:"reason"`
}

// AgentMessagePayload is the payload of [AgentMessage].
type AgentMessagePayload struct {
	AgentInstanceID uuid.UUID `json:"agent_instance_id" eventbus:"required"`
	Message         string    `json:"message" eventbus:"required"`
	// MessageType is "info", "warning", "error" or "debug"; nil means "info",
	// and it is never nil in a payload that was read.
	MessageType *string        `json:"message_type" eventbus:"default=info"`
	Metadata    map[string]any `json:"metadata"` // such as token usage, model
}

// AgentTerminatedPayload is the payload of [AgentTerminated].
type AgentTerminatedPayload struct {
	AgentInstanceID   uuid.UUID `json:"agent_instance_id" eventbus:"required"`
	TerminationReason string    `json:"termination_reason" eventbus:"required"`
	FinalStatus       string    `json:"final_status" eventbus:"required"`
}

// IssueCreatedPayload is the payload of [IssueCreated].
type IssueCreatedPayload struct {
	IssueID  string   `json:"issue_id" eventbus:"required"` // as the external tracker has it
	Title    string   `json:"title" eventbus:"required"`
	Priority *string  `json:"priority"`
	Labels   []string `json:"labels"`
}

// IssueUpdatedPayload is the payload of [IssueUpdated].
type IssueUpdatedPayload struct {
	IssueID string         `json:"issue_id" eventbus:"required"`
	Changes map[string]any `json:"changes" eventbus:"required"` // the new values by field
}

// IssueAssignedPayload is the payload of [IssueAssigned].
type IssueAssignedPayload struct {
	IssueID      string     `json:"issue_id" eventbus:"required"`
	AssigneeID   *uuid.UUID `json:"assignee_id"` // an agent or user
	AssigneeName *string    `json:"assignee_name"`
}

// IssueClosedPayload is the payload of [IssueClosed].
type IssueClosedPayload struct {
	IssueID    string `json:"issue_id" eventbus:"required"`
	Resolution string `json:"resolution" eventbus:"required"`
}

// SprintStartedPayload is the payload of [SprintStarted].
type SprintStartedPayload struct {
	SprintID   uuid.UUID `json:"sprint_id" eventbus:"required"`
	SprintName string    `json:"sprint_name" eventbus:"required"`
	Goal       *string   `json:"goal"`
	IssueCount int       `json:"issue_count"`
}

// SprintCompletedPayload is the payload of [SprintCompleted].
type SprintCompletedPayload struct {
	SprintID         uuid.UUID `json:"sprint_id" eventbus:"required"`
	SprintName       string    `json:"sprint_name" eventbus:"required"`
	CompletedIssues  int       `json:"completed_issues"`
	IncompleteIssues int       `json:"incomplete_issues"`
}

// ApprovalRequestedPayload is the payload of [ApprovalRequested].
type ApprovalRequestedPayload struct {
	ApprovalID     uuid.UUID  `json:"approval_id" eventbus:"required"`
	ApprovalType   string     `json:"approval_type" eventbus:"required"`
	Description    string     `json:"description" eventbus:"required"`
	RequestedBy    *uuid.UUID `json:"requested_by"`    // an agent or user
	TimeoutMinutes *int       `json:"timeout_minutes"` // until it is escalated
}

// ApprovalGrantedPayload is the payload of [ApprovalGranted].
type ApprovalGrantedPayload struct {
	ApprovalID uuid.UUID `json:"approval_id" eventbus:"required"`
	ApprovedBy uuid.UUID `json:"approved_by" eventbus:"required"`
	Comments   *string   `json:"comments"`
}

// ApprovalDeniedPayload is the payload of [ApprovalDenied].
type ApprovalDeniedPayload struct {
	ApprovalID uuid.UUID `json:"approval_id" eventbus:"required"`
	DeniedBy   uuid.UUID `json:"denied_by" eventbus:"required"`
	Reason     string    `json:"reason" eventbus:"required"`
}

// ProjectCreatedPayload is the payload of [ProjectCreated]: any object.
type ProjectCreatedPayload map[string]any

// ProjectUpdatedPayload is the payload of [ProjectUpdated]: any object.
type ProjectUpdatedPayload map[string]any

// ProjectArchivedPayload is the payload of [ProjectArchived]: any object.
type ProjectArchivedPayload map[string]any

// WorkflowStartedPayload is the payload of [WorkflowStarted].
type WorkflowStartedPayload struct {
	WorkflowID   uuid.UUID `json:"workflow_id" eventbus:"required"` // of this execution
	WorkflowType string    `json:"workflow_type" eventbus:"required"`
	TotalSteps   int       `json:"total_steps"`
}

// WorkflowStepCompletedPayload is the payload of [WorkflowStepCompleted].
type WorkflowStepCompletedPayload struct {
	WorkflowID uuid.UUID      `json:"workflow_id" eventbus:"required"`
	StepName   string         `json:"step_name" eventbus:"required"`
	StepNumber int            `json:"step_number" eventbus:"required"` // from 1
	TotalSteps int            `json:"total_steps" eventbus:"required"`
	Result     map[string]any `json:"result"`
}

// WorkflowCompletedPayload is the payload of [WorkflowCompleted].
type WorkflowCompletedPayload struct {
	WorkflowID      uuid.UUID      `json:"workflow_id" eventbus:"required"`
	DurationSeconds float64        `json:"duration_seconds" eventbus:"required"`
	Result          map[string]any `json:"result"`
}

// WorkflowFailedPayload is the payload of [WorkflowFailed].
type WorkflowFailedPayload struct {
	WorkflowID   uuid.UUID `json:"workflow_id" eventbus:"required"`
	ErrorMessage string    `json:"error_message" eventbus:"required"`
	FailedStep   *string   `json:"failed_step"`
	Recoverable  bool      `json:"recoverable"`
}

// EventType returns [AgentSpawned].
func (AgentSpawnedPayload) EventType() Type { return AgentSpawned }

// EventType returns [AgentStatusChanged].
func (AgentStatusChangedPayload) EventType() Type { return AgentStatusChanged }

// EventType returns [AgentMessage].
func (AgentMessagePayload) EventType() Type { return AgentMessage }

// EventType returns [AgentTerminated].
func (AgentTerminatedPayload) EventType() Type { return AgentTerminated }

// EventType returns [IssueCreated].
func (IssueCreatedPayload) EventType() Type { return IssueCreated }

// EventType returns [IssueUpdated].
func (IssueUpdatedPayload) EventType() Type { return IssueUpdated }

// EventType returns [IssueAssigned].
func (IssueAssignedPayload) EventType() Type { return IssueAssigned }

// EventType returns [IssueClosed].
func (IssueClosedPayload) EventType() Type { return IssueClosed }

// EventType returns [SprintStarted].
func (SprintStartedPayload) EventType() Type { return SprintStarted }

// EventType returns [SprintCompleted].
func (SprintCompletedPayload) EventType() Type { return SprintCompleted }

// EventType returns [ApprovalRequested].
func (ApprovalRequestedPayload) EventType() Type { return ApprovalRequested }

// EventType returns [ApprovalGranted].
func (ApprovalGrantedPayload) EventType() Type { return ApprovalGranted }

// EventType returns [ApprovalDenied].
func (ApprovalDeniedPayload) EventType() Type { return ApprovalDenied }

// EventType returns [ProjectCreated].
func (ProjectCreatedPayload) EventType() Type { return ProjectCreated }

// EventType returns [ProjectUpdated].
func (ProjectUpdatedPayload) EventType() Type { return ProjectUpdated }

// EventType returns [ProjectArchived].
func (ProjectArchivedPayload) EventType() Type { return ProjectArchived }

// EventType returns [WorkflowStarted].
func (WorkflowStartedPayload) EventType() Type { return WorkflowStarted }

// EventType returns [WorkflowStepCompleted].
func (WorkflowStepCompletedPayload) EventType() Type { return WorkflowStepCompleted }

// EventType returns [WorkflowCompleted].
func (WorkflowCompletedPayload) EventType() Type { return WorkflowCompleted }

// EventType returns [WorkflowFailed].
func (WorkflowFailedPayload) EventType() Type { return WorkflowFailed }
