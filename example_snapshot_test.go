package eventbus_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

// A program folds events into a state, and stores the cursor of the last one with it. A page gets
// that state, and then the events that are not in it yet.
func ExampleSubscription_snapshot() {
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
	publish := func(text string) {
		ev, err := eventbus.NewEvent(project, eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: text})
		if err != nil {
			log.Fatal(err)
		}
		if err := bus.Publish(ctx, ev); err != nil {
			log.Fatal(err)
		}
	}
	publish("all tests ")
	publish("are ")

	// A real program folds in a loop that goes on, and saves both in one transaction.
	var stored struct {
		state  struct{ Text string }
		cursor eventbus.Cursor
	}
	channels := []eventbus.Channel{eventbus.ProjectChannel(project)}
	for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{Channels: channels, Oldest: true, NoFollow: true}) {
		if err != nil {
			log.Fatal(err)
		}
		message, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
		if err != nil {
			log.Fatal(err)
		}
		stored.state.Text += message.Message
		stored.cursor = ev.Cursor
	}

	publish("green") // This one is not in the state.
	server := httptest.NewServer(bus.Handler(func(*http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{
			Channels: channels,
			Snapshot: func(context.Context) (any, eventbus.Cursor, error) { return stored.state, stored.cursor, nil },
		}, nil
	}))
	defer server.Close()
	response, err := server.Client().Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	event := ""
	for lines := bufio.NewScanner(response.Body); event != "stream.live" && lines.Scan(); {
		if typ, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = typ
		} else if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && event == "stream.snapshot" {
			fmt.Println(event, data)
		} else if ok {
			fmt.Println(event)
		}
	}
	// Output:
	// stream.snapshot {"reason":"joined","state":{"Text":"all tests are "}}
	// agent.message
}
