package eventbus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What authorize, given to [Bus.Handler], returns to refuse a stream for good: an
// EventSource that gets another status than 200 does not come back. Wrapping them
// is fine.
var (
	// ErrUnauthorized is answered with 401: the client must log in.
	ErrUnauthorized = errors.New("eventbus: unauthorized")
	// ErrForbidden is answered with 403: this client may not read that.
	ErrForbidden = errors.New("eventbus: forbidden")
	// ErrNotFound is answered with 404: there is no such thing.
	ErrNotFound = errors.New("eventbus: not found")
	// ErrGone is answered with 204: what was there has ended; do not come back.
	ErrGone = errors.New("eventbus: gone")
)

// Handler serves event streams. For each request, authorize decides what may be
// read: it returns a subscription with the channels, or refuses with
// [ErrUnauthorized], [ErrForbidden], [ErrNotFound] or [ErrGone]; a
// [*ValidationError], for a request that makes no sense, is answered with 400. It
// runs on the request's goroutine, and is asked again with the same request at
// every keepalive and at Subscription.ValidUntil: when it then refuses, or returns
// other channels or another identity, the stream ends. [Bus.Revoke] ends it at once. Any other error is taken to be temporary.
//
//	mux.Handle("GET /projects/{project}/events", bus.Handler(func(r *http.Request) (eventbus.Subscription, error) {
//		user, err := session(r)
//		if err != nil {
//			return eventbus.Subscription{}, eventbus.ErrUnauthorized
//		}
//		return eventbus.Subscription{Channels: user.Channels(r.PathValue("project"))}, nil
//	}))
//
// The client's Last-Event-ID, or ?last_event_id= where it cannot set headers,
// resumes the stream. When the bus cannot serve now, an EventSource gets a soft
// refusal: status 200, a time to come back at, and the end; other clients get 503
// with Retry-After. A client that does not read is cut by a deadline on each write
// (see [WithWriteTimeout]), which also replaces the server's WriteTimeout.
//
// A ResponseWriter that cannot flush, usually because a middleware hides it, is an
// error 500 at once. With a nil authorize every request gets 403.
func (b *Bus) Handler(authorize func(*http.Request) (Subscription, error)) http.Handler {
	if authorize == nil {
		authorize = func(*http.Request) (Subscription, error) { return Subscription{}, ErrForbidden }
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.serve(w, r, authorize) })
}

// openTimeout is how long a request may wait for its channels to be listened to.
const openTimeout = 5 * time.Second

func (b *Bus) serve(w http.ResponseWriter, r *http.Request, authorize func(*http.Request) (Subscription, error)) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		problem(w, http.StatusMethodNotAllowed, "an event stream is read with GET", nil)
		return
	}
	if !canFlush(w) {
		b.warn("a middleware hides http.Flusher: give its ResponseWriter an Unwrap method", http.ErrNotSupported)
		problem(w, http.StatusInternalServerError, "the server cannot stream here", nil)
		return
	}
	if size := requestSize(r); size > b.options.maxRequestSize {
		b.stats.refusedRequestSize.Add(1)
		b.refuse(w, r, &LimitError{Limit: LimitRequestSize, Max: b.options.maxRequestSize})
		return
	}
	sub, err := authorize(r)
	if err != nil {
		b.refuse(w, r, err)
		return
	}
	if id := lastEventID(r); id != "" {
		sub.LastEventID = id
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), openTimeout, ErrUnavailable)
	reader, err := b.open(ctx, sub)
	cancel()
	if err != nil {
		b.refuse(w, r, err)
		return
	}
	defer reader.close()

	channels := distinct(sub.Channels)
	s := stream{bus: b, reader: reader, ctx: r.Context(), until: sub.ValidUntil}
	s.check = func() (time.Time, bool) {
		again, err := authorize(r)
		if err != nil && !refusal(err) {
			b.warn("authorize failed; calling it again", err)
			return time.Now().Add(b.options.keepalive), true
		}
		return again.ValidUntil, err == nil && again.Identity == sub.Identity && sameChannels(channels, again.Channels)
	}
	streamHeader(w.Header())
	out := deadlines{control: http.NewResponseController(w), timeout: b.options.writeTimeout, idle: r.ProtoMajor == 1}
	defer out.clear()
	for frame := range s.frames {
		out.set()
		if _, err := w.Write(frame); err != nil {
			return
		}
		if err := out.control.Flush(); err != nil {
			return
		}
		if !out.idle {
			out.clear()
		}
	}
}

// The deadlines of writes cut a client that does not read. Not every ResponseWriter has
// them; then the server's own count.
type deadlines struct {
	control *http.ResponseController
	timeout time.Duration
	// idle says that one may pass while nothing is written. On HTTP/2 that resets the
	// stream, so there each write has its own. On HTTP/1 one is good for several writes,
	// each of which has the timeout and up to a quarter more: setting it costs as much as
	// waking a reader.
	idle bool
	at   time.Time
}

func (d *deadlines) set() {
	if now := time.Now(); !d.idle || d.at.Sub(now) < d.timeout {
		d.at = now.Add(d.timeout)
		if d.idle {
			d.at = d.at.Add(d.timeout / 4)
		}
		_ = d.control.SetWriteDeadline(d.at)
	}
}

func (d *deadlines) clear() { _ = d.control.SetWriteDeadline(time.Time{}) }

// requestSize is what a client can make as long as it likes.
func requestSize(r *http.Request) int {
	size := len(r.URL.RawQuery)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v)
		}
	}
	return size
}

func sameChannels(a, b []Channel) bool {
	for _, c := range a {
		if !slices.Contains(b, c) {
			return false
		}
	}
	return len(a) == len(distinct(b))
}

func streamHeader(h http.Header) {
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store, no-transform")
	h.Set("X-Accel-Buffering", "no")
}

// canFlush tells whether w, or a writer that it wraps, can flush.
func canFlush(w http.ResponseWriter) bool {
	for {
		switch t := w.(type) {
		case http.Flusher, interface{ FlushError() error }:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return false
		}
	}
}

// statuses are the answers that end an EventSource for good.
var statuses = []struct {
	err    error
	status int
}{
	{ErrUnauthorized, http.StatusUnauthorized},
	{ErrForbidden, http.StatusForbidden},
	{ErrNotFound, http.StatusNotFound},
	{ErrGone, http.StatusNoContent},
}

// refusal tells whether err means "do not come back".
func refusal(err error) bool {
	var bad *ValidationError
	if errors.As(err, &bad) {
		return true
	}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return true
		}
	}
	return false
}

// refuse answers a request that gets no stream.
func (b *Bus) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var bad *ValidationError
	if errors.As(err, &bad) {
		problem(w, http.StatusBadRequest, bad.Error(), bad.Fields)
		return
	}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			if s.status == http.StatusNoContent {
				w.WriteHeader(s.status)
				return
			}
			problem(w, s.status, http.StatusText(s.status), nil)
			return
		}
	}
	var limit *LimitError
	if errors.As(err, &limit) && limit.Limit == LimitRequestSize {
		problem(w, http.StatusRequestHeaderFieldsTooLarge, limit.Error(), nil)
		return
	}
	if r.Context().Err() != nil {
		return // nobody is there any more
	}
	if !errors.Is(err, ErrClosed) {
		b.warn("a stream was refused for now", err)
	}
	retry := b.options.retry
	if !strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/event-stream") {
		seconds := int64((retry + time.Second - 1) / time.Second)
		w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
		if limit != nil && limit.Limit == LimitPerIdentity {
			problem(w, http.StatusTooManyRequests, limit.Error(), nil)
			return
		}
		problem(w, http.StatusServiceUnavailable, "the event bus cannot serve now", nil)
		return
	}
	streamHeader(w.Header())
	// The blank line makes the client take the last event id of this connection for
	// its own: it gets that back.
	answer := appendRetry(nil, retry, 4*retry)
	if id := lastEventID(r); id != "" {
		answer = append(answer, "id: "+id+"\n"...)
	}
	_, _ = w.Write(append(answer, '\n')) // the client may have gone
}

// lastEventID gives what the client has seen last: from the header, which counts, or
// the query. What no id field could hold is replaced by something that no log has.
func lastEventID(r *http.Request) string {
	id := cmp.Or(r.Header.Get("Last-Event-ID"), r.URL.Query().Get("last_event_id"))
	if len(id) > maxCursorLength || strings.ContainsAny(id, "\r\n\x00") {
		return "?"
	}
	return id
}

// problem writes an error as application/problem+json (RFC 9457).
func problem(w http.ResponseWriter, status int, detail string, fields []FieldError) {
	body := struct {
		Title  string       `json:"title"`
		Status int          `json:"status"`
		Detail string       `json:"detail"`
		Errors []FieldError `json:"errors,omitempty"`
	}{http.StatusText(status), status, detail, fields}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone
}
