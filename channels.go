package eventbus

import (
	"errors"
	"strings"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/rawjson"
	"github.com/syndarix/eventbus/internal/wire"
)

// A ChannelKind is the first part of a channel's name: whose events it carries. It is a lower-case
// letter, and up to 31 more of a-z, 0-9, "_" and "-". A kind needs no registration. The kinds
// "eventbus" and "stream" are the bus's own.
type ChannelKind string

// The three kinds whose IDs are UUIDs.
const (
	ProjectKind ChannelKind = "project"
	AgentKind   ChannelKind = "agent"
	UserKind    ChannelKind = "user"
)

// schema reports whether the kind's IDs are UUIDs.
func (k ChannelKind) schema() bool { return k == ProjectKind || k == AgentKind || k == UserKind }

// problem says what is wrong with the kind, "" when nothing is.
func (k ChannelKind) problem() string {
	switch {
	case k == controlChannel.kind || k == "stream":
		return rawjson.Excerpt(string(k)) + " is a kind of the bus's own"
	case k == "" || len(k) > 32 || k[0] < 'a' || strings.Trim(string(k), "abcdefghijklmnopqrstuvwxyz0123456789_-") != "":
		return rawjson.Excerpt(string(k)) + " is not a lower-case letter and up to 31 more of a-z, 0-9, _ and -"
	}
	return ""
}

// A Channel names a sequence of events: all of a project, of an agent, for a user, or of whatever
// else a program has, such as one run of an agent. Its text form is "<kind>:<id>". Of the kinds
// project, agent and user the ID is a UUID, in lower case. Channels are comparable and can be map
// keys. The zero Channel is no channel, and is refused wherever one is needed.
type Channel struct {
	kind ChannelKind
	id   string
}

// ProjectChannel is the channel of a project. An event is published to it unless
// [PublishOptions].NoProject says otherwise.
func ProjectChannel(id uuid.UUID) Channel { return Channel{ProjectKind, id.String()} }

// AgentChannel is the channel of one agent.
func AgentChannel(id uuid.UUID) Channel { return Channel{AgentKind, id.String()} }

// UserChannel is the channel of one user.
func UserChannel(id uuid.UUID) Channel { return Channel{UserKind, id.String()} }

// NewChannel makes a channel of any kind, for example NewChannel("run", "run_01J9ZQ4T"). The ID has
// 1 to 128 letters, digits and characters of "._~-", but is not "." or "..". Of the kinds project,
// agent and user, it is a UUID, in upper or lower case. The error is a [*ValidationError].
//
// To listen to a channel creates two keys in Redis. So check that what a user names is there, and
// may be read, before you make a channel of it: see [Bus.Handler].
func NewChannel(kind ChannelKind, id string) (Channel, error) {
	p := problems{subject: "channel"}
	if problem := kind.problem(); problem != "" {
		p.Add("kind", "%s", problem)
	}
	if kind.schema() {
		u, err := wire.ParseUUID(id)
		if err != nil {
			p.Add("id", "%s is not a UUID", rawjson.Excerpt(id))
		} else if u == uuid.Nil {
			p.Add("id", "is the nil UUID")
		}
		id = u.String()
	} else if !validID(id) {
		p.Add("id", "%s is not 1 to 128 letters, digits and characters of ._~-", rawjson.Excerpt(id))
	}
	if err := p.err(); err != nil {
		return Channel{}, err
	}
	return Channel{kind, id}, nil
}

func validID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._~-", c) >= 0) {
			return false
		}
	}
	return id != "" && len(id) <= 128 && id != "." && id != ".."
}

// ParseChannel reads the text form, as [NewChannel] takes its parts. The error is a
// [*ValidationError].
func ParseChannel(s string) (Channel, error) {
	kind, id, ok := strings.Cut(s, ":")
	if !ok {
		return Channel{}, invalid("channel", "channel", "%s is not of the form <kind>:<id>", rawjson.Excerpt(s))
	}
	c, err := NewChannel(ChannelKind(kind), id)
	if field, bad := errors.AsType[FieldError](err); bad {
		return Channel{}, invalid("channel", "channel", "%s: its %s %s", rawjson.Excerpt(s), field.Field, field.Problem)
	}
	return c, nil
}

// Kind is the first part of the channel's name.
func (c Channel) Kind() ChannelKind { return c.kind }

// ID is the second part of the channel's name, as text.
func (c Channel) ID() string { return c.id }

// UUID is the UUID of the project, agent or user. It is false for other kinds, and for the zero
// Channel.
func (c Channel) UUID() (uuid.UUID, bool) {
	if !c.kind.schema() {
		return uuid.Nil, false
	}
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
	case c.kind.schema() && c.id == uuid.Nil.String():
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
