package eventbus_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// eachRedis runs a test on miniredis and on a real redis-server.
func eachRedis(t *testing.T, test func(t *testing.T, rdb redis.UniversalClient)) {
	t.Run("miniredis", func(t *testing.T) {
		rdb, err := embedded.New()
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, rdb.Close()) })
		test(t, rdb)
	})
	t.Run("redis", func(t *testing.T) {
		test(t, startRedis(t).client(t))
	})
}

// A server is a redis-server process of a test's own.
type server struct {
	addr string
	args []string
	cmd  *exec.Cmd
}

// startRedis starts a redis-server on a free port and ends it with the test.
func startRedis(t testing.TB, args ...string) *server {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("redis-server is not installed; scripts/install-redis installs it")
		}
		t.Skip("redis-server is not installed; `make test` installs it")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	_, port, _ := net.SplitHostPort(addr)
	s := &server{addr: addr, args: append([]string{path, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", ""}, args...)}
	s.start(t)
	t.Cleanup(func() { s.kill() })
	return s
}

// start runs the process and waits until it accepts connections.
func (s *server) start(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	out, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, s.cmd.Start())
	ready := make(chan bool, 1)
	var log strings.Builder
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "eady to accept connections") {
				ready <- true
			}
			if log.Len() < 10_000 {
				fmt.Fprintln(&log, lines.Text())
			}
		}
		close(ready)
	}()
	select {
	case ok := <-ready:
		if !ok {
			t.Fatalf("redis-server ended: %s", log.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("redis-server does not get ready")
	}
}

// kill ends the process as kill -9 does.
func (s *server) kill() {
	if s.cmd.Process != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

func (s *server) client(t testing.TB) *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: s.addr})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// newBus makes a bus that ends with the test.
func newBus(t testing.TB, client eventbus.Client, opts ...eventbus.Option) *eventbus.Bus {
	t.Helper()
	bus, err := eventbus.New(client, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close()) })
	return bus
}

// deadline is a context for things that must happen, however slow the machine is.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
