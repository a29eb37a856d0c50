package commit

import (
	"context"
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
	id         string
	event      []byte
	idempotent bool
	Records    []redislog.Record // one for each channel; first those whose logs have the event

	batch  *redislog.Batch  // has the commit that is, or was, under way
	commit *redislog.Commit // its records are a part of Records
	from   int              // where in Records that part begins
	also   string           // where the event is in the logs before that part
	behind bool             // an earlier publish of the event has to end before this one begins
	Fates  []Fate           // one for each record, after an error
}

// Publish appends an event to its logs. The publication says what became of the event in each log,
// also after an error.
func (cs *Committer) Publish(ctx context.Context, ev Event) (*Publication, error) {
	timeout := time.NewTimer(cs.Timeout)
	defer timeout.Stop()
	p := cs.begin([]Event{ev})
	p.timeout = timeout.C
	err := p.run(ctx)
	return &p.of[0], err
}

// PublishBatch appends the first ones of some events to their logs, as many as one batch takes, and
// waits as long as Redis can be expected to come back. The logs have them in this order, and where
// one is missing after an error, so are those behind it. The publications say what became of them.
func (cs *Committer) PublishBatch(ctx context.Context, evs []Event) ([]Publication, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	p := cs.begin(evs[:cs.fit(evs)])
	p.patient = true
	err := p.run(ctx)
	return p.of, err
}

// fit is how many events go into one batch: they go to the same channels and fit into one call. One
// that was published before, with an error, goes alone, as it may be in some of its logs.
func (cs *Committer) fit(evs []Event) int {
	records, bytes := cs.share(len(evs[0].Channels)), 0
	for i, ev := range evs {
		bytes += len(ev.JSON)
		known := cs.outcomes.get(ev.ID) != nil
		if i > 0 && (known || (i+1)*records > batchRecords || bytes > commitBytes || !slices.Equal(ev.Channels, evs[0].Channels)) {
			return i
		}
		if known {
			return 1
		}
	}
	return len(evs)
}

// share is how many of an event's records can share a call.
func (cs *Committer) share(records int) int {
	if cs.Log.PerChannel {
		return 1
	}
	return records
}

// begin makes the publications of events with the same channels.
func (cs *Committer) begin(evs []Event) *publish {
	p := &publish{Committer: cs, of: make([]Publication, len(evs))}
	n := len(evs[0].Channels)
	records := make([]redislog.Record, n*len(evs))
	for i, ev := range evs {
		own := records[i*n : (i+1)*n : (i+1)*n]
		mark := position.Fingerprint(ev.ID)
		for k, c := range ev.Channels {
			own[k] = redislog.Record{Channel: c, Final: slices.Contains(ev.Ends, c), Fingerprint: mark}
		}
		p.of[i] = Publication{id: ev.ID, event: ev.JSON, idempotent: ev.Idempotent, Records: own}
	}
	return p
}

// A Fate is what is known of an event in one log after its publish has failed.
type Fate int

const (
	Unknown Fate = iota // the log may have the event, now or later
	Done                // the log has the event
	Missing             // the log certainly does not have the event
)

// judge enters the fates, and reports whether any log may have the event.
func (p *Publication) judge() (known bool) {
	p.Fates = make([]Fate, len(p.Records))
	open := p.commit != nil && !p.commit.Closed()
	for i := range p.Records {
		p.Fates[i] = p.fateOf(i, open)
		known = known || p.Fates[i] != Missing
	}
	return known
}

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

// Everywhere reports whether every log has the event, after an error.
func (p *Publication) Everywhere() bool {
	return !slices.ContainsFunc(p.Fates, func(f Fate) bool { return f != Done })
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
