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

// A Channel names a sequence of events: all of a project, of an agent, or for a user. Its text form
// is "project:<uuid>", "agent:<uuid>" or "user:<uuid>", with the UUID in lower case. Channels are
// comparable and can be map keys. The zero Channel is no channel, and is refused wherever one is
// needed.
type Channel struct {
	kind ChannelKind
	id   string
}

// ProjectChannel is the channel of a project: every event of the project is published to it.
func ProjectChannel(id uuid.UUID) Channel { return Channel{ProjectKind, id.String()} }

// AgentChannel is the channel of one agent.
func AgentChannel(id uuid.UUID) Channel { return Channel{AgentKind, id.String()} }

// UserChannel is the channel of one user.
func UserChannel(id uuid.UUID) Channel { return Channel{UserKind, id.String()} }

// NewChannel makes a channel from a kind and an ID, for example of a URL. The kind is one of the
// three, and the ID a UUID, in upper or lower case. The error is a [*ValidationError].
func NewChannel(kind ChannelKind, id string) (Channel, error) {
	p := problems{subject: "channel"}
	switch kind {
	case ProjectKind, AgentKind, UserKind:
	default:
		p.Add("kind", "%s is not project, agent or user", rawjson.Excerpt(string(kind)))
	}
	u, err := wire.ParseUUID(id)
	if err != nil {
		p.Add("id", "%s is not a UUID", rawjson.Excerpt(id))
	} else if u == uuid.Nil {
		p.Add("id", "is the nil UUID")
	}
	if err := p.err(); err != nil {
		return Channel{}, err
	}
	return Channel{kind, u.String()}, nil
}

// ParseChannel reads the text form. The UUID may be in upper case. The error is a
// [*ValidationError].
func ParseChannel(s string) (Channel, error) {
	kind, id, _ := strings.Cut(s, ":")
	c, err := NewChannel(ChannelKind(kind), id)
	if err != nil {
		return Channel{}, invalid("channel", "channel", "must be project:<uuid>, agent:<uuid> or user:<uuid>, not %s", rawjson.Excerpt(s))
	}
	return c, nil
}

// Kind is the first part of the channel's name.
func (c Channel) Kind() ChannelKind { return c.kind }

// ID is the second part of the channel's name, as text.
func (c Channel) ID() string { return c.id }

// UUID is the UUID of the project, agent or user. It is false for the zero Channel.
func (c Channel) UUID() (uuid.UUID, bool) {
	id, err := wire.ParseUUID(c.id)
	return id, err == nil
}

// String returns the text form. It is "" for the zero Channel.
func (c Channel) String() string {
	if c.kind == "" {
		return ""
	}
	return string(c.kind) + ":" + c.id
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

// problem says what is wrong with the channel, "" when nothing is. The nil UUID nearly always is a
// variable that was not set.
func (c Channel) problem() string {
	switch {
	case c.kind == "":
		return "is not set"
	case c.id == uuid.Nil.String():
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
