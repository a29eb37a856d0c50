package main

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

// An api is what the server does over HTTP. Its page shows one project; events are
// published to, and read from, any.
type api struct {
	bus     *eventbus.Bus
	project uuid.UUID
	views   *views
	page    *template.Template
}

const (
	maxBody        = 512 << 10        // twice what the bus takes as an event
	bodyTimeout    = 10 * time.Second // for a client to send it
	publishTimeout = 5 * time.Second
	maxNamed       = 31 // channels of one event: a bus takes 32, with the project's
)

//go:embed index.html
var index string

// newHandler routes the requests of the example.
func newHandler(bus *eventbus.Bus, project uuid.UUID, keepalive time.Duration) (http.Handler, error) {
	if err := errors.Join(eventbus.Register[runStartedPayload](), eventbus.Register[runTokenPayload](), eventbus.Register[runEndedPayload]()); err != nil {
		return nil, err
	}
	page, err := template.New("index.html").Parse(index)
	if err != nil {
		return nil, err
	}
	a := &api{bus: bus, project: project, views: newViews(bus), page: page}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /projects/{project}/events", a.publish)
	mux.Handle("GET /projects/{project}/events", bus.Handler(a.authorize, eventbus.WithKeepalive(keepalive)))
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

// authorize lets everybody read every channel: this is a demo, where nobody logs in. Yours looks at
// the session first, and refuses with [eventbus.ErrUnauthorized] or [eventbus.ErrForbidden]. It also
// checks that there is a run of that name: each name that it lets through becomes a log in Redis.
func (a *api) authorize(r *http.Request) (eventbus.Subscription, error) {
	q := query{Values: r.URL.Query()}
	project := q.read("project", eventbus.ProjectKind, r.PathValue("project"))
	others := q.read("agent", eventbus.AgentKind, q.Values["agent"]...)
	others = append(others, q.read("user", eventbus.UserKind, q.Values["user"]...)...)
	others = append(others, q.read("channel", "", q.Values["channel"]...)...)
	sub := eventbus.Subscription{Channels: append(project, others...), Types: q.Values["type"], Last: q.last()}
	if q.flag("only") {
		if sub.Channels = others; len(others) == 0 {
			q.fail("only", "leaves the project's channel out, and no other is named")
		}
	}
	if q.flag("snapshot") {
		if sub.Last > 0 {
			q.fail("last", "and snapshot are both set: a stream with a snapshot goes on behind it")
		}
		sub.Snapshot, sub.SnapshotKey = a.views.of(sub.Channels), r.PathValue("project")
	}
	if len(q.bad) > 0 {
		return sub, &eventbus.ValidationError{Subject: "subscription", Fields: q.bad}
	}
	return sub, nil
}

// A query is the query of a request for a stream, and what is wrong with it.
type query struct {
	url.Values
	bad []eventbus.FieldError
}

func (q *query) fail(field, format string, args ...any) {
	q.bad = append(q.bad, eventbus.FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
}

// read reads the channels that a field names.
func (q *query) read(field string, kind eventbus.ChannelKind, texts ...string) (channels []eventbus.Channel) {
	for _, text := range texts {
		c, err := channel(kind, text)
		if err != nil {
			q.fail(field, "%s", err)
		}
		channels = append(channels, c)
	}
	return channels
}

// flag reads a field that is 1, 0 or not there.
func (q *query) flag(field string) bool {
	values := q.Values[field]
	if len(values) > 1 || len(values) == 1 && values[0] != "0" && values[0] != "1" {
		q.fail(field, "is not 0 or 1")
	}
	return len(values) == 1 && values[0] == "1"
}

// last reads how many events before the end of each log the stream begins.
func (q *query) last() int {
	values := q.Values["last"]
	if len(values) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(values[0], 10, 31)
	if len(values) > 1 || err != nil {
		q.fail("last", "is not a single number of events")
	}
	return int(n)
}

// channel reads the UUID of a project, agent or user. Without a kind, it reads <kind>:<id>.
func channel(kind eventbus.ChannelKind, text string) (eventbus.Channel, error) {
	if kind == "" {
		c, err := eventbus.ParseChannel(text)
		if field, bad := errors.AsType[eventbus.FieldError](err); bad {
			err = errors.New(field.Problem)
		}
		return c, err
	}
	c, err := eventbus.NewChannel(kind, text)
	if err != nil {
		return c, fmt.Errorf("%.40q is not the UUID of any %s", text, kind)
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
	ev, opts := f.event(project)
	if invalid, bad := errors.AsType[*eventbus.ValidationError](ev.Validate()); bad {
		f.add(invalid.Fields)
	}
	if len(f.bad) > 0 {
		refuse(w, notValid(f.bad))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
	defer cancel()
	receipt, err := a.bus.PublishWith(ctx, ev, opts)
	if err != nil {
		wrong := notPublished(ev.ID, err)
		if wrong.Status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "2")
		}
		refuse(w, wrong)
		return
	}
	answer(w, http.StatusCreated, struct {
		ID     string          `json:"id"`
		Cursor eventbus.Cursor `json:"cursor"`
	}{receipt.ID, receipt.Cursor})
}

func notValid(fields []eventbus.FieldError) problem {
	return problem{Status: http.StatusUnprocessableEntity, Detail: "the event is not valid", Errors: fields}
}

// notPublished is what the client is told of an error of the bus.
func notPublished(id string, err error) problem {
	if invalid, bad := errors.AsType[*eventbus.ValidationError](err); bad {
		return notValid(invalid.Fields)
	}
	limit, limited := errors.AsType[*eventbus.LimitError](err)
	switch {
	case limited && limit.Limit == eventbus.LimitEventSize:
		return problem{Status: http.StatusRequestEntityTooLarge, Detail: err.Error()}
	case limited:
		return problem{Status: http.StatusUnprocessableEntity, Detail: err.Error(), Errors: []eventbus.FieldError{{Field: "channels", Problem: "are too many"}}}
	case errors.Is(err, eventbus.ErrEnded):
		return problem{Status: http.StatusConflict, Detail: err.Error(), Errors: []eventbus.FieldError{{Field: "channels", Problem: "have one that has ended"}}}
	default:
		return problem{Status: http.StatusServiceUnavailable, ID: id, Detail: "the event is not in all logs; send it again with this id"}
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

// index gives the page. Its state comes with the stream.
func (a *api) index(w http.ResponseWriter, _ *http.Request) {
	nonce := rand.Text() // only what the page itself brought may run
	var html bytes.Buffer
	if err := a.page.Execute(&html, struct{ Project, Nonce string }{a.project.String(), nonce}); err != nil {
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
