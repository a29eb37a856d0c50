package eventbus

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
)

// PublishOptions is what [Bus.PublishWith] takes besides the event. Zero is the
// same as [Bus.Publish] without channels.
type PublishOptions struct {
	// Channels get the event besides its project's channel; at most 31, see [WithMaxChannels].
	// The same channel twice counts once.
	Channels []Channel
	// Idempotent says that this event may be published more than once, by this process or
	// another: a log that has got an event with this ID by an Idempotent publish in the last 10
	// minutes does not get it again. Every attempt must say so, the first included. The ID is
	// remembered beside the log, whatever becomes of its entries; in upper case, a UUID is the
	// same one. While a cluster moves a slot, Idempotent publishes to its channels can wait.
	Idempotent bool
}

// A Receipt tells what became of a publish that succeeded.
type Receipt struct {
	// ID is the event's.
	ID string
	// Cursor is the place right behind the event in every channel that it was
	// published to: a subscription that resumes from it gets what follows.
	Cursor Cursor
	// Repeated says that every log had the event already.
	Repeated bool
}

// Publish appends the event to the log of its project's channel and of the given
// ones, and sends it to all who listen. It returns nil when it is in every one of
// these logs. Concurrent publishes share calls to Redis.
//
// A [*ValidationError] or [ErrTooLarge] says that nothing was sent. A
// [*PublishError] says which logs have the event; publishing the same event again
// is safe. (After nil, it would be in the logs twice: see [PublishOptions].) A PublishError is also
// returned when the context ends, or the time of [WithPublishTimeout]. Then what is on the wire goes
// on: the bus repeats it until Redis answers, for 10 minutes at most, and the event may still come
// into its logs. If the context had ended before the call, its cause is returned, and nothing was
// sent. [ErrClosed] is returned on a closed bus.
//
// It is safe for concurrent use. The events of one goroutine keep their order. After an error, later
// events may come before or after that one.
func (b *Bus) Publish(ctx context.Context, ev Event, channels ...Channel) error {
	_, err := b.submit(ctx, ev, PublishOptions{Channels: channels})
	return err
}

// PublishWith is [Bus.Publish] for a caller that publishes an event that may have been published
// before (see [PublishOptions]), or that wants the cursor behind it. With an error, the receipt is zero.
func (b *Bus) PublishWith(ctx context.Context, ev Event, opts PublishOptions) (Receipt, error) {
	p, err := b.submit(ctx, ev, opts)
	if err != nil {
		return Receipt{}, err
	}
	return p.receipt(), nil
}

// submit checks an event and publishes it.
func (b *Bus) submit(ctx context.Context, ev Event, opts PublishOptions) (*publication, error) {
	if err := b.made(); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := ev.Validate(); err != nil {
		return nil, err
	}
	channels := []Channel{ProjectChannel(ev.ProjectID)}
	if len(opts.Channels) > 0 {
		channels = distinct(append(channels, opts.Channels...))
	}
	for i, c := range opts.Channels {
		if err := c.check(fmt.Sprintf("channels[%d]", i)); err != nil {
			return nil, err
		}
	}
	if len(channels) > b.options.maxChannels {
		b.stats.refusedChannels.Add(1)
		return nil, invalid("publish", "channels", "has %d channels, more than %d", len(channels), b.options.maxChannels)
	}
	data := ev.wire().AppendJSON(nil)
	if len(data) > b.options.maxEventSize {
		b.stats.refusedEventSize.Add(1)
		return nil, fmt.Errorf("eventbus: publish: %w: it has %d bytes, more than %d", ErrTooLarge, len(data), b.options.maxEventSize)
	}
	p, err := b.publish(ctx, ev.ID, data, channels, opts.Idempotent)
	if err == nil {
		b.stats.published.Add(1)
	}
	return p, err
}

// A publication is one event on its way into the logs of its channels.
type publication struct {
	bus        *Bus
	id         string
	event      []byte
	idempotent bool
	channels   []Channel
	records    []redislog.Record // of the channels, in their order
	single     [1]redislog.Record
	timeout    <-chan time.Time
	late       bool // the time is over

	commit *redislog.Commit // the part of the records that is, or was, under way
	from   int              // where in records it begins
	behind bool             // an earlier publish of the event has to end first
}

// publish appends an event's JSON to the logs of channels.
func (b *Bus) publish(ctx context.Context, id string, data []byte, channels []Channel, idempotent bool) (*publication, error) {
	if !b.enter() {
		return nil, ErrClosed
	}
	defer b.leave()
	timeout := time.NewTimer(b.options.publishTimeout)
	defer timeout.Stop()
	p := &publication{bus: b, id: id, event: data, idempotent: idempotent, channels: channels, timeout: timeout.C}
	p.records = p.single[:]
	if len(channels) > 1 {
		p.records = make([]redislog.Record, len(channels))
	}
	mark := position.Fingerprint(id)
	for i, c := range channels {
		p.records[i] = redislog.Record{Channel: c.String(), Mark: mark}
	}
	err := p.run(ctx)
	if err == nil {
		return p, nil
	}
	e := p.failed(err)
	if len(e.Done)+len(e.Unknown) > 0 && !p.behind {
		p.event = nil // the commit has it, as long as it is under way
		b.outcomes.put(p)
	}
	return nil, e
}

// run brings the event into its logs.
func (p *publication) run(ctx context.Context) error {
	o := p.bus.outcomes.get(p.id)
	if o == nil {
		return p.commitAll(ctx)
	}
	p.behind = true
	if err := p.wait(ctx, o.turn); err != nil {
		return err
	}
	defer func() { o.turn <- struct{}{} }()
	if now := p.bus.outcomes.get(p.id); now != nil && now != o {
		return p.run(ctx) // it was forgotten meanwhile, and the event has failed again
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
		p.bus.outcomes.drop(o)
	}
	return err
}

// recall takes what is known from earlier publishes of the event. The logs that have it come first,
// so that the entries in the others note them.
func (p *publication) recall(known map[string]position.Position) {
	records, channels := slices.Clone(p.records), slices.Clone(p.channels)
	n := 0
	for _, have := range []bool{true, false} {
		for i, r := range records {
			pos, ok := known[r.Channel]
			if ok != have {
				continue
			}
			r.Pos, r.Again = pos, ok
			p.records[n], p.channels[n] = r, channels[i]
			n++
		}
	}
}

// commitAll makes the commits that are needed. Where channels need calls of their own, one comes
// after the other, so that each entry can note where the event is already.
func (p *publication) commitAll(ctx context.Context) error {
	share := len(p.records)
	if p.bus.log.PerChannel {
		share = 1
	}
	also := ""
	for i := 0; i < len(p.records); i += share {
		c := &redislog.Commit{
			ID: p.id, Event: p.event, Idempotent: p.idempotent, Also: also,
			Records: p.records[i : i+share], Done: make(chan struct{}),
		}
		if !c.Settled() {
			p.commit, p.from = c, i
			c.Callers.Add(1)
			queue := p.bus.commits.add(ctx, c)
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
		_, also = c.Pending(p.bus.log)
	}
	return nil
}

// await waits, for q, until it is known what became of the commit that is under way.
func (p *publication) await(ctx context.Context, q *publication) error {
	if p.commit == nil {
		return nil
	}
	p.commit.Callers.Add(1)
	defer p.commit.Callers.Add(-1)
	err := q.wait(ctx, p.commit.Done)
	if isClosed(p.commit.Done) {
		return nil
	}
	return err
}

// wait waits for something, as long as the publish may take.
func (p *publication) wait(ctx context.Context, c <-chan struct{}) error {
	if p.late {
		return p.tooLate()
	}
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.bus.ctx.Done():
		return ErrClosed
	case <-p.timeout:
		p.late = true
		return p.tooLate()
	}
}

// tooLate says why, if that is known.
func (p *publication) tooLate() error {
	err := fmt.Errorf("%w: not published within %s", ErrUnavailable, p.bus.options.publishTimeout)
	if p.commit != nil {
		if last := p.commit.Failing.Load(); last != nil {
			err = fmt.Errorf("%w: %w", err, *last)
		}
	}
	return err
}

// failed makes the error of what is known.
func (p *publication) failed(err error) *PublishError {
	e := &PublishError{ID: p.id, Err: err}
	if p.bus.isClosed() {
		e.Err = ErrClosed
	}
	under := p.commit != nil && !isClosed(p.commit.Done)
	for i, c := range p.channels {
		switch r := &p.records[i]; {
		case p.behind || under && i >= p.from && i < p.from+len(p.commit.Records):
			e.Unknown = append(e.Unknown, c)
		case !r.Pos.IsZero():
			e.Done = append(e.Done, c)
		case r.Err == nil || r.Sure:
			e.Missing = append(e.Missing, c)
		default:
			e.Unknown = append(e.Unknown, c)
		}
	}
	return e
}

// receipt tells what became of one that succeeded.
func (p *publication) receipt() Receipt {
	receipt, names := Receipt{ID: p.id, Repeated: true}, make([]string, len(p.records))
	for i := range p.records {
		receipt.Repeated = receipt.Repeated && p.records[i].Again
		names[i] = p.bus.log.Name(p.records[i].Channel)
	}
	key := position.NewKey(names)
	receipt.Cursor = Cursor{string(key.Append(nil, func(i int) position.Position { return p.records[i].Pos }))}
	return receipt
}
