package main

import (
	"context"
	"log/slog"
	"strings"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

// The events of a run, beside those that the bus knows already. The first and the last are on the
// project's channel, too; the tokens are on the run's alone.
const (
	runStarted eventbus.Type = "run.started"
	runToken   eventbus.Type = "run.token"
	runEnded   eventbus.Type = "run.ended"
)

type runStartedPayload struct {
	RunID           string    `json:"run_id" eventbus:"required"`
	AgentInstanceID uuid.UUID `json:"agent_instance_id" eventbus:"required"`
	Title           string    `json:"title"`
}

type runTokenPayload struct {
	Text string `json:"text" eventbus:"required"`
}

type runEndedPayload struct {
	RunID   string `json:"run_id" eventbus:"required"`
	Outcome string `json:"outcome" eventbus:"required"` // "finished" or "cut off"
}

func (runStartedPayload) EventType() eventbus.Type { return runStarted }
func (runTokenPayload) EventType() eventbus.Type   { return runToken }
func (runEndedPayload) EventType() eventbus.Type   { return runEnded }

// writes adds a run to the script: the agent writes an answer.
func (a *agent) writes(title, answer string) {
	id := uuid.NewString()
	a.does(runStartedPayload{RunID: id, AgentInstanceID: a.id, Title: title})
	a.acts[len(a.acts)-1].answer = answer
}

// write plays a run: it writes an answer to the run's own channel, word by word as a model gives it,
// and ends that channel.
func (s *simulation) write(ctx context.Context, act act) {
	id := act.payload.(runStartedPayload).RunID
	channel, err := eventbus.NewChannel("run", id)
	if err != nil {
		slog.Warn("a run has no channel", "error", err)
		return
	}
	act.channels = append(act.channels, channel)
	if !s.publish(ctx, act) {
		return
	}
	w := s.bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{channel}, NoProject: true})
	for word := range strings.SplitAfterSeq(act.answer, " ") {
		if s.rest(ctx, s.pause/15); ctx.Err() != nil {
			break
		}
		if ev, err := eventbus.NewEvent(s.project, act.actor, runTokenPayload{Text: word}); err == nil {
			_ = w.Write(ctx, ev) // End says what went wrong
		}
	}
	s.end(ctx, act, w, id)
}

// end ends a run, also where the server stops in the middle of it. A process that is killed leaves
// its runs as they are. Who wants to mend that keeps a list of them: see examples/agentrun.
func (s *simulation) end(ctx context.Context, act act, w *eventbus.Writer, id string) {
	last := runEndedPayload{RunID: id, Outcome: "finished"}
	timeout := publishTimeout
	if ctx.Err() != nil {
		last.Outcome, timeout = "cut off", leaveTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	ev, err := eventbus.NewEvent(s.project, act.actor, last)
	if err == nil {
		err = w.End(ctx, ev)
	}
	if err != nil {
		slog.Warn("a run has no proper end", "error", err)
		return
	}
	act.payload, act.channels = last, nil
	s.publish(ctx, act)
}

// answers are what agents write, in any order.
var answers = []string{
	"I read the code around the report. The page asks for the list before the session is there, gets an empty one, and keeps it: " +
		"the cause is a stale cache entry, not the query. I will write a test that loads the page with a slow session first. " +
		"Then the list waits for the session, and the cache keeps nothing that was asked for without one. Three places need the same change.",
	"Two ways lead there. We can retry the upload as a whole, which is simple, and costs the users on slow lines most. " +
		"Or we cut it into parts of 4 MiB, and send again what is missing. The second one needs a table of parts and an end that checks them. " +
		"I take the second: most of the failures are in the last third of large files. A first version is a day of work.",
	"The failing case is small now: one user, two tabs, a password change in the first. The second tab keeps its old token, " +
		"and the refresh answers with an error that the page takes for a broken line. So it tries for ever. " +
		"The answer must say that the token is void, and the page must then ask for the password. I begin with the test.",
}
