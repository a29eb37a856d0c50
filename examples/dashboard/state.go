package main

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

// A state is what a page must know when it opens: who is at work, and what the runs have said.
type state struct {
	Agents []*presence `json:"agents"` // in the order in which they came
	Runs   []*runState `json:"runs"`
}

// A presence is an agent as the events show it.
type presence struct {
	ID     uuid.UUID `json:"id"`
	Name   string    `json:"name"`
	Role   string    `json:"role"`
	Status string    `json:"status"`
	Last   string    `json:"last"` // what it has said last
	Ended  bool      `json:"ended"`
	Seen   time.Time `json:"seen"` // the time of its newest event
}

// A runState is one answer. On the project's channel it only begins and ends, the text is on its own.
type runState struct {
	ID      string    `json:"id"`
	Agent   uuid.UUID `json:"agent"`
	Title   string    `json:"title"`
	Text    string    `json:"text"`
	Tokens  int       `json:"tokens"`
	Outcome string    `json:"outcome"` // "" while it goes on
}

// The state forgets what nobody wants to see any more.
const (
	maxAgents   = 200
	maxRuns     = 30
	silentAfter = 10 * time.Minute
	endedAfter  = 15 * time.Second
)

// add is what an event changes. A payload that is not as its type wants it is zero here: what has no
// ID is never shown.
func (s *state) add(ev eventbus.Event) {
	if ev.ActorType == eventbus.ActorAgent && ev.ActorID != nil {
		s.agent(*ev.ActorID).Seen = ev.Timestamp
	}
	switch ev.Type {
	case eventbus.AgentSpawned:
		p, _ := eventbus.PayloadAs[eventbus.AgentSpawnedPayload](ev)
		a := s.agent(p.AgentInstanceID)
		a.Name, a.Role, a.Status, a.Seen, a.Ended = p.AgentName, p.Role, "spawned", ev.Timestamp, false
	case eventbus.AgentStatusChanged:
		p, _ := eventbus.PayloadAs[eventbus.AgentStatusChangedPayload](ev)
		s.agent(p.AgentInstanceID).Status = p.NewStatus
	case eventbus.AgentMessage:
		p, _ := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
		a := s.agent(p.AgentInstanceID)
		a.Last, a.Seen = p.Message, ev.Timestamp
	case eventbus.AgentTerminated:
		p, _ := eventbus.PayloadAs[eventbus.AgentTerminatedPayload](ev)
		a := s.agent(p.AgentInstanceID)
		a.Ended, a.Seen = true, ev.Timestamp
	case runStarted:
		p, _ := eventbus.PayloadAs[runStartedPayload](ev)
		r := s.run(p.RunID)
		r.Agent, r.Title = p.AgentInstanceID, p.Title
	case runToken:
		p, _ := eventbus.PayloadAs[runTokenPayload](ev)
		r := s.run(ev.Channel.ID())
		r.Text, r.Tokens = r.Text+p.Text, r.Tokens+1
	case runEnded:
		p, _ := eventbus.PayloadAs[runEndedPayload](ev)
		s.run(p.RunID).Outcome = p.Outcome
	}
}

// agent gives the agent with this id, a new one if there is none.
func (s *state) agent(id uuid.UUID) *presence {
	for _, a := range s.Agents {
		if a.ID == id {
			return a
		}
	}
	if len(s.Agents) >= maxAgents {
		s.Agents = slices.Delete(s.Agents, 0, 1)
	}
	s.Agents = append(s.Agents, &presence{ID: id, Status: "active"})
	return s.Agents[len(s.Agents)-1]
}

// run gives the run with this id, a new one if there is none.
func (s *state) run(id string) *runState {
	for _, r := range s.Runs {
		if r.ID == id {
			return r
		}
	}
	if len(s.Runs) >= maxRuns {
		s.Runs = slices.Delete(s.Runs, 0, 1)
	}
	s.Runs = append(s.Runs, &runState{ID: id})
	return s.Runs[len(s.Runs)-1]
}

// shown forgets the agents that are away for a while, and gives the state.
func (s *state) shown(now time.Time) *state {
	s.Agents = slices.DeleteFunc(s.Agents, func(a *presence) bool {
		silent := now.Sub(a.Seen)
		return a.ID == uuid.Nil || silent > silentAfter || a.Ended && silent > endedAfter
	})
	s.Runs = slices.DeleteFunc(s.Runs, func(r *runState) bool { return r.ID == "" })
	return s
}
