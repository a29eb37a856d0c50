package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

func TestMain(m *testing.M) {
	logging.Disable()
	os.Unsetenv("REDIS_URL")
	goleak.VerifyTestMain(m)
}

// deadline is a context for things that must happen, however slow the machine is.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// A site is the example's handler on a server and a Redis of its own.
type site struct {
	*httptest.Server
	t       *testing.T
	redis   *embedded.Redis
	bus     *eventbus.Bus
	project uuid.UUID // of the page
}

func newSite(t *testing.T, opts ...eventbus.Option) *site {
	t.Helper()
	s := &site{t: t, project: uuid.New()}
	var err error
	s.redis, err = embedded.New()
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.redis.Close() })
	s.bus, err = eventbus.New(s.redis, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.bus.Close() })
	handler, err := newHandler(s.bus, s.project, 15*time.Second)
	require.NoError(t, err)
	s.Server = httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s
}

// events is the address of a project's events.
func (s *site) events(project uuid.UUID) string {
	return s.URL + "/projects/" + project.String() + "/events"
}

// A reply is an answer that has been read.
type reply struct {
	*http.Response
	text string
	body struct {
		ID     string
		Cursor string
		Title  string
		Status int
		Detail string
		Errors []struct{ Field, Detail string }
	}
}

// fields are the names of what was refused.
func (r *reply) fields() (names []string) {
	for _, e := range r.body.Errors {
		names = append(names, e.Field)
	}
	return names
}

func do(t *testing.T, client *http.Client, method, url, body string, header ...string) *reply {
	t.Helper()
	request, err := http.NewRequestWithContext(deadline(t), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	r := &reply{Response: response, text: string(text)}
	if r.StatusCode == http.StatusCreated || r.Header.Get("Content-Type") == "application/problem+json" {
		require.NoError(t, json.Unmarshal(text, &r.body), r.text)
	}
	return r
}

func (s *site) get(url string, header ...string) *reply {
	s.t.Helper()
	return do(s.t, s.Client(), http.MethodGet, url, "", header...)
}

func (s *site) post(project uuid.UUID, body string, header ...string) *reply {
	s.t.Helper()
	return do(s.t, s.Client(), http.MethodPost, s.events(project), body, header...)
}

// published posts a body that must be taken.
func (s *site) published(project uuid.UUID, body string) *reply {
	s.t.Helper()
	r := s.post(project, body)
	require.Equal(s.t, http.StatusCreated, r.StatusCode, r.text)
	require.NoError(s.t, uuid.Validate(r.body.ID))
	require.NotEmpty(s.t, r.body.Cursor)
	return r
}

// closed is the body of an event that closes an issue, with members added.
func closed(issue, members string) string {
	return `{"type": "issue.closed", "actor_type": "system", "payload": {"issue_id": "` + issue + `", "resolution": "fixed"}` + members + `}`
}

// A stream is the client's side of an SSE connection.
type stream struct {
	t     *testing.T
	lines *bufio.Scanner
}

// A frame is what an EventSource would pass on.
type frame struct {
	id, event string
	raw       string
	data      eventbus.Event // of an event, not of one of the domain stream
}

// open opens a stream and reads the block with which it begins.
func open(t *testing.T, client *http.Client, url string) *stream {
	t.Helper()
	request, err := http.NewRequestWithContext(deadline(t), http.MethodGet, url, nil)
	require.NoError(t, err)
	request.Header.Set("Accept", "text/event-stream")
	response, err := client.Do(request)
	require.NoError(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	s := &stream{t: t, lines: bufio.NewScanner(response.Body)}
	require.True(t, s.lines.Scan())
	require.Regexp(t, `^retry: \d+$`, s.lines.Text())
	return s
}

// next gives the next event; it is not ok at the end of the stream.
func (s *stream) next() (f frame, ok bool) {
	s.t.Helper()
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch name {
		case "id":
			f.id = value
		case "event":
			f.event = value
		case "data":
			if f.raw = value; !strings.HasPrefix(f.event, "stream.") {
				require.NoError(s.t, json.Unmarshal([]byte(value), &f.data), value)
			}
		case "":
			if f.event != "" && f.event != "stream.live" {
				return f, true
			}
			f = frame{}
		}
	}
	return f, false
}

// issue gives the id of the issue that the next event is about.
func (s *stream) issue() string {
	s.t.Helper()
	f, ok := s.next()
	require.True(s.t, ok, "the stream ended")
	p, err := eventbus.PayloadAs[eventbus.IssueClosedPayload](f.data)
	require.NoError(s.t, err)
	return p.IssueID
}

func TestWhatIsPostedIsStreamed(t *testing.T) {
	s := newSite(t)
	project, actor := uuid.New(), uuid.New()
	stream := open(t, s.Client(), s.events(project))
	posted := s.published(project, `{"type": "agent.message", "actor_type": "agent", "actor_id": "`+actor.String()+`",
		"payload": {"agent_instance_id": "`+actor.String()+`", "message": "two\nlines"}, "Type": "other.case", "unknown": [1]}`)
	f, ok := stream.next()
	require.True(t, ok)
	require.Equal(t, "agent.message", f.event)
	require.Equal(t, posted.body.ID, f.data.ID)
	require.Equal(t, posted.body.Cursor, f.id)
	require.Equal(t, project, f.data.ProjectID)
	require.Equal(t, actor, *f.data.ActorID)
	require.False(t, f.data.Position.IsZero())
}

func TestAStreamKeepsTheTypesThatItAskedFor(t *testing.T) {
	s := newSite(t)
	project := uuid.New()
	stream := open(t, s.Client(), s.events(project)+"?type=sprint.*&type=issue.closed")
	s.published(project, `{"type": "project.updated", "actor_type": "system", "payload": {}}`)
	s.published(project, closed("SYN-1", ""))
	require.Equal(t, "SYN-1", stream.issue())
}

func TestAgentsAndUsersHaveChannels(t *testing.T) {
	s := newSite(t)
	agent, user := uuid.New().String(), uuid.New().String()
	elsewhere := s.events(uuid.New())
	ofAgent := open(t, s.Client(), elsewhere+"?agent="+agent)
	ofUser := open(t, s.Client(), elsewhere+"?user="+uuid.NewString()+"&user="+strings.ToUpper(user))
	ofBoth := open(t, s.Client(), elsewhere+"?agent="+agent+"&user="+user)
	project := uuid.New()
	s.published(project, closed("agent", `, "agents": ["`+agent+`"], "users": null`))
	s.published(project, closed("user", `, "users": ["`+user+`"]`))
	s.published(project, closed("both", `, "agents": ["`+agent+`"], "users": ["`+uuid.NewString()+`", "`+user+`"]`))
	require.Equal(t, "agent", ofAgent.issue())
	require.Equal(t, "both", ofAgent.issue())
	require.Equal(t, "user", ofUser.issue())
	require.Equal(t, "both", ofUser.issue())
	require.ElementsMatch(t, []string{"agent", "user", "both"}, []string{ofBoth.issue(), ofBoth.issue(), ofBoth.issue()})
}

func TestAnEventThatIsPostedAgainIsThereOnce(t *testing.T) {
	s := newSite(t)
	project, id := uuid.New(), uuid.NewString()
	start := s.published(project, closed("first", "")).body.Cursor
	for range 2 {
		require.Equal(t, id, s.published(project, closed("repeated", `, "id": "`+id+`"`)).body.ID)
	}
	s.published(project, closed("last", ""))
	stream := open(t, s.Client(), s.events(project)+"?last_event_id="+start)
	require.Equal(t, "repeated", stream.issue())
	require.Equal(t, "last", stream.issue())
}

func TestAWrongEventIsRefusedWithAllThatIsWrong(t *testing.T) {
	s := newSite(t)
	ids := func(n int) string {
		return "[" + strings.Repeat(`"7f000000-0000-0000-0000-000000000001", `, n-1) + `"7f000000-0000-0000-0000-000000000002"]`
	}
	tests := []struct {
		name, body string
		fields     []string
	}{
		{"empty", `{}`, []string{"payload", "type", "actor_type"}},
		{"unknown type", `{"type": "issue.eaten", "actor_type": "system", "payload": {}}`, []string{"type"}},
		{"payload", `{"type": "agent.message", "actor_type": "agent", "payload": {"message": 1}}`, []string{"payload.agent_instance_id", "payload.message"}},
		{"payload is text", `{"type": "issue.closed", "actor_type": "agent", "payload": "x"}`, []string{"payload"}},
		{"payload is null", `{"type": "issue.closed", "actor_type": "agent", "payload": null}`, []string{"payload"}},
		{"every member", `{"type": 1, "actor_type": [], "actor_id": "x", "payload": [], "agents": ["x", 1, null], "users": {}, "id": true}`,
			[]string{"id", "type", "actor_id", "actor_type", "agents[0]", "agents[1]", "agents[2]", "users", "payload"}},
		{"texts", `{"type": "", "actor_type": "robot", "payload": {}, "id": "x"}`, []string{"id", "type", "actor_type"}},
		{"actor", closed("1", `, "actor_id": "{7f000000-0000-0000-0000-000000000001}"`), []string{"actor_id"}},
		{"nil UUIDs", closed("1", `, "agents": ["00000000-0000-0000-0000-000000000000"]`), []string{"agents[0]"}},
		{"too many agents", closed("1", `, "agents": `+ids(32)), []string{"agents"}},
		{"too many together", closed("1", `, "agents": `+ids(16)+`, "users": `+ids(16)), []string{"agents"}},
		{"channels", closed("1", `, "channels": ["x", "stream:x", 1], "only": "yes", "ends": {}`), []string{"channels[0]", "channels[1]", "channels[2]", "only", "ends"}},
		{"nowhere", closed("1", `, "only": true`), []string{"channels"}},
		{"ends elsewhere", closed("1", `, "channels": ["run:1"], "ends": ["run:2"]`), []string{"ends[0]"}},
		{"ends the project", closed("1", `, "ends": ["project:`+s.project.String()+`"]`), []string{"ends[0]"}},
		{"too many channels", closed("1", `, "users": `+ids(20)+`, "channels": ["run:1", "run:2", "run:3", "run:4", "run:5", "run:6", "run:7", "run:8", "run:9", "run:10", "run:11", "run:12"]`), []string{"agents"}},
		{"other case", `{"TYPE": "issue.closed", "actor_type": "system", "payload": {}}`, []string{"type"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := s.post(s.project, test.body)
			require.Equal(t, http.StatusUnprocessableEntity, r.StatusCode, r.text)
			require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
			require.Equal(t, http.StatusUnprocessableEntity, r.body.Status)
			require.NotEmpty(t, r.body.Title)
			require.NotEmpty(t, r.body.Detail)
			require.ElementsMatch(t, test.fields, r.fields(), r.text)
		})
	}
	require.Zero(t, s.bus.Stats().Published)
}

func TestABodyThatIsNoEventIsRefused(t *testing.T) {
	s := newSite(t)
	long := strings.Repeat("x", 300<<10)
	tests := []struct {
		name, body, media string
		status            int
	}{
		{"empty", "", "", http.StatusBadRequest},
		{"cut", `{"type": "issue`, "", http.StatusBadRequest},
		{"more behind it", `{} {}`, "", http.StatusBadRequest},
		{"array", `[]`, "", http.StatusBadRequest},
		{"null", `null`, "", http.StatusBadRequest},
		{"not UTF-8", "{\"type\": \"\xff\"}", "", http.StatusBadRequest},
		{"deep", strings.Repeat(`{"a":`, 20_000) + `1` + strings.Repeat(`}`, 20_000), "", http.StatusBadRequest},
		{"other media", closed("1", ""), "text/xml", http.StatusBadRequest},
		{"no media", closed("1", ""), "; ;", http.StatusBadRequest},
		{"event too large", closed(long, ""), "", http.StatusRequestEntityTooLarge},
		{"body too large", closed(long+long, ""), "", http.StatusRequestEntityTooLarge},
		{"JSON", closed("1", ""), "application/json; charset=utf-8", http.StatusCreated},
		{"as curl sends it", closed("1", ""), "application/x-www-form-urlencoded", http.StatusCreated},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := s.post(s.project, test.body, "Content-Type", test.media)
			require.Equal(t, test.status, r.StatusCode, r.text)
			if test.status != http.StatusCreated {
				require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
				require.Equal(t, test.status, r.body.Status)
			}
		})
	}
}

func TestIDsThatNameNoChannelAreRefusedByName(t *testing.T) {
	s := newSite(t)
	r := do(t, s.Client(), http.MethodPost, s.URL+"/projects/nope/events", closed("1", ""))
	require.Equal(t, http.StatusBadRequest, r.StatusCode, r.text)
	require.Equal(t, []string{"project"}, r.fields())

	r = s.get(s.URL+"/projects/nope/events?agent=x&agent="+uuid.NewString()+"&user=", "Accept", "text/event-stream")
	require.Equal(t, http.StatusBadRequest, r.StatusCode, r.text)
	require.Equal(t, []string{"project", "agent", "user"}, r.fields())

	r = s.get(s.events(s.project)+"?type=[", "Accept", "text/event-stream")
	require.Equal(t, http.StatusBadRequest, r.StatusCode, r.text)
}

func TestAWrongQueryIsRefusedByName(t *testing.T) {
	s := newSite(t)
	for query, field := range map[string]string{
		"channel=x": "channel", "channel=run:": "channel", "channel=Run:1": "channel", "channel=eventbus:1": "channel", "channel=agent:1": "channel",
		"channel=run:a/b": "channel", "channel=": "channel",
		"last=x": "last", "last=-1": "last", "last=1&last=2": "last", "last=": "last", "last=99999999999": "last", "last=1&snapshot=1": "last",
		"only=1": "only", "only=yes&channel=run:1": "only", "snapshot=true": "snapshot", "snapshot=1&snapshot=1": "snapshot",
	} {
		r := s.get(s.events(s.project)+"?"+query, "Accept", "text/event-stream")
		require.Equal(t, http.StatusBadRequest, r.StatusCode, "%s: %s", query, r.text)
		require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
		require.Equal(t, []string{field}, r.fields(), query)
	}
}

func TestOtherSitesCannotPublish(t *testing.T) {
	s := newSite(t)
	r := s.post(s.project, closed("1", ""), "Origin", "https://elsewhere.example")
	require.Equal(t, http.StatusForbidden, r.StatusCode, r.text)
	r = s.post(s.project, closed("1", ""), "Origin", s.URL)
	require.Equal(t, http.StatusCreated, r.StatusCode, r.text)
}

func TestWithoutRedisPublishingIsToBeTriedAgain(t *testing.T) {
	s := newSite(t, eventbus.WithFreshness(200*time.Millisecond))
	project, id := uuid.New(), uuid.NewString()
	stream := open(t, s.Client(), s.events(project))
	require.Equal(t, http.StatusOK, s.get(s.URL+"/healthz").StatusCode)
	require.NoError(t, s.redis.Close())

	r := s.post(project, closed("1", `, "id": "`+id+`"`))
	require.Equal(t, http.StatusServiceUnavailable, r.StatusCode, r.text)
	require.NotEmpty(t, r.Header.Get("Retry-After"))
	require.Equal(t, id, r.body.ID)
	require.Equal(t, []string{"type"}, s.post(project, `{"type": 1, "actor_type": "system", "payload": {}}`).fields())

	for r = s.get(s.URL + "/healthz"); r.StatusCode == http.StatusOK; {
		r = s.get(s.URL + "/healthz")
	}
	require.Equal(t, http.StatusServiceUnavailable, r.StatusCode, r.text)

	require.NoError(t, s.bus.Close()) // the stream was open until now
	_, ok := stream.next()
	require.False(t, ok)
	require.NoError(t, stream.lines.Err())
}

func TestABusThatEndsIsUnavailable(t *testing.T) {
	s := newSite(t)
	require.NoError(t, s.bus.Shutdown(deadline(t)))
	for _, r := range []*reply{s.post(s.project, closed("1", "")), s.get(s.URL + "/healthz"), s.get(s.events(s.project))} {
		require.Equal(t, http.StatusServiceUnavailable, r.StatusCode, r.text)
		require.NotEmpty(t, r.Header.Get("Retry-After"))
		require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
	}
}

func TestThePageShowsItsProject(t *testing.T) {
	s := newSite(t)
	r := s.get(s.URL)
	require.Equal(t, http.StatusOK, r.StatusCode)
	require.Equal(t, "text/html; charset=utf-8", r.Header.Get("Content-Type"))
	require.Equal(t, "no-store", r.Header.Get("Cache-Control"))
	policy := r.Header.Get("Content-Security-Policy")
	require.Contains(t, policy, "default-src 'none'")
	require.NotContains(t, policy, "unsafe")
	nonce := regexp.MustCompile(`script-src 'nonce-([A-Z0-9]+)'`).FindStringSubmatch(policy)
	require.Len(t, nonce, 2)
	require.Equal(t, 2, strings.Count(r.text, `nonce="`+nonce[1]+`"`))
	require.NotContains(t, s.get(s.URL+"/").text, nonce[1])
	require.Contains(t, r.text, s.project.String())
	require.Equal(t, http.StatusNotFound, s.get(s.URL+"/other").StatusCode)
}

// TestNamesOfOtherMachinesAreRefused where only this machine can ask: a page that is elsewhere may have
// given its own name this address.
func TestNamesOfOtherMachinesAreRefused(t *testing.T) {
	for listener, others := range map[string]int{"127.0.0.1:80": http.StatusMisdirectedRequest, "[::1]:80": http.StatusMisdirectedRequest, "10.0.0.1:80": http.StatusOK} {
		addr, err := net.ResolveTCPAddr("tcp", listener)
		require.NoError(t, err)
		h := localNames(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), addr)
		for host, want := range map[string]int{
			"localhost": http.StatusOK, "localhost:8080": http.StatusOK, "127.0.0.1:8080": http.StatusOK, "[::1]": http.StatusOK, "[::1]:8080": http.StatusOK,
			"evil.example": others, "evil.example:8080": others, "localhost.evil.example": others, "": others,
		} {
			r, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
			r.Host = host
			h.ServeHTTP(w, r)
			require.Equal(t, want, w.Code, "%s at %s", host, listener)
		}
	}
}

func TestTheAgentsDoAllThatThereIsToDo(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	play := newSimulation(s.bus, s.project)
	play.pause = 2 * time.Millisecond
	ended := make(chan struct{})
	want := slices.DeleteFunc(eventbus.Types(), func(typ eventbus.Type) bool {
		return typ == eventbus.ProjectCreated || typ == eventbus.ProjectArchived || typ == runToken // on the runs' own channels
	})
	start, err := s.bus.Cursor(ctx, eventbus.ProjectChannel(s.project))
	require.NoError(t, err)
	go func() {
		defer close(ended)
		play.run(ctx)
	}()
	sub := eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(s.project)}, After: start}
	for ev, err := range s.bus.SubscribeWith(ctx, sub) {
		require.NoError(t, err)
		want = slices.DeleteFunc(want, func(typ eventbus.Type) bool { return typ == ev.Type })
		if len(want) == 0 {
			break
		}
	}
	cancel()
	<-ended
}
