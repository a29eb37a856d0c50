package main

import (
	"context"
	"net/http"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// naive is what people write by hand: a Redis connection for each browser.
type naive struct {
	client *redis.Client
	state  bool // a stream begins with the state
}

func newNaive(_ context.Context, addr string, options map[string]string) (contestant, error) {
	return &naive{redis.NewClient(&redis.Options{Addr: addr}), options["state"] != ""}, nil
}

func channelName(channel int) string { return "bench:" + strconv.Itoa(channel) }

func (n *naive) publish(ctx context.Context, channel int, text string, _ *string) error {
	return n.client.Publish(ctx, channelName(channel), body(text)).Err()
}

func (n *naive) request(channel int, _ string) request {
	return request{path: "/?channel=" + strconv.Itoa(channel)}
}

func (n *naive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	channel := atoi(r.FormValue("channel"))
	var state []byte
	if n.state {
		state = loadState() // what is published from here on until Subscribe is lost
	}
	sub := n.client.Subscribe(r.Context(), channelName(channel))
	defer sub.Close()
	if _, err := sub.Receive(r.Context()); err != nil {
		return
	}
	begin(w)
	if n.state {
		_, _ = w.Write([]byte("event: stream.snapshot\ndata: " + string(state) + "\n\nevent: stream.live\ndata: {}\n\n"))
		w.(http.Flusher).Flush()
	}
	for {
		select {
		case m, ok := <-sub.Channel():
			if !ok {
				return
			}
			if _, err := w.Write([]byte("event: bench.tick\ndata: " + m.Payload + "\n\n")); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}
