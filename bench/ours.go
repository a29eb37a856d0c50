package main

import (
	"context"
	"encoding/binary"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/syndarix/eventbus"
)

// tick is the payload of the events that are published.
type tick struct {
	N string `json:"n"`
}

func (tick) EventType() eventbus.Type { return "bench.tick" }

type ours struct {
	bus  *eventbus.Bus
	runs bool // channels are runs, which no project's channel gets
	http.Handler

	mu      sync.Mutex // guards following
	writers map[int]*runWriter
}

// A runWriter is the Writer of a channel, and the event that it was given last.
type runWriter struct {
	*eventbus.Writer
	text string
	last eventbus.Event
}

func newOurs(_ context.Context, addr string, options map[string]string) (contestant, error) {
	if err := eventbus.Register[tick](); err != nil {
		return nil, err
	}
	var opts []eventbus.Option
	var streams []eventbus.SSEOption
	if s := options["keepalive"]; s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			return nil, err
		}
		streams = append(streams, eventbus.WithKeepalive(d))
	}
	if s := options["keep"]; s != "" {
		opts = append(opts, eventbus.WithRetention(eventbus.Retention{Events: atoi(s), Age: time.Hour}))
	}
	var client eventbus.Client = redis.NewClient(&redis.Options{Addr: addr})
	if options["cluster"] != "" {
		client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{addr}})
	}
	if options["sharded"] != "" {
		opts = append(opts, eventbus.WithShardedPubSub())
	}
	bus, err := eventbus.New(client, opts...)
	if err != nil {
		return nil, err
	}
	o := &ours{bus: bus, runs: options["runs"] != "", writers: make(map[int]*runWriter)}
	o.Handler = bus.Handler(func(r *http.Request) (eventbus.Subscription, error) {
		sub := eventbus.Subscription{Channels: []eventbus.Channel{o.channel(atoi(r.FormValue("channel")))}}
		if state := options["state"]; state != "" {
			sub.Snapshot = func(ctx context.Context) (any, eventbus.Cursor, error) { return loadState(), eventbus.Cursor{}, nil }
			if state == "shared" {
				sub.SnapshotKey = "all"
			}
		}
		return sub, nil
	}, streams...)
	return o, nil
}

// channel is the one with this number.
func (o *ours) channel(number int) eventbus.Channel {
	if !o.runs {
		return eventbus.ProjectChannel(project(number))
	}
	c, err := eventbus.NewChannel("run", strconv.Itoa(number))
	if err != nil {
		panic(err)
	}
	return c
}

// project is the one whose channel has this number.
func project(channel int) (id uuid.UUID) {
	id[0] = 1
	binary.BigEndian.PutUint32(id[12:], uint32(channel))
	return id
}

func (o *ours) publish(ctx context.Context, channel int, text string, after *string) error {
	ev, err := eventbus.NewEvent(project(channel), eventbus.System(), tick{text})
	if err != nil {
		return err
	}
	if after == nil && !o.runs {
		return o.bus.Publish(ctx, ev)
	}
	var opts eventbus.PublishOptions
	if o.runs {
		opts = eventbus.PublishOptions{Channels: []eventbus.Channel{o.channel(channel)}, NoProject: true}
	}
	receipt, err := o.bus.PublishWith(ctx, ev, opts)
	if after != nil {
		*after = receipt.Cursor.String()
	}
	return err
}

// write makes a new event only for another text: by hand, too, the same text is the same bytes.
func (o *ours) write(ctx context.Context, channel int, text string) (err error) {
	w := o.writer(channel)
	if w.text != text {
		w.text = text
		if w.last, err = eventbus.NewEvent(project(channel), eventbus.System(), tick{text}); err != nil {
			return err
		}
	}
	return w.Write(ctx, w.last)
}

// writer is the one of a channel. A channel has one publisher.
func (o *ours) writer(channel int) *runWriter {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.writers[channel]
	if w == nil {
		w = &runWriter{Writer: o.bus.NewWriter(eventbus.WriterOptions{Channels: []eventbus.Channel{o.channel(channel)}, NoProject: o.runs})}
		o.writers[channel] = w
	}
	return w
}

func (o *ours) flush(ctx context.Context) error {
	for _, w := range o.writers {
		if _, err := w.Flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (o *ours) request(channel int, after string) request {
	return request{path: "/?channel=" + strconv.Itoa(channel), header: after}
}
