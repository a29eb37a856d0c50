package eventbus_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/google/uuid"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

// A server mounts the handler with a function that decides what each request may
// read; a browser connects with new EventSource("/projects/…/events").
func ExampleBus_Handler() {
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

	mux := http.NewServeMux()
	mux.Handle("GET /projects/{project}/events", bus.Handler(func(r *http.Request) (eventbus.Subscription, error) {
		if r.Header.Get("Authorization") != "Bearer alice" {
			return eventbus.Subscription{}, eventbus.ErrUnauthorized
		}
		project, err := uuid.Parse(r.PathValue("project"))
		if err != nil {
			return eventbus.Subscription{}, eventbus.ErrNotFound
		}
		return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}}, nil
	}))
	server := httptest.NewServer(mux)
	defer server.Close()

	project := uuid.New()
	request, err := http.NewRequest("GET", server.URL+"/projects/"+project.String()+"/events", nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer alice")
	response, err := server.Client().Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	fmt.Println(response.Status, response.Header.Get("Content-Type"))

	ev, err := eventbus.NewEvent(project, eventbus.System(), eventbus.IssueClosedPayload{IssueID: "SYN-42", Resolution: "fixed"})
	if err != nil {
		log.Fatal(err)
	}
	if err := bus.Publish(context.Background(), ev); err != nil {
		log.Fatal(err)
	}
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if typ, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			fmt.Println(typ)
			if typ == "issue.closed" {
				break
			}
		}
	}
	// Output:
	// 200 OK text/event-stream
	// stream.live
	// issue.closed
}

// Frames are for a framework other than net/http, here one that writes to the
// standard output: write each frame, and flush.
func ExampleBus_SubscribeSSE() {
	rdb, err := embedded.New()
	if err != nil {
		log.Fatal(err)
	}
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		log.Fatal(err)
	}
	defer bus.Close()

	project := uuid.New()
	ctx := context.Background()
	ev, err := eventbus.NewEvent(project, eventbus.System(), eventbus.IssueClosedPayload{IssueID: "SYN-42", Resolution: "fixed"})
	if err != nil {
		log.Fatal(err)
	}
	if err := bus.Publish(ctx, ev); err != nil {
		log.Fatal(err)
	}

	out := bufio.NewWriter(os.Stdout)
	sub := eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}, Oldest: true}
	for frame, err := range bus.SubscribeSSE(ctx, sub) {
		if err != nil {
			log.Fatal(err)
		}
		// The ids and times are other ones each time: leave them out here.
		for line := range bytes.Lines(frame) {
			if bytes.HasPrefix(line, []byte("event: ")) {
				out.Write(line)
			}
		}
		if err := out.Flush(); err != nil {
			log.Fatal(err)
		}
		if bytes.Contains(frame, []byte(ev.ID)) {
			break
		}
	}
	// Output:
	// event: issue.closed
}
