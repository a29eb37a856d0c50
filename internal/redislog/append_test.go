package redislog

import (
	"context"
	"fmt"
	"maps"
	"regexp"
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
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sample"
)

// newTestLog makes a Log without a bus.
func newTestLog(client Client) *Log {
	return &Log{client: client, epochs: make(map[string]int64), retention: func(string) (int, time.Duration) { return 1000, time.Hour }}
}

// eachServer runs a test on miniredis and on a real redis-server.
func eachServer(t *testing.T, test func(t *testing.T, client *redis.Client)) {
	local, err := embedded.New()
	require.NoError(t, err)
	defer local.Close()
	t.Run("miniredis", func(t *testing.T) { test(t, local.Client) })
	t.Run("redis", func(t *testing.T) { test(t, redistest.Start(t).Client(t)) })
}

// newCommit makes the commit of an event into some logs.
func newCommit(t require.TestingT, idempotent bool, names ...string) *Commit {
	ev := sample.Event()
	c := &Commit{ID: ev.ID, Event: ev.AppendJSON(nil), Idempotent: idempotent, Done: make(chan struct{})}
	for _, name := range names {
		c.Records = append(c.Records, Record{Channel: name, Fingerprint: position.Fingerprint(c.ID)})
	}
	return c
}

// idsIn gives the ids of the events in a log, by position.
func idsIn(client *redis.Client, name string) map[string]string {
	ids := make(map[string]string)
	for _, e := range client.XRange(context.Background(), logKey(name), "-", "+").Val() {
		ids[e.ID] = string(eventID([]byte(e.Values["event"].(string))))
	}
	return ids
}

// TestCallsRunOnce: a repeated call gets the answer of the first attempt, and a call that comes
// late does nothing.
func TestCallsRunOnce(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const p, a = "project:p", "agent:a"
		commits := []*Commit{newCommit(t, false, p), newCommit(t, false, p), newCommit(t, false, p, a), newCommit(t, true, a), newCommit(t, true, p, a)}
		events := make(map[string][]byte)
		for _, c := range commits {
			events[c.ID] = c.Event
		}
		call := l.newCall("one", 7, slices.Clone(commits))
		require.Empty(t, l.Send(ctx, []*Call{call}))
		var first [][]Record
		for _, c := range commits {
			first = append(first, slices.Clone(c.Records))
			for _, r := range c.Records {
				require.NoError(t, r.Err)
				require.Equal(t, c.ID, idsIn(client, r.Channel)[r.Pos.String()])
			}
		}
		again := func(number int64, commits []*Commit) []*Commit {
			var fresh []*Commit
			for _, c := range commits {
				f := &Commit{ID: c.ID, Event: events[c.ID], Idempotent: c.Idempotent, Done: make(chan struct{}), Records: slices.Clone(c.Records)}
				for i := range f.Records {
					f.Records[i].Pos = position.Position{}
				}
				fresh = append(fresh, f)
			}
			require.Empty(t, l.Send(ctx, []*Call{l.newCall("one", number, slices.Clone(fresh))}))
			return fresh
		}
		for i, c := range again(7, commits) {
			require.Equal(t, first[i], c.Records, "the same answer")
		}
		again(8, []*Commit{newCommit(t, false, p), newCommit(t, false, a)})
		for _, c := range again(7, commits) { // This call comes late: a newer one has run.
			require.Error(t, c.Records[0].Err)
		}
		for i, c := range again(9, commits[3:]) { // These are Idempotent events in another call.
			for n, r := range c.Records {
				require.True(t, r.Again)
				require.Equal(t, first[3+i][n].Pos, r.Pos)
			}
		}
		require.Len(t, idsIn(client, p), 5)
		require.Len(t, idsIn(client, a), 4)
		place := p + "@" + first[2][0].Pos.String()
		require.Equal(t, place, client.XRange(ctx, logKey(a), "-", "+").Val()[0].Values["also"])
	})
}

// TestAnEventThatFailsInOneLog: it is not in the logs behind that one, and the rest of the call is
// in its logs. Only what failed is tried again.
func TestAnEventThatFailsInOneLog(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const good, bad = "project:good", "project:bad"
		require.NoError(t, client.Set(ctx, logKey(bad), "no log", 0).Err())
		commits := []*Commit{newCommit(t, false, good), newCommit(t, false, bad, good), newCommit(t, false, good, bad), newCommit(t, true, bad)}
		call := l.newCall("one", 1, slices.Clone(commits))
		require.Empty(t, l.Send(ctx, []*Call{call}))
		for i, want := range [][]bool{{true}, {false, false}, {true, false}, {false}} {
			for n, done := range want {
				r := commits[i].Records[n]
				require.Equal(t, done, !r.Pos.IsZero(), "%d %d", i, n)
				require.Equal(t, done, r.Err == nil)
				if !done {
					require.True(t, r.Sure)
					require.ErrorContains(t, r.Err, "WRONGTYPE")
				}
			}
		}
		require.Len(t, idsIn(client, good), 2)
		require.NoError(t, client.Del(ctx, logKey(bad)).Err())
		for _, c := range commits { // The commits become as they were before the attempt.
			c.Done = make(chan struct{})
			for i := range c.Records {
				c.Records[i].Err = nil
			}
		}
		call.Commits = slices.Clone(commits)
		require.Empty(t, l.Send(ctx, []*Call{call}))
		require.Len(t, idsIn(client, good), 3)
		require.Len(t, idsIn(client, bad), 3)
		for _, c := range commits {
			for _, r := range c.Records {
				require.NoError(t, r.Err)
				require.Equal(t, c.ID, idsIn(client, r.Channel)[r.Pos.String()])
			}
		}
	})
}

// TestLogsBegin: a log begins with a hash beside it, and never with an epoch that was there before.
func TestLogsBegin(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const name = "project:p"
		read := func() *position.Page {
			page, err := l.Read(ctx, Request{Channel: name, Count: 10})
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(page.Last.Epoch), client.HGet(ctx, producersKey(name), "epoch").Val())
			for _, key := range []string{logKey(name), producersKey(name)} {
				require.InDelta(t, time.Hour, client.PTTL(ctx, key).Val(), float64(time.Minute))
			}
			return page
		}
		appendOne := func() position.Position {
			c := newCommit(t, false, name)
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, []*Commit{c})}))
			require.NoError(t, c.Records[0].Err)
			return c.Records[0].Pos
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
			// For this process, the clock of Redis steps back.
			l.saw("project:p", position.Position{Epoch: before + 1_000_000})
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
		// Another Log has not seen the epoch.
		page, err := newTestLog(client).Read(ctx, Request{Channel: name})
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
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, []*Commit{newCommit(t, false, name)})}))
		}
		read := func(a time.Duration) {
			age = a
			_, err := l.Read(ctx, Request{Channel: name})
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

// TestProducersAreSweptUp: a hash loses the producers that were not heard of for an hour.
func TestProducersAreSweptUp(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const name = "project:p"
		key := producersKey(name)
		appendOne := func() {
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, []*Commit{newCommit(t, false, name)})}))
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
				c.Records = append(c.Records, Record{Channel: name, Fingerprint: position.Fingerprint(c.ID)})
			}
		}
		if c.Idempotent {
			w.known = append(w.known, &Commit{ID: c.ID, Event: c.Event})
		}
		p.commits = append(p.commits, c)
	}
	p.call = w.l.newCall(p.name, p.number, slices.Clone(p.commits))
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
		for _, r := range c.Records {
			require.NoError(w.t, r.Err)
			require.Equal(w.t, c.ID, idsIn(w.client, r.Channel)[r.Pos.String()], "the answer is true")
			w.acked[c.ID+" "+r.Channel] = r.Pos.String()
			entry := w.client.XRange(context.Background(), logKey(r.Channel), r.Pos.String(), r.Pos.String()).Val()[0]
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
	w.older = nil // A call that comes late now may append an event that the replica lacks.
}

// check compares the logs with what is known of them.
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

// TestProducersAgainstAModel: replies are lost, attempts are repeated, calls come late, and a new
// master lacks the last calls. Each event is in each of its logs once, and each answer is true.
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

// TestWhatWasAnsweredForGoodIsNotTriedAgain: another part of its call is tried again.
func TestWhatWasAnsweredForGoodIsNotTriedAgain(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const good, bad = "project:good", "project:bad"
		require.NoError(t, client.Set(ctx, logKey(bad), "no log", 0).Err())
		commits := []*Commit{newCommit(t, false, bad), newCommit(t, false, good)}
		call := l.newCall("one", 1, slices.Clone(commits))
		cmd := redis.NewCmd(ctx)
		cmd.SetVal([]any{"!WRONGTYPE", "!OOM"})
		left := l.settle(call, cmd)
		require.True(t, commits[0].Records[0].Sure)
		require.NotNil(t, left)
		require.NoError(t, client.Del(ctx, logKey(bad)).Err())
		require.Empty(t, l.Send(ctx, []*Call{left}))
		require.NoError(t, commits[1].Records[0].Err)
		require.Empty(t, idsIn(client, bad))
		require.Error(t, commits[0].Records[0].Err)
	})
}

// FuzzParseAppended: whatever Redis answers to an append becomes a position, or an error that says
// whether it is certain that the log does not have the event.
func FuzzParseAppended(f *testing.F) {
	for _, reply := range []string{"", "+", "=", "!", "~", "+1-1", "=281474976710655-9007199254740991", "+281474976710656-1", "+1-1\n", "!OOM", "~READONLY x", "1-1", "+1--1", "-", "=1-1 project:x@1-1", "=1-1  "} {
		f.Add(reply, "id", uint8(0))
		f.Add(reply, "", uint8(1))
		f.Add(reply, "", uint8(6))
	}
	f.Fuzz(func(t *testing.T, reply, id string, odd uint8) {
		records := []*Record{{Fingerprint: position.Fingerprint(id)}, {Fingerprint: position.Fingerprint(id + "2")}}
		c := logCall{records: records}
		var any any = reply
		if odd%2 == 1 {
			any = []byte(reply)
		}
		c.settle(any, false)
		lines := strings.Split(reply, "\n")
		for n, r := range records {
			if odd%2 == 1 || len(lines) == 1 && !strings.HasPrefix(reply, "+") || len(lines) > 2 {
				require.Error(t, r.Err)
				require.False(t, r.Sure)
				continue
			}
			line := lines[n%len(lines)]
			if r.Err == nil {
				require.Contains(t, "+=", line[:1])
				require.Equal(t, line[:1] == "=", r.Again)
				require.Equal(t, r.Fingerprint, r.Pos.Fingerprint)
				require.Positive(t, r.Pos.Epoch)
				continue
			}
			require.Equal(t, line != "" && line[0] == '!', r.Sure, "only a refusal is certain")
		}
		if len(lines) == 1 && records[0].Err == nil {
			require.Equal(t, records[0].Pos.Seq+1, records[1].Pos.Seq, "they follow one another")
		}
	})
}

// BenchmarkAppend appends events to one log in calls of 1 and 128, on a real Redis.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 128} {
		b.Run(fmt.Sprint("events=", n), func(b *testing.B) {
			rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr})
			defer rdb.Close()
			l := &Log{client: rdb, epochs: make(map[string]int64), retention: func(string) (int, time.Duration) { return 10_000, time.Hour }}
			commits := make([]*Commit, n)
			b.ReportAllocs()
			for number := int64(1); b.Loop(); number++ {
				for i := range commits {
					ev := sample.Event()
					commits[i] = &Commit{ID: ev.ID, Event: ev.AppendJSON(nil), Done: make(chan struct{}),
						Records: []Record{{Channel: "project:p"}}}
				}
				if left := l.Send(context.Background(), []*Call{l.newCall("bench", number, commits)}); left != nil {
					b.Fatal("not settled")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/event")
		})
	}
}

// BenchmarkRead reads pages of 256 events from a real Redis.
func BenchmarkRead(b *testing.B) {
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Start(b).Addr})
	defer rdb.Close()
	ctx, name := context.Background(), "project:p"
	for i := range 2 * 256 {
		ev := sample.Event()
		rdb.XAdd(ctx, &redis.XAddArgs{Stream: logKey(name), ID: fmt.Sprintf("1700000000000-%d", i+1), Values: []any{"event", ev.AppendJSON(nil)}})
	}
	l := &Log{client: rdb, epochs: make(map[string]int64), retention: func(string) (int, time.Duration) { return 0, 0 }}
	r := Request{Channel: name, From: position.Position{Epoch: 1700000000000, Seq: 256}, Count: 256}
	b.ReportAllocs()
	for b.Loop() {
		page, err := l.Read(ctx, r)
		if err != nil || len(page.Entries) != 256 {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/event")
}

// FuzzParsePage: whatever Redis answers to a read is refused, or is a page in which every reader
// can go on, from a position that does not move when it asks again.
func FuzzParsePage(f *testing.F) {
	const event = `{"id":"550e8400-e29b-41d4-a716-446655440000","type":"a.b"}`
	f.Add("100000-3", "100000-1", "x", "100000-2", event, "", "100000-3", "garbage", "project:x@1-1 y", int64(100000), int64(2), uint8(0))
	f.Add("100000-0", "", "", "", "", "", "", "", "", int64(0), int64(0), uint8(1))
	f.Add("300000-0", "", "", "300000-0", `{"id":"`, "@", "300000-0", "", "@@ @", int64(300000), int64(1), uint8(0))
	f.Add("281474976710655-9007199254740991", "281474976710655-9007199254740991", "\xff", "281474976710655-9007199254740991", "", "", "1-1", "", "", int64(position.MaxEpoch), int64(position.MaxSeq), uint8(2))
	f.Add("5-5", "5-9", "", "5-9", "", "", "5-1", "", "", int64(5), int64(3), uint8(3))
	f.Fuzz(func(t *testing.T, last, first, id, at1, event1, also1, at2, event2, also2 string, epoch, seq int64, odd uint8) {
		entry := func(at, event, also string) any { return []any{at, []any{"event", event, "also", also}} }
		reply := []any{last, first, id, []any{entry(at1, event1, also1), entry(at2, event2, also2)}}
		switch n := int(odd/8) % len(reply); odd % 8 { // No script of ours gives these.
		case 1:
			reply = reply[:n]
		case 2:
			reply[n] = nil
		case 3:
			reply[n] = int64(odd)
		case 4:
			reply[3] = []any{[]any{at1, event1}, []any{at2}, at2}
		case 5:
			reply[3] = []any{[]any{at1, []any{"event"}}, []any{at2, []any{int64(1), event2}}}
		}
		asked := position.Position{Epoch: epoch, Seq: seq}
		page, err := parsePage(asked, reply)
		if err != nil {
			require.Nil(t, page)
			return
		}
		require.LessOrEqual(t, len(page.Entries), 2)
		known := []position.Position{{}, position.Unknown, asked, page.Origin(), page.Last, page.First}
		for _, e := range page.Entries {
			require.True(t, e.Pos.Epoch > 0 && e.Pos.Epoch <= position.MaxEpoch && e.Pos.Seq >= 0 && e.Pos.Seq <= position.MaxSeq && e.Pos.Fingerprint != 0, "%+v", e.Pos)
			known = append(known, e.Pos)
		}
		// The rest holds only for what read.lua promises: one epoch, no number 0, entries in order,
		// and one id for the newest entry.
		log := page.First.IsZero() || page.First.Epoch == page.Last.Epoch && page.First.Seq > 0 && page.First.Seq <= page.Last.Seq
		before := page.First
		for _, e := range page.Entries {
			log = log && e.Pos.Epoch == page.Last.Epoch && !page.First.IsZero() && e.Pos.Seq >= before.Seq && e.Pos.Seq <= page.Last.Seq
			before = position.Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq + 1}
			log = log && (e.Pos.Seq != page.Last.Seq || e.Pos.Same(page.Last))
		}
		for _, pos := range known {
			start, _ := page.Resume(pos)
			page.After(start)
			if !log || start.IsZero() {
				continue
			}
			again, gap := page.Resume(start)
			if gap != "" { // Behind one hole there may be another.
				again, gap = page.Resume(again)
				require.Empty(t, gap)
			}
			require.GreaterOrEqual(t, again.Seq, start.Seq)
		}
	})
}

// TestTheAdvisedCommandsAreEnough: a user with these commands can do all, also repeat a call.
func TestTheAdvisedCommandsAreEnough(t *testing.T) {
	admin, ctx := redistest.Start(t).Client(t), context.Background()
	args := []any{"ACL", "SETUSER", "bus", "on", ">pw", "~eventbus:*", "&*"}
	for _, name := range regexp.MustCompile(`[A-Z]+`).FindAllString(commands, -1) {
		args = append(args, "+"+name)
	}
	require.NoError(t, admin.Do(ctx, args...).Err())
	options := *admin.Options()
	options.Username, options.Password = "bus", "pw"
	client := redis.NewClient(&options)
	defer client.Close()
	l := newTestLog(client)
	require.NoError(t, l.Probe(ctx))
	const name = "project:p"
	call := l.newCall("one", 1, []*Commit{newCommit(t, false, name)})
	repeated := call.scriptCall
	require.Empty(t, l.Send(ctx, []*Call{call}))
	require.NoError(t, appendScript.runOnce(ctx, client, []scriptCall{repeated})[0].Err())
	require.EqualValues(t, 1, admin.XLen(ctx, logKey(name)).Val())
}

// TestALostAttemptThatComesLate: a part of its call is settled, and the rest is repeated.
func TestALostAttemptThatComesLate(t *testing.T) {
	client := redistest.Start(t).Client(t)
	ctx, l := context.Background(), newTestLog(client)
	const good, bad = "project:good", "project:bad"
	require.NoError(t, client.Set(ctx, logKey(bad), "no log", 0).Err())
	require.NoError(t, client.ScriptLoad(ctx, appendScript.source).Err())
	g, b := newCommit(t, false, good), newCommit(t, false, bad)
	call := l.newCall("one", 7, []*Commit{g, b})
	late := call.scriptCall
	call.Lost = true // The first attempt is still on its way.

	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())
	left := l.Send(ctx, []*Call{call})
	require.Len(t, left, 1)
	require.Len(t, l.Send(ctx, slices.Clone(left)), 1)
	require.False(t, g.Records[0].Sure, "it can still come")
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "0").Err())
	require.NoError(t, appendScript.runOnce(ctx, client, []scriptCall{late})[0].Err())
	require.Empty(t, l.Send(ctx, left))
	require.EqualValues(t, 1, client.XLen(ctx, logKey(good)).Val())
	require.Empty(t, idsIn(client, bad))
}

func TestEventIDs(t *testing.T) {
	ev := sample.Event()
	text := ev.AppendJSON(nil)
	require.Equal(t, ev.ID, string(eventID(text)))
	for _, other := range []string{"", "{}", `{"type":"x"}`, `["id"]`, `{"id":`, `{"id":7}`} {
		require.Empty(t, eventID([]byte(other)), other)
	}
}

// TestAFullMemoryBeginsNoLog: Redis is not filled up by those that only listen.
func TestAFullMemoryBeginsNoLog(t *testing.T) {
	client := redistest.Start(t).Client(t)
	ctx, l := context.Background(), newTestLog(client)
	old, err := l.Read(ctx, Request{Channel: "project:old"})
	require.NoError(t, err)
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())
	_, err = l.Read(ctx, Request{Channel: "project:new"})
	require.ErrorIs(t, err, ErrUnavailable)
	require.Zero(t, client.Exists(ctx, logKey("project:new")).Val())
	again, err := l.Read(ctx, Request{Channel: "project:old"})
	require.NoError(t, err)
	require.Equal(t, old.Last, again.Last)
}

// TestPublishedAgainToMoreLogs, by another process, which names the new one first: its entry says where
// the event is already.
func TestPublishedAgainToMoreLogs(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const added, old = "project:added", "agent:old"
		c := newCommit(t, true, old)
		require.Empty(t, l.Send(ctx, []*Call{l.newCall("one", 1, []*Commit{c})}))
		event := sample.Event()
		again := &Commit{ID: c.ID, Event: event.AppendJSON(nil), Idempotent: true, Done: make(chan struct{}),
			Records: []Record{{Channel: added}, {Channel: old}}}
		require.Empty(t, l.Send(ctx, []*Call{l.newCall("two", 1, []*Commit{again})}))
		require.True(t, again.Records[1].Again)
		entries := client.XRange(ctx, logKey(added), "-", "+").Val()
		require.Len(t, entries, 1)
		require.Equal(t, old+"@"+c.Records[0].Pos.String(), entries[0].Values["also"])
	})
}
