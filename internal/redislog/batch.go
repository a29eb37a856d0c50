package redislog

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/syndarix/eventbus/internal/position"
)

// A Record is a commit's part for one log: the event's way into it, and what became of it.
type Record struct {
	Channel     string
	Fingerprint uint16            // fingerprint of the event
	Final       bool              // the log ends with the event
	Again       bool              // the log had the event before this publish
	Sure        bool              // Err makes certain that the log does not have the event
	Pos         position.Position // where the event is; zero while that is not known
	Err         error             // why the last attempt has failed
}

// settled reports whether another attempt would change nothing.
func (r *Record) settled() bool {
	return !r.Pos.IsZero() || r.Err != nil && !errors.Is(r.Err, ErrUnavailable)
}

// A Commit is one event on its way into logs that one call can reach.
type Commit struct {
	ID         string // the event's id
	Event      []byte // the event's JSON without position
	Idempotent bool
	Also       string // where the event is in the logs that come before these
	Records    []Record
	closed     atomic.Bool
}

// Pending gives the records from the first one on whose log does not have the event yet, and the
// also of the next entry. also is that of the first record.
func (l *Log) Pending(also string, records []Record) ([]Record, string) {
	i := 0
	for ; i < len(records) && !records[i].Pos.IsZero(); i++ {
		also = strings.TrimPrefix(also+" "+l.Name(records[i].Channel)+"@"+records[i].Pos.String(), " ")
	}
	return records[i:], also
}

// Settled reports whether another attempt would change nothing.
func (c *Commit) Settled() bool {
	for i := range c.Records {
		if !c.Records[i].settled() {
			return false
		}
	}
	return true
}

// Closed reports whether no more will be known of the records. Until then a call has them.
func (c *Commit) Closed() bool { return c.closed.Load() }

func (c *Commit) close() {
	c.Event = nil
	c.closed.Store(true)
}

// A Batch is what one caller publishes at once: events for the same logs, one behind the other. All
// of it is in the same call, so each log has the events in their order. Where one of them fails for
// good, none behind it comes into that log.
type Batch struct {
	Commits []*Commit             // the ones that are not closed
	Done    chan struct{}         // closed when all commits are
	Callers atomic.Int32          // how many wait for Done
	Patient atomic.Bool           // its caller waits longer than a publish may take
	Failing atomic.Pointer[error] // why the last attempt has failed
}

// finish closes the commits that are settled, and reports whether all are. If one of them has failed
// for good, the rest is given up. But after a lost attempt it is not, as all of the call is repeated.
func (b *Batch) finish(lost bool) bool {
	failed := false
	b.Commits = slices.DeleteFunc(b.Commits, func(c *Commit) bool {
		settled := c.Settled()
		if settled {
			c.close()
		}
		for i := range c.Records {
			if err := c.Records[i].Err; err != nil {
				failed = failed || settled
				b.Failing.Store(&err)
			}
		}
		return settled
	})
	switch {
	case failed && !lost:
		b.giveUp()
	case len(b.Commits) == 0:
		close(b.Done)
	default:
		return false
	}
	return true
}

// giveUp closes all commits. They keep the error of the last attempt.
func (b *Batch) giveUp() {
	for _, c := range b.Commits {
		c.close()
	}
	b.Commits = nil
	close(b.Done)
}
