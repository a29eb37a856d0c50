package chaos

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// A deployment is some Redis and the ways to break it.
type deployment struct {
	client   func(i int) eventbus.Client // for the i-th bus
	direct   redis.UniversalClient       // for reading the logs in the end
	options  []eventbus.Option
	lossless bool // what was acknowledged is never lost
	sharded  bool // each of several servers loses its newest entries by itself

	lines   []*line // between buses and Redis
	servers []*server
	// whole tells whether all servers are as they should be, so that the next of them may
	// be broken.
	whole func() bool
	// victim gives a server to break.
	victim func(r *rand.Rand) *server
}

// A server is one with a client that sees it alone.
type server struct {
	*redistest.Server
	rdb     *redis.Client
	replica bool // when it is started
}

// impatient are the times of all clients: a run has many faults to get through.
const impatient = time.Second

func newServers(t testing.TB, replicas bool, servers ...*redistest.Server) (out []*server) {
	for _, s := range servers {
		rdb := redis.NewClient(&redis.Options{Addr: s.Addr, DialTimeout: impatient, ReadTimeout: impatient, MaxRetries: -1})
		t.Cleanup(func() { _ = rdb.Close() })
		out = append(out, &server{s, rdb, replicas})
	}
	return out
}

// A split client sends commands one way and subscribes another.
type split struct {
	eventbus.Client
	feed *redis.Client
}

func (s split) Subscribe(ctx context.Context, channels ...string) *redis.PubSub {
	return s.feed.Subscribe(ctx, channels...)
}

// lone is one server that syncs every write to disk, each bus with two lines to it.
func lone(t testing.TB, _ *rand.Rand) *deployment {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	d := &deployment{lossless: true, servers: newServers(t, false, s)}
	client := func(l *line) *redis.Client {
		d.lines = append(d.lines, l)
		rdb := redis.NewClient(&redis.Options{Addr: l.addr, DialTimeout: impatient, ReadTimeout: impatient, WriteTimeout: impatient})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	d.client = func(i int) eventbus.Client {
		return split{client(newLine(t, s.Addr, i%2 == 0)), client(newLine(t, s.Addr, i%2 == 1))}
	}
	d.direct = s.Client(t)
	d.whole = func() bool { return d.servers[0].rdb.Ping(context.Background()).Err() == nil }
	d.victim = func(*rand.Rand) *server { return d.servers[0] }
	return d
}

// sentinels is a master with one or two replicas.
func sentinels(t testing.TB, r *rand.Rand) *deployment {
	s := redistest.StartSentinels(t, 1+r.IntN(2))
	d := &deployment{servers: append(newServers(t, false, s.Master), newServers(t, true, s.Replicas...)...)}
	client := func() *redis.Client {
		rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: s.Addrs,
			DialTimeout: impatient, ReadTimeout: impatient, WriteTimeout: impatient})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	d.client = func(int) eventbus.Client { return client() }
	d.direct = client()
	var known []*redis.SentinelClient
	for _, addr := range s.Addrs {
		rdb := redis.NewSentinelClient(&redis.Options{Addr: addr, DialTimeout: impatient, ReadTimeout: impatient})
		t.Cleanup(func() { _ = rdb.Close() })
		known = append(known, rdb)
	}
	master := func(i int) *server {
		addr := known[i].GetMasterAddrByName(context.Background(), "main").Val()
		if len(addr) == 2 {
			for _, s := range d.servers {
				if s.Addr == net.JoinHostPort(addr[0], addr[1]) {
					return s
				}
			}
		}
		return nil
	}
	d.whole = func() bool {
		m := master(0)
		if m == nil || master(1) != m || master(2) != m {
			return false
		}
		for _, s := range d.servers {
			info := s.rdb.Info(context.Background(), "replication").Val()
			if !strings.Contains(info, "role:master") && !strings.Contains(info, "master_link_status:up") ||
				s == m != strings.Contains(info, "role:master") {
				return false
			}
		}
		return true
	}
	d.victim = func(r *rand.Rand) *server {
		if r.IntN(4) == 0 {
			return d.servers[r.IntN(len(d.servers))]
		}
		return master(0)
	}
	return d
}

// cluster is three masters with a replica each.
func cluster(t testing.TB, r *rand.Rand) *deployment {
	c := redistest.StartCluster(t, 3, true)
	d := &deployment{sharded: true, servers: newServers(t, false, slices.Concat(c.Masters, c.Replicas)...)}
	if r.IntN(2) == 0 {
		d.options = append(d.options, eventbus.WithShardedPubSub())
	}
	var addrs []string
	for _, s := range d.servers {
		addrs = append(addrs, s.Addr)
	}
	client := func() *redis.ClusterClient {
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs,
			DialTimeout: impatient, ReadTimeout: impatient, WriteTimeout: impatient})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	d.client = func(int) eventbus.Client { return client() }
	d.direct = client()
	masters := func() (masters []*server) {
		for _, s := range d.servers {
			if strings.Contains(s.rdb.Info(context.Background(), "replication").Val(), "role:master") {
				masters = append(masters, s)
			}
		}
		return masters
	}
	d.whole = func() bool {
		for _, s := range d.servers {
			ctx := context.Background()
			if info := s.rdb.ClusterInfo(ctx).Val(); !strings.Contains(info, "cluster_state:ok") {
				return false
			}
			if nodes := s.rdb.ClusterNodes(ctx).Val(); strings.Contains(nodes, "fail") ||
				strings.Count(nodes, "slave ") != len(d.servers)/2 || strings.Count(nodes, "master ") != len(d.servers)/2 {
				return false
			}
			info := s.rdb.Info(ctx, "replication").Val()
			if !strings.Contains(info, "role:master") && !strings.Contains(info, "master_link_status:up") {
				return false
			}
		}
		return true
	}
	d.victim = func(r *rand.Rand) *server {
		if among := masters(); len(among) > 0 && r.IntN(4) > 0 {
			return among[r.IntN(len(among))]
		}
		return d.servers[r.IntN(len(d.servers))]
	}
	return d
}
