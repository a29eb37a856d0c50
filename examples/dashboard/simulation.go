package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

// A simulation is a team of agents at work on one project. Each of them lives on its
// own: it is spawned, takes issues, writes, asks, waits, and is terminated; then an
// instance of its kind is spawned anew.
type simulation struct {
	bus     *eventbus.Bus
	project uuid.UUID
	pause   time.Duration // between two events of an agent, on average
	issues  atomic.Int64  // how many there are
	failing atomic.Bool   // the last publish did not succeed
}

func newSimulation(bus *eventbus.Bus, project uuid.UUID) *simulation {
	return &simulation{bus: bus, project: project, pause: time.Second}
}

var team = []agent{
	{name: "Ada", role: "product_owner", model: "sonata-large"},
	{name: "Ben", role: "project_manager", model: "sonata-small"},
	{name: "Chioma", role: "architect", model: "sonata-large"},
	{name: "Diego", role: "engineer", model: "sonata-large"},
	{name: "Emi", role: "engineer", model: "sonata-small"},
	{name: "Farid", role: "quality_assurance", model: "sonata-small"},
}

// reviewer is the one person in the play.
var reviewer = uuid.MustParse("0d6f1b52-93a7-4c1e-8b7d-64c2a5e9f018")

// run plays until the context ends.
func (s *simulation) run(ctx context.Context) {
	var stage sync.WaitGroup
	for i, member := range team {
		stage.Go(func() {
			a := &member
			a.dice = rand.New(rand.NewPCG(2026, uint64(i))) // the same story at every start
			for ctx.Err() == nil {
				s.live(ctx, a)
			}
		})
	}
	stage.Wait()
}

// live plays one life of an agent. Where the server stops before its end, the agent leaves: those who
// look later, at a log that outlives this process, would take it for a living one.
func (s *simulation) live(ctx context.Context, a *agent) {
	for _, act := range a.life(s) {
		if act.answer == "" {
			s.publish(ctx, act)
		} else {
			s.write(ctx, act)
		}
		if s.rest(ctx, s.pause); ctx.Err() != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
			defer cancel()
			a.does(eventbus.AgentTerminatedPayload{AgentInstanceID: a.id, TerminationReason: "the server stops", FinalStatus: a.status})
			s.publish(ctx, a.acts[len(a.acts)-1])
			return
		}
	}
}

const leaveTimeout = time.Second // for the last words of an agent, when the server stops

// publish sends what an agent, or a person, does to the project's channel and to those of whom it
// concerns. It reports whether that has succeeded.
func (s *simulation) publish(ctx context.Context, act act) bool {
	if ctx.Err() != nil {
		return false
	}
	ev, err := eventbus.NewEvent(s.project, act.actor, act.payload)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout) // what is begun gets its answer
		defer cancel()
		err = s.bus.Publish(ctx, ev, act.channels...)
	}
	if failed := err != nil; s.failing.Swap(failed) != failed && failed && ctx.Err() == nil {
		slog.Warn("the simulated agents cannot publish; they go on trying", "error", err)
	}
	return err == nil
}

// rest lets between half and one and a half of a pause go by.
func (s *simulation) rest(ctx context.Context, pause time.Duration) {
	select {
	case <-time.After(pause/2 + rand.N(pause)):
	case <-ctx.Done():
	}
}

// An act is one event of the play, or an answer, which is many.
type act struct {
	actor    eventbus.Actor
	payload  eventbus.Payload
	channels []eventbus.Channel
	answer   string // its words are the tokens of a run, which the payload begins
}

// An agent is a member of the team, and the script of its present life.
type agent struct {
	name, role, model string

	dice   *rand.Rand
	id     uuid.UUID // of this instance
	status string
	sprint int // the last one that it began
	acts   []act
}

// life writes what the agent does from being spawned to its end.
func (a *agent) life(s *simulation) []act {
	a.id, a.status, a.acts = uuid.New(), "idle", nil
	a.does(eventbus.AgentSpawnedPayload{AgentInstanceID: a.id, AgentTypeID: uuid.NewSHA1(reviewer, []byte(a.role)), AgentName: a.name, Role: a.role})
	for range 1 + a.dice.IntN(2) {
		switch a.role {
		case "product_owner":
			a.plans(s)
		case "project_manager":
			a.runsSprint(s)
		case "architect":
			a.seeksApproval()
		}
		a.worksOnIssue(s)
		if a.role == "engineer" || a.role == "quality_assurance" {
			a.runsPipeline()
		}
	}
	a.becomes("idle", "nothing left to do")
	a.does(eventbus.AgentTerminatedPayload{AgentInstanceID: a.id, TerminationReason: a.one("task finished", "context window used up", "scaled down"), FinalStatus: a.status})
	return a.acts
}

// plans is how the product owner fills the backlog.
func (a *agent) plans(s *simulation) {
	a.becomes("working", "refining the backlog")
	a.does(eventbus.IssueCreatedPayload{IssueID: s.newIssue(), Title: a.title(), Priority: new(a.one("low", "medium", "high")), Labels: []string{a.one("bug", "feature", "chore")}})
	a.says("info", a.one("The two newest requests are the same one; I merged them.", "Acceptance criteria are written. Ready to be taken."))
	a.does(eventbus.ProjectUpdatedPayload{"open_issues": 3 + a.dice.IntN(20), "health": a.one("on_track", "at_risk")})
}

// runsSprint is what the project manager does.
func (a *agent) runsSprint(s *simulation) {
	if a.sprint++; a.sprint > 1 {
		left := a.dice.IntN(3)
		a.does(eventbus.SprintCompletedPayload{SprintID: sprintID(s, a.sprint-1), SprintName: fmt.Sprintf("Sprint %d", a.sprint-1), CompletedIssues: 8 - left, IncompleteIssues: left})
	}
	a.becomes("working", "planning the sprint")
	a.does(eventbus.SprintStartedPayload{SprintID: sprintID(s, a.sprint), SprintName: fmt.Sprintf("Sprint %d", a.sprint), Goal: new(a.one("Ship the new sign-in", "Halve the loading time", "No open crash")), IssueCount: 8})
	a.says("info", a.one("Everybody has enough to do for two days.", "Two of us depend on the review; I moved it up."))
}

func sprintID(s *simulation, n int) uuid.UUID {
	return uuid.NewSHA1(s.project, fmt.Append(nil, "sprint ", n))
}

// worksOnIssue takes an issue from its start to its end.
func (a *agent) worksOnIssue(s *simulation) {
	issue := s.newIssue()
	a.does(eventbus.IssueCreatedPayload{IssueID: issue, Title: a.title(), Priority: new(a.one("low", "medium", "high")), Labels: []string{a.one("bug", "feature")}})
	a.does(eventbus.IssueAssignedPayload{IssueID: issue, AssigneeID: &a.id, AssigneeName: &a.name})
	a.becomes("working", "took "+issue)
	a.does(eventbus.IssueUpdatedPayload{IssueID: issue, Changes: map[string]any{"status": "in_progress", "estimate": 1 + a.dice.IntN(8)}})
	a.writes("Plan for "+issue, a.one(answers...))
	a.says("debug", a.one("ran 214 tests in 8.1 s", "read 12 files, changed 2", "searched the documentation for 'retry budget'"))
	if a.chance(3) {
		a.becomes("blocked", "the test database does not answer")
		a.says("warning", "I cannot reach the test database. Waiting.")
		a.becomes("working", "the test database is back")
	}
	a.does(eventbus.IssueUpdatedPayload{IssueID: issue, Changes: map[string]any{"status": "in_review"}})
	a.says("info", a.one("All tests are green. The change is 38 lines.", "Done; the review found one unclear name, now mended.", "The page loads in 0.9 s instead of 2.4 s."))
	a.does(eventbus.IssueClosedPayload{IssueID: issue, Resolution: a.one("fixed", "fixed", "duplicate", "wont_fix")})
}

// seeksApproval waits for the reviewer.
func (a *agent) seeksApproval() {
	approval := uuid.New()
	a.does(eventbus.ApprovalRequestedPayload{
		ApprovalID: approval, ApprovalType: a.one("architecture_change", "budget", "dependency"), RequestedBy: &a.id, TimeoutMinutes: new(30),
		Description: a.one("Move sessions from memory to Redis", "Use the large model for code review", "Add a library for PDF export"),
	}, eventbus.UserChannel(reviewer))
	a.becomes("blocked", "waiting for approval")
	if a.chance(3) {
		a.sees(eventbus.ApprovalDeniedPayload{ApprovalID: approval, DeniedBy: reviewer, Reason: "Not before the release"})
		a.becomes("working", "going on without it")
	} else {
		a.sees(eventbus.ApprovalGrantedPayload{ApprovalID: approval, ApprovedBy: reviewer, Comments: new("Go ahead, and write down why.")})
		a.becomes("working", "approved")
	}
}

// runsPipeline is a workflow, which fails now and then.
func (a *agent) runsPipeline() {
	workflow, steps := uuid.New(), []string{"build", "unit_tests", "end_to_end_tests", "deploy_preview"}
	a.does(eventbus.WorkflowStartedPayload{WorkflowID: workflow, WorkflowType: "delivery_pipeline", TotalSteps: len(steps)})
	for i, step := range steps {
		if a.chance(12) {
			a.does(eventbus.WorkflowFailedPayload{WorkflowID: workflow, ErrorMessage: "exit status 1", FailedStep: &step, Recoverable: true})
			a.says("error", "The pipeline failed. I will look at the log of the step.")
			return
		}
		a.does(eventbus.WorkflowStepCompletedPayload{WorkflowID: workflow, StepName: step, StepNumber: i + 1, TotalSteps: len(steps), Result: map[string]any{"warnings": a.dice.IntN(3)}})
	}
	a.does(eventbus.WorkflowCompletedPayload{WorkflowID: workflow, DurationSeconds: 20 + float64(a.dice.IntN(400))/10, Result: map[string]any{"url": "https://preview.example.com"}})
}

// does adds an event to the script, for the agent's own channel too.
func (a *agent) does(p eventbus.Payload, channels ...eventbus.Channel) {
	a.acts = append(a.acts, act{actor: eventbus.Agent(a.id), payload: p, channels: append(channels, eventbus.AgentChannel(a.id))})
}

// sees adds what the reviewer does for the agent.
func (a *agent) sees(p eventbus.Payload) {
	a.acts = append(a.acts, act{actor: eventbus.User(reviewer), payload: p, channels: []eventbus.Channel{eventbus.AgentChannel(a.id), eventbus.UserChannel(reviewer)}})
}

func (a *agent) becomes(status, reason string) {
	if status == a.status {
		return
	}
	a.does(eventbus.AgentStatusChangedPayload{AgentInstanceID: a.id, PreviousStatus: a.status, NewStatus: status, Reason: &reason})
	a.status = status
}

func (a *agent) says(kind, text string) {
	tokens := map[string]any{"input": 900 + a.dice.IntN(6000), "output": 40 + a.dice.IntN(700)}
	a.does(eventbus.AgentMessagePayload{AgentInstanceID: a.id, Message: text, MessageType: &kind, Metadata: map[string]any{"model": a.model, "tokens": tokens}})
}

func (a *agent) title() string {
	return a.one("Sign-in fails after a password change", "Search finds nothing with umlauts", "Export as CSV", "Slow first page",
		"Retry uploads that break off", "Dark theme for the calendar", "Emails are sent twice", "Remember the last filter")
}

func (a *agent) one(of ...string) string { return of[a.dice.IntN(len(of))] }
func (a *agent) chance(in int) bool      { return a.dice.IntN(in) == 0 }

// newIssue numbers issues over the whole team.
func (s *simulation) newIssue() string { return fmt.Sprintf("SYN-%d", s.issues.Add(1)) }
