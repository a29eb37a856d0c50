package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// Every secret of these tests has this in it, and none of it is a word.
const secret = "hunter2"

// A confidant keeps everything that is said anywhere while a test runs: by the bus, with
// the standard logger, by go-redis, and in the errors and answers that it is shown.
type confidant struct {
	logBook
	t testing.TB
}

// Printf is go-redis's way to log.
func (c *confidant) Printf(_ context.Context, format string, v ...any) {
	c.write(fmt.Sprintf(format, v...))
}

// Write is the standard logger's.
func (c *confidant) Write(b []byte) (int, error) { c.write(string(b)); return len(b), nil }

// confide begins to listen; at the end of the test, nothing that was heard may have the
// secret in it.
func confide(t *testing.T) *confidant {
	c := &confidant{t: t}
	before, flags, writer := slog.Default(), log.Flags(), log.Writer()
	slog.SetDefault(slog.New(&c.logBook))
	log.SetOutput(c)
	redis.SetLogger(c)
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(writer)
		log.SetFlags(flags)
		logging.Enable()
		for _, line := range c.all() {
			require.NotContains(t, strings.ToLower(line), secret)
		}
	})
	return c
}

// heard notes what somebody is told.
func (c *confidant) heard(said ...any) {
	for _, s := range said {
		c.write(fmt.Sprintf("%v %+v %#v", s, s, s))
		for err, ok := s.(error); ok && err != nil; err = errors.Unwrap(err) {
			c.write(fmt.Sprintf("%T %#v", err, err))
		}
	}
}

func (c *confidant) bus(bus *eventbus.Bus) { c.heard(bus.Health(), bus.Stats()) }

func TestPasswordsAreNotShown(t *testing.T) {
	tests := map[string]struct {
		server []string
		acl    []any
		err    error
	}{
		"wrong password":               {[]string{"--requirepass", "another"}, nil, nil},
		"no such user":                 {nil, nil, nil},
		"AUTH and HELLO are not there": {[]string{"--rename-command", "AUTH", "", "--rename-command", "HELLO", ""}, nil, nil},
		"no command is allowed":        {nil, []any{"nocommands"}, eventbus.ErrUnsupported},
		"no XADD":                      {nil, []any{"~*", "&*", "+@all", "-xadd"}, eventbus.ErrUnsupported},
		"no key":                       {nil, []any{"&*", "+@all"}, nil},
		"no EVALSHA":                   {nil, []any{"~*", "&*", "+@all", "-evalsha"}, eventbus.ErrUnsupported},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := confide(t)
			server := redistest.Start(t, test.server...)
			if test.acl != nil {
				user := append([]any{"acl", "setuser", "app", "on", ">" + secret}, test.acl...)
				require.NoError(t, server.Client(t).Do(t.Context(), user...).Err())
			}
			o, err := redis.ParseURL("redis://app:" + secret + "@" + server.Addr)
			require.NoError(t, err)
			o.MaxRetries = -1
			rdb := redis.NewClient(o)
			defer rdb.Close()
			_, err = eventbus.New(rdb)
			require.Error(t, err)
			if test.err != nil {
				require.ErrorIs(t, err, test.err)
			}
			c.heard(err)
		})
	}
}

func TestPasswordIsNotShownWhileRedisIsAway(t *testing.T) {
	c := confide(t)
	server := redistest.Start(t)
	admin := server.Client(t)
	allow := func(rules ...any) {
		t.Helper()
		require.NoError(t, admin.Do(t.Context(), append([]any{"acl", "setuser", "app"}, rules...)...).Err())
	}
	allow("on", ">"+secret, "~*", "&*", "+@all")
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "app", Password: secret, MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	bus := newBus(t, rdb, eventbus.WithFreshness(100*time.Millisecond))
	project := uuid.New()
	s := joined(t, streams(t, bus, eventbus.ProjectChannel(project)))
	ill := func() {
		t.Helper()
		for ctx := deadline(t); bus.Health() == nil; time.Sleep(time.Millisecond) {
			require.NoError(t, ctx.Err())
		}
		c.bus(bus)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		c.heard(bus.Publish(ctx, message(t, project, secret)))
		_, err := bus.Cursor(ctx, eventbus.ProjectChannel(project))
		c.heard(err)
		resp, _ := get(t, streams(t, bus, eventbus.ProjectChannel(project)), func(r *http.Request) { r.Header.Set("Accept", "") })
		c.heard(resp.Header)
		if resp.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(resp.Body)
			c.heard(string(body))
		}
	}
	cut := func() {
		require.NoError(t, admin.Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err())
		require.NoError(t, admin.Do(t.Context(), "client", "kill", "type", "pubsub").Err())
	}
	for name, rules := range map[string][]any{
		"another password": {"resetpass", ">another"}, "switched off": {"off"}, "no channels": {"resetchannels"}, "no keys": {"resetkeys"}, "no script": {"-evalsha", "-eval"},
	} {
		t.Log(name)
		allow(rules...)
		cut()
		ill()
		allow("on", ">"+secret, "~*", "&*", "+@all")
		for ctx := deadline(t); bus.Health() != nil; time.Sleep(time.Millisecond) {
			require.NoError(t, ctx.Err())
		}
	}
	server.Kill()
	ill()
	s.leave()
	require.NotEmpty(t, c.all())
}

func TestPayloadsAreNotShown(t *testing.T) {
	c := confide(t)
	rdb := redistest.Start(t).Client(t)
	bus, ctx, project, agent := newBus(t, rdb, eventbus.WithMaxEventSize(2048)), deadline(t), uuid.New(), uuid.New()
	channel := eventbus.ProjectChannel(project)
	f := follow(t, bus, now(t, bus, channel))

	// Publishing what cannot be published.
	for _, p := range []eventbus.Payload{
		eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: secret + "\xff"},
		eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: secret, Metadata: map[string]any{"n": []any{secret, math.NaN()}}},
		eventbus.AgentMessagePayload{Message: secret},
		eventbus.IssueUpdatedPayload{IssueID: secret, Changes: map[string]any{"a": make(chan string)}},
	} {
		_, err := eventbus.NewEvent(project, eventbus.Agent(agent), p)
		require.Error(t, err)
		c.heard(err)
	}
	for _, payload := range []string{
		`"` + secret, `"` + secret + `"`, `["` + secret + `"]`, `{"agent_instance_id":"` + secret + `","message":{"a":"` + secret + `"}}`,
		`{"agent_instance_id":"` + agent.String() + `","message":["` + secret + `"],"message_type":{"` + secret + `":1},"metadata":"` + secret + `"}`,
	} {
		ev := message(t, project, "")
		ev.Payload = json.RawMessage(payload)
		err := bus.Publish(ctx, ev)
		require.Error(t, err)
		_, as := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
		_, marshal := json.Marshal(ev)
		c.heard(err, as, ev.Validate(), marshal)
	}
	large := bus.Publish(ctx, message(t, project, strings.Repeat(secret, 1000)))
	require.ErrorIs(t, large, eventbus.ErrLimit)
	c.heard(large)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	c.heard(bus.Publish(ended, message(t, project, secret)))

	// What others publish, or put into the log.
	raw, err := message(t, project, secret).MarshalJSON()
	require.NoError(t, err)
	whole := string(raw)
	publish(t, bus, project, nil, "there is a log")
	epoch, _, _ := strings.Cut(newest(t, rdb, channel), "-")
	bad := []string{
		secret, `{"` + secret + `":1}`, `["` + secret + `"]`, whole[:len(whole)-1], whole + "x", strings.Replace(whole, `"payload":{`, `"payload":["`+secret+`"],"x":{`, 1),
		strings.Replace(whole, `"type"`, `"`+secret+`"`, 1), strings.Replace(whole, secret, secret+"\xff", 1), strings.Replace(whole, secret, strings.Repeat(secret, 1000), 1),
		strings.Replace(whole, `"actor_id":"`, `"token":"`+secret+`","actor_id":"x`, 1),
	}
	for _, m := range bad {
		publishForeign(t, rdb, channel, m)
		require.NoError(t, rdb.XAdd(ctx, &redis.XAddArgs{Stream: logOf(channel), ID: epoch + "-*", Values: []any{"event", m, "also", secret + "@" + secret}}).Err())
	}
	publish(t, bus, project, nil, "end")
	f.until("the end", func(texts []string, _ []*eventbus.GapError) bool { return texts[len(texts)-1] == "end" })
	settle(t, bus, int64(2*len(bad)-1)) // a log may hold what is too long to be published here
	c.bus(bus)
	require.NotEmpty(t, c.all())
}

func TestCredentialsOfRequestsAreNotShown(t *testing.T) {
	c := confide(t)
	bus := newBus(t, onMiniredis(t), eventbus.WithMaxChannels(1), eventbus.WithKeepalive(20*time.Millisecond))
	channels := someChannels(2)
	credentials := func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer "+secret)
		r.Header.Set("Cookie", "session="+secret)
		r.Header.Set("X-Api-Key", secret)
		r.Header.Set("Last-Event-ID", secret)
		r.URL.RawQuery = url.Values{"token": {secret}, "access_token": {secret}, "type": r.URL.Query()["type"]}.Encode()
	}
	ask := func(sub eventbus.Subscription, refuse error, change ...with) {
		t.Helper()
		s := serve(t, handler(bus, func(*http.Request) (eventbus.Subscription, error) { return sub, refuse }))
		resp, cancel := get(t, s, append(change, credentials)...)
		c.heard(resp.Header)
		if strings.Contains(resp.Header.Get("Content-Type"), "json") {
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			c.heard(string(body))
		}
		cancel()
	}
	one := eventbus.Subscription{Channels: channels[:1]}
	for _, accept := range []string{"text/event-stream", "application/json"} {
		accepts := func(r *http.Request) { r.Header.Set("Accept", accept) }
		for _, err := range []error{eventbus.ErrUnauthorized, eventbus.ErrForbidden, eventbus.ErrNotFound, eventbus.ErrGone, errors.New("the session store is away")} {
			ask(one, err, accepts)
		}
		ask(eventbus.Subscription{}, nil, accepts)
		ask(eventbus.Subscription{Channels: channels}, nil, accepts)
		ask(eventbus.Subscription{Channels: make([]eventbus.Channel, 1)}, nil, accepts)
		ask(one, nil, accepts, func(r *http.Request) { r.Method = http.MethodPost })
		ask(one, nil, accepts)
	}
	// A stream whose session cannot be looked up any more, and one of which nobody knows.
	var once sync.Once
	s := connect(t, serve(t, handler(bus, func(*http.Request) (sub eventbus.Subscription, err error) {
		err = errors.New("the session store is away")
		once.Do(func() { err = nil })
		return one, err
	})), credentials)
	s.until(sseBlock.Comment)
	bare := &hidden{}
	handler(bus, reads(channels[0])).ServeHTTP(bare, func() *http.Request {
		r, err := http.NewRequest(http.MethodGet, "/", nil)
		require.NoError(t, err)
		credentials(r)
		return r
	}())
	require.Equal(t, http.StatusInternalServerError, bare.status)
	c.heard(bare.body.String())
	c.bus(bus)
	require.NotEmpty(t, c.all())
}

// A hidden ResponseWriter cannot flush.
type hidden struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (h *hidden) Header() http.Header {
	if h.header == nil {
		h.header = http.Header{}
	}
	return h.header
}
func (h *hidden) WriteHeader(status int)      { h.status = status }
func (h *hidden) Write(b []byte) (int, error) { return h.body.Write(b) }
