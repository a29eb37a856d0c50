package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"
)

// centrifugeNode is a Centrifuge node with its Redis broker, or the one in memory, and
// its SSE transport. Clients are subscribed by the server.
type centrifugeNode struct {
	node *centrifuge.Node
	http.Handler
}

type channelKey struct{}

func newCentrifuge(_ context.Context, addr string, options map[string]string) (contestant, error) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		return nil, err
	}
	if options["broker"] != "memory" {
		shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: addr})
		if err != nil {
			return nil, err
		}
		broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{Shards: []*centrifuge.RedisShard{shard}})
		if err != nil {
			return nil, err
		}
		node.SetBroker(broker)
	}
	node.OnConnecting(func(ctx context.Context, _ centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		channel, _ := ctx.Value(channelKey{}).(string)
		return centrifuge.ConnectReply{
			Credentials:   &centrifuge.Credentials{UserID: "bench"},
			Subscriptions: map[string]centrifuge.SubscribeOptions{channel: {EnableRecovery: true, EnablePositioning: true}},
		}, nil
	})
	if err := node.Run(); err != nil {
		return nil, err
	}
	sse := centrifuge.NewSSEHandler(node, centrifuge.SSEConfig{})
	return &centrifugeNode{node, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), channelKey{}, channelName(atoi(r.FormValue("channel"))))
		sse.ServeHTTP(w, r.WithContext(ctx))
	})}, nil
}

func (c *centrifugeNode) publish(_ context.Context, channel int, text string, after *string) error {
	result, err := c.node.Publish(channelName(channel), body(text), centrifuge.WithHistory(10_000, 5*time.Minute))
	if after != nil {
		*after = fmt.Sprint(result.Offset, "@", result.Epoch)
	}
	return err
}

func (c *centrifugeNode) request(channel int, after string) request {
	connect := `{"id":1,"connect":{}}`
	if offset, epoch, ok := strings.Cut(after, "@"); ok {
		connect = fmt.Sprintf(`{"id":1,"connect":{"subs":{%q:{"recover":true,"offset":%s,"epoch":%q}}}}`, channelName(channel), offset, epoch)
	}
	return request{path: "/?channel=" + strconv.Itoa(channel) + "&cf_connect=" + url.QueryEscape(connect)}
}
