package main

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"github.com/tmaxmax/go-sse"
)

// goSSE is the go-sse server, fed by one Redis subscription for all channels.
type goSSE struct {
	*sse.Server
	client *redis.Client
	number atomic.Int64
}

func newGoSSE(ctx context.Context, addr string, _ map[string]string) (contestant, error) {
	replayer, err := sse.NewFiniteReplayer(10_000, false)
	if err != nil {
		return nil, err
	}
	s := &goSSE{client: redis.NewClient(&redis.Options{Addr: addr})}
	s.Server = &sse.Server{
		Provider: &sse.Joe{Replayer: replayer},
		OnSession: func(w http.ResponseWriter, r *http.Request) ([]string, bool) {
			begin(w)
			return []string{channelName(atoi(r.FormValue("channel")))}, true
		},
	}
	sub := s.client.PSubscribe(ctx, "bench:*")
	if _, err := sub.Receive(ctx); err != nil {
		return nil, err
	}
	go func() {
		for m := range sub.Channel() {
			id, data, _ := strings.Cut(m.Payload, " ")
			e := &sse.Message{ID: sse.ID(id), Type: sse.Type("bench.tick")}
			e.AppendData(data)
			_ = s.Publish(e, m.Channel)
		}
	}()
	return s, nil
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func (s *goSSE) publish(ctx context.Context, channel int, text string, after *string) error {
	id := strconv.FormatInt(s.number.Add(1), 10)
	if after != nil {
		*after = id
	}
	return s.client.Publish(ctx, channelName(channel), id+" "+string(body(text))).Err()
}

func (s *goSSE) request(channel int, after string) request {
	return request{path: "/?channel=" + strconv.Itoa(channel), header: after}
}
