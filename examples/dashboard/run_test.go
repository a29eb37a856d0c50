package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

func TestAChannelOfAnyKindCanHaveEventsOfItsOwn(t *testing.T) {
	s := newSite(t)
	project := uuid.New()
	ofProject := open(t, s.Client(), s.events(project))
	ofRun := open(t, s.Client(), s.events(project)+"?only=1&channel=run:r_1")
	ofBoth := open(t, s.Client(), s.events(project)+"?channel=run:r_1&channel=run:r_2")
	s.published(project, closed("run", `, "channels": ["run:r_1"], "only": true`))
	s.published(project, closed("both", `, "channels": ["run:r_1"], "only": false`))
	s.published(project, closed("project", `, "channels": null, "only": null, "ends": null`))
	s.published(project, closed("last", `, "channels": ["run:r_1"], "only": true`))
	require.Equal(t, "both", ofProject.issue())
	require.Equal(t, "project", ofProject.issue())
	require.Equal(t, "run", ofRun.issue())
	require.Equal(t, "both", ofRun.issue())
	require.Equal(t, "last", ofRun.issue())
	require.ElementsMatch(t, []string{"run", "both", "project", "last"}, []string{ofBoth.issue(), ofBoth.issue(), ofBoth.issue(), ofBoth.issue()})
}

func TestAChannelEndsWithAnEvent(t *testing.T) {
	s := newSite(t)
	project, id := uuid.New(), uuid.NewString()
	url := s.events(project) + "?only=1&channel=run:1"
	s.published(project, closed("first", `, "channels": ["run:1"]`))
	before := open(t, s.Client(), url)
	last := closed("last", `, "channels": ["run:1"], "ends": ["run:1"], "id": "`+id+`"`)
	s.published(project, last)
	s.published(project, last) // the same event is in the log

	r := s.post(project, closed("late", `, "channels": ["run:2", "run:1"]`))
	require.Equal(t, http.StatusConflict, r.StatusCode, r.text)
	require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
	require.Equal(t, []string{"channels"}, r.fields())
	require.Contains(t, r.body.Detail, "run:1")

	ends := func(stream *stream, want ...string) (id string) {
		for _, issue := range want {
			require.Equal(t, issue, stream.issue())
		}
		f, ok := stream.next()
		require.True(t, ok)
		require.Equal(t, "stream.end", f.event)
		require.JSONEq(t, `{"channel": "run:1"}`, f.raw)
		_, ok = stream.next()
		require.False(t, ok, "the response goes on")
		return f.id
	}
	end := ends(before, "last")
	ends(open(t, s.Client(), url+"&last=10"), "first", "last")
	require.Equal(t, http.StatusNoContent, s.get(url, "Accept", "text/event-stream", "Last-Event-ID", end).StatusCode)
}

func TestAStreamCanBeginSomeEventsBack(t *testing.T) {
	s := newSite(t)
	project := uuid.New()
	for i := range 5 {
		s.published(project, closed(fmt.Sprint(i), ""))
	}
	stream := open(t, s.Client(), s.events(project)+"?last=2")
	require.Equal(t, "3", stream.issue())
	require.Equal(t, "4", stream.issue())
	stream = open(t, s.Client(), s.events(project)+"?last=0")
	s.published(project, closed("5", ""))
	require.Equal(t, "5", stream.issue())
}

// snapshot gives the state with which the stream goes on.
func (s *stream) snapshot(reason string) (shown state) {
	s.t.Helper()
	f, ok := s.next()
	require.True(s.t, ok, "the stream ended")
	require.Equal(s.t, "stream.snapshot", f.event)
	require.NotEmpty(s.t, f.id)
	var data struct {
		Reason string
		State  state
	}
	require.NoError(s.t, json.Unmarshal([]byte(f.raw), &data), f.raw)
	require.Equal(s.t, reason, data.Reason)
	return data.State
}

func TestAStreamBeginsWithTheStateIfItIsAskedFor(t *testing.T) {
	s := newSite(t)
	project, ada, ben := uuid.New(), uuid.New(), uuid.New()
	begin := open(t, s.Client(), s.events(project)+"?snapshot=1")
	require.Equal(t, state{Agents: []*presence{}, Runs: []*runState{}}, begin.snapshot("joined"))
	publish := func(payload eventbus.Payload, actor uuid.UUID) {
		ev, err := eventbus.NewEvent(project, eventbus.Agent(actor), payload)
		require.NoError(t, err)
		require.NoError(t, s.bus.Publish(deadline(t), ev))
	}
	publish(eventbus.AgentSpawnedPayload{AgentInstanceID: ada, AgentTypeID: ada, AgentName: "Ada", Role: "engineer"}, ada)
	publish(eventbus.AgentStatusChangedPayload{AgentInstanceID: ada, PreviousStatus: "spawned", NewStatus: "working"}, ada)
	publish(eventbus.AgentMessagePayload{AgentInstanceID: ada, Message: "hello"}, ada)
	publish(runStartedPayload{RunID: "r", AgentInstanceID: ada, Title: "A plan"}, ada)
	publish(eventbus.AgentSpawnedPayload{AgentInstanceID: ben, AgentTypeID: ben, AgentName: "Ben", Role: "engineer"}, ben)
	publish(eventbus.AgentTerminatedPayload{AgentInstanceID: ben, TerminationReason: "done", FinalStatus: "idle"}, ben)
	s.published(project, closed("before", ""))

	for range 2 { // the second one from what the first has left
		stream := open(t, s.Client(), s.events(project)+"?snapshot=1")
		got := stream.snapshot("joined")
		require.Len(t, got.Agents, 2)
		require.Equal(t, []any{"Ada", "engineer", "working", "hello", false}, []any{got.Agents[0].Name, got.Agents[0].Role, got.Agents[0].Status, got.Agents[0].Last, got.Agents[0].Ended})
		require.True(t, got.Agents[1].Ended)
		require.Equal(t, []*runState{{ID: "r", Agent: ada, Title: "A plan"}}, got.Runs)
		s.published(project, closed("after", ""))
		require.Equal(t, "after", stream.issue())
	}
	stream := open(t, s.Client(), s.events(project)+"?snapshot=1&last_event_id=unreadable")
	require.Len(t, stream.snapshot("unknown").Agents, 2)
	stream = open(t, s.Client(), s.events(project)+"?last_event_id=unreadable")
	f, ok := stream.next()
	require.True(t, ok)
	require.Equal(t, "stream.gap", f.event)
}

// TestThoseAwayAreForgotten: agents that have ended, or of whom nothing is heard any more.
func TestThoseAwayAreForgotten(t *testing.T) {
	now := time.Now()
	s := state{}
	for _, a := range []struct {
		silent time.Duration
		ended  bool
	}{{endedAfter / 2, true}, {2 * endedAfter, true}, {2 * endedAfter, false}, {2 * silentAfter, false}} {
		p := s.agent(uuid.New())
		p.Seen, p.Ended = now.Add(-a.silent), a.ended
	}
	kept := []*presence{s.Agents[0], s.Agents[2]}
	require.Equal(t, kept, s.shown(now).Agents)
	for range 2 * maxAgents {
		s.agent(uuid.New())
		s.run(uuid.NewString())
	}
	require.Len(t, s.Agents, maxAgents)
	require.Len(t, s.Runs, maxRuns)
}

// TestWhoeverJoinsHasEachTokenOnce: at any time, the text of the snapshot and the tokens behind it are
// the answer.
func TestWhoeverJoinsHasEachTokenOnce(t *testing.T) {
	s := newSite(t)
	ctx := deadline(t)
	play := newSimulation(s.bus, s.project)
	play.pause = 45 * time.Millisecond // a token each 3 ms
	ada := &agent{id: uuid.New()}
	ada.writes("A plan", strings.Repeat("one two three ", 100))
	id := ada.acts[0].payload.(runStartedPayload).RunID
	url := s.events(s.project) + "?snapshot=1&only=1&channel=run:" + id
	var writing sync.WaitGroup
	defer writing.Wait()
	writing.Go(func() { play.write(ctx, ada.acts[0]) })
	type joined struct {
		stream *stream
		shown  state
		over   bool
	}
	read := func(j *joined, tokens int) {
		for ; tokens > 0 && !j.over; tokens-- {
			f, ok := j.stream.next()
			require.True(t, ok, "the stream ended without saying so")
			if j.over = f.event == "stream.end"; !j.over {
				j.shown.add(f.data)
			}
		}
	}
	var all []*joined
	for len(all) == 0 || !all[len(all)-1].over {
		stream := open(t, s.Client(), url)
		j := &joined{stream: stream, shown: stream.snapshot("joined")}
		all = append(all, j)
		read(j, 20) // the next one joins behind these
	}
	require.Greater(t, len(all), 10)
	for _, j := range all {
		read(j, 1000)
		require.Equal(t, runState{ID: id, Agent: ada.id, Title: "A plan", Text: ada.acts[0].answer, Tokens: 301, Outcome: "finished"}, *j.shown.run(id))
	}
}

// TestARunThatIsCutOffSaysSo, on both channels, and its agent leaves.
func TestARunThatIsCutOffSaysSo(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	play := newSimulation(s.bus, s.project)
	play.pause = 20 * time.Millisecond
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		play.run(ctx)
	}()
	stream := open(t, s.Client(), s.events(s.project))
	for f, ok := stream.next(); f.event != "run.started"; f, ok = stream.next() {
		require.True(t, ok)
	}
	cancel()
	<-stopped
	v := &view{bus: s.bus, channels: []eventbus.Channel{eventbus.ProjectChannel(s.project)}}
	_, _, err := v.snapshot(deadline(t))
	require.NoError(t, err)
	require.NotEmpty(t, v.state.Runs)
	for _, r := range v.state.Runs {
		require.NotEmpty(t, r.Outcome)
	}
	for _, a := range v.state.Agents {
		require.True(t, a.Ended, a.Name)
	}
}
