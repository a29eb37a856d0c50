package eventbus

import (
	"context"
	"fmt"
	"strings"

	"github.com/syndarix/eventbus/internal/rawjson"
)

// Relay hears all channels of some kinds, and puts the events of foreign publishers into their
// logs: see [WithForeignLog]. So they are there for whoever subscribes later, also where nobody
// listens now. Without kinds, it hears projects, agents and users. Several processes can relay the
// same kinds: each log has each event once, and any of them can stop.
//
// Relay blocks until the context ends, and returns the context's cause, or until the bus closes,
// and returns [ErrClosed]. While Redis is away it tries to connect again, and [Bus.Health] fails.
// What foreign publishers send meanwhile is lost: Pub/Sub forgets it.
//
// A [*ValidationError] comes at once for a bus without [WithForeignLog], for one with
// [WithShardedPubSub], which foreign publishers do not use, and for a kind that is none.
//
// Relay has a connection of its own. It hears what buses publish, too, and leaves it alone, which
// costs some microseconds for each message. An ACL user needs PSUBSCRIBE, with the patterns
// "<prefix><kind>:*", beside what [New] asks for. A message on a name that is no channel is counted
// in Stats.Unreadable. Relay is safe for concurrent use.
func (b *Bus) Relay(ctx context.Context, kinds ...ChannelKind) error {
	if err := b.made(); err != nil {
		return err
	}
	if len(kinds) == 0 {
		kinds = []ChannelKind{ProjectKind, AgentKind, UserKind}
	}
	if err := b.checkRelay(kinds); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !b.enter() {
		return ErrClosed
	}
	defer b.leave()
	patterns := make([]string, len(kinds))
	for i, kind := range kinds {
		patterns[i] = globEscaper.Replace(b.log.Name(string(kind))) + ":*"
	}
	heard, cancel := context.WithCancel(ctx)
	defer cancel()
	b.feed.Relay(heard, patterns, b.channelNamed)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.draining.Done():
		return ErrClosed
	}
}

// checkRelay refuses what Relay cannot do.
func (b *Bus) checkRelay(kinds []ChannelKind) error {
	p := problems{subject: "relay"}
	switch {
	case !b.options.foreignLog:
		p.Add("bus", "was made without WithForeignLog")
	case b.options.sharded:
		p.Add("bus", "has sharded Pub/Sub, which foreign publishers do not use")
	}
	for i, kind := range kinds {
		if problem := kind.problem(); problem != "" {
			p.Add(fmt.Sprintf("kinds[%d]", i), "%s", problem)
		}
	}
	return p.err()
}

// globEscaper makes a pattern of a name that matches this name only.
var globEscaper = strings.NewReplacer("*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`)

// channelNamed gives the text of the channel with this name in Redis.
func (b *Bus) channelNamed(name string) (string, error) {
	text := strings.TrimPrefix(name, b.options.prefix)
	c, err := ParseChannel(text)
	if err == nil && c.String() != text {
		err = invalid("channel", "channel", "%s is not in lower case", rawjson.Excerpt(text))
	}
	return text, err
}
