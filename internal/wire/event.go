// Package wire knows the wire format: an event's JSON, both ways, and the blocks of an event
// stream.
//
// Other programs rely on what it writes: the names and the order of an event's members, the form of
// times, the fields of a block. Decode is the one door for an event from a log, a channel or a
// client. An event that it returns without an error is well-formed, and its payload is on one line.
//
// The feed and the tails decode events. The tails encode frames. Readers and the handler write the
// other blocks. Package eventbus encodes what is published. The package has no state, no locks and
// no goroutines.
//
//	event.go  an event and its JSON
//	sse.go    the blocks of an event stream
package wire

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/rawjson"
)

// An Event is an event as it travels, and where it was found.
type Event struct {
	ID        string
	Type      string
	Timestamp time.Time
	ProjectID uuid.UUID
	ActorID   *uuid.UUID
	ActorType string
	Payload   json.RawMessage // nil means {}

	Position position.Position // zero for an event that is in no log
	Channel  string            // the channel that an event stream delivered it from, "" elsewhere
	Also     string            // '<channel>@<position>' in each earlier log, with blanks between
	Final    bool              // the log ends with it
	Prev     string            // how the id of the event before it in the log ends, "" if unknown
}

// maxTypeLength bounds a type's name; the longest of the schema has 23 bytes.
const maxTypeLength = 128

// WellFormed reports whether a type is two or more words of letters, digits, "_" and "-", with dots
// between. Readers accept these, known or not. The domain "stream" is the bus's own.
func WellFormed(t string) bool {
	if len(t) > maxTypeLength || strings.Count(t, ".") == 0 || strings.HasPrefix(t, "stream.") {
		return false
	}
	for word := range strings.SplitSeq(t, ".") {
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

// AppendJSON appends the event's JSON without its position. Its payload must be valid.
func (ev *Event) AppendJSON(b []byte) []byte {
	b = slices.Grow(b, 320+len(ev.Type)+len(ev.Payload)) // 320 leaves room for a position
	b = append(b, `{"id":`...)
	b = rawjson.AppendString(b, ev.ID)
	b = append(b, `,"type":`...)
	b = rawjson.AppendString(b, ev.Type)
	b = append(b, `,"timestamp":"`...)
	b = appendTime(b, ev.Timestamp)
	b = append(b, `","project_id":"`...)
	b = append(b, ev.ProjectID.String()...)
	b = append(b, `","actor_id":`...)
	if ev.ActorID == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, '"')
		b = append(b, ev.ActorID.String()...)
		b = append(b, '"')
	}
	b = append(b, `,"actor_type":`...)
	b = rawjson.AppendString(b, ev.ActorType)
	b = append(b, `,"payload":`...)
	if len(ev.Payload) == 0 {
		b = append(b, "{}"...)
	} else {
		b = append(b, rawjson.OneLine(ev.Payload)...)
	}
	return append(b, '}')
}

// AppendWire appends the event's JSON as it is on a channel: with its position, if it has one.
func (ev *Event) AppendWire(b []byte) []byte {
	b = ev.AppendJSON(b)
	if ev.Position.IsZero() {
		return b
	}
	b = append(b[:len(b)-1], `,"position":"`...)
	b = ev.Position.Append(b)
	return append(b, `"}`...)
}

// appendTime appends a time as RFC 3339 in UTC. A fraction has six digits, as Python writes it.
func appendTime(b []byte, t time.Time) []byte {
	b = t.UTC().AppendFormat(b, time.RFC3339)
	if micros := t.Nanosecond() / 1000; micros > 0 {
		b = append(b[:len(b)-1], ".000000Z"...)
		for i := len(b) - 2; micros > 0; i-- {
			b[i] += byte(micros % 10)
			micros /= 10
		}
	}
	return b
}

// Decode reads an event as it is in a log, on a channel or in an event stream. Its payload shares
// memory with data. The error is of type [rawjson.Faults].
func Decode(data []byte) (ev Event, err error) {
	var d decoder
	if err := rawjson.EachMember(data, d.take); err != nil {
		d.Add("event", "%s", err)
		return Event{}, d.Err()
	}
	if s, ok := d.text("id", d.id); ok {
		ev.ID = string(s)
	}
	if s, ok := d.text("type", d.typ); ok {
		if ev.Type = string(s); !WellFormed(ev.Type) {
			d.Add("type", "%s is not of the form domain.action", rawjson.Excerpt(string(s)))
		}
	}
	if s, ok := d.text("timestamp", d.timestamp); ok {
		if ev.Timestamp, err = parseTime(s); err != nil {
			d.Add("timestamp", "%s is not an RFC 3339 time", rawjson.Excerpt(string(s)))
		}
	}
	ev.ProjectID, _ = d.uuid("project_id", d.project)
	if d.actor != nil && string(d.actor) != "null" {
		if id, ok := d.uuid("actor_id", d.actor); ok {
			ev.ActorID = &id
		}
	}
	if s, ok := d.text("actor_type", d.actorType); ok {
		if ev.ActorType = knownActor(s); !KnownActor(ev.ActorType) {
			d.Add("actor_type", "%s is not one of agent, user, system", rawjson.Excerpt(string(s)))
		}
	}
	switch {
	case d.payload == nil:
		ev.Payload = json.RawMessage("{}")
	case d.payload[0] != '{':
		d.Add("payload", "%s", rawjson.ErrNotObject)
	default:
		ev.Payload = rawjson.OneLine(d.payload)
	}
	// A position that cannot be read is none: the event is then foreign.
	ev.Position, _ = position.Parse(optional(d.position))
	ev.Channel = optional(d.channel)
	ev.Also, ev.Prev = optional(d.also), optional(d.prev)
	ev.Final = string(d.final) == "true"
	return ev, d.Err()
}

// A decoder keeps the members of an event as they are written, and what is wrong with them.
type decoder struct {
	rawjson.Faults
	id, typ, timestamp, project, actor, actorType, payload, position, channel, also, final, prev []byte
}

func (d *decoder) take(name, value []byte) {
	switch string(name) {
	case "id":
		d.id = value
	case "type":
		d.typ = value
	case "timestamp":
		d.timestamp = value
	case "project_id":
		d.project = value
	case "actor_id":
		d.actor = value
	case "actor_type":
		d.actorType = value
	case "payload":
		d.payload = value
	case "position", "cursor": // an earlier version writes cursor
		d.position = value
	case "channel":
		d.channel = value
	case "also":
		d.also = value
	case "final":
		d.final = value
	case "prev":
		d.prev = value
	}
}

// text gives the text of a member that must be a string.
func (d *decoder) text(field string, value []byte) ([]byte, bool) {
	switch {
	case value == nil:
		d.Add(field, "is required")
	case value[0] != '"':
		d.Add(field, "is not a string")
	default:
		return rawjson.Unquote(value), true
	}
	return nil, false
}

func (d *decoder) uuid(field string, value []byte) (id uuid.UUID, ok bool) {
	s, ok := d.text(field, value)
	if !ok {
		return id, false
	}
	id, err := readUUID(s)
	if err != nil {
		d.Add(field, "%s is not a UUID", rawjson.Excerpt(string(s)))
	}
	return id, err == nil
}

// optional gives the text of a string, "" for anything else.
func optional(value []byte) string {
	if len(value) == 0 || value[0] != '"' {
		return ""
	}
	return string(rawjson.Unquote(value))
}

var actors = []string{"agent", "user", "system"}

// KnownActor reports whether this is a type of actor.
func KnownActor(name string) bool { return slices.Contains(actors, name) }

// knownActor gives the actor type with this name. It copies none that is known.
func knownActor(name []byte) string {
	for _, t := range actors {
		if string(name) == t {
			return t
		}
	}
	return string(name)
}

// timeLayouts are the forms in which timestamps come: RFC 3339, the same without a zone, and both
// with a blank, as Python's str(datetime) writes them. time.Parse reads fractions in all of them.
var timeLayouts = []string{
	time.RFC3339,
	"2006-01-02T15:04:05",
	"2006-01-02 15:04:05Z07:00",
	"2006-01-02 15:04:05",
}

var errYear = errors.New("the year is outside 1 to 9999")

func parseTime(text []byte) (t time.Time, err error) {
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

// ParseUUID reads the form with 36 characters, the only one that the bus writes.
func ParseUUID(s string) (uuid.UUID, error) {
	if len(s) != 36 {
		return uuid.Nil, rawjson.ErrNotUUID
	}
	return uuid.Parse(s)
}

// readUUID also reads the other forms that the Python services take.
func readUUID(s []byte) (uuid.UUID, error) {
	if len(s) == 38 && (s[0] != '{' || s[37] != '}') {
		return uuid.Nil, rawjson.ErrNotUUID // uuid.Parse does not look at the braces
	}
	return uuid.ParseBytes(s)
}
