// Package eventbus carries typed events from Go services to browsers and other
// services as they happen, over Redis Pub/Sub, and lets whoever was away read on
// from exactly where it stopped.
//
// # In short
//
//	bus, err := eventbus.New(rdb) // a *redis.Client or *redis.ClusterClient
//
//	// A service publishes:
//	ev, err := eventbus.NewEvent(project, eventbus.Agent(agent),
//		eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: "done"})
//	err = bus.Publish(ctx, ev, eventbus.UserChannel(user)) // the project's channel, and this one
//
//	// Others, or other goroutines, listen from now on:
//	for ev, err := range bus.Subscribe(ctx, eventbus.ProjectChannel(project)) { … }
//	mux.Handle("GET /events", bus.Handler(authorize)) // Server-Sent Events
//
// [NewEvent] takes a payload struct and knows the event's type from it;
// [PayloadAs] gives the struct back. [Bus.Publish] sends the event to its project's
// [Channel] and any others. [Bus.Subscribe] is an iterator over what comes.
// [Bus.Handler] serves the same to browsers. [Bus.Cursor] gives the present position,
// for a page that loads its state first. Package embedded has a Redis inside the
// process, for tests and for trying things out.
//
// # How it works
//
// Redis Pub/Sub forgets: a subscriber that is away for a second has lost that
// second. So every channel is a log, a capped Redis Stream, and Pub/Sub is its
// doorbell: one script appends an event to the logs of its channels and publishes it.
// A subscription is a position in a log and asks for what comes after it. Live
// events, a replay, a slow reader, a new connection to Redis and a new process are all
// that one question. Most answers come from memory: each process keeps the newest
// events of the channels that it listens to in tails, which all its subscribers share.
//
// # What is promised
//
//   - Within a channel, events come in the order of its log.
//   - Each event comes once per subscription, also where it was published to several
//     of its channels, or where a publish was repeated by the bus, by the caller after an
//     error, or by anybody where each attempt said PublishOptions.Idempotent.
//   - Nothing is lost silently: where events cannot be delivered any more, a [GapError]
//     stands in their place. What was or can be delivered is not announced as lost.
//   - A [Cursor] resumes in any process on the same Redis, after any restart, while the
//     logs keep what follows it.
//   - Publish returns nil only when every log has the event; otherwise a [PublishError]
//     says which have it, and publishing the same event again is safe.
//   - When subscribers cannot be kept fresh for the time of [WithFreshness],
//     [Bus.Health] fails.
//   - A slow subscriber holds up no other, and its memory is bounded.
//   - The end of a context ends what was called with it at once; [Bus.Close] ends
//     everything, also while Redis does not answer.
//
// Asynchronous replication in Redis can lose events that were acknowledged when a
// replica takes over. Subscribers that had been given them are then told of a gap; for
// one that had not got that far, nothing is missing in the log that there is. Redis's own
// remedy is min-replicas-to-write. RELIABILITY.md has this and the other limits.
//
// Events of foreign publishers, programs that only do a Redis PUBLISH with an event's
// JSON, are delivered live. They are in no log: they have no position, are never
// replayed, and a reader that was too slow for them is told of a gap.
//
// # What is left to others
//
// Work queues with acknowledgements (Watermill, asynq, River), messages from clients to
// the server, presence, wildcard channels and brokers other than Redis.
package eventbus
