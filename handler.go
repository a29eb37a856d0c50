package eventbus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/reader"
	"github.com/syndarix/eventbus/internal/wire"
)

// The errors with which the authorize function of [Bus.Handler] refuses a stream for good: an
// EventSource that gets another status than 200 does not come back. They may be wrapped.
var (
	// ErrUnauthorized is answered with 401: the client must log in.
	ErrUnauthorized = errors.New("eventbus: unauthorized")
	// ErrForbidden is answered with 403: this client may not read that.
	ErrForbidden = errors.New("eventbus: forbidden")
	// ErrNotFound is answered with 404: there is no such thing.
	ErrNotFound = errors.New("eventbus: not found")
	// ErrGone is answered with 204: what was there has ended, do not come back. A client that was
	// away gets no more events then. Do not return it while clients may still need the last events.
	ErrGone = errors.New("eventbus: gone")
)

// Handler serves event streams to browsers. For each request, authorize decides what may be read:
// it returns a subscription with the channels, or refuses. Its error decides the answer:
//
//   - [ErrUnauthorized] and [http.ErrNoCookie]: 401. [ErrForbidden]: 403. [ErrNotFound]: 404.
//     [ErrGone]: 204.
//   - A [*ValidationError], for a request that makes no sense: 400.
//   - A [*LimitError] for the channels: 400. For subscribers of an identity, a client other than an
//     EventSource gets 429.
//   - Any other error is taken to be temporary. At the beginning, the client is told to come back.
//     Later, the stream goes on, and authorize is called again after the keepalive time.
//   - No channels and no error is a mistake of the program: 500, and a log line.
//
// authorize runs on the request's goroutine. It is called again with the same request at every
// keepalive, at Subscription.ValidUntil, and when a [Bus.Revoke] came while the stream began. The
// stream ends if it then refuses, or returns other channels, other types or another identity.
//
//	mux.Handle("GET /projects/{project}/events", bus.Handler(func(r *http.Request) (eventbus.Subscription, error) {
//		user, err := login(r)
//		if err != nil {
//			return eventbus.Subscription{}, eventbus.ErrUnauthorized
//		}
//		return eventbus.Subscription{
//			Channels: user.Channels(r.PathValue("project")),
//			Identity: user.ID, // for Revoke and WithMaxPerIdentity
//		}, nil
//	}))
//
// Check there that what the request names is there, and is this user's. To listen to a channel makes
// its log: each name that authorize lets through costs Redis about 550 bytes, until its life ends (see
// [WithRetention]).
//
// A client that comes back with a cursor at the end of channels that have all ended is answered with
// 204: an EventSource does not come back then. When Subscription.Snapshot fails as a stream is to
// begin, [ErrForbidden], [ErrNotFound] and [ErrGone] are answered as authorize's are. Any other error
// is a soft refusal.
//
// EventSource sends cookies, but no headers of yours. Its Last-Event-ID resumes the stream, or
// ?last_event_id= where it cannot set headers. The header takes precedence. When the bus cannot
// serve now, an EventSource gets a soft refusal: status 200, a time to come back at, and the end.
// Other clients get 503 with Retry-After. A client that does not read is cut by a deadline on each
// write (see [WithWriteTimeout]), which also replaces the server's WriteTimeout.
//
// A ResponseWriter that cannot flush or set deadlines is answered with 500 at once, and a log line:
// usually a middleware hides the server's own writer. A request with a body is answered with 400,
// another method than GET with 405. With a nil authorize, every request gets 403. With a wrong
// option, every request gets 500, and there is a log line.
func (b *Bus) Handler(authorize func(*http.Request) (Subscription, error), opts ...SSEOption) http.Handler {
	if authorize == nil {
		if b.made() == nil {
			b.warn("a handler without authorize answers 403 to every request", ErrForbidden)
		}
		authorize = func(*http.Request) (Subscription, error) { return Subscription{}, ErrForbidden }
	}
	o, err := newSSEOptions(opts)
	if notMade := b.made(); notMade != nil {
		err = notMade
	} else if err != nil {
		b.warn("a handler answers 500 to every request", err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err != nil {
			problem(w, http.StatusInternalServerError, err.Error(), nil)
			return
		}
		(&request{bus: b, w: w, r: r, control: http.NewResponseController(w), authorize: authorize, options: o}).serve()
	})
}

// openTimeout is how long a request may wait for its channels to be listened to.
const openTimeout = 5 * time.Second

// A request is one that is to be answered with a stream.
type request struct {
	bus       *Bus
	w         http.ResponseWriter
	r         *http.Request
	control   *http.ResponseController
	authorize func(*http.Request) (Subscription, error)
	options   sseOptions
	sub       Subscription // as authorize has returned it first
	over      error        // why check has ended the stream
}

func (q *request) serve() {
	if !q.sound() {
		return
	}
	b, revocations := q.bus, q.bus.revocations()
	sub, err := q.authorize(q.r)
	if err == nil && len(sub.Channels) == 0 {
		b.warn("authorize returned neither channels nor an error", errNoChannels)
		problem(q.w, http.StatusInternalServerError, "the server does not know what to stream here", nil)
		return
	}
	if err != nil {
		q.refuse(authorizeError(err))
		return
	}
	if !q.canStream() {
		return
	}
	q.sub = sub
	if id := lastEventID(q.r); id != "" {
		sub.LastEventID = id
	}
	ctx, cancel := context.WithTimeoutCause(q.r.Context(), openTimeout, ErrUnavailable)
	reader, err := b.open(ctx, sub, true)
	cancel()
	if err != nil {
		if refusal(err) || errors.Is(err, ErrLimit) {
			b.warn("a subscription that authorize returned is refused", err)
		}
		q.refuse(err)
		return
	}
	defer reader.close()
	if sub.LastEventID != "" && reader.AtEnd() {
		q.refuse(ErrGone)
		return
	}
	s := b.newStream(q.r.Context(), reader, &sub, q.options)
	s.Until, s.Check = sub.ValidUntil, func() (time.Time, bool) { return q.check(s) }
	if b.revocations() != revocations {
		// One that came between authorize and open has not found this reader.
		if s.Until, err = q.askAgain(s); err != nil {
			q.refuse(err)
			return
		}
	}
	q.stream(s)
}

// sound reports whether the request can be one for a stream. It answers any other.
func (q *request) sound() bool {
	if q.r.ContentLength != 0 {
		// The server would read the body before the first byte of the answer, and wait for it in
		// vain.
		_ = q.control.EnableFullDuplex()
		_ = q.control.SetReadDeadline(time.Now())
	}
	switch {
	case q.r.Method != http.MethodGet:
		q.w.Header().Set("Allow", http.MethodGet)
		problem(q.w, http.StatusMethodNotAllowed, "an event stream is read with GET", nil)
	case q.r.ContentLength != 0:
		problem(q.w, http.StatusBadRequest, "a request for an event stream has no body", nil)
	default:
		return true
	}
	return false
}

// canStream reports whether a stream can be written. It answers the request where not.
func (q *request) canStream() bool {
	if canStream(q.w) && q.control.SetWriteDeadline(time.Time{}) == nil {
		return true
	}
	q.bus.warn("a stream needs a ResponseWriter that can flush and set deadlines. Usually a middleware hides the server's: "+
		"give its ResponseWriter an Unwrap method, or leave it out for this route. In a test, use httptest.NewServer", http.ErrNotSupported)
	problem(q.w, http.StatusInternalServerError, "the server cannot stream here", nil)
	return false
}

// check asks again whether the client may still read the same. A failure is no answer.
func (q *request) check(s *reader.Stream) (until time.Time, ok bool) {
	until, err := q.askAgain(s)
	if err != nil && err != errChanged && !refusal(err) {
		q.bus.warn("authorize failed; calling it again", err)
		return time.Now().Add(q.options.keepalive), true
	}
	q.over = err
	return until, err == nil
}

var errChanged = errors.New("authorize has returned another subscription")

// askAgain gives the time at which authorize is to be asked next, or why the client may not read. The
// stream goes on with the Snapshot of the latest answer.
func (q *request) askAgain(s *reader.Stream) (until time.Time, err error) {
	again, err := q.authorize(q.r)
	if err == nil && (again.Identity != q.sub.Identity || !slices.Equal(again.Types, q.sub.Types) ||
		!sameChannels(distinct(q.sub.Channels), again.Channels)) {
		err = errChanged
	}
	if err == nil {
		s.Snapshot = again.snapshot()
	}
	return again.ValidUntil, authorizeError(err)
}

// stream writes the frames. Where there is none, because a snapshot with which the stream was to begin
// has failed, the request is refused.
func (q *request) stream(s *reader.Stream) {
	out := deadlines{control: q.control, timeout: q.options.writeTimeout, idle: q.r.ProtoMajor == 1}
	defer out.clear()
	begun := false
	for frame := range s.Frames {
		if !begun {
			streamHeader(q.w.Header())
			begun = true
		}
		out.set()
		if _, err := q.w.Write(frame); err != nil {
			return
		}
		if err := q.control.Flush(); err != nil {
			return
		}
		if !out.idle {
			out.clear()
		}
	}
	err := cmp.Or(s.Err, q.over)
	if _, failed := errors.AsType[*reader.SnapshotError](err); failed && begun {
		q.bus.warn("a snapshot failed; the client is to come back later", err)
		_, _ = q.w.Write(append(q.softRetry(), '\n')) // the client may have gone
	} else if err != nil && !begun {
		q.refuse(snapshotRefusal(err))
	}
}

// snapshotRefusal is the error with which a request is refused that was to begin with a snapshot.
func snapshotRefusal(err error) error {
	if failed, ok := errors.AsType[*reader.SnapshotError](err); ok {
		for _, known := range []error{ErrNotFound, ErrForbidden, ErrGone} {
			if errors.Is(failed, known) {
				return known
			}
		}
		return errors.New(failed.Error()) // no other error of the program's is a refusal for good
	}
	return err
}

var errNoChannels = errors.New("return one of ErrUnauthorized, ErrForbidden, ErrNotFound and ErrGone to refuse")

// authorizeError is what an error of authorize means.
func authorizeError(err error) error {
	if errors.Is(err, http.ErrNoCookie) {
		return ErrUnauthorized
	}
	if err != nil && err != errChanged && !refusal(err) {
		return fmt.Errorf("authorize: %w (to refuse for good, wrap ErrUnauthorized, ErrForbidden, ErrNotFound or ErrGone)", err)
	}
	return err
}

// The deadlines of writes cut a client that does not read.
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

// canStream reports whether the innermost of the writers that w wraps can flush and set deadlines.
// Those around it may have a Flush that fails, or panics, where that cannot.
func canStream(w http.ResponseWriter) bool {
	for {
		t, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = t.Unwrap()
	}
	_, deadlines := w.(interface{ SetWriteDeadline(time.Time) error })
	switch w.(type) {
	case http.Flusher, interface{ FlushError() error }:
		return deadlines
	}
	return false
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

// refusal reports whether err means "do not come back".
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
func (q *request) refuse(err error) {
	var bad *ValidationError
	var limit *LimitError
	switch errors.As(err, &limit); {
	case errors.As(err, &bad):
		problem(q.w, http.StatusBadRequest, bad.Error(), bad.Fields)
	case refusal(err):
		for _, s := range statuses {
			if errors.Is(err, s.err) && s.status == http.StatusNoContent {
				q.w.WriteHeader(s.status)
				return
			} else if errors.Is(err, s.err) {
				problem(q.w, s.status, http.StatusText(s.status), nil)
				return
			}
		}
	case limit != nil && limit.Limit == LimitChannels:
		problem(q.w, http.StatusBadRequest, limit.Error(), []FieldError{{"channels", "are too many"}})
	case q.r.Context().Err() != nil: // nobody is there any more
	default:
		if !errors.Is(err, ErrClosed) {
			q.bus.warn("a stream was refused for now", err)
		}
		q.refuseSoftly(limit)
	}
}

// softly is how many times longer than the clients of a broken stream those wait that got none.
const softly = 8

// refuseSoftly tells the client to come back.
func (q *request) refuseSoftly(limit *LimitError) {
	least := softly * q.options.retry
	if !strings.Contains(strings.Join(q.r.Header.Values("Accept"), ","), "text/event-stream") {
		q.w.Header().Set("Retry-After", strconv.FormatInt(int64((least+time.Second-1)/time.Second), 10))
		if limit != nil && limit.Limit == LimitPerIdentity {
			problem(q.w, http.StatusTooManyRequests, limit.Error(), nil)
			return
		}
		problem(q.w, http.StatusServiceUnavailable, "the event bus cannot serve now", nil)
		return
	}
	streamHeader(q.w.Header())
	// The blank line makes the client take the last event id of this connection for
	// its own: it gets that back.
	answer := q.softRetry()
	if id := lastEventID(q.r); id != "" {
		answer = wire.AppendID(answer, id)
	}
	_, _ = q.w.Write(append(answer, '\n')) // the client may have gone
}

// softRetry is the retry field of a client that is to come back later.
func (q *request) softRetry() []byte {
	least := softly * q.options.retry
	return wire.AppendRetry(nil, least, 2*least)
}

// lastEventID gives what the client has seen last: from the header, which counts, or
// the query. What no id field could hold is replaced by something that no log has.
func lastEventID(r *http.Request) string {
	id := cmp.Or(r.Header.Get("Last-Event-ID"), r.URL.Query().Get("last_event_id"))
	if len(id) > position.MaxCursorLength || strings.ContainsAny(id, "\r\n\x00") {
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
