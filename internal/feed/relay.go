package feed

import "context"

// A relay says what a link hears that brings foreign events of whole kinds of channels. Nobody has
// to read the channels.
type relay struct {
	patterns []string                          // as PSUBSCRIBE takes them
	channel  func(name string) (string, error) // the channel with this name in Redis
}

// Relay begins to hear all channels that the patterns match, and to bring foreign events on them
// into their logs, until the context ends. The feed must have ForeignLog, and no sharded Pub/Sub.
func (f *Feed) Relay(ctx context.Context, patterns []string, channel func(name string) (string, error)) {
	l := newLink(f, "")
	l.relay = &relay{patterns, channel}
	_, l.client, _ = f.Log.Carrier(ctx, "") // plain Pub/Sub has one for all, and no error
	f.mu.Lock()
	f.relays[l] = true
	f.mu.Unlock()
	f.Spawn(func() {
		l.run(ctx)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.relays, l)
	})
}

// overhear takes a message on a channel that a pattern matches. What has a position is in the log.
func (l *link) overhear(name, payload string) {
	f := l.feed
	ev, ok := f.read(payload)
	if !ok || !ev.Position.IsZero() {
		return
	}
	channel, err := l.relay.channel(name)
	if err != nil {
		f.Unreadable(err)
		return
	}
	f.foreign.put(channel, name, ev, len(payload))
}
