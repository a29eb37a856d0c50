package eventbus

import "sync/atomic"

// counters are what Stats shows.
type counters struct {
	published, unreadable atomic.Int64

	refusedSubscribers, refusedPerIdentity, refusedChannels, refusedEventSize atomic.Int64
}

// Stats are counts since the bus was made, and current numbers.
type Stats struct {
	// Published counts publishes that succeeded, repeated ones included, and the events of Writers
	// that are in all of their logs.
	Published int64
	// Retries counts calls to Redis that were made again in order to publish.
	Retries int64
	// Fills counts reads of logs that fill or compare what the process keeps of a channel.
	Fills int64
	// Gaps counts the gaps that subscriptions were told of.
	Gaps int64
	// Unreadable counts messages and log entries that were skipped because they are no events. An
	// entry counts each time that it is read. With [WithForeignLog] it also counts events of foreign
	// publishers that could not come into the log.
	Unreadable int64
	// Reconnects counts Pub/Sub connections that broke.
	Reconnects int64
	// Channels is how many channels the bus listens to: also some that have had no reader for a
	// while.
	Channels int
	// Active is how many publishes, subscriptions and relays are under way, and how many Writers have
	// events under way.
	Active int
	// Refused counts what was above a limit.
	Refused Refused
}

// Refused counts what got a [*LimitError], by its limit.
type Refused struct {
	Subscribers int64 // LimitSubscribers: subscriptions
	PerIdentity int64 // LimitPerIdentity: subscriptions
	Channels    int64 // LimitChannels: subscriptions, publishes, writes and cursors
	EventSize   int64 // LimitEventSize: publishes, and writes
}

// Stats returns the counts and the current numbers.
func (b *Bus) Stats() Stats {
	if b.ctx == nil {
		return Stats{}
	}
	s := Stats{
		Published:  b.stats.published.Load(),
		Retries:    b.commits.Retries.Load(),
		Fills:      b.feed.Fills.Load(),
		Gaps:       b.readers.Gaps.Load(),
		Unreadable: b.stats.unreadable.Load(),
		Reconnects: b.feed.Reconnects.Load(),
		Refused: Refused{
			Subscribers: b.stats.refusedSubscribers.Load(),
			PerIdentity: b.stats.refusedPerIdentity.Load(),
			Channels:    b.stats.refusedChannels.Load(),
			EventSize:   b.stats.refusedEventSize.Load(),
		},
	}
	s.Channels = b.feed.Channels()
	b.mu.Lock()
	s.Active = b.inside
	b.mu.Unlock()
	return s
}
