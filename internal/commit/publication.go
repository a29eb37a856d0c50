package commit

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
)

// An Event is what is to come into the logs of channels.
type Event struct {
	ID         string
	JSON       []byte   // without position
	Channels   []string // all different, in the order of the publish
	Ends       []string // of Channels: their logs end with the event
	Idempotent bool
}

// A Publication is one publish of an event.
type Publication struct {
	commits    *Committer
	id         string
	event      []byte
	idempotent bool
	Records    []redislog.Record // one for each channel; first those whose logs have the event
	single     [1]redislog.Record
	timeout    <-chan time.Time
	late       bool // timeout has fired

	commit *redislog.Commit // its records are the part of Records that is, or was, under way
	from   int              // where in Records that part begins
	behind bool             // an earlier publish of the event has to end before this one begins
	Fates  []Fate           // one for each record, after an error
}

// Publish appends an event to its logs. The publication says what became of the event in each log,
// also after an error.
func (cs *Committer) Publish(ctx context.Context, ev Event) (*Publication, error) {
	timeout := time.NewTimer(cs.Timeout)
	defer timeout.Stop()
	p := &Publication{commits: cs, id: ev.ID, event: ev.JSON, idempotent: ev.Idempotent, timeout: timeout.C}
	p.Records = p.single[:]
	if len(ev.Channels) > 1 {
		p.Records = make([]redislog.Record, len(ev.Channels))
	}
	mark := position.Fingerprint(ev.ID)
	for i, c := range ev.Channels {
		p.Records[i] = redislog.Record{Channel: c, Final: slices.Contains(ev.Ends, c), Fingerprint: mark}
	}
	err := p.run(ctx)
	if err != nil {
		if cs.ctx.Err() != nil {
			err = context.Cause(cs.ctx)
		}
		p.Fates = make([]Fate, len(p.Records))
		open := p.commit != nil && !p.commit.Closed()
		known := false
		for i := range p.Records {
			p.Fates[i] = p.fateOf(i, open)
			known = known || p.Fates[i] != Missing
		}
		if known && !p.behind {
			p.event = nil // An outcome keeps no event; the commit has it while it is under way.
			cs.outcomes.put(p)
		}
	}
	return p, err
}

// A Fate is what is known of an event in one log after its publish has failed.
type Fate int

const (
	Unknown Fate = iota // the log may have the event, now or later
	Done                // the log has the event
	Missing             // the log certainly does not have the event
)

// fateOf gives the fate of the i-th record. While the commit is open, a worker has its records.
func (p *Publication) fateOf(i int, open bool) Fate {
	switch r := &p.Records[i]; {
	case p.behind || open && i >= p.from && i < p.from+len(p.commit.Records):
		return Unknown
	case !r.Pos.IsZero():
		return Done
	case r.Err == nil || r.Sure:
		return Missing
	}
	return Unknown
}

// run brings the event into its logs, behind earlier publishes of it that have failed.
func (p *Publication) run(ctx context.Context) error {
	o := p.commits.outcomes.get(p.id)
	if o == nil {
		return p.commitAll(ctx)
	}
	p.behind = true
	if err := p.wait(ctx, o.turn); err != nil {
		return err
	}
	defer func() { o.turn <- struct{}{} }()
	if now := p.commits.outcomes.get(p.id); now != nil && now != o {
		return p.run(ctx) // The outcome was forgotten meanwhile, and there is another one.
	}
	if err := o.last.await(ctx, p); err != nil {
		return err
	}
	p.behind = false
	o.learn()
	p.recall(o.known)
	o.last = p
	err := p.commitAll(ctx)
	if err == nil {
		o.learn()
		p.commits.outcomes.drop(o)
	}
	return err
}

// recall enters what is known from earlier publishes of the event. The logs that have it come
// first, so that the entries in the others have these places in also.
func (p *Publication) recall(known map[string]position.Position) {
	records := slices.Clone(p.Records)
	n := 0
	for _, have := range []bool{true, false} {
		for _, r := range records {
			pos, ok := known[r.Channel]
			if ok != have {
				continue
			}
			r.Pos, r.Again = pos, ok
			p.Records[n] = r
			n++
		}
	}
}

// commitAll makes the commits that are needed. Where channels need calls of their own, one commit
// comes after the other, so that each entry's also can say where the event is already.
func (p *Publication) commitAll(ctx context.Context) error {
	share := len(p.Records)
	if p.commits.Log.PerChannel {
		share = 1
	}
	also := ""
	for i := 0; i < len(p.Records); i += share {
		c := &redislog.Commit{
			ID: p.id, Event: p.event, Idempotent: p.idempotent, Also: also,
			Records: p.Records[i : i+share], Done: make(chan struct{}),
		}
		if !c.Settled() {
			p.commit, p.from = c, i
			c.Callers.Add(1)
			queue := p.commits.add(ctx, c)
			err := p.await(ctx, p)
			if c.Callers.Add(-1); err != nil {
				if queue.withdraw(c) {
					p.commit = nil
				}
				return err
			}
		}
		for _, r := range c.Records {
			if r.Err != nil {
				return r.Err
			}
		}
		_, also = c.Pending(p.commits.Log)
	}
	return nil
}

// await lets q wait until p's commit is closed. Meanwhile q counts as a caller.
func (p *Publication) await(ctx context.Context, q *Publication) error {
	if p.commit == nil {
		return nil
	}
	p.commit.Callers.Add(1)
	defer p.commit.Callers.Add(-1)
	err := q.wait(ctx, p.commit.Done)
	if p.commit.Closed() {
		return nil
	}
	return err
}

// wait waits for c, but no longer than the publish may take.
func (p *Publication) wait(ctx context.Context, c <-chan struct{}) error {
	if p.late {
		return p.tooLate()
	}
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.commits.ctx.Done():
		return context.Cause(p.commits.ctx)
	case <-p.timeout:
		p.late = true
		return p.tooLate()
	}
}

// tooLate is the error of a publish whose time is over. It has the reason, if that is known.
func (p *Publication) tooLate() error {
	err := redislog.Error(redislog.ErrUnavailable, fmt.Errorf("not published within %s", p.commits.Timeout))
	if p.commit != nil {
		if last := p.commit.Failing.Load(); last != nil {
			err = fmt.Errorf("%w: %w", err, *last)
		}
	}
	return err
}
