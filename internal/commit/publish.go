package commit

import (
	"context"
	"fmt"
	"time"

	"github.com/syndarix/eventbus/internal/redislog"
)

// A publish is what one caller waits for: one event, or several that go to the same channels in
// this order.
type publish struct {
	*Committer
	of      []Publication
	timeout <-chan time.Time // nil where only the context ends the wait
	late    bool             // timeout has fired
	patient bool             // its batches are repeated for longer than a publish may take
}

// run brings the events into their logs, and enters what became of them after an error.
func (p *publish) run(ctx context.Context) error {
	err := p.commitInTurn(ctx)
	if err == nil {
		return nil
	}
	if p.ctx.Err() != nil {
		err = context.Cause(p.ctx)
	}
	for i := range p.of {
		o := &p.of[i]
		o.event = nil // An outcome keeps no events; the commits have them while they are under way.
		if o.judge() && !o.behind {
			p.outcomes.put(o)
		}
	}
	return err
}

// commitInTurn is commitAll, behind earlier publishes of the event that have failed. In a batch
// there is no such event.
func (p *publish) commitInTurn(ctx context.Context) error {
	one := &p.of[0]
	o := p.outcomes.get(one.id)
	if o == nil || len(p.of) > 1 {
		return p.commitAll(ctx)
	}
	one.behind = true
	if err := p.wait(ctx, o.turn); err != nil {
		return err
	}
	defer func() { o.turn <- struct{}{} }()
	if now := p.outcomes.get(one.id); now != nil && now != o {
		return p.commitInTurn(ctx) // The outcome was forgotten meanwhile, and there is another one.
	}
	if last := o.last; last.commit != nil && !last.commit.Closed() {
		if err := p.await(ctx, last.batch); err != nil {
			return err
		}
	}
	one.behind = false
	o.learn()
	one.recall(o.known)
	o.last = one
	err := p.commitAll(ctx)
	if err == nil {
		o.learn()
		p.outcomes.drop(o)
	}
	return err
}

// commitAll makes the batches that are needed. Where channels need calls of their own, one batch
// comes after the other, so that each entry's also can say where the event is already.
func (p *publish) commitAll(ctx context.Context) error {
	channels := len(p.of[0].Records)
	share := p.share(channels)
	for from := 0; from < channels; from += share {
		if b := p.batch(from, from+share); b != nil {
			b.Callers.Add(1)
			queue := p.add(ctx, b)
			err := p.await(ctx, b)
			b.Patient.Store(false) // Who waits for it from now on is a publisher.
			b.Callers.Add(-1)
			if err != nil {
				if queue.withdraw(b) {
					p.forget()
				}
				return err
			}
		}
		for i := range p.of {
			for _, r := range p.of[i].Records[from : from+share] {
				if r.Err != nil {
					return r.Err
				}
			}
		}
	}
	return nil
}

// batch makes the batch of the records from one index to another. It is nil where the logs have all
// of the events.
func (p *publish) batch(from, to int) *redislog.Batch {
	b := &redislog.Batch{Commits: make([]*redislog.Commit, 0, len(p.of)), Done: make(chan struct{})}
	b.Patient.Store(p.patient)
	commits := make([]redislog.Commit, len(p.of))
	for i := range p.of {
		o, c := &p.of[i], &commits[i]
		if from > 0 {
			_, o.also = p.Log.Pending(o.also, o.Records[o.from:from])
		}
		c.ID, c.Event, c.Idempotent, c.Also, c.Records = o.id, o.event, o.idempotent, o.also, o.Records[from:to]
		o.from = from
		if !c.Settled() {
			o.batch, o.commit = b, c
			b.Commits = append(b.Commits, c)
		}
	}
	if len(b.Commits) == 0 {
		return nil
	}
	return b
}

// forget says that the last batch was not sent.
func (p *publish) forget() {
	for i := range p.of {
		p.of[i].batch, p.of[i].commit = nil, nil
	}
}

// await waits until a batch is done. Meanwhile p counts as a caller.
func (p *publish) await(ctx context.Context, b *redislog.Batch) error {
	b.Callers.Add(1)
	defer b.Callers.Add(-1)
	err := p.wait(ctx, b.Done)
	select {
	case <-b.Done:
		return nil
	default:
		return err
	}
}

// wait waits for c, but no longer than the publish may take.
func (p *publish) wait(ctx context.Context, c <-chan struct{}) error {
	if p.late {
		return p.tooLate()
	}
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	case <-p.timeout:
		p.late = true
		return p.tooLate()
	}
}

// tooLate is the error of a publish whose time is over. It has the reason, if that is known.
func (p *publish) tooLate() error {
	err := redislog.Error(redislog.ErrUnavailable, fmt.Errorf("not published within %s", p.Timeout))
	if b := p.of[0].batch; b != nil {
		if last := b.Failing.Load(); last != nil {
			err = fmt.Errorf("%w: %w", err, *last)
		}
	}
	return err
}
