package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A redisServer is a redis-server of the bench's own.
type redisServer struct {
	addr   string
	client *redis.Client
	stop   func()
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func startRedis(args ...string) (*redisServer, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", port)
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("redis-server", append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", dir,
		"--save", "", "--appendonly", "no", "--maxclients", "12000"}, args...)...)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &redisServer{addr: addr, client: redis.NewClient(&redis.Options{Addr: addr})}
	s.stop = func() {
		_ = s.client.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	for range 100 {
		if s.client.Ping(context.Background()).Err() == nil {
			return s, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.stop()
	return nil, errors.New("redis-server does not answer")
}

// startCluster starts masters that share the slots.
func startCluster(masters int) (nodes []*redisServer, err error) {
	defer func() {
		if err != nil {
			for _, n := range nodes {
				n.stop()
			}
		}
	}()
	ctx := context.Background()
	const slots = 16384
	var bus string // port of the first node for other nodes
	for i := range masters {
		port, err := freePort()
		if err != nil {
			return nodes, err
		}
		node, err := startRedis("--cluster-enabled", "yes", "--cluster-port", port)
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, node)
		if err := node.client.ClusterAddSlotsRange(ctx, i*slots/masters, (i+1)*slots/masters-1).Err(); err != nil {
			return nodes, err
		}
		if i == 0 {
			bus = port
			continue
		}
		host, first, _ := net.SplitHostPort(nodes[0].addr)
		// Nodes come to differ in their epochs by themselves, but slowly.
		if err := node.client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			return nodes, err
		}
		if err := node.client.Do(ctx, "CLUSTER", "MEET", host, first, bus).Err(); err != nil {
			return nodes, err
		}
	}
	for range 200 {
		ready := 0
		for _, n := range nodes {
			info := n.client.ClusterInfo(ctx).Val()
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", masters)) {
				ready++
			}
		}
		if ready == masters {
			return nodes, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nodes, errors.New("the cluster does not come up")
}

// calls gives how many commands clients have sent, without those that set up connections,
// and how many were run in all, by scripts too.
func (s *redisServer) calls() (sent, run int) {
	for line := range strings.Lines(s.client.Info(context.Background(), "commandstats").Val()) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		calls, _, _ := strings.Cut(rest, ",")
		if !ok || strings.HasPrefix(name, "info") || strings.HasPrefix(name, "client") || name == "hello" || name == "ping" {
			continue
		}
		run += atoi(calls)
		if strings.HasPrefix(name, "eval") || name == "subscribe" {
			sent += atoi(calls)
		}
	}
	return sent, run
}

// info gives a figure of INFO.
func (s *redisServer) info(section, name string) (value float64) {
	for line := range strings.Lines(s.client.Info(context.Background(), section).Val()) {
		if n, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && n == name {
			value, _ = strconv.ParseFloat(v, 64)
		}
	}
	return value
}

func (s *redisServer) cpu() (seconds float64) {
	return s.info("cpu", "used_cpu_user") + s.info("cpu", "used_cpu_sys")
}

// subscribers counts connections that listen to channels.
func (s *redisServer) subscribers() int {
	return strings.Count(s.client.ClientList(context.Background()).Val(), "flags=P")
}

// pings gives how many round trips a second a connection makes that does nothing else: no client
// in Go publishes faster, one at a time.
func (s *redisServer) pings(n int) (float64, error) {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	began := time.Now()
	for range n {
		if _, err := conn.Write([]byte("PING\r\n")); err != nil {
			return 0, err
		}
		if _, err := answers.ReadSlice('\n'); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// appendAndPublish is the least script that does both: what one would write by hand.
var appendAndPublish = redis.NewScript("local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', 'event', ARGV[1]) " +
	"redis.call('PUBLISH', KEYS[1], ARGV[1]) return id")

// benchmark runs redis-benchmark on the script that appends and publishes, and gives its
// calls a second.
func (s *redisServer) benchmark(clients, pipeline, requests int) (float64, error) {
	sha, err := appendAndPublish.Load(context.Background(), s.client).Result()
	if err != nil {
		return 0, err
	}
	host, port, _ := net.SplitHostPort(s.addr)
	out, err := exec.Command("redis-benchmark", "-h", host, "-p", port, "-c", fmt.Sprint(clients), "-P", fmt.Sprint(pipeline),
		"-n", fmt.Sprint(requests), "--csv", "evalsha", sha, "1", "bench:log", string(body(record(0, 1, time.Now())+padding))).Output()
	if err != nil {
		return 0, fmt.Errorf("redis-benchmark: %w", err)
	}
	rate := 0.0
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		// The name is the command, with quotes and commas in it: count from the end.
		if fields := strings.Split(lines.Text(), `","`); len(fields) >= 7 {
			_, _ = fmt.Sscanf(fields[len(fields)-7], "%g", &rate)
		}
	}
	if rate == 0 {
		return 0, fmt.Errorf("redis-benchmark printed %q", out)
	}
	return rate, nil
}
