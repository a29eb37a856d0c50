package eventbus_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

// A service that keeps the cursor of what it has dealt with goes on from there, in
// whatever process.
func ExampleBus_SubscribeWith() {
	rdb, err := embedded.New() // your redis.NewClient(…)
	if err != nil {
		log.Fatal(err)
	}
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	ctx, project, agent := context.Background(), uuid.New(), uuid.New()
	for _, text := range []string{"first", "second", "third"} {
		ev, err := eventbus.NewEvent(project, eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: text})
		if err != nil {
			log.Fatal(err)
		}
		if err := bus.Publish(ctx, ev); err != nil {
			log.Fatal(err)
		}
	}

	var stored string // in a database, say
	for range 3 {     // each time as if the service had been started anew
		cursor, err := eventbus.ParseCursor(stored)
		if err != nil {
			log.Fatal(err)
		}
		sub := eventbus.Subscription{
			Channels: []eventbus.Channel{eventbus.ProjectChannel(project)},
			After:    cursor, Oldest: cursor.IsZero(),
		}
		for ev, err := range bus.SubscribeWith(ctx, sub) {
			if err != nil {
				log.Fatal(err)
			}
			msg, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(msg.Message)
			stored = ev.Cursor.String()
			break
		}
	}
	// Output:
	// first
	// second
	// third
}

// Where events are missing, a GapError stands in their place, and the iteration goes on.
func ExampleGapError() {
	rdb, err := embedded.New()
	if err != nil {
		log.Fatal(err)
	}
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	ctx, project := context.Background(), uuid.New()
	channel := eventbus.ProjectChannel(project)
	publish := func(issue string) {
		ev, err := eventbus.NewEvent(project, eventbus.System(), eventbus.IssueClosedPayload{IssueID: issue, Resolution: "fixed"})
		if err != nil {
			log.Fatal(err)
		}
		if err := bus.Publish(ctx, ev); err != nil {
			log.Fatal(err)
		}
	}
	publish("SYN-1")
	cursor, err := bus.Cursor(ctx, channel)
	if err != nil {
		log.Fatal(err)
	}
	publish("SYN-2")
	rdb.Del(ctx, "eventbus:log:{"+channel.String()+"}") // the log is lost while nobody listens
	publish("SYN-3")

	sub := eventbus.Subscription{Channels: []eventbus.Channel{channel}, After: cursor}
	for ev, err := range bus.SubscribeWith(ctx, sub) {
		if gap, ok := errors.AsType[*eventbus.GapError](err); ok {
			fmt.Println("missing events, since the log was", gap.Reason) // load the state again, and keep gap.Cursor
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		closed, err := eventbus.PayloadAs[eventbus.IssueClosedPayload](ev)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(closed.IssueID)
		break
	}
	// Output:
	// missing events, since the log was lost
	// SYN-3
}
