package reader

import (
	"context"
	"time"

	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Stream gives what a reader comes upon as frames.
type Stream struct {
	*Reader
	ctx       context.Context // ends the frames
	keepalive time.Duration   // the longest time without a frame
	// comeBack gives the shortest and the longest time that a client is to wait before it comes
	// back when the stream breaks.
	comeBack func() (least, most time.Duration)

	// Check, if there is one, says whether the client may still read; false ends the stream. It is
	// called when the keepalive time has passed since the last call, and at Until, which it sets
	// anew.
	Check func() (until time.Time, ok bool)
	Until time.Time // zero: only the keepalive time counts

	sent []position.Position // the positions in the last id field that was written
	Err  error               // why the frames ended; nil if Check or the caller ended them
	buf  []byte

	written, checked time.Time     // when there was a frame last, and when Check was called last
	retry            time.Duration // the most that the last retry field could have said
}

// Stream gives the frames of a reader, until the context ends.
func (r *Reader) Stream(ctx context.Context, keepalive time.Duration, comeBack func() (least, most time.Duration)) *Stream {
	return &Stream{Reader: r, ctx: ctx, keepalive: keepalive, comeBack: comeBack}
}

// Frames yields frames until the stream ends. A frame is valid until the next one.
func (s *Stream) Frames(yield func([]byte) bool) {
	s.buf = append(s.idBlock(s.appendRetry(s.buf[:0])), '\n')
	if !yield(s.buf) {
		return
	}
	s.written = time.Now()
	s.checked = s.written
	defer s.WakeOn(s.ctx)()
	// The timer is not set again for each frame. When it fires early, it is set to what is due
	// then.
	timer := time.AfterFunc(time.Until(s.due()), s.ring)
	defer timer.Stop()
	for {
		st, err := s.Next(s.ctx, false)
		if err != nil {
			s.Err = err
			if s.Draining.Err() != nil && err == context.Cause(s.Draining) {
				s.buf = append(s.appendRetry(s.buf[:0]), '\n')
				yield(s.buf)
			}
			return
		}
		frame := s.render(st)
		now := time.Now()
		if s.checkDue(now) {
			var ok bool
			if s.Until, ok = s.Check(); !ok {
				return
			}
			s.checked = now
		}
		if len(frame) == 0 && (now.Sub(s.written) >= s.keepalive || st.timeout && s.retryChanged()) {
			frame = s.quiet()
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

// due is when there is something to do even without an event.
func (s *Stream) due() time.Time {
	at := s.written.Add(s.keepalive)
	if s.Check != nil && s.checked.Add(s.keepalive).Before(at) {
		at = s.checked.Add(s.keepalive)
	}
	if s.Check != nil && !s.Until.IsZero() && s.Until.Before(at) {
		at = s.Until
	}
	return at
}

func (s *Stream) checkDue(now time.Time) bool {
	return s.Check != nil && (now.Sub(s.checked) >= s.keepalive || !s.Until.IsZero() && !now.Before(s.Until))
}

func (s *Stream) appendRetry(b []byte) []byte {
	least, most := s.comeBack()
	s.retry = most
	return wire.AppendRetry(b, least, most)
}

// retryChanged reports whether the client needs another retry field: there are many more streams
// than at the last one, or many fewer.
func (s *Stream) retryChanged() bool {
	_, most := s.comeBack()
	return most > 2*s.retry || most < s.retry/2
}

// render gives the frame of a step, empty when there is nothing to send. It takes the step's
// entries.
func (s *Stream) render(st step) []byte {
	switch {
	case st.Gap != nil:
		s.buf = wire.AppendGap(s.buf[:0], st.Gap.Cursor, s.lanes[st.Gap.Channel].tail.Channel, string(st.Gap.Reason), st.Gap.From.String())
		s.sent = s.positions(s.sent)
		return s.buf
	case len(st.Entries) == 0:
		return nil
	case len(s.lanes) == 1 && s.types == nil:
		// The frames are in memory one after the other, as they are to be sent.
		frame := st.Frames(0, len(st.Entries))
		s.take(st, len(st.Entries))
		if len(frame) > 0 {
			s.sent = s.positions(s.sent)
		}
		return frame
	}
	s.buf = s.buf[:0]
	for i := range st.Entries {
		e := &st.Entries[i]
		wanted := s.wants(st.lane, e)
		s.take(st, 1)
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
func (s *Stream) idBlock(b []byte) []byte {
	s.sent = s.positions(s.sent)
	return wire.AppendID(b, s.cursor())
}

// quiet gives a frame for when there are no events. It is a comment, unless the client needs
// another retry field or another id field: then it is a block without data, whose fields the client
// keeps. The id is another where the reader has moved on over events that the stream leaves out.
func (s *Stream) quiet() []byte {
	s.buf = s.buf[:0]
	if s.retryChanged() {
		s.buf = s.appendRetry(s.buf)
	}
	if !s.stands(s.sent) {
		s.buf = s.idBlock(s.buf)
	}
	if len(s.buf) == 0 {
		return []byte(wire.Keepalive)
	}
	return append(s.buf, '\n')
}
