package tests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/internal/testing/redistest"
)

// eventually waits for a condition that must come about, however slow the machine is.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, time.Minute, 10*time.Millisecond, what)
}

// pair starts a master with further arguments, and a replica that follows it.
func pair(t testing.TB, args ...string) (master, replica *redistest.Server) {
	t.Helper()
	args = append(args, "--repl-diskless-sync-delay", "0")
	master = redistest.Start(t, args...)
	replica = redistest.Start(t, append(args, "--replicaof", strings.ReplaceAll(master.Addr, ":", " "))...)
	follows(t, replica)
	return master, replica
}

func follows(t testing.TB, replica *redistest.Server) {
	t.Helper()
	rdb := replica.Client(t)
	eventually(t, "the replica follows", func() bool {
		return strings.Contains(rdb.Info(deadline(t), "replication").Val(), "master_link_status:up")
	})
}

// replicated waits until n replicas have all that was written.
func replicated(t testing.TB, master *redistest.Server, n int) {
	t.Helper()
	rdb, ctx := master.Client(t), deadline(t)
	conn := rdb.Conn()
	defer conn.Close()
	// WAIT is about the writes of its own connection.
	require.NoError(t, conn.Set(ctx, "replicated", "x", 0).Err())
	require.EqualValues(t, n, conn.Wait(ctx, n, time.Minute).Val())
}

// replicaOf makes a server a replica of another one, nil for none.
func replicaOf(t testing.TB, s, master *redistest.Server) {
	t.Helper()
	host, port := "NO", "ONE"
	if master != nil {
		var err error
		host, port, err = net.SplitHostPort(master.Addr)
		require.NoError(t, err)
	}
	require.NoError(t, s.Client(t).ReplicaOf(deadline(t), host, port).Err())
}

// A seen is what a witness was given: an event or a gap.
type seen struct {
	text string
	pos  eventbus.Position
	gap  *eventbus.GapError
}

// A witness reads in the background and keeps everything in order, gaps in their
// places. One that hops ends its subscription after some events, and at a gap, and resumes
// from its last cursor on the next bus.
type witness struct {
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex // guards following
	what []seen
}

func watch(t testing.TB, sub eventbus.Subscription, hop int, buses ...*eventbus.Bus) *witness {
	ctx, cancel := context.WithCancel(context.Background())
	w := &witness{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for n := 0; ctx.Err() == nil; n++ {
			left := hop
			for ev, err := range buses[n%len(buses)].SubscribeWith(ctx, sub) {
				var s seen
				switch {
				case errors.As(err, &s.gap):
					sub.After = s.gap.Cursor
				case err != nil:
					if ctx.Err() == nil {
						t.Error(err)
						return
					}
					continue
				default:
					s.text, s.pos = text(t, ev), ev.Position
					sub.After = ev.Cursor
				}
				w.mu.Lock()
				w.what = append(w.what, s)
				w.mu.Unlock()
				if left--; left == 0 || hop > 0 && s.gap != nil {
					break
				}
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-w.done })
	return w
}

func (w *witness) all() []seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.what)
}

// has tells whether the newest thing seen is this event.
func (w *witness) has(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.what) > 0 && w.what[len(w.what)-1].text == text
}

// A logged is an entry of a log as Redis has it.
type logged struct{ text, pos string }

func readLog(t testing.TB, rdb redis.Cmdable, c eventbus.Channel) (all []logged) {
	entries, err := rdb.XRange(deadline(t), logKey(c), "-", "+").Result()
	require.NoError(t, err)
	for _, e := range entries {
		var ev eventbus.Event
		require.NoError(t, ev.UnmarshalJSON([]byte(e.Values["event"].(string))))
		all = append(all, logged{text(t, ev), e.ID})
	}
	return all
}

// verdict checks a witness, which began before the first event, against the log that
// has survived one failover. An event that is not there is lost: who has seen one must
// be told so, once, and nobody else. Before the gap come the log's events from the first
// on, and then lost ones; behind it the log's up to the last, without a hole. In
// between, the gap may pass over as many events of the new log as were lost of the old
// one: their numbers were given twice.
func verdict(t testing.TB, w *witness, log []logged) (lost, passed int) {
	t.Helper()
	at := make(map[logged]int, len(log))
	for i, e := range log {
		at[e] = i
	}
	next, gaps, behind := 0, 0, false // next is the index in the log of the event to come
	given := make(map[string]bool)
	for _, s := range w.all() {
		if s.gap != nil {
			require.Equal(t, eventbus.GapRewound, s.gap.Reason)
			gaps, behind = gaps+1, true
			clear(given) // a publisher that was left in doubt publishes a lost event again
			continue
		}
		if given[s.text] {
			t.Fatalf("%s came twice", s.text)
		}
		given[s.text] = true
		n, ok := at[logged{s.text, s.pos.String()}]
		switch {
		case !ok && gaps > 0:
			t.Fatalf("%s is not in the log, and came behind the gap", s.text)
		case !ok:
			lost++
		case behind && n >= next:
			passed, next, behind = n-next, n+1, false
		case n != next:
			t.Fatalf("%s came where %s was to come", s.text, log[min(next, len(log)-1)].text)
		case lost > 0 && gaps == 0:
			t.Fatalf("%s came behind a lost event, without a gap", s.text)
		default:
			next++
		}
	}
	require.Equal(t, len(log), next, "the last event of the log did not come")
	require.LessOrEqual(t, passed, lost)
	if lost > 0 {
		require.Equal(t, 1, gaps, "lost events, and no word of it")
	} else {
		require.Zero(t, gaps, "a gap, and nothing was lost")
	}
	return lost, passed
}

// patience says how long a master must be silent until sentinels take it for dead.
func patience(t testing.TB, s *redistest.Sentinels, d time.Duration) {
	t.Helper()
	for _, addr := range s.Addrs {
		rdb := redis.NewSentinelClient(&redis.Options{Addr: addr})
		require.NoError(t, rdb.Set(deadline(t), "main", "down-after-milliseconds", fmt.Sprint(d.Milliseconds())).Err())
		require.NoError(t, rdb.Close())
	}
}

// TestSentinelReplacesAMasterUnderLoad kills the master with -9 while many publish and
// read. Publishers insist on each event until it is acknowledged.
func TestSentinelReplacesAMasterUnderLoad(t *testing.T) {
	t.Parallel()
	for name, lag := range map[string]bool{"replica up to date": false, "replica lags": true} {
		t.Run(name, func(t *testing.T) {
			s := redistest.StartSentinels(t, 1, "--repl-diskless-sync-delay", "0")
			// So that the test, not the clock, says when the failover begins.
			patience(t, s, time.Hour)
			opts := []any{eventbus.WithFreshness(500 * time.Millisecond), eventbus.WithRetention(eventbus.Retention{})}
			publisher := newBus(t, s.Client(t), opts...)
			bus, other := newBus(t, s.Client(t), opts...), newBus(t, s.Client(t), opts...)
			project := uuid.New()
			channel := eventbus.ProjectChannel(project)
			sub := now(t, publisher, channel)
			var witnesses []*witness
			for i := range 20 {
				witnesses = append(witnesses, watch(t, sub, 0, []*eventbus.Bus{bus, publisher}[i%2]))
			}
			for i := range 6 {
				witnesses = append(witnesses, watch(t, sub, 3+10*i, other, bus))
			}

			ctx, halt := context.WithCancel(context.Background())
			defer halt()
			var acked sync.Map
			var count atomic.Int64
			var publishers sync.WaitGroup
			for p := range 4 {
				publishers.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						ev := message(t, project, fmt.Sprint(p, "-", i))
						for publisher.Publish(deadline(t), ev) != nil {
						}
						acked.Store(text(t, ev), true)
						count.Add(1)
						time.Sleep(2 * time.Millisecond) // a load, not a flood
					}
				})
			}
			defer publishers.Wait()
			defer halt()
			acknowledged := func(n int64) {
				from := count.Load()
				eventually(t, "publishes succeed", func() bool { return count.Load() >= from+n })
			}
			acknowledged(200)
			if lag {
				// The replica may not come back to the master: what follows is on the
				// master alone.
				rdb := s.Master.Client(t)
				require.NoError(t, rdb.Do(deadline(t), "acl", "setuser", "default", "-psync", "-sync").Err())
				require.NoError(t, rdb.Do(deadline(t), "client", "kill", "type", "replica").Err())
				from := len(witnesses[0].all())
				eventually(t, "lost events are seen", func() bool { return len(witnesses[0].all()) >= from+50 })
			}
			s.Master.Kill()
			for _, b := range []*eventbus.Bus{publisher, bus, other} {
				eventually(t, "Health sees it", func() bool { return errors.Is(b.Health(), eventbus.ErrUnavailable) })
			}
			patience(t, s, 500*time.Millisecond)
			acknowledged(200)
			if !lag {
				s.Master.Restart(t) // empty; the sentinels make it a replica
				follows(t, s.Master)
				acknowledged(50)
			}
			halt()
			publishers.Wait()
			insist(t, publisher, message(t, project, "end"))

			for _, w := range witnesses {
				eventually(t, "the last event", func() bool { return w.has("end") })
			}
			for _, b := range []*eventbus.Bus{publisher, bus, other} {
				eventually(t, "Health recovers", func() bool { return b.Health() == nil })
			}
			log := readLog(t, s.Client(t), channel)
			there := make(map[string]bool, len(log))
			for _, e := range log {
				require.False(t, there[e.text], "%s is in the log twice", e.text)
				there[e.text] = true
			}
			gone, told, passes := 0, 0, 0
			acked.Range(func(text, _ any) bool {
				if !there[text.(string)] {
					gone++
				}
				return true
			})
			for _, w := range witnesses {
				lost, passed := verdict(t, w, log)
				if lost > 0 {
					told++
				}
				passes = max(passes, passed)
			}
			if lag {
				require.Positive(t, gone)
				require.Positive(t, told)
			}
			t.Logf("%d events acknowledged, %d in the log, %d acknowledged ones lost; %d of %d subscribers had seen lost ones, and were told; a gap passed over at most %d",
				count.Load()+1, len(log), gone, told, len(witnesses), passes)
			verdict(t, resumeAll(t, newBus(t, s.Client(t)), sub), log)
		})
	}
}

// resumeAll reads what a subscription has up to the event "end".
func resumeAll(t testing.TB, bus *eventbus.Bus, sub eventbus.Subscription) *witness {
	w := watch(t, sub, 0, bus)
	eventually(t, "the last event", func() bool { return w.has("end") })
	return w
}

// TestPromotedReplicaLacksTheNewestEvents: ten events are on both servers, five more on
// the old master alone. The new one gives their numbers to other events, before anybody
// comes to it: none of them, some, all, and more.
func TestPromotedReplicaLacksTheNewestEvents(t *testing.T) {
	const common, old = 10, 15
	for _, n := range []int{0, 2, 5, 9} {
		t.Run(fmt.Sprint(n, " numbers given again"), func(t *testing.T) {
			master, replica := pair(t)
			p := redistest.StartProxy(t, master.Addr)
			fresh := eventbus.WithFreshness(time.Second)
			publisher, reader := newBus(t, p.Client(t), fresh), newBus(t, p.Client(t), fresh)
			project := uuid.New()
			channel := eventbus.ProjectChannel(project)
			sub := now(t, publisher, channel)
			positions := []eventbus.Position{{}}
			after := []eventbus.Cursor{sub.After} // after[i]: behind i events
			publish := func(bus *eventbus.Bus, from, until int) {
				for _, text := range countTo(from, until) {
					insist(t, bus, message(t, project, text))
				}
			}
			publish(publisher, 0, common)
			replicated(t, master, 1)
			replicaOf(t, replica, nil)
			publish(publisher, common, old)

			var live []*follower
			for _, bus := range []*eventbus.Bus{publisher, reader, publisher, reader} {
				live = append(live, follow(t, bus, sub))
			}
			for ev, err := range reader.SubscribeWith(deadline(t), sub) {
				require.NoError(t, err)
				positions, after = append(positions, ev.Position), append(after, ev.Cursor)
				if len(after) == old+1 {
					break
				}
			}
			for _, f := range live {
				f.count(old)
			}
			direct := newBus(t, replica.Client(t))
			publish(direct, 100, 100+n)
			p.SetTarget(replica.Addr)
			master.Kill()

			told := func(f *follower, has int) {
				f.until("a gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) > 0 })
				require.Equal(t, eventbus.GapRewound, f.gaps[0].Reason)
				require.Equal(t, channel, f.gaps[0].Channel)
				require.Equal(t, positions[has].String(), f.gaps[0].From.String())
			}
			// Whoever has seen more than the first ten is told, and goes on behind the new
			// event with the number of the last one seen, or at the log's end.
			type resumed struct {
				*follower
				has int
			}
			var followers []resumed
			for _, f := range live {
				told(f, old)
				followers = append(followers, resumed{f, old})
			}
			for has := common - 2; has <= old; has++ {
				for _, bus := range []*eventbus.Bus{publisher, reader, direct} {
					f := follow(t, bus, eventbus.Subscription{Channels: sub.Channels, After: after[has]})
					if has > common {
						told(f, has)
					}
					followers = append(followers, resumed{f, has})
				}
			}
			// And from the cursor of a gap, nobody is told again.
			for _, f := range slices.Clone(followers) {
				if f.has > common {
					again := follow(t, direct, eventbus.Subscription{Channels: sub.Channels, After: f.gaps[0].Cursor})
					followers = append(followers, resumed{again, -f.has})
				}
			}
			publish(publisher, 200, 220)
			for _, f := range followers {
				var want []string
				has, gaps := f.has, 0
				switch {
				case has < 0:
					has = -has
				case has > common:
					gaps = 1
				}
				if slices.Contains(live, f.follower) {
					want = countTo(0, old)
				}
				want = slices.Concat(want, countTo(has, common), countTo(100+min(has-min(has, common), n), 100+n), countTo(200, 220))
				f.count(len(want))
				f.exactly(want, gaps)
			}
			require.EqualValues(t, common+n+20, replica.Client(t).XLen(deadline(t), logKey(channel)).Val())
			eventually(t, "Health recovers", func() bool { return publisher.Health() == nil && reader.Health() == nil })
		})
	}
}

// TestNewcomersAfterALossHearOfNoGap: who begins now misses nothing, also on a bus that
// remembers having published what was lost.
func TestNewcomersAfterALossHearOfNoGap(t *testing.T) {
	for _, published := range []bool{false, true} {
		t.Run(fmt.Sprint("published since: ", published), func(t *testing.T) {
			master, replica := pair(t)
			p := redistest.StartProxy(t, master.Addr)
			bus, project := newBus(t, p.Client(t), eventbus.WithFreshness(time.Second)), uuid.New()
			channel := eventbus.ProjectChannel(project)
			insist(t, bus, message(t, project, "0"))
			replicated(t, master, 1)
			replicaOf(t, replica, nil)
			sub := now(t, bus, channel)
			for _, text := range countTo(1, 30) {
				insist(t, bus, message(t, project, text))
			}
			live := follow(t, bus, sub)
			live.count(29)
			p.SetTarget(replica.Addr)
			master.Kill()
			live.until("a gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) > 0 })
			if published {
				insist(t, bus, message(t, project, "30"))
				live.count(30)
			}
			newcomer := follow(t, bus, eventbus.Subscription{Channels: sub.Channels})
			direct := newBus(t, replica.Client(t))
			eventually(t, "the newcomer hears something", func() bool {
				insist(t, direct, message(t, project, "new"))
				newcomer.mu.Lock()
				defer newcomer.mu.Unlock()
				return len(newcomer.texts)+len(newcomer.gaps) > 0
			})
			newcomer.mu.Lock()
			defer newcomer.mu.Unlock()
			require.Empty(t, newcomer.gaps)
		})
	}
}

// TestGapOfARewindIsTold: the project's log is rewound, the agent's is not, and numbers are given
// again before the reader is back. The gap announces what it passes over, also of what the agent's log
// has; what comes later comes once.
func TestGapOfARewindIsTold(t *testing.T) {
	for _, n := range []int{2, 5, 9} {
		t.Run(fmt.Sprint(n, " numbers given again"), func(t *testing.T) {
			master, replica := pair(t)
			bus, project, agent := newBus(t, master.Client(t)), uuid.New(), eventbus.AgentChannel(uuid.New())
			channels := []eventbus.Channel{eventbus.ProjectChannel(project), agent}
			live := follow(t, bus, now(t, bus, channels...))
			for _, text := range countTo(0, 10) {
				insist(t, bus, message(t, project, text), agent)
			}
			replicated(t, master, 1)
			replicaOf(t, replica, nil)
			for _, text := range countTo(10, 15) {
				insist(t, bus, message(t, project, text))
			}
			live.count(15)
			live.end()
			direct := newBus(t, replica.Client(t))
			for _, text := range countTo(15, 15+n) {
				insist(t, direct, message(t, project, text), agent)
			}
			var resumed []*follower
			for range 2 {
				resumed = append(resumed, follow(t, direct, eventbus.Subscription{Channels: slices.Clone(channels), After: live.cursor}))
				slices.Reverse(channels)
			}
			for _, f := range resumed {
				f.until("a gap", func(_ []string, gaps []*eventbus.GapError) bool { return len(gaps) > 0 })
			}
			insist(t, direct, message(t, project, "end"), agent)
			for _, f := range resumed {
				f.until("the last event", func(texts []string, _ []*eventbus.GapError) bool { return slices.Contains(texts, "end") })
				f.exactly(append(countTo(20, max(20, 15+n)), "end"), 1)
				require.Equal(t, channels[0], f.gaps[0].Channel)
			}
		})
	}
}

// goodReplicas waits until a master counts this many replicas that are near enough.
func goodReplicas(t testing.TB, master *redistest.Server, n int) {
	t.Helper()
	rdb := master.Client(t)
	eventually(t, "the master counts its replicas", func() bool {
		return strings.Contains(rdb.Info(deadline(t), "replication").Val(), fmt.Sprintf("min_slaves_good_slaves:%d\r", n))
	})
}

// TestPublishNeedsItsReplicas: a master that must not take writes without a replica
// says so, and then nothing is in any log or on any channel.
func TestPublishNeedsItsReplicas(t *testing.T) {
	t.Parallel()
	master, replica := pair(t, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")
	for name, away := range map[string]struct{ leave, comeBack func() }{
		"killed": {replica.Kill, func() { replica.Restart(t) }},
		"frozen": {replica.Freeze, replica.Thaw},
	} {
		t.Run(name, func(t *testing.T) {
			goodReplicas(t, master, 1)
			rdb := master.Client(t)
			bus, project, agent := newBus(t, rdb), uuid.New(), eventbus.AgentChannel(uuid.New())
			channel := eventbus.ProjectChannel(project)
			live := follow(t, bus, now(t, bus, channel, agent))
			insist(t, bus, message(t, project, "0"), agent)
			live.count(1)

			away.leave()
			goodReplicas(t, master, 0)
			ev := message(t, project, "1")
			err := bus.Publish(deadline(t), ev, agent)
			require.ErrorIs(t, err, eventbus.ErrUnavailable)
			require.ErrorContains(t, err, "NOREPLICAS")
			var failed *eventbus.PublishError
			require.ErrorAs(t, err, &failed)
			require.Equal(t, []eventbus.Channel{channel, agent}, failed.Missing)
			require.Empty(t, failed.Unknown)
			_, err = eventbus.New(rdb)
			require.ErrorIs(t, err, eventbus.ErrUnavailable) // for now
			require.NotErrorIs(t, err, eventbus.ErrUnsupported)
			for _, c := range failed.Missing {
				require.EqualValues(t, 1, rdb.XLen(deadline(t), logKey(c)).Val())
			}
			// Who resumes, or begins, reads on.
			resumed := follow(t, bus, eventbus.Subscription{Channels: []eventbus.Channel{channel}, Oldest: true})
			resumed.count(1)

			away.comeBack()
			goodReplicas(t, master, 1)
			insist(t, bus, ev, agent)
			for _, f := range []*follower{live, resumed} {
				f.count(2)
				f.exactly([]string{"0", "1"}, 0)
			}
			require.NoError(t, bus.Health())
			for _, c := range failed.Missing {
				require.EqualValues(t, 2, rdb.XLen(deadline(t), logKey(c)).Val())
			}
		})
	}
}

// TestClientsOfReplicasAreRefused: they would lose every publish.
func TestClientsOfReplicasAreRefused(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinels(t, 1, "--repl-diskless-sync-delay", "0")
	replicaOnly := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: s.Addrs, ReplicaOnly: true})
	t.Cleanup(func() { _ = replicaOnly.Close() })
	for name, rdb := range map[string]redis.UniversalClient{
		"of the replica": s.Replicas[0].Client(t), "failover client with ReplicaOnly": replicaOnly,
	} {
		for _, opts := range [][]eventbus.Option{nil, {eventbus.WithShardedPubSub()}} {
			_, err := eventbus.New(rdb, opts...)
			require.ErrorIs(t, err, eventbus.ErrUnsupported, name)
			require.NotErrorIs(t, err, eventbus.ErrUnavailable, name)
			require.ErrorContains(t, err, "replica", name)
			require.ErrorContains(t, err, "READONLY", name)
		}
	}
}

// TestClientsThatReadFromReplicas: scripts, which may write, go to the master all the
// same, so the logs are read there. Subscriptions go to any node; a replica passes on
// what its master has published.
func TestClientsThatReadFromReplicas(t *testing.T) {
	t.Parallel()
	options := map[string]redis.ClusterOptions{
		"ReadOnly": {ReadOnly: true}, "RouteByLatency": {RouteByLatency: true}, "RouteRandomly": {RouteRandomly: true},
	}
	master, replica := pair(t)
	for name, o := range options {
		t.Run("failover cluster client with "+name, func(t *testing.T) {
			// This is what redis.NewFailoverClusterClient makes, whose own connection to a
			// sentinel is never closed (go-redis 9.23.0).
			o.ClusterSlots = func(context.Context) ([]redis.ClusterSlot, error) {
				return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: master.Addr}, {Addr: replica.Addr}}}}, nil
			}
			rdb := redis.NewClusterClient(&o)
			t.Cleanup(func() { _ = rdb.Close() })
			eachMode(t, func(t *testing.T, mode ...any) { listenTo(t, rdb, replica, mode...) })
		})
	}
	c := redistest.StartCluster(t, 1, true)
	for name, o := range options {
		t.Run("cluster client with "+name, func(t *testing.T) {
			o.Addrs = []string{c.Masters[0].Addr, c.Replicas[0].Addr}
			rdb := redis.NewClusterClient(&o)
			t.Cleanup(func() { _ = rdb.Close() })
			t.Run("plain", func(t *testing.T) { listenTo(t, rdb, c.Replicas[0]) })
			// Where a cluster shards, the bus asks for the masters by name.
			t.Run("sharded", func(t *testing.T) { listenTo(t, rdb, c.Masters[0], eventbus.WithShardedPubSub()) })
		})
	}
}

// listenTo makes buses until one happens to listen to a certain node, and checks that it
// is brought everything.
func listenTo(t *testing.T, rdb redis.UniversalClient, node *redistest.Server, mode ...any) {
	direct, project := node.Client(t), uuid.New()
	channel := eventbus.ProjectChannel(project)
	channels := direct.PubSubChannels
	if len(mode) > 0 {
		channels = direct.PubSubShardChannels
	}
	var bus *eventbus.Bus
	var live *follower
	var sub eventbus.Subscription
	n := 0
	eventually(t, "a subscription at this node", func() bool {
		if bus != nil {
			require.NoError(t, bus.Close())
		}
		// Comparing with the logs so seldom, the feed alone brings events.
		bus = newBus(t, rdb, append(mode, eventbus.WithFreshness(time.Hour))...)
		sub, n = now(t, bus, channel), n+1
		live = follow(t, bus, sub)
		insist(t, bus, message(t, project, "0"))
		live.count(1)
		return slices.Contains(channels(deadline(t), "*").Val(), channel.String())
	})
	for _, text := range countTo(1, 50) {
		insist(t, bus, message(t, project, text))
	}
	live.count(50)
	live.exactly(countTo(0, 50), 0)
	require.NoError(t, bus.Health())
	resumed := follow(t, bus, sub)
	resumed.count(50)
	resumed.exactly(countTo(0, 50), 0)
	t.Logf("the %d. bus listens to %s", n, node.Addr)
}

// TestMasterTurnsIntoAReplica under a bus whose connections stay where they are: publishes
// fail with an error that says so, subscribers hear what is published to the new master,
// and when the roles change back, publishes succeed again.
func TestMasterTurnsIntoAReplica(t *testing.T) {
	t.Parallel()
	one, two := pair(t)
	bus, project := newBus(t, one.Client(t)), uuid.New()
	channel := eventbus.ProjectChannel(project)
	sub := now(t, bus, channel)
	live := follow(t, bus, sub)
	insist(t, bus, message(t, project, "0"))
	live.count(1)

	replicated(t, one, 1)
	replicaOf(t, two, nil)
	replicaOf(t, one, two)
	follows(t, one)
	ev := message(t, project, "2")
	err := bus.Publish(deadline(t), ev)
	require.ErrorIs(t, err, eventbus.ErrUnavailable)
	require.ErrorContains(t, err, "READONLY")
	var failed *eventbus.PublishError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, []eventbus.Channel{channel}, failed.Missing)
	insist(t, newBus(t, two.Client(t)), message(t, project, "1"))
	live.count(2)
	require.NoError(t, bus.Health())

	replicated(t, two, 1)
	replicaOf(t, one, nil)
	replicaOf(t, two, one)
	follows(t, two)
	insist(t, bus, ev)
	live.count(3)
	live.exactly(countTo(0, 3), 0)
	require.EqualValues(t, 3, one.Client(t).XLen(deadline(t), logKey(channel)).Val())
}

// TestAddressOfTheMasterMoves while the old master still answers on the connections
// that are open: a replica now, which refuses every publish. New connections go to the
// new master.
func TestAddressOfTheMasterMoves(t *testing.T) {
	one, two := pair(t)
	p := redistest.StartProxy(t, one.Addr)
	bus, project := newBus(t, p.Client(t)), uuid.New()
	live := follow(t, bus, now(t, bus, eventbus.ProjectChannel(project)))
	insist(t, bus, message(t, project, "0"))
	live.count(1)
	replicated(t, one, 1)
	p.SetTarget(two.Addr)
	replicaOf(t, two, nil)
	replicaOf(t, one, two)
	insist(t, bus, message(t, project, "1"))
	live.count(2)
	live.exactly(countTo(0, 2), 0)
}
