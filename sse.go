package eventbus

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/syndarix/eventbus/internal/reader"
)

// A Frame is one or more whole blocks of an event stream, ready to be written and flushed. The HTML
// standard defines them in section 9.2, "Server-sent events".
type Frame []byte

// An SSEOption changes the event streams of one [Bus.Handler] or [Bus.SubscribeSSE]. With a wrong
// one, the handler answers 500, and SubscribeSSE ends with an error.
type SSEOption func(*sseOptions)

type sseOptions struct{ keepalive, writeTimeout, retry time.Duration }

// WithKeepalive sets how long a stream may go without a write before it gets one, and how often
// authorize is called again. The default is 15s, as the HTML standard advises (section 9.2.7,
// "Authoring notes"). Less than 10ms is an error.
func WithKeepalive(d time.Duration) SSEOption { return func(o *sseOptions) { o.keepalive = d } }

// WithWriteTimeout sets how long one write to a client of [Bus.Handler] may take before the
// connection is cut. The default is 10s. Less than 10ms is an error.
func WithWriteTimeout(d time.Duration) SSEOption { return func(o *sseOptions) { o.writeTimeout = d } }

// WithRetry sets how soon browsers come back when their stream breaks. Each is told a random time
// between d and twice d. For every 500 streams that the process has open, the upper end is 1s
// later. After a soft refusal (see [Bus.Handler]) it is 8 to 16 times d. The default is 250ms. Less
// than 1ms, or more than 1h, is an error.
func WithRetry(d time.Duration) SSEOption { return func(o *sseOptions) { o.retry = d } }

func newSSEOptions(opts []SSEOption) (sseOptions, error) {
	o := sseOptions{keepalive: 15 * time.Second, writeTimeout: 10 * time.Second, retry: 250 * time.Millisecond}
	for i, opt := range opts {
		if opt == nil {
			return o, fmt.Errorf("eventbus: SSE option %d is nil", i)
		}
		opt(&o)
	}
	switch {
	case o.keepalive < 10*time.Millisecond:
		return o, fmt.Errorf("eventbus: WithKeepalive: %s is less than 10ms", o.keepalive)
	case o.writeTimeout < 10*time.Millisecond:
		return o, fmt.Errorf("eventbus: WithWriteTimeout: %s is less than 10ms", o.writeTimeout)
	case o.retry < time.Millisecond || o.retry > time.Hour:
		return o, fmt.Errorf("eventbus: WithRetry: %s is not between 1ms and 1h", o.retry)
	}
	return o, nil
}

// comeBack is how many clients may come back in a second.
const comeBack = 500

// newStream turns what a subscriber comes upon into frames. When they break, the more streams there
// are, the longer their clients take to come back.
func (b *Bus) newStream(ctx context.Context, r *subscriber, sub *Subscription, o sseOptions) *reader.Stream {
	s := r.Stream(ctx, o.keepalive, func() (least, most time.Duration) {
		streams := b.admitted.open()
		if b.isDraining() {
			streams = b.leaving // some have gone already
		}
		return o.retry, 2*o.retry + time.Duration(streams)*time.Second/comeBack
	})
	s.Snapshot = sub.snapshot()
	return s
}

// streamError is the error that ends a stream, as callers get it.
func streamError(err error) error {
	if failed, ok := errors.AsType[*reader.SnapshotError](err); ok {
		return fmt.Errorf("eventbus: %w", failed)
	}
	return err
}

// SubscribeSSE walks the frames of an event stream. It is for a handler of your own, or for an
// adapter to another framework than net/http. Write and flush each frame before you ask for the
// next one; a frame is valid until then. Streams share frames, so do not change one. Nothing here
// asks again who may read, and ValidUntil is ignored: end the context, or call [Bus.Revoke].
//
// The first frame has the retry time, and the cursor at which the stream begins, unless a snapshot is
// due. An event is a block with its cursor, its type and its JSON, to which the member channel is
// added. When nothing was written for the keepalive time, there is a frame with a comment, or with
// the cursor if that has moved. These events are the stream's own; Types never hide them:
//
//   - stream.gap {"channel","reason","from"}: events are missing here. reason is a [GapReason], and
//     from the position behind which they are missing, or "".
//   - stream.snapshot {"reason","state"}: the answer of Subscription.Snapshot, as of this cursor. It
//     replaces all that the client knows. reason is "joined", or the gap's. A stream that begins with
//     it has no cursor before it. A gap follows it where the logs do not reach back to its cursor.
//   - stream.live {"replayed"}, once: what was in the logs when the stream began has all been sent,
//     that many events. With NoFollow the walk ends with it.
//   - stream.end {"channel"}: the channel has ended, see [PublishOptions].Ends. It comes after the
//     channel's last event, whichever channel that was delivered from, and after stream.live. After
//     the end of the last channel the walk ends.
//
// Nothing happens before the range begins. A walk that comes to its end has no error. Any other ends
// with an error, alone and last. Before the first frame it is a wrong option, a [*LimitError], a
// [*ValidationError] for the subscription, or one that wraps what Snapshot has returned. Later it is
// the cause of the context's end, [ErrRevoked] or [ErrClosed]. Before ErrClosed there is one more
// frame, which tells the client when to come back. While Redis is away, the walk waits. Where all
// channels have ended, [Bus.Handler] answers a client that comes back with 204; a handler of your own
// cannot know.
func (b *Bus) SubscribeSSE(ctx context.Context, sub Subscription, opts ...SSEOption) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		o, err := newSSEOptions(opts)
		if err != nil {
			yield(nil, err)
			return
		}
		r, err := b.open(ctx, sub, true)
		if err != nil {
			yield(nil, err)
			return
		}
		defer r.close()
		s := b.newStream(ctx, r, &sub, o)
		for frame := range s.Frames {
			if !yield(frame, nil) {
				return
			}
		}
		if s.Err != reader.ErrDone {
			yield(nil, streamError(s.Err))
		}
	}
}
