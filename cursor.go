package eventbus

import (
	"github.com/syndarix/eventbus/internal/position"
)

// A Position is the place of one event in the log of one channel. It has two numbers. The epoch
// names one life of the log: it is the Redis time in milliseconds at which the log was created, or
// more where that clock has stepped back. So a log that was lost and begun anew is not taken for
// the old one. The other number counts the events from 1, without a break. The text form is the ID
// of the Redis entry, "<epoch>-<seq>", such as "1763868000000-42".
//
// The zero Position stands before everything, and its text form is "". Positions are comparable. To
// resume a subscription takes a [Cursor].
type Position struct{ epoch, seq int64 }

// ParsePosition reads the text form, but not "".
func ParsePosition(s string) (Position, error) {
	p, err := position.Parse(s)
	return positionOf(p), err
}

func positionOf(p position.Position) Position { return Position{p.Epoch, p.Seq} }

func (p Position) place() position.Position { return position.Position{Epoch: p.epoch, Seq: p.seq} }

// IsZero reports whether p is the zero Position.
func (p Position) IsZero() bool { return p == Position{} }

// String returns the text form, "" for the zero Position.
func (p Position) String() string { return p.place().String() }

// MarshalText implements [encoding.TextMarshaler].
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler], as [ParsePosition] does; "" is the zero
// Position.
func (p *Position) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*p = Position{}
		return nil
	}
	parsed, err := ParsePosition(string(text))
	if err == nil {
		*p = parsed
	}
	return err
}

// A Cursor is where a subscription stands in all its channels, as opaque text. A browser sends it
// as Last-Event-ID; it is not the ID of the event. Any bus on the same Redis resumes from it. It is
// for the channels that it was made with: [Subscription].After says what becomes of others. The
// zero Cursor says nothing of any channel. Cursors are comparable.
//
// The text has base64url characters only, and at most 128 of them for six channels that have caught
// up.
type Cursor struct{ text string }

// ParseCursor reads the text form. "" is the zero Cursor, with which a subscription begins now:
// take an empty stored text for a first start.
func ParseCursor(s string) (Cursor, error) {
	if s == "" {
		return Cursor{}, nil
	}
	if _, err := position.DecodeCursor(s); err != nil {
		return Cursor{}, err
	}
	return Cursor{s}, nil
}

// IsZero reports whether c is the zero Cursor.
func (c Cursor) IsZero() bool { return c.text == "" }

// String returns the text form.
func (c Cursor) String() string { return c.text }

// MarshalText implements [encoding.TextMarshaler].
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.text), nil }

// UnmarshalText implements [encoding.TextUnmarshaler], as [ParseCursor] does.
func (c *Cursor) UnmarshalText(text []byte) error {
	parsed, err := ParseCursor(string(text))
	if err == nil {
		*c = parsed
	}
	return err
}
