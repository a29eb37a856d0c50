package eventbus

import (
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// FrameOf gives the frame of an event that came from Redis, as a stream of the
// channel sends it; of a foreign one, if pos is zero.
func FrameOf(c Channel, pos Position, data []byte) (Frame, Event, error) {
	ev, err := wire.Decode(data)
	if err != nil {
		return nil, Event{}, err
	}
	ev.Position = pos.place()
	s := &segment{}
	s.add(position.NewKey([]string{c.String()}), ev, pos.place(), "")
	v := s.from(0)
	found := v.event(&s.entries[0])
	event := eventOf(&found)
	event.Channel = c
	if !pos.IsZero() {
		event.Cursor = Cursor{v.cursor(&s.entries[0])}
	}
	return s.buf, event, nil
}
