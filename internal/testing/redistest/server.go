// Package redistest starts real Redis servers for tests, alone, under sentinels or as a
// cluster, and breaks what passes between them and their clients.
package redistest

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// The errors of go-redis about servers that tests have killed would bury those of the tests.
func init() { redis.SetLogger(silent{}) }

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// A Server is a redis-server process of a test's own, on a port of 127.0.0.1.
type Server struct {
	Addr string
	args []string

	mu  sync.Mutex // guards following
	cmd *exec.Cmd
}

// Start starts a redis-server with further arguments, and ends it with the test. It
// writes nothing to disk unless told to. Without redis-server, and with -short, the test is skipped;
// where CI is set, it fails without one.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	port := freePort(t)
	return start(t, port, append([]string{
		executable(t), "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "",
	}, args...))
}

func start(t testing.TB, port string, args []string) *Server {
	t.Helper()
	s := &Server{Addr: net.JoinHostPort("127.0.0.1", port), args: args}
	t.Cleanup(s.Kill)
	s.Restart(t)
	return s
}

func executable(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("it needs a redis-server, which -short leaves out")
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("redis-server is not installed; scripts/install-redis installs it")
		}
		t.Skip("redis-server is not installed; `make test` installs it")
	}
	return path
}

// given are the ports that freePort has given: a server may take a while to listen.
var given struct {
	sync.Mutex
	ports []int
}

// freePort gives a port from below those that a system gives to outgoing connections: one
// of these could have it before the server does, or while it is down. A random one, since
// tests of other packages run at the same time.
func freePort(t testing.TB) string {
	t.Helper()
	given.Lock()
	defer given.Unlock()
	var err error
	for range 1000 {
		port := 10_000 + rand.IntN(20_000)
		if slices.Contains(given.ports, port) {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			_ = l.Close()
			given.ports = append(given.ports, port)
			return strconv.Itoa(port)
		}
	}
	t.Fatal(err)
	return ""
}

// Restart runs the process, on the port that it had, and waits until it serves.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool, 1)
	var log strings.Builder
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			line := lines.Text()
			if strings.Contains(line, "eady to accept connections") || strings.Contains(line, "Sentinel ID is") {
				ready <- true
			}
			if log.Len() < 10_000 {
				fmt.Fprintln(&log, line)
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

// Kill ends the process as kill -9 does.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// Freeze stops the process without ending it; its connections stay open and silent.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.cmd.Process.Signal(sig)
}

// Client makes a client that is closed with the test.
func (s *Server) Client(t testing.TB) *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// Sentinels are three redis-sentinel processes that watch one master as "main".
type Sentinels struct {
	Addrs  []string
	Master *Server
	// Replicas follow the master when they are started.
	Replicas []*Server
}

// StartSentinels starts a master, replicas that follow it, and three sentinels that
// take the master for dead after half a second.
func StartSentinels(t testing.TB, replicas int, args ...string) *Sentinels {
	t.Helper()
	args = append([]string{"--repl-diskless-sync-delay", "0"}, args...)
	s := &Sentinels{Master: Start(t, args...)}
	host, port, _ := net.SplitHostPort(s.Master.Addr)
	for range replicas {
		s.Replicas = append(s.Replicas, Start(t, append([]string{"--replicaof", host + " " + port}, args...)...))
	}
	for _, r := range s.Replicas {
		rdb := r.Client(t)
		wait(t, "a replica to follow", func(ctx context.Context) bool {
			return strings.Contains(rdb.Info(ctx, "replication").Val(), "master_link_status:up")
		})
	}
	for range 3 {
		own := freePort(t)
		file := filepath.Join(t.TempDir(), "sentinel.conf")
		text := fmt.Sprintf("port %s\nbind 127.0.0.1\nsentinel monitor main %s %s 2\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n", own, host, port)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.Addrs = append(s.Addrs, start(t, own, []string{executable(t), file, "--sentinel"}).Addr)
	}
	for _, addr := range s.Addrs {
		rdb := redis.NewSentinelClient(&redis.Options{Addr: addr})
		t.Cleanup(func() { _ = rdb.Close() })
		wait(t, "the sentinels to know each other", func(ctx context.Context) bool {
			return rdb.CkQuorum(ctx, "main").Err() == nil && len(rdb.Sentinels(ctx, "main").Val()) == 2 &&
				len(rdb.Replicas(ctx, "main").Val()) == replicas
		})
	}
	return s
}

// Client makes a client that asks the sentinels for the master.
func (s *Sentinels) Client(t testing.TB) *redis.Client {
	rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: s.Addrs})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// A Cluster is some masters that share the slots, and a replica of each if asked for.
type Cluster struct {
	Masters, Replicas []*Server // Replicas[i] follows Masters[i]
}

// StartCluster starts a cluster and waits until all its nodes agree.
func StartCluster(t testing.TB, masters int, replicas bool) *Cluster {
	t.Helper()
	c := &Cluster{}
	n := masters
	if replicas {
		n *= 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var nodes []*Server
	var meet []any
	for i := range n {
		bus := freePort(t)
		s := Start(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", bus,
			"--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0")
		nodes = append(nodes, s)
		rdb := s.Client(t)
		// Nodes with the same epoch would settle by themselves who has which slot.
		must(rdb.Do(ctx, "cluster", "set-config-epoch", i+1).Err())
		if i == 0 {
			host, port, _ := net.SplitHostPort(s.Addr)
			meet = []any{"cluster", "meet", host, port, bus}
		} else {
			must(rdb.Do(ctx, meet...).Err())
		}
		if i < masters {
			must(rdb.ClusterAddSlotsRange(ctx, i*16384/masters, (i+1)*16384/masters-1).Err())
		}
	}
	c.Masters, c.Replicas = nodes[:masters], nodes[masters:]
	for _, s := range nodes {
		rdb := s.Client(t)
		wait(t, "the nodes to know each other", func(ctx context.Context) bool {
			nodes := rdb.ClusterNodes(ctx).Val() // under names that do not last, in a handshake
			return strings.Count(nodes, " connected") == n && !strings.Contains(nodes, "handshake")
		})
	}
	for i, s := range c.Replicas {
		id := c.Masters[i].Client(t).Do(ctx, "cluster", "myid").Val().(string)
		must(s.Client(t).ClusterReplicate(ctx, id).Err())
	}
	for i, s := range nodes {
		rdb := s.Client(t)
		wait(t, "the cluster to be ready", func(ctx context.Context) bool {
			return strings.Contains(rdb.ClusterInfo(ctx).Val(), "cluster_state:ok") &&
				strings.Count(rdb.ClusterNodes(ctx).Val(), " slave ")+strings.Count(rdb.ClusterNodes(ctx).Val(), "myself,slave ") == len(c.Replicas) &&
				(i < masters || strings.Contains(rdb.Info(ctx, "replication").Val(), "master_link_status:up"))
		})
	}
	return c
}

// Client makes a client that knows all nodes.
func (c *Cluster) Client(t testing.TB) *redis.ClusterClient {
	var addrs []string
	for _, s := range slices.Concat(c.Masters, c.Replicas) {
		addrs = append(addrs, s.Addr)
	}
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// wait polls until a condition holds.
func wait(t testing.TB, what string, ok func(ctx context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// MoveSlot moves a slot and its keys from the master that has it to another one, key by
// key, while both serve it.
func (c *Cluster) MoveSlot(t testing.TB, slot int, to *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	do := func(s *Server, args ...any) any {
		t.Helper()
		rdb := redis.NewClient(&redis.Options{Addr: s.Addr})
		defer rdb.Close()
		reply, err := rdb.Do(ctx, args...).Result()
		if err != nil {
			t.Fatalf("%v: %s", args, err)
		}
		return reply
	}
	from := c.Owner(t, slot)
	if from == to {
		return
	}
	fromID, toID := do(from, "cluster", "myid"), do(to, "cluster", "myid")
	do(to, "cluster", "setslot", slot, "importing", fromID)
	do(from, "cluster", "setslot", slot, "migrating", toID)
	host, port, _ := net.SplitHostPort(to.Addr)
	for {
		keys := do(from, "cluster", "getkeysinslot", slot, 10).([]any)
		if len(keys) == 0 {
			break
		}
		do(from, append([]any{"migrate", host, port, "", 0, 5000, "keys"}, keys...)...)
	}
	do(to, "cluster", "setslot", slot, "node", toID)
	do(from, "cluster", "setslot", slot, "node", toID)
	// A node that begins another move before it knows the newest epoch can lose the
	// slot again, with its keys, to a message that was on its way.
	wait(t, "the nodes to agree", func(ctx context.Context) bool {
		return !slices.ContainsFunc(c.Masters, func(s *Server) bool { return c.view(ctx, s) != c.view(ctx, to) })
	})
}

// view is what a node knows of epochs and slots.
func (c *Cluster) view(ctx context.Context, s *Server) string {
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer rdb.Close()
	var nodes []string
	for line := range strings.Lines(rdb.ClusterNodes(ctx).Val()) {
		if f := strings.Fields(line); len(f) >= 8 {
			nodes = append(nodes, fmt.Sprint(f[0], f[6], f[8:]))
		}
	}
	slices.Sort(nodes)
	return strings.Join(nodes, "\n")
}

// Owner gives the master that has a slot.
func (c *Cluster) Owner(t testing.TB, slot int) *Server {
	t.Helper()
	nodes := slices.Concat(c.Masters, c.Replicas)
	rdb := redis.NewClient(&redis.Options{Addr: c.Masters[0].Addr})
	defer rdb.Close()
	for line := range strings.Lines(rdb.ClusterNodes(context.Background()).Val()) {
		f := strings.Fields(line)
		for _, slots := range f[min(len(f), 8):] {
			first, last, _ := strings.Cut(slots, "-")
			from, err := strconv.Atoi(first)
			until, _ := strconv.Atoi(cmp.Or(last, first))
			addr, _, _ := strings.Cut(f[1], "@")
			i := slices.IndexFunc(nodes, func(s *Server) bool { return s.Addr == addr })
			if err == nil && from <= slot && slot <= until && i >= 0 {
				return nodes[i]
			}
		}
	}
	t.Fatalf("nobody has slot %d", slot)
	return nil
}
