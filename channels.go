package eventbus

import (
	"strings"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/wire"
)

// A ChannelKind is the first part of a channel's name: whose events it carries.
type ChannelKind string

// The three kinds of channel.
const (
	ProjectKind ChannelKind = "project"
	AgentKind   ChannelKind = "agent"
	UserKind    ChannelKind = "user"
)

// A Channel names one stream of events: all of a project, of an agent, or for a
// user. Its text form is "project:<uuid>", "agent:<uuid>" or "user:<uuid>" with
// the UUID in lower case. Channels are comparable and can be map keys. The zero
// Channel is no channel and is refused wherever one is needed.
type Channel struct {
	kind ChannelKind
	id   uuid.UUID
}

// ProjectChannel is the channel that every event of the project is published to.
func ProjectChannel(id uuid.UUID) Channel { return Channel{ProjectKind, id} }

// AgentChannel is the channel of one agent.
func AgentChannel(id uuid.UUID) Channel { return Channel{AgentKind, id} }

// UserChannel is the channel of one user.
func UserChannel(id uuid.UUID) Channel { return Channel{UserKind, id} }

// ParseChannel reads the text form. The UUID may be in upper case. The error is
// a [*ValidationError].
func ParseChannel(s string) (Channel, error) {
	kind, id, _ := strings.Cut(s, ":")
	switch ChannelKind(kind) {
	case ProjectKind, AgentKind, UserKind:
	default:
		return Channel{}, invalid("channel", "channel", "%s must begin with project:, agent: or user:", rawjson.Excerpt(s))
	}
	u, err := wire.ParseUUID(id)
	if err != nil {
		return Channel{}, invalid("channel", "channel", "%s must end in a UUID", rawjson.Excerpt(s))
	}
	c := Channel{ChannelKind(kind), u}
	return c, c.check("channel")
}

// Kind tells whose channel it is.
func (c Channel) Kind() ChannelKind { return c.kind }

// ID is the UUID of the project, agent or user.
func (c Channel) ID() uuid.UUID { return c.id }

// String returns the text form, "" for the zero Channel.
func (c Channel) String() string {
	if c.kind == "" {
		return ""
	}
	return string(c.append(make([]byte, 0, 64)))
}

func (c Channel) append(b []byte) []byte {
	b = append(b, c.kind...)
	return wire.AppendUUID(append(b, ':'), c.id)
}

// MarshalText implements [encoding.TextMarshaler].
func (c Channel) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler], as [ParseChannel] does.
func (c *Channel) UnmarshalText(text []byte) error {
	parsed, err := ParseChannel(string(text))
	if err == nil {
		*c = parsed
	}
	return err
}

// problem says what is wrong with the zero Channel, and with the nil UUID, which nearly always is a
// variable that was not set; "" with any other.
func (c Channel) problem() string {
	switch {
	case c.kind == "":
		return "is not set"
	case c.id == uuid.Nil:
		return c.String() + " has the nil UUID"
	}
	return ""
}

// check refuses a channel with a problem.
func (c Channel) check(field string) error {
	if problem := c.problem(); problem != "" {
		return invalid("channel", field, "%s", problem)
	}
	return nil
}
