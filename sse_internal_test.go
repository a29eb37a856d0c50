package eventbus

// FrameOf gives the frame of an event that came from Redis, as a stream of the
// channel sends it; of a foreign one, if pos is zero.
func FrameOf(c Channel, pos Position, data []byte) (Frame, Event, error) {
	ev, err := decode(data)
	if err != nil {
		return nil, Event{}, err
	}
	ev.Position = pos
	s := &segment{}
	s.add(newCursorKey([]string{c.String()}), ev, pos, "")
	return s.buf, s.from(0).event(&s.entries[0], c), nil
}
