package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// running runs the program, and gives its address and a function that ends it.
func running(t *testing.T, args ...string) (client *http.Client, url string, end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	client = &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	out, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, append([]string{"-addr", "127.0.0.1:0"}, args...), stdout)
		stdout.Close()
	}()
	t.Cleanup(cancel)
	said, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	url, ok := strings.CutPrefix(strings.TrimSpace(said), "listening on ")
	require.True(t, ok, said)
	require.NotContains(t, url, ":0/")
	return client, url, func() error { cancel(); return <-ended }
}

// TestSlowClientsAreCut: many connections send a byte now and then, of a header or a body,
// to keep the server waiting. It does not, and serves others meanwhile.
func TestSlowClientsAreCut(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes ten seconds")
	}
	client, url, end := running(t, "-demo=false")
	host := strings.TrimPrefix(url, "http://")
	var slow sync.WaitGroup
	for i := range 100 {
		conn, err := net.Dial("tcp", host)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		start := "GET / HTTP/1.1\r\nHost: x\r\nX: "
		if i%2 == 1 {
			name := []string{"x", "localhost"}[i/2%2]
			start = "POST /projects/6ba7b810-9dad-41d1-80b4-00c04fd430c8/events HTTP/1.1\r\nHost: " + name + "\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
		}
		_, err = io.WriteString(conn, start)
		require.NoError(t, err)
		cut := make(chan struct{})
		slow.Go(func() {
			defer close(cut)
			_, _ = io.Copy(io.Discard, conn)
		})
		slow.Go(func() {
			for {
				select {
				case <-cut:
					return
				case <-time.After(200 * time.Millisecond):
					_, _ = io.WriteString(conn, " ")
				}
			}
		})
	}
	require.Equal(t, http.StatusOK, do(t, client, http.MethodGet, url+"/healthz", "").StatusCode)
	slow.Wait() // or the test does not end
	require.Equal(t, http.StatusOK, do(t, client, http.MethodGet, url+"/healthz", "").StatusCode)
	require.NoError(t, end())
}

func TestRunServesUntilItIsToldToEnd(t *testing.T) {
	client, url, end := running(t)
	page := do(t, client, http.MethodGet, url, "")
	require.Equal(t, http.StatusOK, page.StatusCode)
	project := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`).FindString(page.text)
	events := url + "/projects/" + project + "/events"
	stream := open(t, client, events)
	agents := open(t, client, events+"?type=agent.*")
	posted := do(t, client, http.MethodPost, events, closed("SYN-1", ""))
	require.Equal(t, http.StatusCreated, posted.StatusCode, posted.text)
	for {
		f, ok := stream.next()
		require.True(t, ok, "the stream ended")
		if f.data.ID == posted.body.ID {
			break
		}
	}
	_, ok := agents.next()
	require.True(t, ok, "no agent is at work")

	require.NoError(t, end())
	for ok := true; ok; {
		_, ok = stream.next()
	}
	require.NoError(t, stream.lines.Err(), "the stream was cut")
}

func TestRunSaysWhyItCannot(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"-unknown"}, "-unknown"},
		{[]string{"stray"}, "unexpected argument"},
		{[]string{"-addr", "127.0.0.1"}, "host:port"},
		{[]string{"-addr", "127.0.0.1:99999"}, "invalid port"},
		{[]string{"-keepalive", "1ms"}, "-keepalive"},
		{[]string{"-redis", "redis://127.0.0.1:1?max_retries=-1"}, "redis is not available"},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			require.ErrorContains(t, run(deadline(t), test.args, io.Discard), test.want)
		})
	}
}

// A password in a URL, wherever that is given, and whatever Redis says to it.
func TestRunDoesNotShowThePassword(t *testing.T) {
	var said bytes.Buffer
	before, writer := slog.Default(), log.Writer()
	slog.SetDefault(slog.New(slog.NewTextHandler(&said, nil)))
	log.SetOutput(&said)
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(writer)
	})
	locked := redistest.Start(t, "--requirepass", "another").Addr
	bare := redistest.Start(t, "--rename-command", "AUTH", "", "--rename-command", "HELLO", "").Addr
	for _, args := range [][]string{
		{"-redis", "redis://app:hunter2@" + locked}, {"-redis", "redis://:hunter2@" + bare}, {"-redis", "redis://app:hunter2@" + locked + "?addr=" + bare},
		{"-redis", "redis://app:hunter2@127.0.0.1:1?max_retries=-1"}, {"-redis", "redis://app:hunter2@[::1"}, {"-redis", "redis://app:hunter2@127.0.0.1:port"},
		{"-redis", "redis:/app:hunter2@127.0.0.1"}, {"-redis", "redis://app:hunter2@127.0.0.1/0?unknown=hunter2"}, {"-redis", "unix://app:hunter2@"},
		{"-redis", "redis://app:hunter2@" + locked + "?master_name=main&password=hunter2&max_retries=-1"},
		{"redis://app:hunter2@127.0.0.1"}, {"-demo", "redis://app:hunter2@127.0.0.1"}, {"-addr", "redis://app:hunter2@127.0.0.1:6379"},
	} {
		var out bytes.Buffer
		err := run(deadline(t), args, &out)
		require.Error(t, err, args)
		require.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), "hunter2")
		require.NotContains(t, out.String(), "hunter2")
	}
	require.NotContains(t, said.String(), "hunter2")
}

func TestHelpNamesTheFlagsButNotTheSecret(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://:secret@127.0.0.1:1")
	var out bytes.Buffer
	require.NoError(t, run(deadline(t), []string{"-help"}, &out))
	for _, name := range []string{"-addr", "-redis", "-demo", "-keepalive"} {
		require.Contains(t, out.String(), name)
	}
	require.NotContains(t, out.String(), "secret")
}

func TestTheURLDecidesTheKindOfRedis(t *testing.T) {
	for rawURL, want := range map[string]redis.UniversalClient{
		"redis://user:secret@127.0.0.1:1/2":                        &redis.Client{},
		"rediss://127.0.0.1:1":                                     &redis.Client{},
		"unix:///run/redis.sock?db=1":                              &redis.Client{},
		"redis://127.0.0.1:1?addr=127.0.0.1:2&addr=127.0.0.1:3":    &redis.ClusterClient{},
		"redis://127.0.0.1:1?addr=127.0.0.1:2&master_name=primary": &redis.Client{},
	} {
		rdb, err := openRedis(rawURL)
		require.NoError(t, err, rawURL)
		require.IsType(t, want, rdb, rawURL)
		require.NoError(t, rdb.Close())
	}
}

func TestABadURLIsNotRepeated(t *testing.T) {
	for _, rawURL := range []string{
		"redis://user:sec/ret@127.0.0.1:1/0", "redis://user:sec%ret@127.0.0.1", "http://user:secret@127.0.0.1",
		"redis://user:secret@127.0.0.1/x?addr=secret", "redis://secret@127.0.0.1?master_name=x&route_randomly=true", "secret",
	} {
		_, err := openRedis(rawURL)
		require.ErrorIs(t, err, errRedisURL, rawURL)
		require.NotContains(t, err.Error(), "sec")
	}
}
