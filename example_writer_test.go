package eventbus_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

// A run of an agent has a channel of its own. Its tokens go there and nowhere else, and nobody waits
// for Redis between two of them. The run's last event ends the channel.
func ExampleBus_NewWriter() {
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
	run, err := eventbus.NewChannel("run", "run_01J9ZQ4T")
	if err != nil {
		log.Fatal(err)
	}
	event := func(payload eventbus.Payload) eventbus.Event {
		ev, err := eventbus.NewEvent(project, eventbus.Agent(agent), payload)
		if err != nil {
			log.Fatal(err)
		}
		return ev
	}

	w := bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{run}, NoProject: true})
	for _, token := range strings.SplitAfter("all tests are green", " ") {
		// This returns at once.
		if err := w.Write(ctx, event(eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: token})); err != nil {
			log.Fatal(err)
		}
	}
	cursor, err := w.Flush(ctx) // Store it with what was said so far, to show that to who comes later.
	if err != nil {
		log.Fatal(err)
	}
	err = w.End(ctx, event(eventbus.WorkflowCompletedPayload{WorkflowID: uuid.New(), DurationSeconds: 1.5}))
	if err != nil {
		log.Fatal(err)
	}

	for _, sub := range []eventbus.Subscription{
		{Channels: []eventbus.Channel{run}, Oldest: true},
		{Channels: []eventbus.Channel{run}, After: cursor},
	} {
		for ev, err := range bus.SubscribeWith(ctx, sub) {
			if err != nil {
				log.Fatal(err)
			}
			if ev.Type == eventbus.WorkflowCompleted {
				fmt.Println(ev.Type) // the last one: the loop ends by itself
				continue
			}
			token, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%q ", token.Message)
		}
	}
	// Output:
	// "all " "tests " "are " "green" workflow.completed
	// workflow.completed
}
