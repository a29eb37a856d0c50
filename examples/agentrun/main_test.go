package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// TestMain is the program itself where a test starts this binary as a server that it can kill.
func TestMain(m *testing.M) {
	if os.Getenv("AGENTRUN_SERVES") != "" {
		main()
		return
	}
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

// listening gives the address that a program says it listens on.
func listening(t *testing.T, stdout io.Reader) string {
	t.Helper()
	said, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	url, ok := strings.CutPrefix(strings.TrimSpace(said), "listening on ")
	require.True(t, ok, said)
	return url
}

// A browser follows a run as the page does.
type browser struct {
	t      *testing.T
	client *http.Client
	url    string
	lastID string
	text   strings.Builder
	onward func(tokens int) // is called behind each token
	tokens int
}

// ask starts a run.
func ask(t *testing.T, server, question string) *browser {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	request, err := http.NewRequestWithContext(deadline(t), http.MethodPost, server+"/runs", strings.NewReader(question))
	require.NoError(t, err)
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	id, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, response.StatusCode, string(id))
	return &browser{t: t, client: client, url: server + "/runs/" + string(id) + "/events"}
}

// read reads the stream until it breaks, and reports whether it came to its end.
func (b *browser) read(ctx context.Context) (status int, over bool) {
	b.t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	require.NoError(b.t, err)
	request.Header.Set("Accept", "text/event-stream")
	request.Header.Set("Last-Event-ID", b.lastID)
	response, err := b.client.Do(request)
	if err != nil {
		return 0, false // nobody is there
	}
	defer response.Body.Close()
	parser, piece := sseclient.New(b.lastID), make([]byte, 4096)
	for {
		n, err := response.Body.Read(piece)
		for _, block := range parser.Parse(piece[:n]) {
			over = b.take(block) || over
		}
		if err != nil {
			return response.StatusCode, over
		}
	}
}

func (b *browser) take(block sseclient.Block) (over bool) {
	b.lastID = block.LastEventID
	switch e := block.Event; {
	case e == nil:
	case e.Type == "stream.end":
		return true
	case e.Type == "run.token":
		var ev eventbus.Event
		require.NoError(b.t, json.Unmarshal([]byte(e.Data), &ev), e.Data)
		said, err := eventbus.PayloadAs[token](ev)
		require.NoError(b.t, err)
		b.text.WriteString(said.Text)
		if b.tokens++; b.onward != nil {
			b.onward(b.tokens)
		}
	default:
		require.NotEqual(b.t, "stream.gap", e.Type, e.Data)
	}
	return false
}

func TestAnAnswerIsStreamedToItsEndAndCanBeReadAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(deadline(t))
	out, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-addr", "127.0.0.1:0", "-pause", "2ms"}, stdout) }()
	server := listening(t, out)
	b := ask(t, server, "Why?")
	_, over := b.read(ctx)
	require.True(t, over)
	require.Equal(t, `You asked: "Why?" `+text, b.text.String())

	status, _ := b.read(ctx) // a browser that missed that the stream has ended
	require.Equal(t, http.StatusNoContent, status)
	again := &browser{t: t, client: b.client, url: b.url}
	_, over = again.read(ctx)
	require.True(t, over)
	require.Equal(t, b.text.String(), again.text.String())

	for _, id := range []string{uuid.NewString(), "a b", strings.Repeat("x", 200)} {
		other := &browser{t: t, client: b.client, url: server + "/runs/" + strings.ReplaceAll(id, " ", "%20") + "/events"}
		status, _ := other.read(ctx)
		require.Equal(t, http.StatusNotFound, status, id)
	}
	page, err := b.client.Get(server)
	require.NoError(t, err)
	require.NoError(t, page.Body.Close())
	require.Equal(t, http.StatusOK, page.StatusCode)
	cancel()
	require.NoError(t, <-ended)
}

// start starts the server as a process of its own.
func start(t *testing.T, addr, redisURL string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-addr", addr, "-redis", redisURL, "-pause", "10ms")
	cmd.Env = append(os.Environ(), "AGENTRUN_SERVES=1")
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	require.Equal(t, "http://"+addr, listening(t, stdout))
	return cmd
}

// TestARunSurvivesItsServer, whether it is killed or told to stop: the browser has each token once, in
// order, up to the end.
func TestARunSurvivesItsServer(t *testing.T) {
	redisURL := "redis://" + redistest.Start(t).Addr
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := free.Addr().String()
	require.NoError(t, free.Close())

	ctx := deadline(t)
	server := start(t, addr, redisURL)
	b := ask(t, "http://"+addr, "Why?")
	stop := map[int]syscall.Signal{20: syscall.SIGKILL, 60: syscall.SIGTERM, 100: syscall.SIGKILL}
	b.onward = func(tokens int) {
		if signal, ok := stop[tokens]; ok {
			require.NoError(t, server.Process.Signal(signal))
			delete(stop, tokens)
		}
	}
	for over := false; !over; {
		require.NoError(t, ctx.Err())
		before := len(stop)
		if _, over = b.read(ctx); len(stop) < before {
			_ = server.Wait()
			server = start(t, addr, redisURL)
		}
	}
	require.Empty(t, stop)
	require.Equal(t, `You asked: "Why?" `+text, b.text.String())
	require.NoError(t, server.Process.Signal(syscall.SIGTERM))
	require.NoError(t, server.Wait())
}
