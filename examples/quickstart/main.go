// Quickstart publishes an event and reads it back: the whole of package eventbus in
// a few lines.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	rdb, err := embedded.New() // a Redis inside the process; yours is redis.NewClient(…)
	if err != nil {
		return err
	}
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		return err
	}
	defer bus.Close()

	project, agent := uuid.New(), uuid.New()
	channel := eventbus.ProjectChannel(project)
	start, err := bus.Cursor(ctx, channel) // from here on, nothing is missed
	if err != nil {
		return err
	}
	ev, err := eventbus.NewEvent(project, eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: "tests are green"})
	if err != nil {
		return err
	}
	if err := bus.Publish(ctx, ev); err != nil {
		return err
	}

	for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{channel}, After: start}) {
		if err != nil {
			return err
		}
		said, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s\n", ev.Type, said.Message)
		break // it would go on for ever
	}
	return nil
}
