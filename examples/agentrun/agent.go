package main

import (
	"context"
	"fmt"
	"iter"
	"log"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
)

// The events of a run.
type (
	started struct {
		Run      string `json:"run" eventbus:"required"`
		Question string `json:"question"`
	}
	token struct {
		Text string `json:"text" eventbus:"required"`
	}
	ended struct{}
)

func (started) EventType() eventbus.Type { return "run.started" }
func (token) EventType() eventbus.Type   { return "run.token" }
func (ended) EventType() eventbus.Type   { return "run.ended" }

func init() {
	for _, err := range []error{eventbus.Register[started](), eventbus.Register[token](), eventbus.Register[ended]()} {
		if err != nil {
			panic(err)
		}
	}
}

// project is what all runs here belong to. Its channel is the list of them.
var project = uuid.MustParse("c0ffee00-5a1d-4e57-8f3c-0b7a2d9e6c41")

// An agent answers questions.
type agent struct {
	bus   *eventbus.Bus
	ctx   context.Context // ends when the server stops
	pause time.Duration   // between two tokens
	runs  sync.WaitGroup
}

// start begins a run. It is in the project's list, and first in its own log, before anybody learns of
// it.
func (a *agent) start(ctx context.Context, id, question string) error {
	channel, err := eventbus.NewChannel("run", id)
	if err != nil {
		return err
	}
	ev, err := eventbus.NewEvent(project, eventbus.System(), started{Run: id, Question: question})
	if err != nil {
		return err
	}
	if err := a.bus.Publish(ctx, ev, channel); err != nil {
		return err
	}
	a.runs.Go(func() { a.answer(channel, question, 0) })
	return nil
}

// answer writes the tokens of the model to the run's channel, and ends that. Write does not wait for
// Redis. End does, and its error has all events that were taken and are not in the log.
func (a *agent) answer(channel eventbus.Channel, question string, said int) {
	w := a.bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{channel}, NoProject: true})
	for text := range a.model(question, said) {
		ev, err := eventbus.NewEvent(project, eventbus.System(), token{text})
		if err != nil {
			log.Print(err)
			continue
		}
		if err := w.Write(a.ctx, ev); err != nil {
			log.Printf("%s: %v", channel, err)
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	last, err := eventbus.NewEvent(project, eventbus.System(), ended{})
	switch {
	case err != nil:
	case a.ctx.Err() != nil:
		err = w.Close(ctx) // The run has no end: the next start goes on with it.
	default:
		err = w.End(ctx, last)
	}
	if err != nil {
		log.Printf("%s: %v", channel, err)
	}
}

// resume goes on with the runs that have no end in their logs: the server was stopped, or killed, while
// it wrote them. Nothing else is stored about a run.
//
// This model can go on behind any token. For one that cannot, write an event here that says that the
// run has failed, and end it. With several servers, a run needs an owner, such as a job of a work
// queue, so that only one of them goes on with it.
func (a *agent) resume() error {
	for ev, err := range a.logged(a.ctx, eventbus.ProjectChannel(project)) {
		if err != nil {
			return fmt.Errorf("read the list of runs: %w", err)
		}
		run, err := eventbus.PayloadAs[started](ev)
		if err != nil {
			continue // some other event
		}
		channel, err := eventbus.NewChannel("run", run.Run)
		if err != nil {
			return err
		}
		said, isOver := 0, false
		for ev, err := range a.logged(a.ctx, channel) {
			if err != nil {
				return fmt.Errorf("read %s: %w", channel, err)
			}
			switch ev.Type {
			case token{}.EventType():
				said++
			case ended{}.EventType():
				isOver = true
			}
		}
		if !isOver {
			a.runs.Go(func() { a.answer(channel, run.Question, said) })
		}
	}
	return nil
}

// exists reports whether there is such a run. To look creates no log.
func (a *agent) exists(ctx context.Context, channel eventbus.Channel) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, err := range a.logged(ctx, channel) {
		return err == nil, err
	}
	return false, nil
}

// logged walks what the log of a channel has now.
func (a *agent) logged(ctx context.Context, channel eventbus.Channel) iter.Seq2[eventbus.Event, error] {
	return a.bus.SubscribeWith(ctx, eventbus.Subscription{Channels: []eventbus.Channel{channel}, Oldest: true, NoFollow: true})
}

// model stands for yours: it gives an answer token by token, here behind those that were said already.
func (a *agent) model(question string, said int) iter.Seq[string] {
	answer := fmt.Sprintf("You asked: %q ", question) + text
	return func(yield func(string) bool) {
		for i, word := range strings.SplitAfter(answer, " ") {
			if i < said {
				continue
			}
			select {
			case <-time.After(a.pause):
			case <-a.ctx.Done():
				return
			}
			if !yield(word) {
				return
			}
		}
	}
}

const text = "I am only a few lines of Go, so I cannot know. What I can show you is how an answer travels. " +
	"Each word that you read is an event. A Writer puts it into the log of this run, in Redis, and does not wait for that. " +
	"Your browser reads the same log, with an EventSource and nothing else. " +
	"If you close this window now and open it again, you get the whole text, and then what is still to come. " +
	"If the server stops, I stop in the middle of a sentence. When it starts again, it looks into the log, " +
	"sees how far I have come, and I go on from there. You will not read a word twice, and you will not miss one. " +
	"My last event ends the channel. So your browser knows that there is nothing to wait for, and hangs up."
