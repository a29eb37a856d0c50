package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

// A form is the JSON object of a request, read member by member, so that everything
// that is wrong with it is named at once. Names count as they are written; members
// that it does not know are ignored.
type form struct {
	members map[string]json.RawMessage
	bad     []eventbus.FieldError
}

// readForm reads a body that is a JSON object, or says what is to be answered.
func readForm(w http.ResponseWriter, r *http.Request) (*form, *problem) {
	wrong := func(status int, format string, args ...any) (*form, *problem) {
		return nil, &problem{Status: status, Detail: fmt.Sprintf(format, args...)}
	}
	if t := r.Header.Get("Content-Type"); t != "" {
		media, _, err := mime.ParseMediaType(t)
		// curl -d calls everything a form.
		if err != nil || media != "application/json" && media != "application/x-www-form-urlencoded" {
			return wrong(http.StatusBadRequest, "the Content-Type must be application/json")
		}
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // where there are none, the server's own count
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return wrong(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", tooLarge.Limit)
	case err != nil:
		return wrong(http.StatusBadRequest, "the body could not be read")
	case !utf8.Valid(body):
		return wrong(http.StatusBadRequest, "the body is not valid UTF-8")
	}
	f := &form{}
	var syntax *json.SyntaxError
	switch err := json.Unmarshal(body, &f.members); {
	case errors.As(err, &syntax):
		return wrong(http.StatusBadRequest, "the body is not valid JSON: %s, at byte %d", syntax, syntax.Offset)
	case err != nil || f.members == nil:
		return wrong(http.StatusBadRequest, "the body is not a JSON object")
	}
	return f, nil
}

// event reads the members. Those that are missing, or not as the schema wants them,
// are left for the bus to refuse.
func (f *form) event(project uuid.UUID) (ev eventbus.Event, opts eventbus.PublishOptions) {
	ev = eventbus.Event{Timestamp: time.Now(), ProjectID: project}
	if ev.ID, opts.Idempotent = f.text("id"); !opts.Idempotent {
		ev.ID = uuid.Must(uuid.NewV7()).String()
	}
	typ, _ := f.text("type")
	ev.Type = eventbus.Type(typ)
	if s, ok := f.text("actor_id"); ok {
		if id, err := uuid.Parse(s); err != nil || len(s) != 36 {
			f.fail("actor_id", "%.40q is not a UUID", s)
		} else {
			ev.ActorID = &id
		}
	}
	actor, _ := f.text("actor_type")
	ev.ActorType = eventbus.ActorType(actor)
	if ev.Payload = f.members["payload"]; ev.Payload == nil {
		f.fail("payload", "is required")
	}
	opts.NoProject = f.flag("only")
	opts.Ends = f.channels("ends", "")
	opts.Channels = slices.Concat(f.channels("agents", eventbus.AgentKind), f.channels("users", eventbus.UserKind), f.channels("channels", ""))
	if n := len(opts.Channels); n > maxNamed {
		f.fail("agents", "users and channels are %d together, more than %d", n, maxNamed)
	}
	return ev, opts
}

// flag reads true or false. It is false without one, or with null.
func (f *form) flag(name string) (on bool) {
	if raw, ok := f.members[name]; ok && json.Unmarshal(raw, &on) != nil {
		f.fail(name, "is not true or false")
	}
	return on
}

// text reads a string; it is not ok without one, or with null.
func (f *form) text(name string) (s string, ok bool) {
	raw, ok := f.members[name]
	if !ok || string(raw) == "null" {
		return "", false
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		f.fail(name, "is not a string")
		return "", false
	}
	return s, true
}

// channels reads an array of UUIDs, or of channels where there is no kind.
func (f *form) channels(name string, kind eventbus.ChannelKind) (channels []eventbus.Channel) {
	var ids []json.RawMessage
	if raw, ok := f.members[name]; !ok {
		return nil
	} else if err := json.Unmarshal(raw, &ids); err != nil {
		f.fail(name, "is not an array")
	}
	if len(ids) > maxNamed {
		f.fail(name, "has %d elements, more than %d", len(ids), maxNamed)
		return nil
	}
	for i, raw := range ids {
		var id *string
		if err := json.Unmarshal(raw, &id); err != nil || id == nil {
			f.fail(fmt.Sprintf("%s[%d]", name, i), "is not a string")
		} else if c, err := channel(kind, *id); err != nil {
			f.fail(fmt.Sprintf("%s[%d]", name, i), "%s", err)
		} else {
			channels = append(channels, c)
		}
	}
	return channels
}

func (f *form) fail(field, format string, args ...any) {
	f.bad = append(f.bad, eventbus.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
}

// add takes what the bus has found besides, except in fields that could not be read.
func (f *form) add(found []eventbus.FieldError) {
	read := len(f.bad)
	for _, e := range found {
		field, _, _ := strings.Cut(e.Field, ".") // payload.message is in payload
		unread := slices.ContainsFunc(f.bad[:read], func(have eventbus.FieldError) bool { return have.Field == field })
		if !unread {
			f.bad = append(f.bad, e)
		}
	}
}

// A problem is an error as application/problem+json has it (RFC 9457).
type problem struct {
	Title  string                `json:"title"` // what the status means
	Status int                   `json:"status"`
	Detail string                `json:"detail"`
	ID     string                `json:"id,omitempty"` // of the event, where it may be sent again
	Errors []eventbus.FieldError `json:"errors,omitempty"`
}

func refuse(w http.ResponseWriter, p problem) {
	p.Title = http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	answer(w, p.Status, p)
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}
