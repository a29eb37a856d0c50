package eventbus

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/commit"
	"github.com/syndarix/eventbus/internal/position"
)

// PublishOptions are for [Bus.PublishWith]. With the zero value it does what [Bus.Publish] does
// without channels.
type PublishOptions struct {
	// Channels get the event, as does its project's channel. There are at most 31, see
	// [WithMaxChannels]. The same channel twice counts once.
	Channels []Channel
	// NoProject leaves the project's channel out: the event goes to Channels alone. This is for the
	// tokens of a run, which only the readers of the run want.
	NoProject bool
	// Ends lists channels, out of Channels, that end with this event. Later publishes to them fail with
	// [ErrEnded], and subscriptions that follow them end. The project's channel cannot end. When the log
	// is dropped (see [WithRetention]), the channel is open again.
	Ends []Channel
	// Idempotent says that this event may be published more than once, by this process or another.
	// A log that has got the event by an Idempotent publish in the last 10 minutes does not get it
	// again, not even where it has trimmed the entry. Every attempt must say so, also the first. The
	// case of a UUID does not matter. While a cluster moves a slot, Idempotent publishes to its
	// channels can wait.
	Idempotent bool
}

// A Receipt says what became of a publish that has succeeded.
type Receipt struct {
	// ID is the event's.
	ID string
	// Cursor is the place right behind the event in every channel that it was published to. A
	// subscription that resumes from it gets what follows.
	Cursor Cursor
	// Repeated says that every log had the event already.
	Repeated bool
}

// Publish appends the event to the log of its project's channel, and to the logs of the
// given channels, and sends it to all that listen. It returns nil when the event is in every one of
// these logs. Concurrent publishes share calls to Redis.
//
// A [*ValidationError] or a [*LimitError] says that nothing was sent. So does the context's cause,
// if the context had ended before the call, and [ErrClosed] on a closed bus.
//
// A [*PublishError] says which logs have the event. It is safe to publish the same event again
// then. (After nil, do not publish it again: it would be in the logs twice.) A PublishError also
// comes when the context ends, or the time of [WithPublishTimeout] is over. A call that is on the
// wire goes on then: the bus repeats it until Redis answers, for 10 minutes at most, so the event
// may still come into its logs.
//
// Publish is safe for concurrent use. The events of one goroutine keep their order. After an error,
// the goroutine's later events may come before or after that one.
func (b *Bus) Publish(ctx context.Context, ev Event, channels ...Channel) error {
	_, err := b.submit(ctx, ev, PublishOptions{Channels: channels})
	return err
}

// PublishWith is [Bus.Publish] with options. It returns the cursor behind the event. With an error,
// the receipt is zero.
func (b *Bus) PublishWith(ctx context.Context, ev Event, opts PublishOptions) (Receipt, error) {
	p, err := b.submit(ctx, ev, opts)
	if err != nil {
		return Receipt{}, err
	}
	receipt := Receipt{ID: ev.ID, Cursor: b.cursorBehind(p), Repeated: true}
	for _, r := range p.Records {
		receipt.Repeated = receipt.Repeated && r.Again
	}
	return receipt, nil
}

// cursorBehind gives the cursor right behind a publication that has succeeded.
func (b *Bus) cursorBehind(p *commit.Publication) Cursor {
	names := make([]string, len(p.Records))
	for i, r := range p.Records {
		names[i] = b.log.Name(r.Channel)
	}
	return Cursor{string(position.NewKey(names).Append(nil, func(i int) position.Position { return p.Records[i].Pos }))}
}

// submit checks an event and publishes it.
func (b *Bus) submit(ctx context.Context, ev Event, opts PublishOptions) (*commit.Publication, error) {
	if err := b.made(); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := ev.Validate(); err != nil {
		return nil, err
	}
	channels, err := opts.channels(ev.ProjectID)
	if err != nil {
		return nil, err
	}
	data, err := b.encode(&ev, channels)
	if err != nil {
		return nil, err
	}
	p, err := b.publish(ctx, commit.Event{
		ID: ev.ID, JSON: data, Channels: channelTexts(channels), Ends: channelTexts(opts.Ends), Idempotent: opts.Idempotent,
	}, channels)
	if err == nil {
		b.stats.published.Add(1)
	}
	return p, err
}

// channels gives the channels of an event, in the order in which its logs are written.
func (o *PublishOptions) channels(project uuid.UUID) (channels []Channel, err error) {
	for i, c := range o.Channels {
		if err := c.check(fmt.Sprintf("channels[%d]", i)); err != nil {
			return nil, err
		}
	}
	for i, c := range o.Ends {
		field := fmt.Sprintf("ends[%d]", i)
		if err := c.check(field); err != nil {
			return nil, err
		}
		switch {
		case c.kind == ProjectKind:
			return nil, invalid("publish", field, "is a project's channel, which cannot end")
		case !slices.Contains(o.Channels, c):
			return nil, invalid("publish", field, "%s is not one of the channels", c)
		}
	}
	switch {
	case !o.NoProject:
		channels = []Channel{ProjectChannel(project)}
	case len(o.Channels) == 0:
		return nil, invalid("publish", "channels", "is empty, and the project's channel is left out")
	}
	if len(o.Channels) > 0 {
		channels = distinct(append(channels, o.Channels...))
	}
	return channels, nil
}

// encode gives the JSON of an event for these channels, if both are within the limits.
func (b *Bus) encode(ev *Event, channels []Channel) ([]byte, error) {
	if len(channels) > b.options.maxChannels {
		b.stats.refusedChannels.Add(1)
		return nil, &LimitError{LimitChannels, len(channels), b.options.maxChannels}
	}
	data := ev.wire().AppendJSON(nil)
	if len(data) > b.options.maxEventSize {
		b.stats.refusedEventSize.Add(1)
		return nil, &LimitError{LimitEventSize, len(data), b.options.maxEventSize}
	}
	return data, nil
}

// publish brings an event into the logs of channels.
func (b *Bus) publish(ctx context.Context, ev commit.Event, channels []Channel) (*commit.Publication, error) {
	if !b.enter() {
		return nil, ErrClosed
	}
	defer b.leave()
	p, err := b.commits.Publish(ctx, ev)
	if err == nil {
		return p, nil
	}
	e := &PublishError{ID: ev.ID, Err: err}
	for i := range p.Records { // the rest of a record is the committer's, while it is under way
		c := channels[slices.Index(ev.Channels, p.Records[i].Channel)]
		switch p.Fates[i] {
		case commit.Done:
			e.Done = append(e.Done, c)
		case commit.Missing:
			e.Missing = append(e.Missing, c)
		default:
			e.Unknown = append(e.Unknown, c)
		}
	}
	return nil, e
}
