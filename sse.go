package eventbus

import (
	"context"
	"iter"
	"time"

	"github.com/syndarix/eventbus/internal/reader"
)

// A Frame is one or more whole blocks of an event stream, as HTML defines it in
// section 9.2 ("Server-sent events"), ready to be written and flushed.
type Frame []byte

// comeBack is how many clients may come back in a second.
const comeBack = 500

// retryAfter gives the times between which the clients of open streams are to come back when these
// break: the more there are, the longer it takes.
func (b *Bus) retryAfter() (least, most time.Duration) {
	streams := b.admitted.open()
	if b.isDraining() {
		streams = b.leaving // some have gone already
	}
	return b.options.retry, 2*b.options.retry + time.Duration(streams)*time.Second/comeBack
}

// newStream turns what a subscriber comes upon into frames.
func (b *Bus) newStream(ctx context.Context, r *subscriber) *reader.Stream {
	return r.Stream(ctx, b.options.keepalive, b.retryAfter)
}

// SubscribeSSE walks the frames of an event stream, for those who write their
// own handler, or an adapter for another framework than net/http. Each frame is to be
// written and flushed before the next is asked for, and is valid until then. Unlike
// [Bus.Handler], nothing here asks again who may read, and ValidUntil is not looked at:
// end the context, or use [Bus.Revoke].
//
// The first frame has the retry time and the cursor at which the stream begins.
// An event is a block with its cursor, type and JSON; a gap is an event
// "stream.gap", whose data is {"channel":"project:<uuid>","reason":"trimmed","from":"<position>"},
// with a [GapReason], and from "" where that is not known. When nothing was written for the keepalive time, a frame comes
// with a comment, or with the cursor where it has moved meanwhile.
//
// Nothing happens before the range begins. The walk ends with an error, alone and
// last: the cause of the context's end, [ErrClosed] after a last frame that tells
// the client when to come back, [ErrRevoked], or, before the first frame, a
// [*LimitError] or what was wrong with the subscription. It outlasts a Redis that is
// away.
func (b *Bus) SubscribeSSE(ctx context.Context, sub Subscription) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		r, err := b.open(ctx, sub)
		if err != nil {
			yield(nil, err)
			return
		}
		defer r.close()
		s := b.newStream(ctx, r)
		for frame := range s.Frames {
			if !yield(frame, nil) {
				return
			}
		}
		yield(nil, s.Err)
	}
}
