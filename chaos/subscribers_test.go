package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/syndarix/eventbus"
)

// A subscriber reads some channels from the oldest event on. It drops off now and then and
// goes on from its last cursor, on any bus.
type subscriber struct {
	w        *world
	r        *rand.Rand
	channels []eventbus.Channel
	account  *account
	cursor   eventbus.Cursor
	slow     bool // it pauses now and then

	session context.Context
	drop    context.CancelFunc
	begun   time.Time
}

// subscribe starts a subscriber of the n-th kind.
func (w *world) subscribe(n uint64) *account {
	s := &subscriber{w: w, r: w.random(1000 + n)}
	p := w.projects[s.r.IntN(len(w.projects))]
	s.channels = p.channels()
	s.r.Shuffle(len(s.channels), func(i, j int) { s.channels[i], s.channels[j] = s.channels[j], s.channels[i] })
	switch s.r.IntN(4) {
	case 0, 1:
		s.channels = s.channels[:1]
		if s.r.IntN(2) == 0 {
			s.channels[0] = p.channel()
		}
	case 2:
		s.channels = s.channels[:2+s.r.IntN(3)]
	case 3:
		s.channels = append(s.channels, w.projects[s.r.IntN(len(w.projects))].channels()...)
	}
	read, kind := s.iterate, "iterator"
	switch n % 6 {
	case 1:
		s.slow, kind = true, "slow iterator"
	case 2:
		read, kind = s.frames, "frames"
	case 4:
		read, kind = s.stream, "stream"
	}
	s.account = w.ledger.open(fmt.Sprintf("%s %d", kind, n), distinct(names(s.channels)))
	w.readers.Go(func() {
		for w.ctx.Err() == nil {
			s.begin()
			err := read()
			s.drop()
			if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, eventbus.ErrClosed) {
				w.t.Errorf("%s: %v", s.account.name, err)
				return
			}
			select {
			case <-w.ctx.Done():
			case <-time.After(time.Duration(s.r.IntN(300)) * time.Millisecond):
			}
		}
	})
	return s.account
}

func distinct(names []string) (out []string) {
	seen := make(map[string]bool)
	for _, n := range names {
		if !seen[n] {
			out = append(out, n)
		}
		seen[n] = true
	}
	return out
}

// begin opens a session, which lasts a while.
func (s *subscriber) begin() {
	s.session, s.drop = context.WithCancel(s.w.ctx)
	s.begun = time.Now()
	if s.w.calm.Load() || s.cursor.IsZero() || s.r.IntN(4) == 0 {
		return
	}
	end := s.drop
	t := time.AfterFunc(time.Duration(s.r.IntN(5000))*time.Millisecond, end)
	s.drop = func() { t.Stop(); end() }
}

func (s *subscriber) subscription() eventbus.Subscription {
	return eventbus.Subscription{Channels: s.channels, After: s.cursor, Oldest: s.cursor.IsZero()}
}

// got enters an item.
func (s *subscriber) got(it item, cursor eventbus.Cursor) {
	if it.id != "" {
		begun := s.w.ledger.begun(it.id)
		if begun.IsZero() {
			s.w.t.Errorf("%s was given %s, which nobody has published", s.account.name, it.id)
		}
		it.replayed = begun.Before(s.begun)
	}
	s.account.add(it)
	s.cursor = cursor
	if s.slow && s.r.IntN(100) == 0 && !s.w.calm.Load() {
		select {
		case <-s.session.Done():
		case <-time.After(time.Duration(s.r.IntN(3000)) * time.Millisecond):
		}
	}
}

// iterate reads events.
func (s *subscriber) iterate() error {
	for ev, err := range s.w.any(s.r).bus.Load().SubscribeWith(s.session, s.subscription()) {
		var gap *eventbus.GapError
		switch {
		case errors.As(err, &gap):
			s.got(item{channel: gap.Channel.String(), position: gap.From.String(), reason: string(gap.Reason)}, gap.Cursor)
		case err != nil:
			return err
		default:
			s.got(item{id: ev.ID, channel: ev.Channel.String(), position: ev.Position.String()}, ev.Cursor)
		}
	}
	return nil
}

// frames reads the frames of SubscribeSSE, half of the time as a browser resumes.
func (s *subscriber) frames() error {
	sub := s.subscription()
	if s.r.IntN(2) == 0 {
		sub = eventbus.Subscription{Channels: s.channels, LastEventID: s.cursor.String(), Oldest: s.cursor.IsZero()}
	}
	for frame, err := range s.w.any(s.r).bus.Load().SubscribeSSE(s.session, sub, eventbus.WithKeepalive(500*time.Millisecond)) {
		if err != nil {
			return err
		}
		if err := s.parse(bytes.NewReader(frame), func() {}); err != io.EOF {
			return err
		}
	}
	return nil
}

// stream reads from a bus's HTTP server, as a browser does.
func (s *subscriber) stream() error {
	query := url.Values{"channel": names(s.channels)}
	req, err := http.NewRequestWithContext(s.session, http.MethodGet, "http://"+s.w.any(s.r).line.addr+"/?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	if !s.cursor.IsZero() {
		req.Header.Set("Last-Event-ID", s.cursor.String())
	}
	// A stream that is silent for longer than several keepalives is taken for dead.
	const silence = 3 * time.Second
	watch := time.AfterFunc(silence, s.drop)
	defer watch.Stop()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", res.Status)
	}
	if err := s.parse(res.Body, func() { watch.Reset(silence) }); errors.Is(err, errStream) {
		return err
	}
	return nil // cut, or ended
}

var errStream = errors.New("malformed stream")

// parse reads an event stream to its end, and enters what it has.
func (s *subscriber) parse(from io.Reader, alive func()) error {
	var id, kind, data string
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return err // a block without an end does not count
		}
		alive()
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			data = value
		case "retry", "":
		default:
			return fmt.Errorf("%w: %q", errStream, line)
		}
		if line != "\n" {
			continue
		}
		cursor := s.cursor
		if id != "" {
			if cursor, err = eventbus.ParseCursor(id); err != nil {
				return fmt.Errorf("%w: %q: %w", errStream, id, err)
			}
		}
		var it item
		switch kind {
		case "", "stream.live":
			s.cursor = cursor
			id, kind, data = "", "", ""
			continue
		case "stream.gap":
			var gap struct{ Channel, Reason, From string }
			err = json.Unmarshal([]byte(data), &gap)
			it = item{channel: gap.Channel, position: gap.From, reason: gap.Reason}
		default:
			var ev eventbus.Event
			err = ev.UnmarshalJSON([]byte(data))
			it = item{id: ev.ID, position: ev.Position.String()}
		}
		if err != nil {
			return fmt.Errorf("%w: %q: %w", errStream, data, err)
		}
		s.got(it, cursor)
		id, kind, data = "", "", ""
	}
}
