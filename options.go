package eventbus

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/redislog"
)

// An Option changes a bus that [New] makes.
type Option func(*options)

// options are what New works with.
type options struct {
	prefix       string
	retention    Retention
	retentionOf  map[ChannelKind]Retention
	maxLogBytes  int
	maxEventSize int
	maxChannels  int

	maxSubscribers int
	maxPerIdentity int

	publishTimeout time.Duration

	freshness  time.Duration
	sharded    bool
	foreignLog bool
	logger     *slog.Logger
}

func defaults() options {
	return options{
		retention:    Retention{Events: 10_000, Age: 24 * time.Hour},
		retentionOf:  map[ChannelKind]Retention{},
		maxLogBytes:  64 << 20,
		maxEventSize: 256 << 10,
		maxChannels:  32,

		maxSubscribers: 100_000,
		maxPerIdentity: 100,

		publishTimeout: 5 * time.Second,

		freshness: 10 * time.Second,
		logger:    slog.Default(),
	}
}

// Retention says what a log keeps for readers to come back to.
type Retention struct {
	// Events is how many of the newest events are kept. Redis trims whole nodes of a stream, so
	// about 100 more may be there. 0 keeps all of them.
	Events int
	// Age is how long after its last event, or its last listener, a log is dropped as a whole. How
	// old its events are does not matter. It counts in whole milliseconds. 0 keeps a log for ever,
	// once it has had an event. An empty log is dropped an hour after its last listener, or after
	// Age if that is shorter and not 0.
	Age time.Duration
}

// WithPrefix puts text in front of every channel's name in Redis, so that several buses can share
// one server. Buses with the same prefix, or without one, share all their channels. The default is
// none. A prefix has at most 64 printable ASCII characters, without blanks, braces, bars, quotes
// and backslashes. Anything else is an error of [New].
func WithPrefix(prefix string) Option { return func(o *options) { o.prefix = prefix } }

// WithRetention sets what every log keeps, but for the kinds named in [WithChannelRetention]. The
// default is 10,000 events, and 24 hours after the last use. A zero field of r is no bound: it is
// not the default. So Retention{Events: 500} never drops a log. Negative numbers are an error of
// [New]. So is an age below [WithFreshness], because a listener renews a log's life only that
// often. Where processes have different settings, the longest age counts, and the smallest number
// of events.
func WithRetention(r Retention) Option { return func(o *options) { o.retention = r } }

// WithChannelRetention sets what the logs of one kind of channel keep.
func WithChannelRetention(kind ChannelKind, r Retention) Option {
	return func(o *options) { o.retentionOf[kind] = r }
}

// WithMaxLogBytes sets how many bytes of events a log keeps, for all kinds of channel. The bytes of
// JSON are counted as they are appended. A log can have a sixteenth more, and what Redis keeps in
// whole nodes of a stream. The newest event always stays. A reader that had not read the events that
// are trimmed gets a gap. The default is 64 MiB; 0 is no bound. A negative number is an error of [New].
func WithMaxLogBytes(n int) Option { return func(o *options) { o.maxLogBytes = n } }

// WithPublishTimeout sets how long a publish waits for Redis at most, even if its context allows
// more. Then it returns a [*PublishError] that wraps [ErrUnavailable]. If Redis cannot be reached,
// or refuses for now, the publish fails after half of that time: then the event certainly was not
// written. The default is 5s. Less than 10ms is an error of [New].
func WithPublishTimeout(d time.Duration) Option { return func(o *options) { o.publishTimeout = d } }

// WithMaxEventSize sets the size of the largest event that may be published, in bytes of its JSON,
// and of the largest message of a foreign publisher. A larger event gets a [*LimitError]. A larger
// message is skipped, and counted in Stats.Unreadable. The default is 256 KiB. Less than 1 KiB, or
// more than 64 MiB, is an error of [New].
func WithMaxEventSize(bytes int) Option { return func(o *options) { o.maxEventSize = bytes } }

// WithMaxChannels sets how many channels a subscription may have, and a publish, which counts its
// project's. More get a [*LimitError]. The default is 32. Less than 1, or more than 40, is an error
// of [New]: a cursor covers all of them, and must fit into a header.
func WithMaxChannels(n int) Option { return func(o *options) { o.maxChannels = n } }

// WithMaxSubscribers sets how many subscriptions may be open in this process at once. One more gets
// a [*LimitError]. [Bus.Handler] answers as when Redis is away: come back later. The default is
// 100,000. Less than 1 is an error of [New].
func WithMaxSubscribers(n int) Option { return func(o *options) { o.maxSubscribers = n } }

// WithMaxPerIdentity sets how many subscriptions with the same [Subscription].Identity may be open
// in this process at once. One more gets a [*LimitError]. [Bus.Handler] tells an EventSource to
// come back later, and answers other clients with 429. The default is 100. Less than 1 is an error
// of [New].
func WithMaxPerIdentity(n int) Option { return func(o *options) { o.maxPerIdentity = n } }

// WithFreshness sets for how long the bus may be unable to keep subscribers fresh before
// [Bus.Health] fails. The bus checks its connections, and compares what it has with the logs, often
// enough to notice within this time. The default is 10s. Less than 100ms, or more than 1h, is an
// error of [New].
func WithFreshness(d time.Duration) Option { return func(o *options) { o.freshness = d } }

// WithShardedPubSub sends events over the sharded channels of Redis 7 (SPUBLISH and SSUBSCRIBE). In
// a cluster a message then stays on the node that has the log, where a plain one goes to all nodes.
// All buses on one Redis must agree on it. Programs that use plain PUBLISH and SUBSCRIBE are no
// longer heard, and hear nothing. The default is plain Pub/Sub. [New] returns an error that wraps
// [ErrUnsupported] where the server or the client cannot do it.
func WithShardedPubSub() Option { return func(o *options) { o.sharded = true } }

// WithForeignLog puts the events of foreign publishers into the log. Those are programs that only
// do PUBLISH <channel> '{event}', without a position. Such an event is then delivered like any
// other: once, in the order of its channel's log, with a position and a cursor. A subscriber that
// comes back later gets it, too. Without the option it is in no log, and comes live only.
//
// A bus hears the channels that it has subscriptions to, and all of some kinds with [Bus.Relay].
// What no bus hears is lost. All buses on one Redis should agree on the option.
//
//   - An event comes into the log of a channel once, however many buses hear it. That goes by its
//     ID, for 10 minutes: a message with the same ID on the same channel is dropped within that
//     time, whatever else it says. An ID has 1 to 128 bytes.
//   - An event that is sent to several channels of a subscription, with the same ID, is delivered
//     once. In a cluster it can come twice where one of the buses that hear it hears only some of
//     these channels.
//   - The member "final": true says that the channel ends with the event, as [PublishOptions].Ends
//     does. On a project's channel it says nothing. A message on a channel that has ended is
//     dropped.
//
// What Redis refuses for now is tried again in order, for 10 minutes and within 64 MiB. If that
// takes longer than [WithFreshness] says, [Bus.Health] fails. What cannot come into its log is
// counted in Stats.Unreadable, and a warning says why.
func WithForeignLog() Option { return func(o *options) { o.foreignLog = true } }

// WithLogger sets where the bus logs what needs attention. The default is
// [slog.Default], as it is when [New] is called. Payloads and credentials are never logged.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

func (o *options) check() error {
	bad := func(option, format string, args ...any) error {
		return fmt.Errorf("eventbus: new: %s: %s", option, fmt.Sprintf(format, args...))
	}
	if len(o.prefix) > 64 || strings.ContainsFunc(o.prefix, func(r rune) bool { return r <= ' ' || r >= 0x7F || strings.ContainsRune(`{}|"\`, r) }) {
		return bad("WithPrefix", "%s must be at most 64 printable ASCII characters without blanks, braces, bars, quotes and backslashes", rawjson.Excerpt(o.prefix))
	}
	for kind, r := range o.retentionOf {
		if problem := kind.problem(); problem != "" {
			return bad("WithChannelRetention", "the kind %s", problem)
		}
		if r.Events < 0 || r.Age < 0 {
			return bad("WithChannelRetention", "%v is negative", r)
		}
		if r.Age > 0 && r.Age < o.freshness {
			return bad("WithChannelRetention", "the age %s is less than the %s of WithFreshness", r.Age, o.freshness)
		}
	}
	switch {
	case o.retention.Events < 0 || o.retention.Age < 0:
		return bad("WithRetention", "%v is negative", o.retention)
	case o.retention.Age > 0 && o.retention.Age < o.freshness:
		return bad("WithRetention", "the age %s is less than the %s of WithFreshness", o.retention.Age, o.freshness)
	case o.maxLogBytes < 0:
		return bad("WithMaxLogBytes", "%d is negative", o.maxLogBytes)
	case o.maxEventSize < 1<<10 || o.maxEventSize > 64<<20:
		return bad("WithMaxEventSize", "%d is not between 1 KiB and 64 MiB", o.maxEventSize)
	case o.maxChannels < 1 || o.maxChannels > 40:
		return bad("WithMaxChannels", "%d is not between 1 and 40", o.maxChannels)
	case o.maxSubscribers < 1:
		return bad("WithMaxSubscribers", "%d is less than 1", o.maxSubscribers)
	case o.maxPerIdentity < 1:
		return bad("WithMaxPerIdentity", "%d is less than 1", o.maxPerIdentity)
	case o.publishTimeout < 10*time.Millisecond:
		return bad("WithPublishTimeout", "%s is less than 10ms", o.publishTimeout)
	case o.freshness < 100*time.Millisecond || o.freshness > time.Hour:
		return bad("WithFreshness", "%s is not between 100ms and 1h", o.freshness)
	case o.logger == nil:
		return bad("WithLogger", "is nil")
	}
	return nil
}

// keep is the retention of a kind of channel.
func (o *options) keep(kind string) redislog.Retention {
	r, ok := o.retentionOf[ChannelKind(kind)]
	switch {
	case kind == string(controlChannel.kind):
		r = controlRetention
	case !ok:
		r = o.retention
	}
	return redislog.Retention{Events: r.Events, Bytes: o.maxLogBytes, Age: r.Age}
}
