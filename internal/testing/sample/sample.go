// Package sample has events for the tests of the rooms.
package sample

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus/internal/wire"
)

// project is the project of all samples.
var project = uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")

// Event is a valid event with an id of its own.
func Event() wire.Event {
	actor := uuid.MustParse("550e8400-e29b-41d4-a716-446655440000")
	return wire.Event{
		ID: uuid.Must(uuid.NewV7()).String(), Type: "agent.message", Timestamp: time.Now().UTC().Truncate(time.Microsecond),
		ProjectID: project, ActorID: &actor, ActorType: "agent",
		Payload: json.RawMessage(`{"agent_instance_id":"550e8400-e29b-41d4-a716-446655440000","message":"The tests pass.","message_type":"info","metadata":{}}`),
	}
}
