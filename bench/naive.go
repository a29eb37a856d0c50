package main

import (
	"context"
	"net/http"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// naive is what people write by hand: a Redis connection for each browser.
type naive struct{ client *redis.Client }

func newNaive(_ context.Context, addr string, _ map[string]string) (contestant, error) {
	return &naive{redis.NewClient(&redis.Options{Addr: addr})}, nil
}

func channelName(channel int) string { return "bench:" + strconv.Itoa(channel) }

func (n *naive) publish(ctx context.Context, channel int, record string, _ *string) error {
	return n.client.Publish(ctx, channelName(channel), body(record)).Err()
}

func (n *naive) request(channel int, _ string) request {
	return request{path: "/?channel=" + strconv.Itoa(channel)}
}

func (n *naive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	channel := atoi(r.FormValue("channel"))
	sub := n.client.Subscribe(r.Context(), channelName(channel))
	defer sub.Close()
	if _, err := sub.Receive(r.Context()); err != nil {
		return
	}
	begin(w)
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
