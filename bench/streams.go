package main

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisStreams is Redis Streams by hand: an XADD for each event, and a blocking XREAD for each browser.
type redisStreams struct {
	client *redis.Client
	reads  *redis.Client // a connection for each browser
	script bool          // publish by appendAndPublish, for those who listen with Pub/Sub

	mu    sync.Mutex // guards following
	pipe  redis.Pipeliner
	calls int // in the pipe
}

const pipeline = 64

func newRedisStreams(ctx context.Context, addr string, options map[string]string) (contestant, error) {
	s := &redisStreams{
		client: redis.NewClient(&redis.Options{Addr: addr}),
		reads:  redis.NewClient(&redis.Options{Addr: addr, PoolSize: 10_000}),
		script: options["script"] != "",
	}
	s.pipe = s.client.Pipeline()
	return s, appendAndPublish.Load(ctx, s.client).Err()
}

func (s *redisStreams) publish(ctx context.Context, channel int, text string, after *string) error {
	var id string
	var err error
	if s.script {
		id, err = appendAndPublish.EvalSha(ctx, s.client, []string{channelName(channel)}, body(text)).Text()
	} else {
		id, err = s.client.XAdd(ctx, &redis.XAddArgs{
			Stream: channelName(channel), MaxLen: 10_000, Approx: true, Values: []any{"event", body(text)},
		}).Result()
	}
	if after != nil {
		*after = id
	}
	return err
}

// write publishes in pipelines of calls of appendAndPublish, or with an XADD for each event.
func (s *redisStreams) write(ctx context.Context, channel int, text string) error {
	if !s.script {
		return s.publish(ctx, channel, text, nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	appendAndPublish.EvalSha(ctx, s.pipe, []string{channelName(channel)}, body(text))
	if s.calls++; s.calls%pipeline > 0 {
		return nil
	}
	_, err := s.pipe.Exec(ctx)
	return err
}

func (s *redisStreams) flush(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.pipe.Exec(ctx)
	return err
}

func (s *redisStreams) request(channel int, after string) request {
	return request{path: "/?channel=" + strconv.Itoa(channel), header: after}
}

func (s *redisStreams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	stream, at := channelName(atoi(r.FormValue("channel"))), r.Header.Get("Last-Event-ID")
	if at == "" {
		at = "0-0"
		last, err := s.reads.XRevRangeN(r.Context(), stream, "+", "-", 1).Result()
		if err != nil {
			return
		}
		if len(last) > 0 {
			at = last[0].ID
		}
	}
	begin(w)
	for r.Context().Err() == nil {
		read, err := s.reads.XRead(r.Context(), &redis.XReadArgs{Streams: []string{stream, at}, Count: 256, Block: 5 * time.Second}).Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return
		}
		var frames []byte
		for _, m := range read[0].Messages {
			at = m.ID
			event, _ := m.Values["event"].(string)
			frames = append(frames, "id: "+at+"\nevent: bench.tick\ndata: "+event+"\n\n"...)
		}
		if _, err := w.Write(frames); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
}
