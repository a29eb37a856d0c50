package eventbus

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// PublishOptions is what [Bus.PublishWith] takes besides the event. Zero is the
// same as [Bus.Publish] without channels.
type PublishOptions struct {
	// Channels get the event besides its project's channel. The same channel
	// twice counts once.
	Channels []Channel
	// Idempotent says that this event may have been published before, perhaps
	// through another process: a log that has an event with this ID keeps its one
	// entry. The ID is remembered beside the log for 10 minutes; for an earlier
	// attempt that did not say Idempotent, the newest 1,000 entries are searched. That
	// costs Redis up to 2 ms for each log, where a plain publish costs 20 µs.
	// In a cluster, the event is appended to no log while one of them cannot be asked.
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
// is safe. (After nil, it would be in the logs twice: see [PublishOptions].) It also tells that
// the context ended, also while a command was on the wire; of one that had ended
// before, the cause is returned, and nothing was sent. [ErrClosed] is returned on a
// closed bus. It is safe for concurrent use; the events of one goroutine keep their order.
func (b *Bus) Publish(ctx context.Context, ev Event, channels ...Channel) error {
	_, err := b.submit(ctx, ev, PublishOptions{Channels: channels})
	return err
}

// PublishWith is [Bus.Publish] for who publishes an event that may have been published before
// (see [PublishOptions]), or wants the cursor behind it. With an error, the receipt is zero.
func (b *Bus) PublishWith(ctx context.Context, ev Event, opts PublishOptions) (Receipt, error) {
	p, err := b.submit(ctx, ev, opts)
	if err != nil {
		return Receipt{}, err
	}
	return p.receipt(), nil
}

// submit checks an event and publishes it.
func (b *Bus) submit(ctx context.Context, ev Event, opts PublishOptions) (*publication, error) {
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
	data := ev.appendJSON(nil)
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

// publish appends an event's JSON to the logs of channels.
func (b *Bus) publish(ctx context.Context, id string, data []byte, channels []Channel, idempotent bool) (*publication, error) {
	if !b.enter() {
		return nil, ErrClosed
	}
	defer b.leave()
	p := &publication{bus: b, id: id, again: b.doubted.take(id)}
	p.records, p.results = p.single.records[:], p.single.results[:]
	if len(channels) > 1 {
		p.records, p.results = make([]record, len(channels)), make([]appended, len(channels))
	}
	for i, c := range channels {
		r := &p.records[i]
		*r = record{name: b.log.name(c), kind: c.Kind(), event: data, id: id, idempotent: idempotent}
		switch {
		case p.again:
			r.look = lookAll
		case idempotent:
			r.look = lookIdempotent
		}
	}
	if err := p.run(ctx); err != nil {
		return nil, p.failed(channels, err)
	}
	return p, nil
}

const (
	lookIdempotent  = 1000 + commitRecords // how many entries an Idempotent publish searches, some of its own call
	lookAll         = 100_000              // how many a retry does; it ends sooner, where the first attempt began
	publishAttempts = 5
)

// A publication is one event on its way into the logs of its channels.
type publication struct {
	bus     *Bus
	id      string
	again   bool // an earlier publish of this event ended in doubt
	records []record
	results []appended // by record; without a position and error: not tried yet
	single  struct {   // room for them: mostly there is one
		records [1]record
		results [1]appended
	}
	first commit // room for one: mostly there is no other
}

// receipt tells what became of one that succeeded.
func (p *publication) receipt() Receipt {
	receipt, names := Receipt{ID: p.id, Repeated: true}, make([]string, len(p.records))
	for i := range p.results {
		receipt.Repeated = receipt.Repeated && p.results[i].again
		names[i] = p.records[i].name
	}
	key := newCursorKey(names)
	receipt.Cursor = Cursor{string(key.append(nil, func(i int) Position { return p.results[i].pos }))}
	return receipt
}

// run appends all records, trying again what may succeed later. Where channels need
// calls of their own, one comes after the other, the project's first, so that each
// entry can note where the event is already. Without the project's, there are no others.
// An event that may have been published before is looked for in all logs first, as the
// one call does where there is one: while a log cannot be asked, it is appended to none.
func (p *publication) run(ctx context.Context) error {
	var few [4]int
	all := few[:0]
	for i := range p.records {
		all = append(all, i)
	}
	if !p.bus.log.perChannel {
		return p.attempt(ctx, all, false) // one call, in which the project's is the first
	}
	if len(all) > 1 && p.records[0].look > 0 {
		if err := p.attempt(ctx, all, true); err != nil {
			return err
		}
	}
	var first error
	for i := range all {
		if p.results[i].done() {
			continue
		}
		err := p.attempt(ctx, all[i:i+1], false)
		if first == nil {
			first = err
		}
		if err != nil && (i == 0 || ctx.Err() != nil) {
			break
		}
	}
	return first
}

// notes says where the event is, as far as other calls than that for the i-th record have told.
func (p *publication) notes(i int) string {
	var notes []string
	add := func(note string) {
		if !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
	}
	for j := range p.results {
		if r := &p.results[j]; j != i && !r.pos.IsZero() {
			add(p.records[j].name + "@" + r.pos.String())
			for note := range strings.FieldsSeq(r.also) {
				add(note)
			}
		}
	}
	return strings.Join(notes, " ")
}

// attempt appends some records, or only looks for them. Where they share a call, it is repeated
// with all of them, also those that succeeded: a master that took over may lack these.
func (p *publication) attempt(ctx context.Context, records []int, only bool) error {
	var retry backoff
	var few [4]int
	pending := append(few[:0], records...)
	for attempts := 1; ; attempts++ {
		err := p.commit(ctx, pending, only)
		if err != nil {
			return err
		}
		var first error
		again := pending[:0]
		for _, i := range pending {
			r := p.results[i]
			if r.err == nil {
				continue
			}
			if first == nil {
				first = r.err
			}
			if errors.Is(r.err, ErrUnavailable) {
				again = append(again, i)
			}
		}
		if first == nil || len(again) == 0 || attempts == publishAttempts {
			return first
		}
		if !p.bus.log.perChannel {
			again = append(again[:0], records...)
			for _, i := range records {
				if !p.results[i].sure {
					p.records[i].look = lookAll
				}
			}
		}
		pending = again
		p.bus.stats.retries.Add(1)
		select {
		case <-retry.after():
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.bus.ctx.Done():
			return ErrClosed
		}
	}
}

// commit makes one attempt. The calls for several nodes are under way at the same time.
func (p *publication) commit(ctx context.Context, pending []int, only bool) (err error) {
	share := len(pending)
	if p.bus.log.perChannel {
		share = 1
	}
	type part struct {
		*commit
		queue *commitQueue
		of    []int
	}
	var few [4]part
	parts := few[:0]
	for of := range slices.Chunk(pending, share) {
		c := &p.first
		if c.done != nil {
			c = new(commit) // a worker can still have the first
		}
		c.done, c.records = make(chan struct{}), c.single[:0]
		for _, i := range of {
			p.records[i].only = only
			if p.bus.log.perChannel {
				p.records[i].also = p.notes(i)
			}
			c.records = append(c.records, p.records[i])
		}
		parts = append(parts, part{c, p.bus.commits.add(ctx, c), of})
	}
	for _, part := range parts {
		results, failed := part.queue.wait(ctx, p.bus.ctx, part.commit)
		if failed != nil {
			err = failed
		}
		for n, i := range part.of {
			if results[n].whole {
				results[n].pos = p.results[i].pos // as an earlier attempt has told
			}
			p.results[i] = results[n]
			if failed == nil {
				p.records[i].since = part.records[n].since
			}
			if r := &results[n]; r.err != nil && !r.sure && !only {
				p.records[i].look = lookAll // it may be there: from now on, look first
			}
		}
	}
	return err
}

// failed makes the error of what the results say.
func (p *publication) failed(channels []Channel, err error) error {
	e := &PublishError{ID: p.id, Err: err}
	for i, c := range channels {
		switch r := p.results[i]; {
		case !r.pos.IsZero():
			e.Done = append(e.Done, c)
		case (r.err == nil || r.sure) && p.records[i].look != lookAll:
			e.Missing = append(e.Missing, c)
		default:
			e.Unknown = append(e.Unknown, c)
		}
	}
	if len(e.Done)+len(e.Unknown) > 0 {
		p.bus.doubted.put(p.id)
	}
	return e
}

// The commits gather what is published at the same time into common calls. There
// is no delay: a worker that is free takes what there is, and what comes while
// all are on the wire goes together into the next call. Each node of a cluster has a
// queue and workers of its own, so that one that does not answer holds up nothing else.
type commits struct {
	bus *Bus

	mu     sync.Mutex // guards following
	queues map[string]*commitQueue
}

// A commitQueue is what is to go to one node.
type commitQueue struct {
	log  *redisLog
	wake chan struct{}

	mu      sync.Mutex // guards following
	waiting []*commit
}

// A commit is the part of a publication that is to go into one call.
type commit struct {
	records []record
	results []appended
	done    chan struct{} // closed when results are there
	single  [1]record     // room for records: mostly there is one
}

const (
	commitWorkers = 4
	commitRecords = 64      // in one call; with more, Redis and the publishers wait for each other
	commitBytes   = 1 << 20 // in one call, unless one record is longer
)

// queue gives the queue of a node.
func (cs *commits) queue(node string) *commitQueue {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if q := cs.queues[node]; q != nil {
		return q
	}
	q := &commitQueue{log: cs.bus.log, wake: make(chan struct{}, commitWorkers)}
	if cs.queues == nil {
		cs.queues = make(map[string]*commitQueue)
	}
	cs.queues[node] = q
	for range commitWorkers {
		cs.bus.spawn(func() { q.work(cs.bus.ctx) })
	}
	return q
}

// add queues a commit, whose records go to one node.
func (cs *commits) add(ctx context.Context, c *commit) *commitQueue {
	q := cs.queue(cs.bus.log.node(ctx, c.records[0].name))
	q.mu.Lock()
	q.waiting = append(q.waiting, c)
	q.mu.Unlock()
	signal(q.wake)
	return q
}

// wait gives a commit's results; with an error, they say why there are none.
func (q *commitQueue) wait(ctx, bus context.Context, c *commit) ([]appended, error) {
	failed := appended{err: ErrClosed, whole: true}
	select {
	case <-c.done:
		return c.results, nil
	case <-ctx.Done():
		failed.err = context.Cause(ctx)
	case <-bus.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.waiting, c); i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
		failed.sure = true // no worker has taken it up
	} else if isClosed(c.done) {
		return c.results, nil
	}
	return slices.Repeat([]appended{failed}, len(c.records)), failed.err
}

// work makes calls until the bus is closed.
func (q *commitQueue) work(ctx context.Context) {
	for {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
		for {
			for n := -1; n < q.length(); { // as long as it brings more
				n = q.length()
				runtime.Gosched()
			}
			batch := q.take()
			if len(batch) == 0 {
				break
			}
			q.call(ctx, batch)
		}
	}
}

func (q *commitQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// take gives what fits into one call.
func (q *commitQueue) take() []*commit {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, records, bytes := 0, 0, 0
	for _, c := range q.waiting {
		records += len(c.records)
		for i := range c.records {
			bytes += len(c.records[i].event)
		}
		if n > 0 && (records > commitRecords || bytes > commitBytes) {
			signal(q.wake) // for another worker
			break
		}
		n++
	}
	batch := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return batch
}

// call appends a batch in one round trip, with a call for each channel where they cannot
// share one.
func (q *commitQueue) call(ctx context.Context, batch []*commit) {
	var parts [][]*commit // by call
	index := make(map[string]int, 1)
	for _, c := range batch {
		name := ""
		if q.log.perChannel {
			name = c.records[0].name // there is no other in it, then
		}
		i, ok := index[name]
		if !ok {
			i = len(parts)
			index[name] = i
			parts = append(parts, nil)
		}
		parts[i] = append(parts[i], c)
	}
	calls := make([][]*record, len(parts))
	for i, commits := range parts {
		for _, c := range commits {
			for n := range c.records {
				calls[i] = append(calls[i], &c.records[n])
			}
		}
	}
	for i, results := range q.log.append(ctx, calls) {
		for _, c := range parts[i] {
			c.results = results[:len(c.records):len(c.records)]
			results = results[len(c.records):]
			close(c.done)
		}
	}
}

// A doubtSet remembers the ids of events whose publish ended without certainty,
// so that publishing them again looks for what is there already.
type doubtSet struct {
	mu    sync.Mutex // guards following
	since map[string]time.Time
}

const (
	doubtedIDs = 4096
	doubtedFor = 10 * time.Minute
)

func (d *doubtSet) put(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since == nil {
		d.since = make(map[string]time.Time)
	}
	if len(d.since) >= doubtedIDs {
		for id, t := range d.since {
			if time.Since(t) > doubtedFor || len(d.since) >= doubtedIDs {
				delete(d.since, id)
			}
		}
	}
	d.since[id] = time.Now()
}

// take tells whether the id was put, and forgets it.
func (d *doubtSet) take(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.since[id]
	if ok {
		delete(d.since, id)
	}
	return ok && time.Since(t) <= doubtedFor
}
