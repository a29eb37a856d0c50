package reader

import (
	"context"
	"errors"
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

	// Snapshot, if there is one, is called where the reader is due to begin with a snapshot, and at a
	// gap.
	Snapshot *Snapshot
	after    string // the cursor that came with the last snapshot
	old      bool   // the logs do not reach back to it, and no newer one has come
	reason   string // of the snapshot that is due
	gap      *Gap   // the gap that it is to mend, nil at the beginning
	replayed int    // how many events were sent before the stream was live

	sent []position.Position // the positions in the last id field that was written
	Err  error               // why the frames ended; nil if Check or the caller ended them
	buf  []byte

	written, checked time.Time     // when there was a frame last, and when Check was called last
	retry            time.Duration // the most that the last retry field could have said; 0: there was none
}

// Stream gives the frames of a reader, until the context ends.
func (r *Reader) Stream(ctx context.Context, keepalive time.Duration, comeBack func() (least, most time.Duration)) *Stream {
	return &Stream{Reader: r, ctx: ctx, keepalive: keepalive, comeBack: comeBack}
}

// Frames yields frames until the stream ends. A frame is valid until the next one.
func (s *Stream) Frames(yield func([]byte) bool) {
	defer s.WakeOn(s.ctx)()
	st := s.first()
	if s.asked == nil && !yield(s.open()) {
		return
	}
	s.written = time.Now()
	s.checked = s.written
	// The timer is not set again for each frame. When it fires early, it is set to what is due
	// then.
	timer := time.AfterFunc(time.Until(s.due()), s.ring)
	defer timer.Stop()
	for {
		var err error
		if !st.something() {
			st, err = s.Next(s.ctx, false)
		}
		if err != nil {
			s.Err = err
			if s.Draining.Err() != nil && err == context.Cause(s.Draining) {
				s.buf = append(s.appendRetry(s.buf[:0]), '\n')
				yield(s.buf)
			}
			return
		}
		frame, ok := s.render(st)
		now := time.Now()
		if ok && s.checkDue(now) {
			s.Until, ok = s.Check()
			s.checked = now
		}
		if !ok {
			return
		}
		if len(frame) == 0 && (now.Sub(s.written) >= s.keepalive || st.timeout && s.retryChanged()) {
			frame = s.quiet()
		}
		if len(frame) > 0 {
			if s.retry == 0 && !yield(append(s.appendRetry(nil), '\n')) { // a snapshot comes first
				return
			}
			if !yield(frame) {
				return
			}
			s.written = now
		}
		if st.timeout || s.checked == now {
			timer.Reset(max(time.Until(s.due()), time.Millisecond))
		}
		st = step{}
	}
}

// first asks for the snapshot with which the stream begins, if it begins with one. With a cursor that
// may be due because of a gap: so it looks for one, and gives what it comes upon.
func (s *Stream) first() (st step) {
	switch {
	case s.Snapshot == nil:
		return step{}
	case s.Reader.due:
		s.reason = "joined"
		s.ask(s.ctx, s.Snapshot, false)
		return step{}
	}
	st, _ = s.step(s.ctx) // Next meets an error again
	if st.Gap != nil {
		_, _ = s.render(st) // this asks
		return step{}
	}
	return st
}

// open gives the first frame, with the place at which the stream begins.
func (s *Stream) open() []byte {
	s.buf = append(s.idBlock(s.appendRetry(s.buf[:0])), '\n')
	return s.buf
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
// entries. ok is false when the stream ends.
func (s *Stream) render(st step) (frame []byte, ok bool) {
	s.buf = s.buf[:0]
	switch {
	case st.Gap != nil && s.Snapshot != nil && !(st.Gap.fresh && s.old):
		s.gap, s.reason = st.Gap, string(st.Gap.Reason)
		s.ask(s.ctx, s.Snapshot, true)
		return nil, true
	case st.Gap != nil:
		s.appendGap(st.Gap)
	case st.snapshot != nil:
		return s.appendSnapshot(st.snapshot)
	case st.live:
		if !s.stands(s.sent) {
			s.buf = s.idBlock(s.buf)
		}
		s.buf = wire.AppendLive(s.buf, s.replayed)
	case st.end:
		s.sent = s.positions(s.sent)
		s.buf = wire.AppendEnd(s.buf, s.cursor(), s.lanes[st.Channel].tail.Channel)
	case len(st.Entries) > 0:
		return s.events(st), true
	}
	return s.buf, true
}

// events gives the frame of a step's entries, and takes them.
func (s *Stream) events(st step) []byte {
	if len(s.lanes) == 1 && s.types == nil {
		// The frames are in memory one after the other, as they are to be sent.
		frame := st.Frames(0, len(st.Entries))
		for i := range st.Entries {
			if !s.live && st.Entries[i].Event != nil {
				s.replayed++
			}
		}
		s.take(st, len(st.Entries))
		if len(frame) > 0 {
			s.sent = s.positions(s.sent)
		}
		return frame
	}
	for i := range st.Entries {
		e := &st.Entries[i]
		wanted := s.wants(st.lane, e)
		s.take(st, 1)
		if !wanted {
			continue
		}
		s.replayed++
		if !e.Foreign {
			s.buf = s.idBlock(s.buf)
		}
		s.buf = append(s.buf, st.Block(e)...)
	}
	return s.buf
}

func (s *Stream) appendGap(g *Gap) {
	s.buf = wire.AppendGap(s.buf, g.Cursor, s.lanes[g.Channel].tail.Channel, string(g.Reason), g.From.String())
	s.sent = s.positions(s.sent)
}

// appendSnapshot gives the frame of a snapshot that was asked for. Where that has failed, a gap is
// given as a gap, and a stream that begins ends.
func (s *Stream) appendSnapshot(f *flight) (frame []byte, ok bool) {
	err, gap := f.err, s.gap
	switch {
	case s.stale && s.Snapshot != nil:
		s.ask(s.ctx, s.Snapshot, false)
		return nil, true
	case s.stale:
		err = errors.New("authorize has given none any more")
	}
	s.gap = nil
	// A gap right behind a snapshot means that its cursor is too old, unless another one comes now.
	s.old = err == nil && gap != nil && gap.fresh && f.after != "" && f.after == s.after
	if err == nil && !s.old {
		err, s.after = s.jump(f), f.after
	}
	switch {
	case s.old:
		s.appendGap(gap)
	case err == nil:
		s.sent = s.positions(s.sent)
		return f.block(s.cursor(), s.reason), true
	case gap != nil:
		s.Warn("a snapshot failed; a gap was sent instead", err)
		s.appendGap(gap)
	default:
		s.Err = &SnapshotError{err}
		return nil, false
	}
	return s.buf, true
}

// A SnapshotError ends a stream that was to begin with a snapshot.
type SnapshotError struct{ Err error }

func (e *SnapshotError) Error() string { return "snapshot: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *SnapshotError) Unwrap() error { return e.Err }

// idBlock appends the id field of where the reader stands.
func (s *Stream) idBlock(b []byte) []byte {
	s.sent = s.positions(s.sent)
	return wire.AppendID(b, s.cursor())
}

// quiet gives a frame for when there are no events. It is a comment, unless the client needs
// another retry field or another id field: then it is a block without data, whose fields the client
// keeps. The id is another where the reader has moved on over events that the stream leaves out.
// While a snapshot is due, there is no id: a client that came back with it would miss the snapshot.
func (s *Stream) quiet() []byte {
	s.buf = s.buf[:0]
	if s.retryChanged() {
		s.buf = s.appendRetry(s.buf)
	}
	if s.asked == nil && !s.stands(s.sent) {
		s.buf = s.idBlock(s.buf)
	}
	if len(s.buf) == 0 {
		return []byte(wire.Keepalive)
	}
	return append(s.buf, '\n')
}
