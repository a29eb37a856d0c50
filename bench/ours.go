package main

import (
	"context"
	"encoding/binary"
	"net/http"
	"strconv"
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
	bus *eventbus.Bus
	http.Handler
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
	return &ours{bus, bus.Handler(func(r *http.Request) (eventbus.Subscription, error) {
		return eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project(atoi(r.FormValue("channel"))))}}, nil
	}, streams...)}, nil
}

// project is the one whose channel has this number.
func project(channel int) (id uuid.UUID) {
	id[0] = 1
	binary.BigEndian.PutUint32(id[12:], uint32(channel))
	return id
}

func (o *ours) publish(ctx context.Context, channel int, record string, after *string) error {
	ev, err := eventbus.NewEvent(project(channel), eventbus.System(), tick{record + padding})
	if err != nil {
		return err
	}
	if after == nil {
		return o.bus.Publish(ctx, ev)
	}
	receipt, err := o.bus.PublishWith(ctx, ev, eventbus.PublishOptions{})
	*after = receipt.Cursor.String()
	return err
}

func (o *ours) request(channel int, after string) request {
	return request{"/?channel=" + strconv.Itoa(channel), after}
}
