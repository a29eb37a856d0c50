// Package eventbus carries typed events from Go services to browsers and other services as they
// happen, over Redis. A subscriber that was away reads on from exactly where it stopped.
//
// # In short
//
//	bus, err := eventbus.New(rdb) // a *redis.Client or *redis.ClusterClient of go-redis v9
//
//	// A service publishes an event to its project's channel, and to a user's:
//	ev, err := eventbus.NewEvent(project, eventbus.Agent(agent),
//		eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: "done"})
//	err = bus.Publish(ctx, ev, eventbus.UserChannel(user))
//
//	// Other goroutines and other services listen from now on:
//	for ev, err := range bus.Subscribe(ctx, eventbus.ProjectChannel(project)) { … }
//
//	// Browsers listen with EventSource:
//	mux.Handle("GET /events", bus.Handler(authorize))
//
// [NewEvent] takes a payload struct and knows the type of the event from it. [PayloadAs] gives the
// struct back. [Bus.Publish] sends an event to the channel of its project and to any others.
// [Bus.Subscribe] is an iterator over what comes. [Bus.Handler] serves the same to browsers as
// Server-Sent Events. [Bus.NewWriter] streams events, such as the tokens of an agent's run, without
// waiting for Redis. [PublishOptions].Ends ends a channel. [Subscription].Snapshot lets a stream
// begin with the program's state. Package embedded has a Redis inside the process, for tests and for
// trying things out.
//
// # How it works
//
// Redis Pub/Sub forgets: a subscriber that is away for a second has lost that second. So every
// channel is a log, a capped Redis Stream, and Pub/Sub is its doorbell. One script appends an event
// to the logs of its channels and publishes it. A subscription is a position in a log, and one
// question: what comes after it? Live events, a replay, a slow reader, a new connection to Redis
// and a new process all ask that question. Most answers come from memory: each process keeps the
// newest events of the channels that it listens to, and all its subscribers share them.
//
// # What is promised
//
//   - Within a channel, events come in the order of its log.
//   - Each event comes once per subscription. This also holds for an event that was published to
//     several of its channels, for a publish that the bus repeats or the caller repeats after an
//     error, and for any other repeat where each attempt said PublishOptions.Idempotent.
//   - Nothing is lost silently. Where events cannot be delivered any more, a [GapError] stands in
//     their place. What can be delivered is never announced as lost.
//   - A [Cursor] resumes in any process on the same Redis, after any restart, while the logs keep
//     what follows it.
//   - The events that a [Writer] has taken are in the log in the order of the calls, each once, or they
//     are in its [WriteError], in order.
//   - Nothing follows the end of a channel, from whichever process.
//   - Publish returns nil only when every log has the event. Otherwise a [PublishError] says which
//     logs have it, and publishing the same event again is safe.
//   - When the bus cannot keep subscribers fresh for the time of [WithFreshness], [Bus.Health]
//     fails.
//   - A slow subscriber delays no other, and the memory that it takes is bounded.
//   - The end of a context ends what was called with it at once. [Bus.Close] ends everything, also
//     while Redis does not answer.
//
// Replication in Redis is asynchronous. When a replica takes over, it can lack the newest events
// that were acknowledged. A subscriber that had them is told of a gap. One that had not got them
// sees a complete log. Redis's own remedy is min-replicas-to-write. docs/reliability.md has this
// and the other limits.
//
// # Foreign publishers
//
// A program that only does a Redis PUBLISH with an event's JSON is heard, too: its events are
// delivered live. Without [WithForeignLog] they are in no log. So they have no position and are never
// replayed, and a reader that is too slow for them is told of a gap.
//
// # What is left to others
//
// Work queues with acknowledgements (Watermill, asynq, River), messages from clients to the server,
// presence, wildcard channels, and brokers other than Redis.
package eventbus
