package eventbus

import (
	"context"
	"iter"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
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
		s := stream{bus: b, reader: r, ctx: ctx}
		for frame := range s.frames {
			if !yield(frame, nil) {
				return
			}
		}
		yield(nil, s.err)
	}
}

// A stream turns what a reader comes upon into frames.
type stream struct {
	bus    *Bus
	reader *reader
	ctx    context.Context // of the range that the stream lives in

	// check, if there is one, is asked again whether the client may still read,
	// at keepalives and at the time that it gave itself; false ends the stream.
	check func() (until time.Time, ok bool)
	until time.Time

	sent []position.Position // as in the last id field that was written
	err  error               // why the frames ended; nil when check said so
	buf  []byte

	written, checked time.Time     // the last time, each
	retry            time.Duration // the most that the last retry field could have said
}

// frames yields until the stream ends.
func (s *stream) frames(yield func(Frame) bool) {
	r := s.reader
	s.buf = append(s.idBlock(s.appendRetry(s.buf[:0])), '\n')
	if !yield(s.buf) {
		return
	}
	s.written = time.Now()
	s.checked = s.written
	defer r.wakeOn(s.ctx)()
	// A frame moves what is due, but not the timer: that finds out when it fires.
	timer := time.AfterFunc(time.Until(s.due()), r.ring)
	defer timer.Stop()
	for {
		st, err := r.next(s.ctx, false)
		if err != nil {
			s.err = err
			if err == ErrClosed {
				s.buf = append(s.appendRetry(s.buf[:0]), '\n')
				yield(s.buf)
			}
			return
		}
		frame := s.render(st)
		now := time.Now()
		if s.checkDue(now) {
			var ok bool
			if s.until, ok = s.check(); !ok {
				return
			}
			s.checked = now
		}
		if len(frame) == 0 && (now.Sub(s.written) >= s.bus.options.keepalive || st.timeout && s.retryChanged()) {
			frame = s.keepalive()
		}
		if len(frame) > 0 {
			if !yield(frame) {
				return
			}
			s.written = now
		}
		if st.timeout || s.checked == now {
			timer.Reset(max(time.Until(s.due()), time.Millisecond))
		}
	}
}

// due is when there is something to do without an event.
func (s *stream) due() time.Time {
	keepalive := s.bus.options.keepalive
	at := s.written.Add(keepalive)
	if s.check != nil && s.checked.Add(keepalive).Before(at) {
		at = s.checked.Add(keepalive)
	}
	if s.check != nil && !s.until.IsZero() && s.until.Before(at) {
		at = s.until
	}
	return at
}

// checkDue reports whether it is to be asked again whether the client may read.
func (s *stream) checkDue(now time.Time) bool {
	return s.check != nil && (now.Sub(s.checked) >= s.bus.options.keepalive || !s.until.IsZero() && !now.Before(s.until))
}

// appendRetry appends a retry field.
func (s *stream) appendRetry(b []byte) []byte {
	least, most := s.bus.retryAfter()
	s.retry = most
	return wire.AppendRetry(b, least, most)
}

// retryChanged reports whether the client has to hear of another time to come back at: there are many
// more streams now, or many fewer.
func (s *stream) retryChanged() bool {
	_, most := s.bus.retryAfter()
	return most > 2*s.retry || most < s.retry/2
}

// render gives the frame of a step, empty when there is nothing to send. It
// takes the step's entries.
func (s *stream) render(st step) Frame {
	r := s.reader
	switch {
	case st.gap != nil:
		s.buf = wire.AppendGap(s.buf[:0], st.gap.Cursor.text, st.gap.Channel.String(), string(st.gap.Reason), st.gap.From.String())
		s.sent = r.positions(s.sent)
		return s.buf
	case len(st.Entries) == 0:
		return nil
	case len(r.lanes) == 1 && r.types == nil:
		// The frames lie in memory as they are sent.
		frame := st.Frames(0, len(st.Entries))
		r.take(st, len(st.Entries))
		if len(frame) > 0 {
			s.sent = r.positions(s.sent)
		}
		return frame
	}
	s.buf = s.buf[:0]
	for i := range st.Entries {
		e := &st.Entries[i]
		wanted := r.wants(st.lane, e)
		r.take(st, 1)
		if !wanted {
			continue
		}
		if !e.Foreign {
			s.buf = s.idBlock(s.buf)
		}
		s.buf = append(s.buf, st.Block(e)...)
	}
	return s.buf
}

// idBlock appends the id field of where the reader stands.
func (s *stream) idBlock(b []byte) []byte {
	s.sent = s.reader.positions(s.sent)
	return wire.AppendID(b, s.reader.cursor().text)
}

// keepalive is a comment; or a block without data, which the client remembers, where the cursor has
// moved on without an event, as the stream leaves some out, or there is another retry time.
func (s *stream) keepalive() Frame {
	s.buf = s.buf[:0]
	if s.retryChanged() {
		s.buf = s.appendRetry(s.buf)
	}
	if !s.reader.stands(s.sent) {
		s.buf = s.idBlock(s.buf)
	}
	if len(s.buf) == 0 {
		return Frame(": keepalive\n\n")
	}
	return append(s.buf, '\n')
}
