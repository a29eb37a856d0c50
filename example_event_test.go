package eventbus_test

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

func ExampleNewEvent() {
	project := uuid.MustParse("550e8400-e29b-41d4-a716-446655440001")
	agent := uuid.MustParse("550e8400-e29b-41d4-a716-446655440002")
	ev, err := eventbus.NewEvent(project, eventbus.Agent(agent), eventbus.AgentMessagePayload{
		AgentInstanceID: agent,
		Message:         "tests are green",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(ev.Type)
	fmt.Println(string(ev.Payload))

	// A payload that lacks something is refused, by name.
	_, err = eventbus.NewEvent(project, eventbus.Agent(agent), eventbus.AgentMessagePayload{Message: "hello"})
	fmt.Println(err)
	// Output:
	// agent.message
	// {"agent_instance_id":"550e8400-e29b-41d4-a716-446655440002","message":"tests are green","message_type":"info","metadata":{}}
	// eventbus: event: payload.agent_instance_id is required
}

func ExamplePayloadAs() {
	ev := eventbus.Event{
		Type:    eventbus.AgentMessage,
		Payload: []byte(`{"agent_instance_id": "550e8400-e29b-41d4-a716-446655440002", "message": "halfway"}`),
	}
	msg, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(*msg.MessageType, msg.Message)

	ev.Payload = []byte(`{"message": null}`)
	_, err = eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
	fmt.Println(err)
	// Output:
	// info halfway
	// eventbus: payload of agent.message: agent_instance_id is required; message is null
}

// DeployFinished is the payload of a program's own type of events.
type DeployFinished struct {
	Service  string   `json:"service" eventbus:"required"`
	Stage    *string  `json:"stage" eventbus:"default=production"`
	Versions []string `json:"versions"`
}

// EventType names the type; the struct belongs to it alone.
func (DeployFinished) EventType() eventbus.Type { return "deploy.finished" }

func ExampleRegister() {
	// Once, before buses are made: from now on they publish such events.
	if err := eventbus.Register[DeployFinished](); err != nil {
		fmt.Println(err)
		return
	}
	ev, err := eventbus.NewEvent(uuid.New(), eventbus.System(), DeployFinished{Service: "api"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(ev.Type, string(ev.Payload))
	// Output:
	// deploy.finished {"service":"api","stage":"production","versions":[]}
}
