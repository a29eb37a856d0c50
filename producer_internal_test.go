package eventbus

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redistest"
)

// newTestLog is a log side without a bus.
func newTestLog(client Client) *redisLog {
	return &redisLog{client: client, epochs: make(map[string]int64), retention: func(string) (int, time.Duration) { return 1000, time.Hour }}
}

// eachServer runs a test on miniredis and on a real redis-server.
func eachServer(t *testing.T, test func(t *testing.T, client *redis.Client)) {
	local, err := embedded.New()
	require.NoError(t, err)
	defer local.Close()
	t.Run("miniredis", func(t *testing.T) { test(t, local.Client) })
	t.Run("redis", func(t *testing.T) { test(t, redistest.Start(t).Client(t)) })
}

// newCommit is an event on its way into logs.
func newCommit(t require.TestingT, idempotent bool, names ...string) *commit {
	ev, err := NewEvent(benchProject, System(), benchPayload)
	require.NoError(t, err)
	c := &commit{id: ev.ID, event: ev.wire().AppendJSON(nil), idempotent: idempotent, done: make(chan struct{})}
	for _, name := range names {
		c.records = append(c.records, record{channel: name, mark: position.Fingerprint(c.id)})
	}
	return c
}

// ids are the events in a log, by position.
func idsIn(client *redis.Client, name string) map[string]string {
	ids := make(map[string]string)
	for _, e := range client.XRange(context.Background(), logKey(name), "-", "+").Val() {
		ids[e.ID] = string(eventID([]byte(e.Values["event"].(string))))
	}
	return ids
}

// TestCallsRunOnce: whatever is repeated gets the answer of the first time, and what comes late does
// nothing.
func TestCallsRunOnce(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const p, a = "project:p", "agent:a"
		commits := []*commit{newCommit(t, false, p), newCommit(t, false, p), newCommit(t, false, p, a), newCommit(t, true, a), newCommit(t, true, p, a)}
		events := make(map[string][]byte)
		for _, c := range commits {
			events[c.id] = c.event
		}
		call := l.newAppendCall("one", 7, slices.Clone(commits))
		require.Empty(t, l.send(ctx, []*appendCall{call}))
		var first [][]record
		for _, c := range commits {
			first = append(first, slices.Clone(c.records))
			for _, r := range c.records {
				require.NoError(t, r.err)
				require.Equal(t, c.id, idsIn(client, r.channel)[r.pos.String()])
			}
		}
		again := func(number int64, commits []*commit) []*commit {
			var fresh []*commit
			for _, c := range commits {
				f := &commit{id: c.id, event: events[c.id], idempotent: c.idempotent, done: make(chan struct{}), records: slices.Clone(c.records)}
				for i := range f.records {
					f.records[i].pos = position.Position{}
				}
				fresh = append(fresh, f)
			}
			require.Empty(t, l.send(ctx, []*appendCall{l.newAppendCall("one", number, slices.Clone(fresh))}))
			return fresh
		}
		for i, c := range again(7, commits) {
			require.Equal(t, first[i], c.records, "the same answer")
		}
		again(8, []*commit{newCommit(t, false, p), newCommit(t, false, a)})
		for _, c := range again(7, commits) { // late: nobody waits for it any more
			require.Error(t, c.records[0].err)
		}
		for i, c := range again(9, commits[3:]) { // another call, of events that left a marker
			for n, r := range c.records {
				require.True(t, r.again)
				require.Equal(t, first[3+i][n].pos, r.pos)
			}
		}
		require.Len(t, idsIn(client, p), 5)
		require.Len(t, idsIn(client, a), 4)
		note := p + "@" + first[2][0].pos.String()
		require.Equal(t, note, client.XRange(ctx, logKey(a), "-", "+").Val()[0].Values["also"])
	})
}

// TestAnEventThatFailsInOneLog is not in those behind it, and the rest of the call is. What failed is
// tried again, nothing else.
func TestAnEventThatFailsInOneLog(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const good, bad = "project:good", "project:bad"
		require.NoError(t, client.Set(ctx, logKey(bad), "no log", 0).Err())
		commits := []*commit{newCommit(t, false, good), newCommit(t, false, bad, good), newCommit(t, false, good, bad), newCommit(t, true, bad)}
		call := l.newAppendCall("one", 1, slices.Clone(commits))
		require.Empty(t, l.send(ctx, []*appendCall{call}))
		for i, want := range [][]bool{{true}, {false, false}, {true, false}, {false}} {
			for n, done := range want {
				r := commits[i].records[n]
				require.Equal(t, done, !r.pos.IsZero(), "%d %d", i, n)
				require.Equal(t, done, r.err == nil)
				if !done {
					require.True(t, r.sure)
					require.ErrorContains(t, r.err, "WRONGTYPE")
				}
			}
		}
		require.Len(t, idsIn(client, good), 2)
		require.NoError(t, client.Del(ctx, logKey(bad)).Err())
		for _, c := range commits { // nobody has looked at them yet
			c.done = make(chan struct{})
			for i := range c.records {
				c.records[i].err = nil
			}
		}
		call.commits = slices.Clone(commits)
		require.Empty(t, l.send(ctx, []*appendCall{call}))
		require.Len(t, idsIn(client, good), 3)
		require.Len(t, idsIn(client, bad), 3)
		for _, c := range commits {
			for _, r := range c.records {
				require.NoError(t, r.err)
				require.Equal(t, c.id, idsIn(client, r.channel)[r.pos.String()])
			}
		}
	})
}

// TestLogsBegin, with a hash beside them, and never with an epoch that was there before.
func TestLogsBegin(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const name = "project:p"
		read := func() *position.Page {
			page, err := l.read(ctx, readRequest{channel: name, count: 10})
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(page.Last.Epoch), client.HGet(ctx, producersKey(name), "epoch").Val())
			for _, key := range []string{logKey(name), producersKey(name)} {
				require.InDelta(t, time.Hour, client.PTTL(ctx, key).Val(), float64(time.Minute))
			}
			return page
		}
		appendOne := func() position.Position {
			c := newCommit(t, false, name)
			require.Empty(t, l.send(ctx, []*appendCall{l.newAppendCall(uuid.NewString(), 1, []*commit{c})}))
			require.NoError(t, c.records[0].err)
			return c.records[0].pos
		}
		page := read()
		require.Zero(t, page.Last.Seq)
		require.Equal(t, page, read(), "and is there the next time")
		require.Equal(t, position.Position{Epoch: page.Last.Epoch, Seq: 1}, position.Position{Epoch: appendOne().Epoch, Seq: 1})
		for name, lose := range map[string]func(){
			"all":     func() { client.FlushDB(ctx) },
			"the log": func() { client.Del(ctx, logKey(name)) },
		} {
			before := read().Last.Epoch
			l.saw("project:p", position.Position{Epoch: before + 1_000_000}) // Redis' clock steps back
			lose()
			pos := appendOne()
			require.EqualValues(t, 1, pos.Seq, name)
			require.Greater(t, pos.Epoch, before+1_000_000, name)
			lose()
			require.Greater(t, read().Last.Epoch, pos.Epoch)
		}
		far := fmt.Sprint(read().Last.Epoch + 2_000_000)
		require.NoError(t, client.HSet(ctx, producersKey(name), "epoch", far).Err())
		require.NoError(t, client.Del(ctx, logKey(name)).Err())
		page, err := newTestLog(client).read(ctx, readRequest{channel: name}) // which has not seen the log
		require.NoError(t, err)
		require.Greater(t, fmt.Sprint(page.Last.Epoch), far)

		epoch := read().Last.Epoch
		require.NoError(t, client.Del(ctx, producersKey(name)).Err())
		require.Equal(t, position.Position{Epoch: epoch, Seq: 1}.String(), position.Position{Epoch: appendOne().Epoch, Seq: 1}.String(), "a hash that is lost alone is made again")
		require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: logKey(name), ID: fmt.Sprint(epoch+5, "-7"), Values: []any{"a", "b"}}).Err())
		require.Equal(t, position.Position{Epoch: epoch + 5, Seq: 8}.String(), appendOne().String(), "somebody else has written to the log")
	})
}

// TestLivesOfLogs: the longest age wins, for ever is the longest, and reading keeps a log alive.
func TestLivesOfLogs(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l, age := context.Background(), newTestLog(client), time.Duration(0)
		l.retention = func(string) (int, time.Duration) { return 0, age }
		const name = "project:p"
		left := func() time.Duration { return client.PTTL(ctx, logKey(name)).Val().Round(time.Minute) }
		publish := func(a time.Duration) {
			age = a
			require.Empty(t, l.send(ctx, []*appendCall{l.newAppendCall(uuid.NewString(), 1, []*commit{newCommit(t, false, name)})}))
		}
		read := func(a time.Duration) {
			age = a
			_, err := l.read(ctx, readRequest{channel: name})
			require.NoError(t, err)
		}
		read(10 * time.Minute)
		require.Equal(t, 10*time.Minute, left())
		read(24 * time.Hour)
		require.Equal(t, time.Hour, left(), "without an event")
		publish(3 * time.Hour)
		require.Equal(t, 3*time.Hour, left())
		publish(time.Hour)
		read(3*time.Hour + 30*time.Minute)
		require.Equal(t, 3*time.Hour, left(), "more than three quarters are left")
		read(7 * time.Hour)
		require.Equal(t, 7*time.Hour, left())
		require.Equal(t, 7*time.Hour, client.PTTL(ctx, producersKey(name)).Val().Round(time.Minute))
		publish(0)
		publish(time.Hour)
		read(time.Hour)
		require.Equal(t, time.Duration(-1), client.PTTL(ctx, logKey(name)).Val())
		require.Equal(t, time.Duration(-1), client.PTTL(ctx, producersKey(name)).Val())
	})
}

// TestProducersAreSweptUp when they were not heard of for an hour.
func TestProducersAreSweptUp(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const name = "project:p"
		key := producersKey(name)
		appendOne := func() {
			require.Empty(t, l.send(ctx, []*appendCall{l.newAppendCall(uuid.NewString(), 1, []*commit{newCommit(t, false, name)})}))
		}
		appendOne()
		old := time.Now().Add(-2 * time.Hour).UnixMilli()
		for i := range 20 {
			require.NoError(t, client.HSet(ctx, key, fmt.Sprint("old", i), fmt.Sprintf("1 %d +5-1", old)).Err())
		}
		for range 1000 {
			appendOne()
		}
		fields := client.HGetAll(ctx, key).Val()
		require.Len(t, fields, 1001+2)
		require.Contains(t, fields, "epoch")
		require.Contains(t, fields, "last")
	})
}

// A world is a Redis, and what producers believe of it.
type world struct {
	t         *rapid.T
	l         *redisLog
	client    *redis.Client
	names     []string
	producers []*testProducer
	known     []*commit         // Idempotent events, to be published by others again
	acked     map[string]string // id and log of what was answered: the position
	older     []*appendCall     // calls of before
	saved     *snapshot
}

type testProducer struct {
	name    string
	number  int64
	commits []*commit // of the call that is under way
	call    *appendCall
}

// A snapshot is what a replica has that lags.
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
		if len(w.known) > 0 && c.idempotent && rapid.Bool().Draw(w.t, "known") {
			old := rapid.SampledFrom(w.known).Draw(w.t, "which")
			c.id, c.event = old.id, old.event
			if slices.ContainsFunc(p.commits, func(d *commit) bool { return d.id == c.id }) {
				continue
			}
		}
		for _, name := range w.names {
			if len(c.records) == 0 && name == w.names[len(w.names)-1] || rapid.Bool().Draw(w.t, name) {
				c.records = append(c.records, record{channel: name, mark: position.Fingerprint(c.id)})
			}
		}
		if c.idempotent {
			w.known = append(w.known, &commit{id: c.id, event: c.event})
		}
		p.commits = append(p.commits, c)
	}
	p.call = w.l.newAppendCall(p.name, p.number, slices.Clone(p.commits))
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
	require.Empty(w.t, w.l.send(context.Background(), []*appendCall{p.call}))
	for _, c := range p.commits {
		also := ""
		for _, r := range c.records {
			require.NoError(w.t, r.err)
			require.Equal(w.t, c.id, idsIn(w.client, r.channel)[r.pos.String()], "the answer is true")
			w.acked[c.id+" "+r.channel] = r.pos.String()
			entry := w.client.XRange(context.Background(), logKey(r.channel), r.pos.String(), r.pos.String()).Val()[0]
			if !r.again {
				got, _ := entry.Values["also"].(string)
				require.Equal(w.t, also, got)
			}
			also = strings.TrimPrefix(also+" "+r.channel+"@"+r.pos.String(), " ")
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
			require.NoError(w.t, w.client.XAdd(ctx, &redis.XAddArgs{Stream: logKey(name), ID: e.ID, Values: e.Values}).Err())
		}
		for field, value := range w.saved.hashes[name] {
			w.client.HSet(ctx, producersKey(name), field, value)
		}
	}
	for key, at := range w.saved.markers {
		w.client.Set(ctx, key, at, markerTTL)
	}
	w.acked = maps.Clone(w.saved.acked)
	w.older = nil // what comes late now, may be an event that the replica lacks
}

// check holds the logs against what is known of them.
func (w *world) check() {
	for _, name := range w.names {
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

// TestProducersAgainstAModel: replies are lost, attempts repeated, some come late, a master takes
// over that lacks the last calls, and fields are swept up. Each event is in each of its logs once,
// and each answer is true.
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
			"another": func(*rapid.T) { // the worker goes on as another producer
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

// An answering client gives what it is told to as the answers to calls of append.lua.
type answering struct {
	Client
	answers []any // replies, or errors
}

func (c *answering) Process(_ context.Context, cmd redis.Cmder) error {
	answer := c.answers[0]
	c.answers = c.answers[1:]
	if err, ok := answer.(error); ok {
		return err
	}
	cmd.(onceCmd).SetVal(answer)
	return nil
}

// newQueue is a queue whose calls get these answers.
func newQueue(answers ...any) *commitQueue {
	o := defaults()
	o.publishTimeout = time.Minute
	return &commitQueue{bus: &Bus{options: o, log: newTestLog(&answering{answers: answers})}}
}

// TestOneChannelHoldsUpNobody: where Redis has settled a part of a call, the rest goes on by itself.
func TestOneChannelHoldsUpNobody(t *testing.T) {
	q := newQueue([]any{"+5-1", "!OOM"}, []any{"!OOM"}, []any{"+6-1"})
	commits := []*commit{newCommit(t, false, "project:p"), newCommit(t, false, "agent:a")}
	for _, c := range commits {
		c.callers.Add(1)
	}
	left := q.settle(t.Context(), q.bus.log.newAppendCalls("one", 1, slices.Clone(commits)), true)
	require.Len(t, left, 1)
	require.True(t, isClosed(commits[0].done))
	require.False(t, isClosed(commits[1].done))
	require.Nil(t, q.settle(t.Context(), left, false))
	require.True(t, isClosed(commits[1].done))
	require.NoError(t, commits[1].records[0].err)
	require.Equal(t, "6-1", commits[1].records[0].pos.String())
	require.EqualValues(t, 1, q.bus.stats.retries.Load())
}

// TestCallsThatNobodyWaitsFor are given up where they certainly have not run, and go on where they may
// have.
func TestCallsThatNobodyWaitsFor(t *testing.T) {
	q := newQueue([]any{"!OOM"})
	c := newCommit(t, false, "project:p")
	require.Nil(t, q.settle(t.Context(), q.bus.log.newAppendCalls("one", 1, []*commit{c}), true))
	require.True(t, isClosed(c.done))
	require.True(t, c.records[0].sure)
	require.ErrorIs(t, c.records[0].err, ErrUnavailable)

	q = newQueue(io.EOF, []any{"!OOM"}, []any{"=5-1"})
	c = newCommit(t, false, "project:p")
	require.Nil(t, q.settle(t.Context(), q.bus.log.newAppendCalls("one", 1, []*commit{c}), true))
	require.NoError(t, c.records[0].err)
	require.True(t, c.records[0].again)
}

// TestWhatWasAnsweredForGoodIsNotTriedAgain, though another part of its call is.
func TestWhatWasAnsweredForGoodIsNotTriedAgain(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const good, bad = "project:good", "project:bad"
		require.NoError(t, client.Set(ctx, logKey(bad), "no log", 0).Err())
		commits := []*commit{newCommit(t, false, bad), newCommit(t, false, good)}
		call := l.newAppendCall("one", 1, slices.Clone(commits))
		cmd := redis.NewCmd(ctx)
		cmd.SetVal([]any{"!WRONGTYPE", "!OOM"})
		left := l.settle(call, cmd)
		require.True(t, commits[0].records[0].sure)
		require.NotNil(t, left)
		require.NoError(t, client.Del(ctx, logKey(bad)).Err())
		require.Empty(t, l.send(ctx, []*appendCall{left}))
		require.NoError(t, commits[1].records[0].err)
		require.Empty(t, idsIn(client, bad))
		require.Error(t, commits[0].records[0].err)
	})
}
