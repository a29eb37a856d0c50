package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// A program has a state: how often it was told of each event, by id. It stores it with the cursor
// behind it, or without one.
type program struct {
	mu      sync.Mutex
	state   map[string]int
	after   eventbus.Cursor
	cursors bool // the state has a cursor
}

func (p *program) load(context.Context) (any, eventbus.Cursor, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	after := p.after
	if !p.cursors {
		after = eventbus.Cursor{}
	}
	return maps.Clone(p.state), after, nil
}

// A folder is a client that folds snapshots and events into its state. Its connection can be cut.
type folder struct {
	mu     sync.Mutex
	state  map[string]int
	lastID string
	cancel context.CancelFunc
	ended  chan struct{}
}

// follow reads streams until the context ends, one connection after the other.
func (f *folder) follow(ctx context.Context, bus *eventbus.Bus, sub eventbus.Subscription) {
	defer close(f.ended)
	for ctx.Err() == nil {
		cut, cancel := context.WithCancel(ctx)
		f.mu.Lock()
		f.cancel, sub.LastEventID = cancel, f.lastID
		f.mu.Unlock()
		p := sseclient.New(sub.LastEventID)
		for frame, err := range framesOf(cut, bus, sub) {
			if err == nil {
				f.fold(p, frame)
			}
		}
		cancel()
	}
}

func (f *folder) fold(p *sseclient.Parser, frame []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range p.Parse(frame) {
		f.lastID = b.LastEventID
		if b.Event == nil {
			continue
		}
		var data struct {
			ID    string
			State map[string]int
		}
		_ = json.Unmarshal([]byte(b.Event.Data), &data)
		switch b.Event.Type {
		case "stream.snapshot":
			f.state = data.State
		case "agent.message":
			f.state[data.ID]++
		}
	}
}

// A saved Redis is what a replica that lags has, with the program's state at that time.
type savedRedis struct {
	logs   map[string][]redis.XMessage
	hashes map[string]map[string]string
	state  map[string]int
	after  eventbus.Cursor
}

// A healing world has a Redis that loses things, a program, and clients that heal.
type healing struct {
	t        *rapid.T
	rdb      *embedded.Redis
	bus      *eventbus.Bus
	channels []eventbus.Channel
	program  *program
	clients  []*folder
	saved    *savedRedis
	// again has, by channel and epoch, the least number that was given a second time. What stands from
	// there on is not trimmed: it shows a client that it had another event.
	again map[string]int64
}

// end gives the epoch of a log, and the number of its last event.
func (h *healing) end(c eventbus.Channel) (epoch, seq int64) {
	info, err := h.rdb.XInfoStream(context.Background(), logKey(c)).Result()
	if err == nil {
		_, _ = fmt.Sscanf(info.LastGeneratedID, "%d-%d", &epoch, &seq)
	}
	return epoch, seq
}

// trim keeps n events of a log, and those at positions that were given again: where the event at a
// cursor is gone, nothing shows that it was another one.
func (h *healing) trim(c eventbus.Channel, n int64) {
	epoch, seq := h.end(c)
	upto := seq - n
	if again, ok := h.again[fmt.Sprint(c, epoch)]; ok {
		upto = min(upto, again-1)
	}
	h.rdb.XTrimMinID(context.Background(), logKey(c), fmt.Sprintf("%d-%d", epoch, max(upto, 0)+1))
}

func (h *healing) publish() {
	var channels []eventbus.Channel
	for _, c := range h.channels {
		if rapid.Bool().Draw(h.t, c.String()) {
			channels = append(channels, c)
		}
	}
	if len(channels) == 0 {
		channels = h.channels[:1]
	}
	ev, err := eventbus.NewEvent(uuid.New(), eventbus.System(), eventbus.AgentMessagePayload{AgentInstanceID: uuid.New(), Message: "x"})
	require.NoError(h.t, err)
	p := h.program
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state[ev.ID] = 1
	_, err = h.bus.PublishWith(context.Background(), ev, eventbus.PublishOptions{Channels: channels, NoProject: true})
	require.NoError(h.t, err)
	p.after, err = h.bus.Cursor(context.Background(), h.channels...)
	require.NoError(h.t, err)
}

func (h *healing) save() {
	ctx := context.Background()
	s := &savedRedis{logs: make(map[string][]redis.XMessage), hashes: make(map[string]map[string]string)}
	for _, c := range h.channels {
		if epoch, _ := h.end(c); epoch == 0 {
			continue
		}
		s.logs[c.String()] = h.rdb.XRange(ctx, logKey(c), "-", "+").Val()
		s.hashes[c.String()] = h.rdb.HGetAll(ctx, "eventbus:producers:{"+c.String()+"}").Val()
	}
	s.state, s.after = maps.Clone(h.program.state), h.program.after
	h.saved = s
}

// failOver makes the replica the master. The program's state goes back with it. A state without a
// cursor can be newer than the cursor of its snapshot: what it has then, and the master lacks, shows
// in no log. So there is no failover for such a program.
func (h *healing) failOver() {
	if h.saved == nil || !h.program.cursors {
		return
	}
	h.program.mu.Lock()
	defer h.program.mu.Unlock()
	_, err := h.rdb.TxPipelined(context.Background(), func(tx redis.Pipeliner) error {
		ctx := context.Background()
		for _, c := range h.channels {
			hash := "eventbus:producers:{" + c.String() + "}"
			tx.Del(ctx, logKey(c), hash)
			fields := h.saved.hashes[c.String()]
			if len(fields) == 0 {
				continue
			}
			tx.HSet(ctx, hash, fields)
			first := fields["epoch"] + "-0"
			tx.XAdd(ctx, &redis.XAddArgs{Stream: logKey(c), ID: first, Values: []any{"event", ""}})
			tx.XDel(ctx, logKey(c), first)
			for _, e := range h.saved.logs[c.String()] {
				values := []any{"event", e.Values["event"]}
				if also, ok := e.Values["also"]; ok {
					values = append(values, "also", also)
				}
				tx.XAdd(ctx, &redis.XAddArgs{Stream: logKey(c), ID: e.ID, Values: values})
			}
		}
		return nil
	})
	require.NoError(h.t, err)
	for _, c := range h.channels {
		epoch, seq := h.end(c)
		key := fmt.Sprint(c, epoch)
		if again, ok := h.again[key]; !ok || again > seq+1 {
			h.again[key] = seq + 1
		}
	}
	h.program.state, h.program.after = maps.Clone(h.saved.state), h.saved.after
}

// settle waits until each client has the state of the program.
func (h *healing) settle() {
	want := h.program.state
	until := time.Now().Add(20 * time.Second)
	for i, f := range h.clients {
		for {
			f.mu.Lock()
			got := maps.Clone(f.state)
			f.mu.Unlock()
			if !h.program.cursors { // what the state has may come again
				for id := range got {
					got[id] = min(got[id], 1)
				}
			}
			if maps.Equal(got, want) {
				break
			}
			if time.Now().After(until) {
				h.t.Fatalf("client %d has %s, the program %s", i, differences(got, want), differences(want, got))
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func differences(a, b map[string]int) string {
	var out []string
	for id, n := range a {
		if b[id] != n {
			out = append(out, fmt.Sprintf("%s %d times", id, n))
		}
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// TestClientsHeal: events are published to one or several of three channels, clients are cut, logs
// are trimmed and lost, and a new master lacks the newest events. Whatever happened, in the end each
// client has the state of the program, folded from snapshots and events; and where the program
// stores its cursor with its state, it was told of each event once.
func TestClientsHeal(t *testing.T) {
	t.Parallel()
	rdb, err := embedded.New()
	require.NoError(t, err)
	defer rdb.Close()
	rapid.Check(t, func(rt *rapid.T) {
		require.NoError(rt, rdb.FlushAll(context.Background()).Err())
		bus := newBus(t, rdb, quiet(), eventbus.WithFreshness(100*time.Millisecond), eventbus.WithKeepalive(10*time.Millisecond))
		defer bus.Close()
		h := &healing{t: rt, rdb: rdb, bus: bus, again: map[string]int64{}, program: &program{state: map[string]int{}, cursors: rapid.Bool().Draw(rt, "cursors")}}
		for range 3 {
			h.channels = append(h.channels, run(t))
		}
		h.program.after, err = bus.Cursor(context.Background(), h.channels...)
		require.NoError(rt, err)
		ctx, cancel := context.WithCancel(context.Background())
		for i := range 3 {
			f := &folder{state: map[string]int{}, ended: make(chan struct{})}
			h.clients = append(h.clients, f)
			go f.follow(ctx, bus, eventbus.Subscription{Channels: h.channels, Snapshot: h.program.load, SnapshotKey: []string{"", "key", "key"}[i]})
		}
		defer func() {
			cancel()
			for _, f := range h.clients {
				<-f.ended
			}
		}()
		channel := func() eventbus.Channel { return rapid.SampledFrom(h.channels).Draw(rt, "channel") }
		rt.Repeat(map[string]func(*rapid.T){
			"publish": func(*rapid.T) { h.publish() },
			"more":    func(*rapid.T) { h.publish() },
			"cut": func(*rapid.T) {
				f := h.clients[rapid.IntRange(0, 2).Draw(rt, "client")]
				f.mu.Lock()
				defer f.mu.Unlock()
				if f.cancel != nil {
					f.cancel()
				}
			},
			"trim": func(*rapid.T) {
				h.trim(channel(), int64(rapid.IntRange(1, 3).Draw(rt, "keep")))
			},
			"lose":     func(*rapid.T) { rdb.Del(context.Background(), logKey(channel())) },
			"save":     func(*rapid.T) { h.save() },
			"failOver": func(*rapid.T) { h.failOver() },
			"settle":   func(*rapid.T) { h.settle() },
		})
		h.settle()
	})
}
