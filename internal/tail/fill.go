package tail

import (
	"errors"
	"strings"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// The state of a tail says what is known of its ring. A whole tail adds what comes on the channel.
// Any other tail holds it back until a fill.
//
//	unread ──fill──► whole ◄──fill── behind
//	                 │  │              ▲ │
//	                 │  └─a message────┘ │
//	                 │    does not follow│
//	                 └────► cut ◄────────┘
//	                         │    the connection broke, or began
//	                         └──fill──► whole
//
// While Redis has not confirmed that the channel is listened to, a fill leads to behind.
type state int

const (
	unread state = iota // the end of the log is not known
	cut                 // the log may have other events than the ring, on another server
	behind              // the log has what is in the ring, and may have more
	whole               // the ring has everything up to the end of the log
)

// Offer takes an event that came on the channel. It returns false when the event does not follow
// what the tail has: then the tail needs a fill.
func (t *Tail) Offer(a wire.Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.Position.IsZero() {
		if t.state != unread && !t.ended { // an unread tail has no readers yet
			t.addLocked(a)
			t.wakeLocked()
		}
		return true
	}
	a.Position.Fingerprint = position.Fingerprint(a.ID)
	t.finds = 0
	switch {
	case t.state != whole:
		t.holdLocked(a)
		return true // a fill is due already
	case t.followsLocked(a):
		t.addLocked(a)
		t.wakeLocked()
		return true
	case t.hasLocked(a.Position):
		return true
	case a.Position.Epoch == t.last.Epoch && a.Position.Seq > t.last.Seq+1:
		t.toLocked(behind) // events in between are missing
	default:
		t.toLocked(cut) // a number was given twice, or the log is another one
	}
	t.holdLocked(a)
	return false
}

// followsLocked reports whether an event is the next one of the log. The number alone does not
// prove it: after a failover, a master that lacked the newest events may have given their numbers
// again, and this process has not heard it. Prev shows that.
func (t *Tail) followsLocked(a wire.Event) bool {
	return a.Position.Follows(t.last) && (a.Prev == "" || t.lastID == "" || strings.HasSuffix(t.lastID, a.Prev))
}

// toLocked changes the state. It sets since when the tail stops being whole.
func (t *Tail) toLocked(s state) {
	if t.state == whole && s != whole {
		t.since = time.Now()
	}
	t.state = s
}

// Cut puts the ring in doubt: the connection broke, or a new one begins here.
func (t *Tail) Cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != unread {
		t.toLocked(cut)
	}
	t.finds = 0
	t.held, t.heldBytes, t.overflow = nil, 0, false // a fill finds what the log has of it
	t.pages.clear()
}

// Heard says that the channel has brought an event that is to come into the log. A comparison may
// find it there first, if another process has appended it.
func (t *Tail) Heard() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finds = 0
}

// deafAfter is how many finds show that the channel does not bring what is published. After fewer,
// the messages may still be on their way.
const deafAfter = 3

// Deaf reports whether the channel does not bring what is in the log, though it is listened to.
func (t *Tail) Deaf() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.finds >= deafAfter
}

func (t *Tail) holdLocked(a wire.Event) {
	if len(t.held) >= heldEvents || t.heldBytes+len(a.Payload) > heldBytes && t.heldBytes > 0 {
		t.overflow = true
		return
	}
	t.held = append(t.held, a)
	t.heldBytes += len(a.Payload)
}

// A Request asks for a page of the log.
type Request struct {
	From  position.Position // the first entry to read; zero means the oldest
	Count int               // the most entries to read; 0 reads the state of the log alone
}

// Want gives what a fill is to read: the page that begins at the tail's end, or for an unread tail
// only where the log ends.
func (t *Tail) Want() Request {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = len(t.held)
	r := Request{From: t.last, Count: pageEvents}
	if t.state == unread {
		r.Count = 0
	}
	return r
}

// Unfilled says that the log could not be read. refused is the reason if only a change of the server
// can mend it: then nobody waits any longer for a tail that was never filled.
func (t *Tail) Unfilled(refused error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failing.IsZero() {
		t.failing = time.Now()
	}
	if t.state == unread && refused != nil {
		t.openLocked(refused)
	}
}

// openLocked lets the readers begin, or tells them that they cannot.
func (t *Tail) openLocked(refused error) {
	t.refused = refused
	if !t.opened {
		t.opened = true
		close(t.Opened)
	}
}

// Refused says why the log cannot be read for good, nil if it can.
func (t *Tail) Refused() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused
}

// Fill takes the page that was read as Want asked. connected says that the channel was listened to
// before the read began, and ever since: then the tail is whole, unless something is still missing.
// Fill reports whether it is.
func (t *Tail) Fill(asked Request, page *position.Page, connected bool) bool {
	t.mu.Lock()
	bad := t.fillLocked(asked, page, connected)
	filled := t.state == whole
	t.mu.Unlock()
	for _, err := range bad {
		t.onBad(err)
	}
	return filled
}

// fillLocked is Fill under the lock. It gives an error for each entry or event that is left out.
func (t *Tail) fillLocked(asked Request, page *position.Page, connected bool) (bad []error) {
	t.failing = time.Time{}
	t.reads, t.top = t.reads+1, page.Last
	next, run, state := t.next, t.run, t.state
	defer func() {
		// A reader at the end of a log that has ended may have slept because the tail was in doubt.
		// One that is ahead looks at the log again: a failover can have taken the event.
		if t.next != next || t.run != run || t.ended && state == cut || t.ahead {
			t.ahead = false
			t.wakeLocked()
		}
	}()
	switch {
	case t.state == unread:
		t.last, t.lastID, t.ended = page.Last, page.LastID, page.Ended
		t.openLocked(nil)
	case asked.From != t.last:
		return nil // the tail has moved on: the page is out of date
	default:
		bad = t.takeLocked(page)
	}
	if t.state == whole {
		if t.next != next {
			t.finds++
		}
		return bad
	}
	t.toLocked(behind)
	if connected {
		complete, strange := t.releaseLocked()
		if bad = append(bad, strange...); complete {
			t.toLocked(whole)
		}
	}
	return bad
}

// ErrElsewhere is what onBad gets for a message that the log does not have.
var ErrElsewhere = errors.New("the event claims a position that is not of this channel's log")

// releaseLocked adds the held events. It reports whether nothing is missing, and gives an error for
// each event that does not belong here.
func (t *Tail) releaseLocked() (complete bool, bad []error) {
	held, asked := t.held, t.asked
	complete = !t.overflow
	t.held, t.heldBytes, t.overflow = nil, 0, false
	for i, a := range held {
		switch {
		case t.followsLocked(a):
			t.addLocked(a)
		case a.Position.Epoch == t.last.Epoch && a.Position.Seq <= t.last.Seq:
			// The tail has it from the log.
		case i >= asked:
			t.holdLocked(a) // it came after the read began: the next read may find it
			complete = false
		default:
			bad = append(bad, ErrElsewhere) // where the log has lost it, readers get a gap
		}
	}
	return complete, bad
}

// takeLocked adds the entries of the page that follow the tail's end, and gives an error for each
// that is no event. Where entries are missing, or the page does not reach the log's end, the tail
// starts anew at that end.
func (t *Tail) takeLocked(page *position.Page) (bad []error) {
	start, gap := page.Resume(t.last)
	entries := page.After(start)
	complete := start.Same(page.Last) || len(entries) > 0 && entries[len(entries)-1].Pos.Same(page.Last)
	if gap != "" || !complete {
		t.clearLocked()
		t.run++
		t.last, t.lastID, t.ended = page.Last, page.LastID, page.Ended
		return nil
	}
	for _, e := range entries {
		if err := t.addLoggedLocked(e); err != nil {
			bad = append(bad, err)
		}
	}
	return bad
}

// LastRead gives the number of fills so far, and where the log ended at the last one.
func (t *Tail) LastRead() (int, position.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reads, t.top
}

// Stale gives for how long the tail may have been behind its log, 0 when it is not.
func (t *Tail) Stale(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := t.failing
	if t.state != whole && (since.IsZero() || t.since.Before(since)) {
		since = t.since
	}
	if since.IsZero() {
		return 0
	}
	return now.Sub(since)
}
