package main

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

// An api is what the server does over HTTP. Its page shows one project; events are
// published to, and read from, any.
type api struct {
	bus     *eventbus.Bus
	project uuid.UUID
	agents  func() []presence // who is at work now
	page    *template.Template
}

const (
	maxBody        = 512 << 10        // twice what the bus takes as an event
	bodyTimeout    = 10 * time.Second // for a client to send it
	publishTimeout = 5 * time.Second
	maxNamed       = 31 // agents and users of one event: a bus takes 32 channels, with the project's
)

//go:embed index.html
var index string

// newHandler routes the requests of the example.
func newHandler(bus *eventbus.Bus, project uuid.UUID, agents func() []presence, keepalive time.Duration) (http.Handler, error) {
	page, err := template.New("index.html").Parse(index)
	if err != nil {
		return nil, err
	}
	a := &api{bus: bus, project: project, agents: agents, page: page}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /projects/{project}/events", a.publish)
	mux.Handle("GET /projects/{project}/events", bus.Handler(authorize, eventbus.WithKeepalive(keepalive)))
	mux.HandleFunc("GET /healthz", a.health)
	mux.HandleFunc("GET /{$}", a.index)

	// A page of another site must not publish through its visitor's browser.
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, problem{Status: http.StatusForbidden, Detail: "publishing from another origin is not allowed"})
	}))
	return sameOrigin.Handler(mux), nil
}

// localNames keeps pages of other sites out of a server that only this machine reaches: such a page
// can give its own name the address of this machine, and would then be of the same origin (DNS
// rebinding). A name that is not of this machine gives it away.
func localNames(h http.Handler, listener net.Addr) http.Handler {
	addr, ok := listener.(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() {
		return h // it is open to others anyway
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		if host != "localhost" && net.ParseIP(host) == nil {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // whatever is still to come of it
			refuse(w, problem{Status: http.StatusMisdirectedRequest, Detail: "this server is for this machine only: ask for localhost"})
			return
		}
		h.ServeHTTP(w, r)
	})
}

// authorize lets everybody read every project, agent and user: this is a demo, where
// nobody logs in. Yours looks at the session first, and refuses with
// [eventbus.ErrUnauthorized] or [eventbus.ErrForbidden].
func authorize(r *http.Request) (eventbus.Subscription, error) {
	var sub eventbus.Subscription
	var bad []eventbus.FieldError
	read := func(kind eventbus.ChannelKind, ids ...string) {
		for _, id := range ids {
			c, err := channel(kind, id)
			if err != nil {
				bad = append(bad, eventbus.FieldError{Field: string(kind), Problem: err.Error()})
			}
			sub.Channels = append(sub.Channels, c)
		}
	}
	query := r.URL.Query()
	read(eventbus.ProjectKind, r.PathValue("project"))
	read(eventbus.AgentKind, query["agent"]...)
	read(eventbus.UserKind, query["user"]...)
	sub.Types = query["type"]
	if len(bad) > 0 {
		return sub, &eventbus.ValidationError{Subject: "subscription", Fields: bad}
	}
	return sub, nil
}

// channel reads the UUID of a project, agent or user.
func channel(kind eventbus.ChannelKind, id string) (eventbus.Channel, error) {
	c, err := eventbus.NewChannel(kind, id)
	if err != nil {
		return c, fmt.Errorf("%.40q is not the UUID of any %s", id, kind)
	}
	return c, nil
}

// publish takes an event, and answers when it is in the logs of all its channels.
func (a *api) publish(w http.ResponseWriter, r *http.Request) {
	c, err := channel(eventbus.ProjectKind, r.PathValue("project"))
	if err != nil {
		refuse(w, problem{Status: http.StatusBadRequest, Detail: "the path names no project",
			Errors: []eventbus.FieldError{{Field: "project", Problem: err.Error()}}})
		return
	}
	f, wrong := readForm(w, r)
	if wrong != nil {
		refuse(w, *wrong)
		return
	}
	project, _ := c.UUID()
	ev, channels, idempotent := f.event(project)
	var invalid *eventbus.ValidationError
	if errors.As(ev.Validate(), &invalid) {
		f.add(invalid.Fields)
	}
	if len(f.bad) > 0 {
		refuse(w, problem{Status: http.StatusUnprocessableEntity, Detail: "the event is not valid", Errors: f.bad})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
	defer cancel()
	receipt, err := a.bus.PublishWith(ctx, ev, eventbus.PublishOptions{Channels: channels, Idempotent: idempotent})
	limit := &eventbus.LimitError{}
	errors.As(err, &limit)
	switch {
	case limit.Limit == eventbus.LimitEventSize:
		refuse(w, problem{Status: http.StatusRequestEntityTooLarge, Detail: err.Error()})
	case limit.Limit == eventbus.LimitChannels:
		refuse(w, problem{Status: http.StatusUnprocessableEntity, Detail: err.Error(), Errors: []eventbus.FieldError{{Field: "agents", Problem: "and users are too many"}}})
	case err != nil:
		w.Header().Set("Retry-After", "2")
		refuse(w, problem{Status: http.StatusServiceUnavailable, ID: ev.ID,
			Detail: "the event is not in all logs; send it again with this id"})
	default:
		answer(w, http.StatusCreated, struct {
			ID     string          `json:"id"`
			Cursor eventbus.Cursor `json:"cursor"`
		}{receipt.ID, receipt.Cursor})
	}
}

// health is for load balancers: whether subscribers get what is published.
func (a *api) health(w http.ResponseWriter, _ *http.Request) {
	if err := a.bus.Health(); err != nil {
		w.Header().Set("Retry-After", "2")
		refuse(w, problem{Status: http.StatusServiceUnavailable, Detail: err.Error()})
		return
	}
	answer(w, http.StatusOK, map[string]string{"status": "ok"})
}

// index gives the page the present state and, taken before it, the cursor from which
// its stream goes on: nothing is missing in between.
func (a *api) index(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	cursor, err := a.bus.Cursor(ctx, eventbus.ProjectChannel(a.project))
	if err != nil {
		cursor = eventbus.Cursor{} // the page is of use without: its stream begins when Redis is back
	}
	agents, err := json.Marshal(a.agents())
	nonce := rand.Text() // only what the page itself brought may run
	var html bytes.Buffer
	if err == nil {
		err = a.page.Execute(&html, struct{ Project, Cursor, Agents, Nonce string }{a.project.String(), cursor.String(), string(agents), nonce})
	}
	if err != nil {
		refuse(w, problem{Status: http.StatusInternalServerError, Detail: err.Error()})
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'nonce-"+nonce+"'; style-src 'nonce-"+nonce+"'; "+
		"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(html.Bytes()) // the client may have gone
}

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
func (f *form) event(project uuid.UUID) (ev eventbus.Event, channels []eventbus.Channel, idempotent bool) {
	ev = eventbus.Event{Timestamp: time.Now(), ProjectID: project}
	if ev.ID, idempotent = f.text("id"); !idempotent {
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
	agents, users := f.channels("agents", eventbus.AgentKind), f.channels("users", eventbus.UserKind)
	if n := len(agents) + len(users); n > maxNamed {
		f.fail("agents", "and users are %d together, more than %d", n, maxNamed)
		return ev, nil, idempotent
	}
	return ev, append(agents, users...), idempotent
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

// channels reads an array of UUIDs.
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
