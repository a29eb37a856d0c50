package redislog

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sample"
)

// newTestLog makes a Log without a bus.
func newTestLog(client Client) *Log {
	return &Log{client: client, epochs: make(map[string]int64), retention: func(string) Retention { return Retention{Events: 1000, Age: time.Hour} }}
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
	c := &Commit{ID: ev.ID, Event: ev.AppendJSON(nil), Idempotent: idempotent}
	for _, name := range names {
		c.Records = append(c.Records, Record{Channel: name, Fingerprint: position.Fingerprint(c.ID)})
	}
	return c
}

// alone makes a batch of each commit.
func alone(commits ...*Commit) (batches []*Batch) {
	for _, c := range commits {
		batches = append(batches, &Batch{Commits: []*Commit{c}, Done: make(chan struct{})})
	}
	return batches
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
		call := l.newCall("one", 7, alone(commits...))
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
				f := &Commit{ID: c.ID, Event: events[c.ID], Idempotent: c.Idempotent, Records: slices.Clone(c.Records)}
				for i := range f.Records {
					f.Records[i].Pos = position.Position{}
				}
				fresh = append(fresh, f)
			}
			require.Empty(t, l.Send(ctx, []*Call{l.newCall("one", number, alone(fresh...))}))
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
		call := l.newCall("one", 1, alone(commits...))
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
			c.closed.Store(false)
			for i := range c.Records {
				c.Records[i].Err = nil
			}
		}
		call.Batches = alone(commits...)
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
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, alone(c))}))
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
		l.retention = func(string) Retention { return Retention{Events: 0, Age: age} }
		const name = "project:p"
		left := func() time.Duration { return client.PTTL(ctx, logKey(name)).Val().Round(time.Minute) }
		publish := func(a time.Duration) {
			age = a
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, alone(newCommit(t, false, name)))}))
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
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, alone(newCommit(t, false, name)))}))
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
		for _, field := range []string{"epoch", "last", "bytes", "until"} {
			require.Contains(t, fields, field)
			delete(fields, field)
		}
		require.True(t, len(fields) == 1001, "%d producers", len(fields))
	})
}

// TestLivesAreExtended: what is appended lives as long as the longest life that any process wants.
// Not every append has to say so.
func TestLivesAreExtended(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, hash := context.Background(), producersKey("run:r")
		appends := func(age time.Duration) {
			l := newTestLog(client)
			l.retention = func(string) Retention { return Retention{Events: 1000, Age: age} }
			require.Empty(t, l.Send(ctx, []*Call{l.newCall(uuid.NewString(), 1, alone(newCommit(t, false, "run:r")))}))
		}
		lives := func(age time.Duration) {
			t.Helper()
			for _, key := range []string{logKey("run:r"), hash} {
				require.InDelta(t, age, client.PTTL(ctx, key).Val(), float64(time.Minute), key)
			}
		}
		appends(24 * time.Hour)
		lives(24 * time.Hour)
		until := client.HGet(ctx, hash, "until").Val()
		appends(time.Hour)
		lives(24 * time.Hour)
		require.Equal(t, until, client.HGet(ctx, hash, "until").Val())
		appends(48 * time.Hour)
		lives(48 * time.Hour)

		// An hour goes by.
		before := client.HGet(ctx, hash, "until").Val()
		require.NoError(t, client.HIncrBy(ctx, hash, "until", -time.Hour.Milliseconds()).Err())
		for _, key := range []string{logKey("run:r"), hash} {
			require.NoError(t, client.PExpire(ctx, key, 47*time.Hour).Err())
		}
		appends(48 * time.Hour)
		lives(48 * time.Hour)
		require.GreaterOrEqual(t, client.HGet(ctx, hash, "until").Val(), before)

		// The log is lost alone; then the hash alone.
		require.NoError(t, client.Del(ctx, logKey("run:r")).Err())
		appends(24 * time.Hour)
		lives(24 * time.Hour)
		require.NoError(t, client.Del(ctx, hash).Err())
		appends(24 * time.Hour)
		lives(24 * time.Hour)

		persists := func() {
			t.Helper()
			for _, key := range []string{logKey("run:r"), hash} {
				require.EqualValues(t, -1, client.PTTL(ctx, key).Val(), key)
			}
		}
		appends(0)
		appends(time.Hour)
		persists()

		// Another program adds an entry, so that the call of a relay looks at the log anew.
		info := client.XInfoStream(ctx, logKey("run:r")).Val()
		epoch, _, _ := strings.Cut(info.LastGeneratedID, "-")
		n, err := strconv.ParseInt(epoch, 10, 64)
		require.NoError(t, err)
		require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: logKey("run:r"), ID: fmt.Sprint(n+1, "-7"), Values: []any{"x", "y"}}).Err())
		ev := sample.Event()
		heard := &Foreign{Channel: "run:r", Event: ev, JSON: ev.AppendJSON(nil)}
		newTestLog(client).AppendForeign(ctx, []*Foreign{heard})
		require.NoError(t, heard.Err)
		appends(0)
		persists()
	})
}

// TestWhatWasAnsweredForGoodIsNotTriedAgain: another part of its call is tried again.
func TestWhatWasAnsweredForGoodIsNotTriedAgain(t *testing.T) {
	eachServer(t, func(t *testing.T, client *redis.Client) {
		ctx, l := context.Background(), newTestLog(client)
		const good, bad = "project:good", "project:bad"
		require.NoError(t, client.Set(ctx, logKey(bad), "no log", 0).Err())
		commits := []*Commit{newCommit(t, false, bad), newCommit(t, false, good)}
		call := l.newCall("one", 1, alone(commits...))
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

// TestTheAdvisedCommandsAreEnough: a user with these commands can do all, also repeat a call, and log
// what a foreign publisher sends.
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
	call := l.newCall("one", 1, alone(newCommit(t, false, name)))
	repeated := call.scriptCall
	require.Empty(t, l.Send(ctx, []*Call{call}))
	require.NoError(t, appendScript.runOnce(ctx, client, []scriptCall{repeated})[0].Err())
	require.EqualValues(t, 1, admin.XLen(ctx, logKey(name)).Val())
	foreign := heard(name, sample.Event())
	require.Equal(t, append1(t, l, foreign), append1(t, l, foreign))
}

// TestALostAttemptThatComesLate: a part of its call is settled, and the rest is repeated.
func TestALostAttemptThatComesLate(t *testing.T) {
	client := redistest.Start(t).Client(t)
	ctx, l := context.Background(), newTestLog(client)
	const good, bad = "project:good", "project:bad"
	require.NoError(t, client.Set(ctx, logKey(bad), "no log", 0).Err())
	require.NoError(t, client.ScriptLoad(ctx, appendScript.source).Err())
	g, b := newCommit(t, false, good), newCommit(t, false, bad)
	call := l.newCall("one", 7, alone(g, b))
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
		require.Empty(t, l.Send(ctx, []*Call{l.newCall("one", 1, alone(c))}))
		event := sample.Event()
		again := &Commit{ID: c.ID, Event: event.AppendJSON(nil), Idempotent: true,
			Records: []Record{{Channel: added}, {Channel: old}}}
		require.Empty(t, l.Send(ctx, []*Call{l.newCall("two", 1, alone(again))}))
		require.True(t, again.Records[1].Again)
		entries := client.XRange(ctx, logKey(added), "-", "+").Val()
		require.Len(t, entries, 1)
		require.Equal(t, old+"@"+c.Records[0].Pos.String(), entries[0].Values["also"])
	})
}
