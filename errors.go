package eventbus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/redislog"
)

// Errors that callers branch on with [errors.Is].
var (
	// ErrClosed is returned by publishes, subscriptions and the other operations that begin after
	// [Bus.Close] or [Bus.Shutdown] has begun. It ends every subscription that was open then. A write
	// to a [Writer] that is closed gets an error that is ErrClosed, too.
	ErrClosed = errors.New("eventbus: bus is closed")

	// ErrUnavailable is wrapped by an error that says that Redis could not be reached, did not
	// answer in time, or refused for now. Trying again later may help.
	ErrUnavailable = redislog.ErrUnavailable

	// ErrEnded is wrapped by the [*PublishError], or the [*WriteError], of an event for a channel that
	// has ended. The text names that channel. PublishError.Missing has it. On a lone Redis the event is
	// in no log, so Missing has all channels. In a cluster, Done lists those that got the event before
	// the ended one was found. Publishing an event again succeeds if the log has it and every attempt
	// was Idempotent.
	ErrEnded = redislog.ErrEnded

	// ErrRevoked ends a subscription whose [Subscription].Identity was given to [Bus.Revoke].
	ErrRevoked = errors.New("eventbus: the reader was revoked")

	// ErrLimit is what every [*LimitError] is.
	ErrLimit = errors.New("eventbus: a limit of the bus is reached")

	// ErrUnsupported is wrapped by the error of [New] for a Redis that cannot do what the bus
	// needs. The text says what to change.
	ErrUnsupported = redislog.ErrUnsupported
)

// A FieldError says what is wrong with one field.
type FieldError struct {
	// Field is the path of the field as it is named in JSON, such as
	// "actor_type" or "payload.agent_instance_id".
	Field string `json:"field"`
	// Problem completes the sentence that Field begins: "is required".
	Problem string `json:"detail"`
}

// Error returns the field and its problem as one sentence.
func (e FieldError) Error() string { return e.Field + " " + e.Problem }

// A ValidationError says everything that is wrong with an event, a payload, a channel or a
// subscription: every bad field at once. Match it with [errors.AsType]. It never holds the values
// of a payload.
type ValidationError struct {
	// Subject is what is wrong: "event", "payload of agent.message", "channel".
	Subject string
	// Fields has at least one element, in the order of the wire format.
	Fields []FieldError
}

// Error lists all fields: "eventbus: payload of agent.message:
// agent_instance_id is required; message is required".
func (e *ValidationError) Error() string {
	var b strings.Builder
	b.WriteString("eventbus: ")
	b.WriteString(e.Subject)
	for i, f := range e.Fields {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		b.WriteString(f.Error())
	}
	return b.String()
}

// Unwrap gives the fields, so that [errors.AsType] finds a [FieldError], too.
func (e *ValidationError) Unwrap() []error {
	errs := make([]error, len(e.Fields))
	for i, f := range e.Fields {
		errs[i] = f
	}
	return errs
}

// problems are what is wrong with a subject, on the way to a ValidationError.
type problems struct {
	subject string
	rawjson.Faults
}

func (p *problems) err() error {
	if len(p.Faults) == 0 {
		return nil
	}
	e := &ValidationError{Subject: p.subject, Fields: make([]FieldError, len(p.Faults))}
	for i, f := range p.Faults {
		e.Fields[i] = FieldError(f)
	}
	return e
}

// invalid is the ValidationError for a single field.
func invalid(subject, field, format string, args ...any) error {
	p := problems{subject: subject}
	p.Add(field, format, args...)
	return p.err()
}

// The limits that a [LimitError] can name.
const (
	LimitSubscribers = "subscribers"              // see [WithMaxSubscribers]
	LimitPerIdentity = "subscribers per identity" // see [WithMaxPerIdentity]
	LimitChannels    = "channels"                 // see [WithMaxChannels]
	LimitEventSize   = "bytes of an event"        // see [WithMaxEventSize]
)

// A LimitError says that something was refused because it is above a limit of the bus. Nothing was
// sent or begun. For the two limits of subscribers, trying again later may help.
type LimitError struct {
	Limit string // one of the constants LimitSubscribers and so on
	Got   int    // what would be above the limit
	Max   int    // what is allowed
}

// Error names the limit, and both numbers.
func (e *LimitError) Error() string {
	return fmt.Sprintf("%s: %d %s, more than %d", ErrLimit, e.Got, e.Limit, e.Max)
}

// Is makes errors.Is(err, ErrLimit) true.
func (e *LimitError) Is(target error) bool { return target == ErrLimit }

// A GapReason says why events between two positions could not be delivered.
type GapReason string

// The reasons of a gap.
const (
	// GapTrimmed: retention has removed events that the subscription had not seen yet. The
	// subscription goes on from the oldest event that is left.
	GapTrimmed GapReason = "trimmed"
	// GapLost: the log that the position belongs to is gone. It has expired, was deleted, or Redis
	// has lost its data. The subscription goes on from the oldest event of the log that took its
	// place.
	GapLost GapReason = "lost"
	// GapRewound: the log ends before the position, or has another event there. A failover has lost
	// the newest events. The subscription goes on with what the log has from there. What was lost
	// is delivered again if the server that had it comes back as master.
	GapRewound GapReason = "rewound"
	// GapUnknown: the cursor or Last-Event-ID cannot be read, or names an event that no log holds.
	// The subscription goes on from the oldest event.
	GapUnknown GapReason = "unknown"
	// GapUnlogged: the reader was too slow for events of foreign publishers. Without [WithForeignLog]
	// they are in no log, so they cannot be read again.
	GapUnlogged GapReason = "unlogged"
)

// A GapError stands in a subscription where events are missing: they cannot be delivered any more.
// It is the one error after which the iteration goes on. A program loads again what it knows about
// Channel, and continues.
type GapError struct {
	// Channel is the channel that misses events.
	Channel Channel
	// Reason says why.
	Reason GapReason
	// From is the position behind which events are missing. It is zero when that is not known.
	From Position
	// Cursor is where the subscription goes on. A subscription that resumes from it does not get
	// this gap again.
	Cursor Cursor
}

// Error names the channel, the reason and the position.
func (e *GapError) Error() string {
	reason := string(e.Reason)
	if e.Reason == GapUnknown {
		reason += ": the cursor or Last-Event-ID cannot be read, or names an event that no log has"
	}
	if e.From.IsZero() {
		return fmt.Sprintf("eventbus: gap in %s: %s", e.Channel, reason)
	}
	return fmt.Sprintf("eventbus: gap in %s after %s: %s", e.Channel, e.From, reason)
}

// A PublishError says which logs have an event whose publish did not succeed everywhere.
//
// For 10 minutes it is safe to publish the same event again through the same bus. That waits for
// the attempt that is under way, and a log that has the event keeps its one entry. If every attempt
// says [PublishOptions].Idempotent, another process may do it, too.
type PublishError struct {
	// ID is the id of the event.
	ID string
	// Done lists the channels whose log has the event for certain.
	Done []Channel
	// Missing lists the channels whose log certainly does not have it.
	Missing []Channel
	// Unknown lists the channels whose log may or may not have it: the answer of Redis was lost, or
	// has not come yet.
	Unknown []Channel
	// Err is the first cause. It is the context's cause when the context has ended.
	Err error
}

// Error says how many logs have the event, and the cause.
func (e *PublishError) Error() string {
	return fmt.Sprintf("eventbus: publish %s: in %d logs, missing in %d, unknown in %d: %v",
		e.ID, len(e.Done), len(e.Missing), len(e.Unknown), e.Err)
}

// Unwrap gives the cause.
func (e *PublishError) Unwrap() error { return e.Err }

// A WriteError says why a [Writer] has stopped, and which events that it took are not known to be
// in all of their logs.
//
// For 10 minutes it is safe to publish these events again through the same bus, in this order, with
// another Writer or with [Bus.Publish]. That waits for what is still on the wire, and a log that has
// an event keeps its one entry.
type WriteError struct {
	// Events are in the order in which they were written.
	Events []Event
	// Err is the cause. It wraps [ErrEnded] where a channel has ended, [ErrUnavailable] where Redis
	// was away for too long, and [ErrClosed] where the bus was closed. It is the cause of its
	// context where a Close has given up.
	Err error
}

// Error says how many events there are, and the cause.
func (e *WriteError) Error() string {
	return fmt.Sprintf("eventbus: write: %d events are not known to be in their logs: %v", len(e.Events), e.Err)
}

// Unwrap gives the cause.
func (e *WriteError) Unwrap() error { return e.Err }
