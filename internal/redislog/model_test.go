package redislog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/position"
	"pgregory.net/rapid"
)

// A world is a Redis, and what producers know of it.
type world struct {
	t         *rapid.T
	l         *Log
	client    *redis.Client
	names     []string
	producers []*testProducer
	known     []*Commit         // Idempotent events that other producers may publish again
	acked     map[string]string // positions that were answered, by id and log
	older     []*Call           // calls that are settled
	saved     *snapshot
}

type testProducer struct {
	name    string
	number  int64
	commits []*Commit // the commits of the call that is under way
	call    *Call
}

// A snapshot is what a replica that lags has.
type snapshot struct {
	logs    map[string][]redis.XMessage
	hashes  map[string]map[string]string
	markers map[string]string
	acked   map[string]string
}

func (w *world) begin(p *testProducer) {
	if p.call != nil {
		return
	}
	p.number++
	for range rapid.IntRange(1, 4).Draw(w.t, "events") {
		c := newCommit(w.t, rapid.Bool().Draw(w.t, "idempotent"))
		if len(w.known) > 0 && c.Idempotent && rapid.Bool().Draw(w.t, "known") {
			old := rapid.SampledFrom(w.known).Draw(w.t, "which")
			c.ID, c.Event = old.ID, old.Event
			if slices.ContainsFunc(p.commits, func(d *Commit) bool { return d.ID == c.ID }) {
				continue
			}
		}
		for _, name := range w.names {
			if len(c.Records) == 0 && name == w.names[len(w.names)-1] || rapid.Bool().Draw(w.t, name) {
				ends := name != w.names[0] && rapid.IntRange(0, 9).Draw(w.t, "ends") == 0
				c.Records = append(c.Records, Record{Channel: name, Final: ends, Fingerprint: position.Fingerprint(c.ID)})
			}
		}
		if c.Idempotent {
			w.known = append(w.known, &Commit{ID: c.ID, Event: c.Event})
		}
		p.commits = append(p.commits, c)
	}
	p.call = w.l.newCall(p.name, p.number, alone(p.commits...))
}

// attempt sends the call of a producer. With lost, the answer does not arrive.
func (w *world) attempt(p *testProducer, lost bool) {
	if p.call == nil {
		return
	}
	if lost {
		require.NoError(w.t, appendScript.runOnce(context.Background(), w.client, []scriptCall{p.call.scriptCall})[0].Err())
		return
	}
	require.Empty(w.t, w.l.Send(context.Background(), []*Call{p.call}))
	for _, c := range p.commits {
		also := "" // the logs that had the event come first
		for _, r := range c.Records {
			if r.Again {
				also = strings.TrimPrefix(also+" "+r.Channel+"@"+r.Pos.String(), " ")
			}
		}
		refused := slices.ContainsFunc(c.Records, func(r Record) bool { return errors.Is(r.Err, ErrEnded) })
		for _, r := range c.Records {
			if refused && !r.Again { // An event for a log that has ended is in none of its logs.
				require.ErrorIs(w.t, r.Err, ErrEnded)
				require.NotContains(w.t, slices.Collect(maps.Values(idsIn(w.client, r.Channel))), c.ID)
				require.True(w.t, slices.ContainsFunc(c.Records, func(r Record) bool { return !r.Again && w.ended(r.Channel) }))
				continue
			}
			require.NoError(w.t, r.Err)
			require.Equal(w.t, c.ID, idsIn(w.client, r.Channel)[r.Pos.String()], "the answer is true")
			w.acked[c.ID+" "+r.Channel] = r.Pos.String()
			entry := w.client.XRange(context.Background(), logKey(r.Channel), r.Pos.String(), r.Pos.String()).Val()[0]
			require.Equal(w.t, r.Final && !r.Again || r.Again && entry.Values["final"] != nil, entry.Values["final"] == "1")
			if !r.Again {
				got, _ := entry.Values["also"].(string)
				require.Equal(w.t, also, got)
				also = strings.TrimPrefix(also+" "+r.Channel+"@"+r.Pos.String(), " ")
			}
		}
	}
	w.older = append(w.older, p.call)
	p.call, p.commits = nil, nil
}

func (w *world) save() {
	ctx := context.Background()
	s := &snapshot{make(map[string][]redis.XMessage), make(map[string]map[string]string), make(map[string]string), maps.Clone(w.acked)}
	for _, name := range w.names {
		s.logs[name] = w.client.XRange(ctx, logKey(name), "-", "+").Val()
		s.hashes[name] = w.client.HGetAll(ctx, producersKey(name)).Val()
	}
	for _, key := range w.client.Keys(ctx, "eventbus:id:*").Val() {
		s.markers[key] = w.client.Get(ctx, key).Val()
	}
	w.saved = s
}

// failOver makes the replica the master.
func (w *world) failOver() {
	if w.saved == nil {
		return
	}
	ctx := context.Background()
	require.NoError(w.t, w.client.FlushDB(ctx).Err())
	for _, name := range w.names {
		if len(w.saved.hashes[name]) == 0 {
			continue
		}
		first := w.saved.hashes[name]["epoch"] + "-0"
		w.client.XAdd(ctx, &redis.XAddArgs{Stream: logKey(name), ID: first, Values: []any{"event", ""}})
		w.client.XDel(ctx, logKey(name), first)
		for _, e := range w.saved.logs[name] {
			values := []any{"event", e.Values["event"]}
			for _, field := range []string{"also", "final"} {
				if v, ok := e.Values[field]; ok {
					values = append(values, field, v)
				}
			}
			require.NoError(w.t, w.client.XAdd(ctx, &redis.XAddArgs{Stream: logKey(name), ID: e.ID, Values: values}).Err())
		}
		for field, value := range w.saved.hashes[name] {
			w.client.HSet(ctx, producersKey(name), field, value)
		}
	}
	for key, at := range w.saved.markers {
		w.client.Set(ctx, key, at, markerTTL)
	}
	w.acked = maps.Clone(w.saved.acked)
	w.older = nil // A call that comes late now may append an event that the replica lacks.
}

// ended reports whether the newest entry of a log says that the log ends with it.
func (w *world) ended(name string) bool {
	newest := w.client.XRevRangeN(context.Background(), logKey(name), "+", "-", 1).Val()
	return len(newest) > 0 && newest[0].Values["final"] == "1"
}

// check compares the logs with what is known of them.
func (w *world) check() {
	for _, name := range w.names {
		for i, e := range w.client.XRange(context.Background(), logKey(name), "-", "+").Val() {
			if e.Values["final"] != nil {
				require.EqualValues(w.t, w.client.XLen(context.Background(), logKey(name)).Val(), i+1, "nothing follows the end of %s", name)
			}
		}
		seen := make(map[string]bool)
		ids := idsIn(w.client, name)
		for at, id := range ids {
			require.False(w.t, seen[id], "%s is twice in %s, also at %s", id, name, at)
			seen[id] = true
		}
		for key, at := range w.acked {
			if id, in, _ := strings.Cut(key, " "); in == name {
				require.Equal(w.t, id, ids[at], "acknowledged in %s at %s", name, at)
			}
		}
	}
}

// TestProducersAgainstAModel: replies are lost, attempts are repeated, calls come late, logs end, and
// a new master lacks the last calls. Each event is in each of its logs once, or in none because one of
// them has ended; nothing follows an end, and each answer is true.
func TestProducersAgainstAModel(t *testing.T) {
	local, err := embedded.New()
	require.NoError(t, err)
	defer local.Close()
	rapid.Check(t, func(t *rapid.T) {
		require.NoError(t, local.FlushDB(context.Background()).Err())
		w := &world{t: t, l: newTestLog(local.Client), client: local.Client, acked: make(map[string]string), names: []string{"project:p", "agent:a", "user:u"}}
		for i := range 2 {
			w.producers = append(w.producers, &testProducer{name: fmt.Sprint("producer", i)})
		}
		producer := func() *testProducer { return rapid.SampledFrom(w.producers).Draw(t, "producer") }
		t.Repeat(map[string]func(*rapid.T){
			"begin":   func(*rapid.T) { w.begin(producer()) },
			"attempt": func(*rapid.T) { w.attempt(producer(), false) },
			"lost":    func(*rapid.T) { w.attempt(producer(), true) },
			"late": func(t *rapid.T) {
				if len(w.older) > 0 {
					call := rapid.SampledFrom(w.older).Draw(t, "call")
					appendScript.runOnce(context.Background(), w.client, []scriptCall{call.scriptCall})
				}
			},
			"another": func(*rapid.T) { // The worker goes on as another producer.
				if p := producer(); p.call == nil {
					p.name, p.number = uuid.NewString(), 0
				}
			},
			"save":     func(*rapid.T) { w.save() },
			"failOver": func(*rapid.T) { w.failOver() },
			"":         func(*rapid.T) { w.check() },
		})
	})
}
