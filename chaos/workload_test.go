package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/syndarix/eventbus"
)

const (
	processes  = 3
	projects   = 3
	agents     = 3 // of a project, and as many users
	publishers = 5
	writers    = 2
)

// A world is a deployment with everything that goes on in it.
type world struct {
	t         testing.TB
	d         *deployment
	seed      uint64
	ledger    *ledger
	processes []*process
	projects  []project

	ctx       context.Context
	calm      atomic.Bool // the faults are over: subscribers stay
	readers   sync.WaitGroup
	restarts  sync.WaitGroup
	published sync.WaitGroup
}

// A project is some channels that are published to together.
type project struct {
	id     uuid.UUID
	others []eventbus.Channel // its agents and users
}

func (p project) channel() eventbus.Channel { return eventbus.ProjectChannel(p.id) }

func (p project) channels() []eventbus.Channel {
	return append([]eventbus.Channel{p.channel()}, p.others...)
}

// A process is a bus and its HTTP server. The bus is replaced by a restart.
type process struct {
	client eventbus.Client
	bus    atomic.Pointer[eventbus.Bus]
	server *http.Server
	line   *line // of browsers, to the server
}

func (w *world) random(n uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, n)) }

func (w *world) newBus(client eventbus.Client) (*eventbus.Bus, error) {
	return eventbus.New(client, append([]eventbus.Option{
		eventbus.WithFreshness(time.Second),
		eventbus.WithRetention(eventbus.Retention{}), // what is dropped by design is no subject here
		eventbus.WithLogger(slog.New(slog.DiscardHandler)),
	}, w.d.options...)...)
}

func newWorld(ctx context.Context, t testing.TB, d *deployment, seed uint64) *world {
	t.Helper()
	w := &world{t: t, d: d, seed: seed, ledger: newLedger(), ctx: ctx}
	for i := range processes {
		p := &process{client: d.client(i)}
		bus, err := w.newBus(p.client)
		if err != nil {
			t.Fatal(err)
		}
		p.bus.Store(bus)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.line = newLine(t, l.Addr().String(), i%2 == 0)
		p.server = &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			p.bus.Load().Handler(authorize, eventbus.WithKeepalive(500*time.Millisecond), eventbus.WithWriteTimeout(2*time.Second)).ServeHTTP(rw, r)
		}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		go func() { _ = p.server.Serve(l) }()
		w.processes = append(w.processes, p)
	}
	for range projects {
		p := project{id: uuid.New()}
		for range agents {
			p.others = append(p.others, eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New()))
		}
		w.projects = append(w.projects, p)
	}
	return w
}

// close ends what newWorld began, subscribers excepted.
func (w *world) close() {
	for _, p := range w.processes {
		_ = p.bus.Load().Close()
		_ = p.server.Close()
	}
}

func (w *world) browserLines() (lines []*line) {
	for _, p := range w.processes {
		lines = append(lines, p.line)
	}
	return lines
}

func (w *world) any(r *rand.Rand) *process { return w.processes[r.IntN(len(w.processes))] }

// authorize lets everybody read what they ask for.
func authorize(r *http.Request) (eventbus.Subscription, error) {
	sub := eventbus.Subscription{Oldest: true}
	for _, name := range r.URL.Query()["channel"] {
		c, err := eventbus.ParseChannel(name)
		if err != nil {
			return sub, err
		}
		sub.Channels = append(sub.Channels, c)
	}
	return sub, nil
}

// restart replaces the bus as a rolling deploy does.
func (p *process) restart(w *world, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = p.bus.Load().Shutdown(ctx) // closes it at any rate
	for w.ctx.Err() == nil {
		bus, err := w.newBus(p.client)
		if err == nil {
			p.bus.Store(bus)
			return
		}
	}
}

// publish publishes until the run is over.
func (w *world) publish(n uint64, until <-chan struct{}) {
	r := w.random(n)
	for i := 0; ; i++ {
		p := w.projects[r.IntN(len(w.projects))]
		var others []eventbus.Channel
		for _, c := range p.others {
			if r.IntN(4) == 0 {
				others = append(others, c)
			}
		}
		w.insist(r, p, others, fmt.Sprintf("%d of %d", i, n), r.IntN(2) == 0)
		pause := time.Duration(r.IntN(40)) * time.Millisecond
		if r.IntN(50) == 0 {
			pause *= 10
		}
		select {
		case <-until:
			return
		case <-time.After(pause):
		}
	}
}

// write writes with one Writer after the other until the run is over. What a Writer gives back is not
// written again: it may be in its logs.
func (w *world) write(n uint64, until <-chan struct{}) {
	r := w.random(n)
	for over := false; !over; {
		p := w.projects[r.IntN(len(w.projects))]
		others := p.others[:r.IntN(3)]
		channels := append([]string{p.channel().String()}, names(others)...)
		writer := w.any(r).bus.Load().NewWriter(eventbus.WriterOptions{Channels: others, Buffer: 1 + r.IntN(100)})
		var ids []string
		var err error
		for range 1 + r.IntN(200) {
			agent := uuid.New()
			ev, bad := eventbus.NewEvent(p.id, eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: "written"})
			if bad != nil {
				w.t.Error(bad)
				return
			}
			w.ledger.publish(ev.ID, channels)
			if err = writer.Write(w.ctx, ev); err != nil {
				break // also the end of the bus, or of the run
			}
			ids = append(ids, ev.ID)
			if r.IntN(3) == 0 {
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			}
		}
		ctx, cancel := context.WithTimeout(w.ctx, time.Duration(r.IntN(60))*time.Second)
		err = writer.Close(ctx)
		cancel()
		known := make(map[string]bool)
		for _, id := range ids {
			known[id] = true
		}
		if given, ok := errors.AsType[*eventbus.WriteError](err); ok {
			for i, ev := range given.Events {
				if !known[ev.ID] || i > 0 && slices.Index(ids, ev.ID) < slices.Index(ids, given.Events[i-1].ID) {
					w.t.Errorf("a WriteError has %s, which was not written then", ev.ID)
				}
				delete(known, ev.ID)
			}
		} else if err != nil {
			w.t.Error(err)
		}
		w.ledger.write(ids, known)
		select {
		case <-until:
			over = true
		case <-time.After(time.Duration(r.IntN(100)) * time.Millisecond):
		}
	}
}

// insist publishes an event until it is accepted, and gives its id: through whichever bus, with
// Idempotent; or without, through one, and gives up ("") when that bus is closed.
func (w *world) insist(r *rand.Rand, p project, others []eventbus.Channel, text string, anywhere bool) string {
	agent := uuid.New()
	ev, err := eventbus.NewEvent(p.id, eventbus.Agent(agent), eventbus.AgentMessagePayload{AgentInstanceID: agent, Message: text})
	if err != nil {
		w.t.Error(err)
		return ""
	}
	w.ledger.publish(ev.ID, append([]string{p.channel().String()}, names(others)...))
	opts, bus := eventbus.PublishOptions{Channels: others, Idempotent: anywhere}, w.any(r).bus.Load()
	for w.ctx.Err() == nil {
		if anywhere {
			bus = w.any(r).bus.Load()
		}
		ctx, cancel := context.WithTimeout(w.ctx, time.Duration(100+r.IntN(3000))*time.Millisecond)
		_, err := bus.PublishWith(ctx, ev, opts)
		cancel()
		if err == nil {
			w.ledger.ack(ev.ID)
			return ev.ID
		}
		var invalid *eventbus.ValidationError
		if errors.As(err, &invalid) {
			w.t.Error(err)
			return ""
		}
		if errors.Is(err, eventbus.ErrClosed) && !anywhere {
			return ""
		}
		w.ledger.retry()
		time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
	}
	return ""
}

// logs reads what every log has in the end.
func (w *world) logs() map[string][]entry {
	w.t.Helper()
	logs := make(map[string][]entry)
	for _, p := range w.projects {
		for _, c := range p.channels() {
			var messages []redis.XMessage
			eventually(w.t, "the log of "+c.String(), func() (ok bool) {
				var err error
				messages, err = w.d.direct.XRange(w.ctx, "eventbus:log:{"+c.String()+"}", "-", "+").Result()
				return err == nil
			})
			entries := []entry{}
			for _, m := range messages {
				var ev eventbus.Event
				text, _ := m.Values["event"].(string)
				if err := ev.UnmarshalJSON([]byte(text)); err != nil {
					w.t.Fatal(err)
				}
				entries = append(entries, entry{m.ID, ev.ID})
			}
			logs[c.String()] = entries
		}
	}
	return logs
}

// state is what to look at when something does not come about.
func (w *world) state() string {
	var b strings.Builder
	for i, p := range w.processes {
		bus := p.bus.Load()
		fmt.Fprintf(&b, "bus %d: health %v, %+v\n", i, bus.Health(), bus.Stats())
	}
	for _, s := range w.d.servers {
		info := s.rdb.Info(w.ctx, "replication").Val()
		fmt.Fprintf(&b, "%s:\n", s.Addr)
		for line := range strings.Lines(info) {
			if strings.HasPrefix(line, "role") || strings.HasPrefix(line, "master_") || strings.HasPrefix(line, "slave") {
				fmt.Fprintf(&b, "  %s", line)
			}
		}
		for _, p := range w.projects {
			fmt.Fprintf(&b, "  %s: %d\n", p.channel(), s.rdb.XLen(w.ctx, "eventbus:log:{"+p.channel().String()+"}").Val())
		}
	}
	return b.String()
}

func names(channels []eventbus.Channel) (out []string) {
	for _, c := range channels {
		out = append(out, c.String())
	}
	return out
}
