package eventbus

import (
	"context"
	"encoding/json"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"
)

// A Frame is one or more whole blocks of an event stream, as HTML defines it in
// section 9.2 ("Server-sent events"), ready to be written and flushed.
type Frame []byte

const idField = "id: "

// appendIDField appends the field that makes the cursor the client's last event id.
func appendIDField(b []byte, c Cursor) []byte {
	b = append(b, idField...)
	b = append(b, c.text...)
	return append(b, '\n')
}

// appendBody appends the rest of an event's block, and tells at which offset the
// event's payload stands in the result.
func appendBody(b []byte, ev *Event) (body []byte, payload int) {
	b = append(b, "event: "...)
	b = append(b, ev.Type...) // well-formed, so without line breaks
	b = append(b, "\ndata: "...)
	b = ev.appendWire(b)
	tail := len("}")
	if !ev.Position.IsZero() {
		tail += len(`,"cursor":""`) + len(ev.Position.String())
	}
	payload = len(b) - tail - len(ev.Payload)
	return append(b, "\n\n"...), payload
}

// appendGap appends the block of a gap.
func appendGap(b []byte, gap *GapError) []byte {
	data, _ := json.Marshal(struct { // strings only: cannot fail
		Channel string    `json:"channel"`
		Reason  GapReason `json:"reason"`
		From    string    `json:"from"`
	}{gap.Channel.String(), gap.Reason, gap.From.String()})
	b = appendIDField(b, gap.Cursor)
	b = append(b, "event: stream.gap\ndata: "...)
	b = append(b, data...)
	return append(b, "\n\n"...)
}

// appendRetry appends a block that tells the client when to come back after the
// stream has ended: at a random time in [least, most), so that many do not come
// at once.
func appendRetry(b []byte, least, most time.Duration) []byte {
	millis := least.Milliseconds()
	if spread := (most - least).Milliseconds(); spread > 0 {
		millis += rand.Int64N(spread)
	}
	b = append(b, "retry: "...)
	b = strconv.AppendInt(b, millis, 10)
	return append(b, '\n')
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

	sent []Position // as in the last id field that was written
	err  error      // why the frames ended; nil when check said so
	buf  []byte
}

// frames yields until the stream ends.
func (s *stream) frames(yield func(Frame) bool) {
	r, keepalive := s.reader, s.bus.options.keepalive
	retry := s.bus.options.retry
	s.buf = appendRetry(s.buf[:0], retry, 2*retry)
	s.buf = append(s.idBlock(s.buf), '\n')
	if !yield(s.buf) {
		return
	}
	written := time.Now()
	checked := written
	due := func() time.Time { // when there is something to do without an event
		at := written.Add(keepalive)
		if s.check != nil && checked.Add(keepalive).Before(at) {
			at = checked.Add(keepalive)
		}
		if s.check != nil && !s.until.IsZero() && s.until.Before(at) {
			at = s.until
		}
		return at
	}
	defer r.wakeOn(s.ctx)()
	// A frame moves what is due, but not the timer: that finds out when it fires.
	timer := time.AfterFunc(time.Until(due()), r.ring)
	defer timer.Stop()
	for {
		st, err := r.next(s.ctx, false)
		if err != nil {
			s.err = err
			if err == ErrClosed {
				s.buf = append(appendRetry(s.buf[:0], 0, 4*retry), '\n')
				yield(s.buf)
			}
			return
		}
		frame := s.render(st)
		now := time.Now()
		if s.check != nil && (now.Sub(checked) >= keepalive || !s.until.IsZero() && !now.Before(s.until)) {
			var ok bool
			if s.until, ok = s.check(); !ok {
				return
			}
			checked = now
		}
		if len(frame) == 0 && now.Sub(written) >= keepalive {
			frame = s.keepalive()
		}
		if len(frame) > 0 {
			if !yield(frame) {
				return
			}
			written = now
		}
		if st.timeout || checked == now {
			timer.Reset(max(time.Until(due()), time.Millisecond))
		}
	}
}

// render gives the frame of a step, empty when there is nothing to send. It
// takes the step's entries.
func (s *stream) render(st step) Frame {
	r := s.reader
	switch {
	case st.gap != nil:
		s.buf = appendGap(s.buf[:0], st.gap)
		s.sent = r.positions(s.sent)
		return s.buf
	case len(st.entries) == 0:
		return nil
	case len(r.lanes) == 1 && len(r.types) == 0:
		// The frames lie in memory as they are sent.
		frame := st.frames(0, len(st.entries))
		r.take(st, len(st.entries))
		if len(frame) > 0 {
			s.sent = r.positions(s.sent)
		}
		return frame
	}
	s.buf = s.buf[:0]
	for i := range st.entries {
		e := &st.entries[i]
		wanted := r.wants(st.lane, e)
		r.take(st, 1)
		if !wanted {
			continue
		}
		if !e.foreign {
			s.buf = s.idBlock(s.buf)
		}
		s.buf = append(s.buf, st.buf[e.body:e.end]...)
	}
	return s.buf
}

// idBlock appends the id field of where the reader stands.
func (s *stream) idBlock(b []byte) []byte {
	s.sent = s.reader.positions(s.sent)
	return appendIDField(b, s.reader.cursor())
}

// keepalive is a comment; or a block with the cursor alone, which the client
// remembers without an event, where that has moved on: through events that the
// stream leaves out, or with time where there is no log yet.
func (s *stream) keepalive() Frame {
	if s.reader.stands(s.sent) {
		return Frame(": keepalive\n\n")
	}
	s.buf = append(s.idBlock(s.buf[:0]), '\n')
	return slices.Clip(s.buf)
}
