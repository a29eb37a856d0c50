package eventbus

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"path"
	"slices"
	"time"

	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/reader"
)

// A Subscription says what is to be read. Only Channels is required; with the
// other fields zero it begins now and takes all types.
type Subscription struct {
	// Channels to read; at most 32, see [WithMaxChannels]. The same channel
	// twice counts once.
	Channels []Channel
	// Types are globs such as "agent.*" as [path.Match] takes them; an event
	// whose type matches none is left out. None at all means all types. At most 32,
	// of 128 bytes each.
	Types []string
	// After is the cursor to resume from; the zero Cursor begins now, see Oldest for the
	// beginning. A channel that it does not cover begins now; channels that it covers and the subscription does not have
	// are ignored.
	After Cursor
	// Oldest begins with the oldest event of each log. It cannot be combined with After.
	Oldest bool
	// LastEventID resumes from what an SSE client sends: a cursor, the id of an
	// event that is still in a log of one of the channels, or the position of one
	// when there is one channel. Anything else is a gap with [GapUnknown] in every
	// channel. It takes precedence over After; [Bus.Handler] sets it from the request,
	// where the header takes precedence over the query.
	LastEventID string
	// Identity says who reads, in whatever way the program tells its users apart.
	// [WithMaxPerIdentity] limits how many subscriptions each may have open, and
	// [Bus.Revoke] ends them. Without one, neither applies. At most 1,024 bytes; it
	// leaves the process only as a SHA-256 hash.
	Identity string
	// ValidUntil is, for [Bus.Handler], the time at which authorize is called
	// again at the latest; zero means at keepalives.
	ValidUntil time.Time
}

const maxIdentity = 1024

// check refuses a subscription that cannot be read.
func (s *Subscription) check(o *options) error {
	p := problems{subject: "subscription"}
	if len(s.Channels) == 0 {
		p.Add("channels", "is empty")
	}
	for i, c := range s.Channels {
		if problem := c.problem(); problem != "" {
			p.Add(fmt.Sprintf("channels[%d]", i), "%s", problem)
		}
	}
	s.Channels = distinct(s.Channels)
	if len(s.Types) > reader.MaxGlobs {
		p.Add("types", "has %d globs, more than %d", len(s.Types), reader.MaxGlobs)
	}
	for i, t := range s.Types {
		if len(t) > reader.MaxGlobLength {
			p.Add(fmt.Sprintf("types[%d]", i), "has %d bytes, more than %d", len(t), reader.MaxGlobLength)
		} else if _, err := path.Match(t, ""); err != nil || t == "" {
			p.Add(fmt.Sprintf("types[%d]", i), "%s is not a glob", rawjson.Excerpt(t))
		}
	}
	if len(s.Identity) > maxIdentity {
		p.Add("identity", "has %d bytes, more than %d", len(s.Identity), maxIdentity)
	}
	if s.Oldest && !s.After.IsZero() {
		p.Add("oldest", "and after are both set")
	}
	if err := p.err(); err != nil {
		return err
	}
	if len(s.Channels) > o.maxChannels {
		return &LimitError{LimitChannels, len(s.Channels), o.maxChannels}
	}
	return nil
}

// distinct leaves out channels that are there before.
func distinct(channels []Channel) []Channel {
	var out []Channel
	for _, c := range channels {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// Subscribe walks the events of channels from now on:
//
//	for ev, err := range bus.Subscribe(ctx, eventbus.ProjectChannel(id)) {
//		var gap *eventbus.GapError
//		switch {
//		case errors.As(err, &gap):
//			reload(gap.Channel) // events are missing here; the walk goes on
//		case err != nil:
//			return err // the last pair: why the walk has ended
//		default:
//			show(ev)
//		}
//	}
//
// Within a channel events come in the order of its log, each once, also where it
// was published to several of the channels. Nothing happens before the range
// begins; "now" is then. The walk is endless: a gap is the one error after which it goes on;
// any other is the last: the cause of the context's end, [ErrClosed], [ErrRevoked], a
// [*LimitError], or a [*ValidationError] for the channels. It outlasts a Redis that is away. A loop
// body that takes its time delays nobody else, and costs no memory: it is behind,
// and reads from the log what it has missed.
//
// The iterator is for one goroutine; ranging over it again begins again, at the
// then present end.
func (b *Bus) Subscribe(ctx context.Context, channels ...Channel) iter.Seq2[Event, error] {
	return b.SubscribeWith(ctx, Subscription{Channels: channels})
}

// SubscribeWith is [Bus.Subscribe] for everything that a [Subscription] can say.
func (b *Bus) SubscribeWith(ctx context.Context, sub Subscription) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r, err := b.open(ctx, sub)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer r.close()
		defer r.WakeOn(ctx)()
		for {
			st, err := r.Next(ctx, true)
			if err != nil {
				yield(Event{}, err)
				return
			}
			if st.Gap != nil && !yield(Event{}, r.gapError(st.Gap)) {
				return
			}
			for found, cursor := range r.Events(st) {
				ev := eventOf(&found)
				ev.Payload, ev.Channel, ev.Cursor = bytes.Clone(ev.Payload), r.channels[st.Channel], Cursor{cursor}
				if !yield(ev, nil) {
					return
				}
			}
		}
	}
}
