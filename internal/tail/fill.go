package tail

import (
	"errors"
	"strings"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// The state of a tail says what is known of its ring. A whole tail takes what comes on the channel;
// any other holds that back until it was filled.
//
//	unread ──fill──► whole ◄──fill── behind
//	                 │  │              ▲ │
//	                 │  └─a message────┘ │
//	                 │    does not follow│
//	                 └────► cut ◄────────┘
//	                         │    the connection broke, or began
//	                         └──fill──► whole
//
// While nobody listens to the channel, a fill leads to behind.
type state int

const (
	unread state = iota // where the log ends is not known
	cut                 // other events may be in the log than in the ring: another server may have it
	behind              // what is in the ring is in the log; more may be there
	whole               // the ring has everything up to the end of the log
)

// Offer takes what came on the channel. The answer is false when it does not follow what the tail
// has: then the tail wants to be filled.
func (t *Tail) Offer(a wire.Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.Position.IsZero() {
		if t.state != unread { // before that there is nobody to hear it
			t.addLocked(a, "")
			t.wakeLocked()
		}
		return true
	}
	a.Position.Mark = position.Fingerprint(a.ID)
	t.finds = 0
	switch {
	case t.state != whole:
		t.holdLocked(a)
		return true // a fill is under way already
	case t.followsLocked(a):
		t.addLocked(a, a.Also)
		t.wakeLocked()
		return true
	case t.hasLocked(a.Position):
		return true
	case a.Position.Epoch == t.last.Epoch && a.Position.Seq > t.last.Seq+1:
		t.toLocked(behind) // some are missing in between
	default:
		t.toLocked(cut) // a number was given twice, or the log is another
	}
	t.holdLocked(a)
	return false
}

// followsLocked reports whether an wire.Event is the next event of the log. The number alone does not
// say so: a master that lacked the newest events may have given theirs again, unheard.
func (t *Tail) followsLocked(a wire.Event) bool {
	return a.Position.Follows(t.last) && (a.Prev == "" || t.lastID == "" || strings.HasSuffix(t.lastID, a.Prev))
}

// toLocked changes the state.
func (t *Tail) toLocked(s state) {
	if t.state == whole && s != whole {
		t.since = time.Now()
	}
	t.state = s
}

// Question says that the connection broke, or begins here.
func (t *Tail) Question() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != unread {
		t.toLocked(cut)
	}
	t.finds = 0
	t.held, t.heldBytes, t.overflow = nil, 0, false // a fill will read what of it there is
	t.pages.clear()
}

// deafAfter is how many finds in a row mean that the channel does not bring what is published: less
// can be on its way.
const deafAfter = 3

// Deaf reports whether the channel does not bring what is in the log, though somebody listens.
func (t *Tail) Deaf() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.finds >= deafAfter
}

func (t *Tail) holdLocked(a wire.Event) {
	if len(t.held) >= heldEvents || t.heldBytes+len(a.Payload) > tailBytes && t.heldBytes > 0 {
		t.overflow = true
		return
	}
	t.held = append(t.held, a)
	t.heldBytes += len(a.Payload)
}

// A Request asks for a page of the log.
type Request struct {
	From  position.Position // itself included; zero: from the oldest entry
	Count int               // entries; 0: the state of the log alone
}

// Want is what a fill should read: the page behind the tail's end, or for a new
// tail only where the log ends.
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

// Unfilled says that the log could not be read.
func (t *Tail) Unfilled() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failing.IsZero() {
		t.failing = time.Now()
	}
}

// Fill takes a page that was read as want had asked for it. While connected says
// that the channel is listened to, a fill that leaves no hole makes the tail whole.
// It is false when another fill is needed.
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

// fillLocked is fill. It gives back what could not be read.
func (t *Tail) fillLocked(asked Request, page *position.Page, connected bool) (bad []error) {
	t.failing = time.Time{}
	t.reads, t.top = t.reads+1, page.Last
	next, run := t.next, t.run
	defer func() {
		if t.next != next || t.run != run {
			t.wakeLocked()
		}
	}()
	switch {
	case t.state == unread:
		t.last, t.lastID = page.Last, page.LastID
		close(t.Opened)
	case asked.From != t.last:
		return nil // the tail has moved on since: the page is out of date
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

var ErrElsewhere = errors.New("the event claims a position that is not of this channel's log")

// releaseLocked adds what was held back. It reports whether nothing is missing, and gives back what
// does not belong here.
func (t *Tail) releaseLocked() (complete bool, bad []error) {
	held, asked := t.held, t.asked
	complete = !t.overflow
	t.held, t.heldBytes, t.overflow = nil, 0, false
	for i, a := range held {
		switch {
		case t.followsLocked(a):
			t.addLocked(a, a.Also)
		case a.Position.Epoch == t.last.Epoch && a.Position.Seq <= t.last.Seq:
			// The log had it.
		case i >= asked:
			t.holdLocked(a) // the log may have it by now
			complete = false
		default:
			bad = append(bad, ErrElsewhere) // or the log has lost it, and it is in the gap
		}
	}
	return complete, bad
}

// takeLocked appends what the page has behind the tail's end, and gives back what could not be
// read. Where something is missing there, or more than a page, the tail starts anew at the log's end.
func (t *Tail) takeLocked(page *position.Page) (bad []error) {
	start, gap := page.Resume(t.last)
	entries := page.After(start)
	complete := start.Same(page.Last) || len(entries) > 0 && entries[len(entries)-1].Pos.Same(page.Last)
	if gap != "" || !complete {
		t.segments, t.first, t.bytes = nil, t.next, 0
		t.run++
		t.pages.clear()
		t.last, t.lastID = page.Last, page.LastID
		return nil
	}
	for _, e := range entries {
		if err := t.addLoggedLocked(e); err != nil {
			bad = append(bad, err)
		}
	}
	return bad
}

// LastRead is how often the log was read, and where it ended then.
func (t *Tail) LastRead() (int, position.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reads, t.top
}

// Stale is for how long the tail may have been behind its log, 0 when it is not.
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
