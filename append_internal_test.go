package eventbus

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/redistest"
)

// TestAppendTellsWhatBecameOfEachEvent: several events in one call, in the short way through
// append.lua and in the long one.
func TestAppendTellsWhatBecameOfEachEvent(t *testing.T) {
	local, err := embedded.New()
	require.NoError(t, err)
	defer local.Close()
	for name, client := range map[string]*redis.Client{"miniredis": local.Client, "redis": redistest.Start(t).Client(t)} {
		t.Run(name, func(t *testing.T) {
			const channel = "project:p"
			ctx, events := context.Background(), 0
			l := &redisLog{client: client, heads: make(map[string]Position), retention: func(ChannelKind) Retention { return Retention{Events: 1000, Age: time.Hour} }}
			event := func() *record {
				ev := validEvent(t)
				return &record{name: channel, event: ev.appendJSON(nil), id: ev.ID}
			}
			// follow appends records and checks that those that are new have the next numbers.
			epoch := int64(0)
			follow := func(old Position, records ...*record) []appended {
				results := l.append(ctx, [][]*record{records})[0]
				for i, r := range results {
					require.NoError(t, r.err)
					if r.again {
						require.True(t, old.same(r.pos), "%v", r.pos)
						continue
					}
					events++
					if epoch == 0 {
						epoch = r.pos.epoch
					}
					require.Equal(t, Position{epoch, int64(events), fingerprint(records[i].id)}, r.pos)
				}
				entries := client.XRevRangeN(ctx, logKey(channel), "+", "-", 1).Val()
				require.Equal(t, Position{epoch, int64(events), 0}.String(), entries[0].ID)
				require.EqualValues(t, events, client.XLen(ctx, logKey(channel)).Val())
				require.Equal(t, time.Hour, client.PTTL(ctx, logKey(channel)).Val().Round(time.Minute))
				return results
			}
			messages := client.Subscribe(ctx, channel)
			defer messages.Close()
			_, err := messages.Receive(ctx)
			require.NoError(t, err)

			follow(Position{}, event(), event(), event()) // begins the log
			follow(Position{}, event(), event())
			for _, wrong := range []Position{{}, {epoch: epoch - 1000, seq: 7}, {epoch: epoch + 1000, seq: 7}} {
				if wrong.epoch > epoch && name == "miniredis" {
					continue // without XSETID, the log begins anew
				}
				l.heads[channel] = wrong
				follow(Position{}, event(), event(), event())
			}
			known := event()
			known.idempotent = true
			old := follow(Position{}, known)[0].pos
			late := &record{name: channel, event: known.event, id: known.id} // its first attempt
			results := follow(old, event(), late, event())
			require.Equal(t, []bool{false, true, false}, []bool{results[0].again, results[1].again, results[2].again})
			results = follow(old, known, event()) // one that comes singly, beside one that does not
			require.Equal(t, []bool{true, false}, []bool{results[0].again, results[1].again})

			for n := 1; n <= events; n++ {
				m, err := messages.ReceiveMessage(ctx)
				require.NoError(t, err)
				ev, err := decode([]byte(m.Payload))
				require.NoError(t, err)
				require.Equal(t, Position{epoch: epoch, seq: int64(n)}, ev.Position)
			}
			require.NoError(t, client.Del(ctx, logKey(channel)).Err())
			gone := l.append(ctx, [][]*record{{event(), event()}})[0] // its epoch is known, but there is no log
			require.NoError(t, gone[1].err)
			require.EqualValues(t, 2, gone[1].pos.seq)
			require.Equal(t, gone[0].pos.epoch, gone[1].pos.epoch)
		})
	}
}

// TestRetryBesideOthersAfterTheLogWasLost: the log was begun anew, which this process does not
// know, and the reply of an append is lost. What the retry knows of the old log does not
// end its search of the new one, whoever shares its call.
func TestRetryBesideOthersAfterTheLogWasLost(t *testing.T) {
	client, ctx := redistest.Start(t).Client(t), context.Background()
	for i, others := range []int{0, 1} {
		for _, look := range []int{0, lookAll} {
			name := fmt.Sprint("project:", i, look)
			before := Position{epoch: 4000, seq: 20_000}
			l := &redisLog{client: client, heads: map[string]Position{name: before}, retention: func(ChannelKind) Retention { return Retention{} }}
			event := func() *record {
				ev := validEvent(t)
				return &record{name: name, event: ev.appendJSON(nil), id: ev.ID}
			}
			require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: logKey(name), ID: "5000-1", Values: []any{"event", "{}"}}).Err())
			lost := event()
			c := l.newAppendCall([]*record{lost})
			require.NoError(t, appendScript.runOnce(ctx, client, []scriptCall{{c.keys, c.args}})[0].Err())
			lost.look = lookAll
			var records []*record
			for range others {
				r := event()
				r.look, r.since = look, before
				records = append(records, r)
			}
			results := l.append(ctx, [][]*record{append(records, lost)})[0]
			require.True(t, results[others].again, "beside %d with look=%d", others, look)
			require.EqualValues(t, 2+others, client.XLen(ctx, logKey(name)).Val())
		}
	}
}

// TestPositionOfWhatFailedBehindIt: the events are in the log, but something else was not done, and the
// error says both.
func TestPositionOfWhatFailedBehindIt(t *testing.T) {
	s, ctx := redistest.Start(t), context.Background()
	direct := s.Client(t)
	for _, forbidden := range []string{"resetchannels", "-pexpire", "-set"} {
		for _, idempotent := range []bool{false, true} {
			require.NoError(t, direct.Do(ctx, "ACL", "SETUSER", "u", "reset", "on", ">p", "~*", "&*", "+@all", forbidden).Err())
			client := redis.NewClient(&redis.Options{Addr: s.Addr, Username: "u", Password: "p"})
			defer client.Close()
			l := &redisLog{client: client, retention: func(ChannelKind) Retention { return Retention{Age: time.Hour} }, heads: make(map[string]Position)}
			name := fmt.Sprint("project:", forbidden, idempotent)
			var records []*record
			for range 2 {
				ev := validEvent(t)
				r := &record{name: name, event: ev.appendJSON(nil), id: ev.ID, idempotent: idempotent}
				if idempotent {
					r.look = 10
				}
				records = append(records, r)
			}
			results := l.append(ctx, [][]*record{records})[0]
			for i, e := range direct.XRange(ctx, logKey(name), "-", "+").Val() {
				require.Equal(t, e.ID, results[i].pos.String(), name)
				require.Equal(t, fingerprint(records[i].id), results[i].pos.mark)
				require.Equal(t, forbidden == "-set" && !idempotent, results[i].done(), name)
			}
		}
	}
}

// TestReplicaDoesNotSayThatAnEventIsMissing: one that was a master, and lags.
func TestReplicaDoesNotSayThatAnEventIsMissing(t *testing.T) {
	ctx, master, replica := context.Background(), redistest.Start(t), redistest.Start(t)
	host, port, err := net.SplitHostPort(master.Addr)
	require.NoError(t, err)
	require.NoError(t, replica.Client(t).ReplicaOf(ctx, host, port).Err())
	ev := validEvent(t)
	for client, want := range map[*redis.Client]error{master.Client(t): nil, replica.Client(t): ErrUnavailable} {
		l := &redisLog{client: client, retention: func(ChannelKind) Retention { return Retention{} }}
		r := l.append(ctx, [][]*record{{{name: "project:p", event: ev.appendJSON(nil), id: ev.ID, look: 10, only: true}}})[0][0]
		require.ErrorIs(t, r.err, want)
		require.True(t, r.pos.IsZero())
	}
}

// TestNotesSurviveTrimming: a marker remembers what the entry of its event noted.
func TestNotesSurviveTrimming(t *testing.T) {
	local, err := embedded.New()
	require.NoError(t, err)
	defer local.Close()
	for name, client := range map[string]*redis.Client{"miniredis": local.Client, "redis": redistest.Start(t).Client(t)} {
		t.Run(name, func(t *testing.T) {
			const also = "agent:a@1-2 user:u@3-4"
			l := &redisLog{client: client, heads: make(map[string]Position), retention: func(ChannelKind) Retention { return Retention{} }}
			ev, ctx := validEvent(t), context.Background()
			r := record{name: "project:p", event: ev.appendJSON(nil), id: ev.ID, look: 10, also: also}
			appendOne := func(r record) appended { return l.append(ctx, [][]*record{{&r}})[0][0] }
			first := appendOne(r)
			require.NoError(t, first.err)
			require.NoError(t, client.XTrimMaxLen(ctx, logKey(r.name), 0).Err())
			r.also = ""
			for range 2 { // the second time, the marker was set anew
				again := appendOne(r)
				require.True(t, again.again)
				require.Equal(t, also, again.also)
				require.Equal(t, first.pos, again.pos)
			}
		})
	}
}

// A failingOver client makes the second of two events of its first append seem not to have been
// taken, and then does something else.
type failingOver struct {
	*redis.Client
	then func()
	gone bool // it is not there from then on
	done bool
}

func (c *failingOver) Process(ctx context.Context, cmd redis.Cmder) error {
	once, ok := cmd.(onceCmd)
	if ok && c.done && c.gone {
		return io.EOF
	}
	err := c.Client.Process(ctx, cmd)
	if ok && err == nil && !c.done {
		c.done = true
		replies := once.Val().([]any)
		once.SetVal([]any{replies[0], "!OOM"})
		c.then()
	}
	return err
}

// TestFailoverBetweenTheAttemptsOfAPublish: one channel's log had the event, and the master that
// takes over may have it in none. Publishing goes on with both, and the notes tell where it is now.
func TestFailoverBetweenTheAttemptsOfAPublish(t *testing.T) {
	client := redistest.Start(t).Client(t)
	ctx, agent := context.Background(), AgentChannel(uuid.New())
	for name, then := range map[string]func(){
		"it has it":          func() { client.Del(ctx, logKey(agent.String())) },
		"it lacks it":        func() { client.FlushDB(ctx) },
		"it does not answer": func() {},
	} {
		t.Run(name, func(t *testing.T) {
			bus, err := New(&failingOver{Client: client, then: then, gone: name == "it does not answer"})
			require.NoError(t, err)
			defer bus.Close()
			require.NoError(t, client.FlushDB(ctx).Err())
			ev := validEvent(t)
			project := ProjectChannel(ev.ProjectID)
			if err := bus.Publish(ctx, ev, agent); err != nil {
				var failed *PublishError
				require.ErrorAs(t, err, &failed)
				require.ErrorIs(t, err, ErrUnavailable)
				require.Equal(t, []Channel{project}, failed.Done)
				return
			}
			had, has := client.XRange(ctx, logKey(project.String()), "-", "+").Val(), client.XRange(ctx, logKey(agent.String()), "-", "+").Val()
			require.Len(t, had, 1)
			require.Len(t, has, 1)
			require.Equal(t, project.String()+"@"+had[0].ID, has[0].Values["also"])
		})
	}
}

// A replying client answers appends with what it is told to.
type replying struct {
	*redis.Client
	replies [][]any
}

func (c *replying) Process(ctx context.Context, cmd redis.Cmder) error {
	if once, ok := cmd.(onceCmd); ok {
		once.SetVal(c.replies[0])
		c.replies = c.replies[1:]
		return nil
	}
	return c.Client.Process(ctx, cmd)
}

// TestPositionOfBeforeIsGivenUp: the event was in a log, and the next attempt is told that it is
// not. The error does not say that it is.
func TestPositionOfBeforeIsGivenUp(t *testing.T) {
	client := &replying{Client: redistest.Start(t).Client(t), replies: [][]any{{"~5000-1 OOM", "!OOM"}, {"!ERR", "!ERR"}}}
	bus, err := New(client)
	require.NoError(t, err)
	defer bus.Close()
	ev, agent := validEvent(t), AgentChannel(uuid.New())
	var failed *PublishError
	require.ErrorAs(t, bus.Publish(context.Background(), ev, agent), &failed)
	require.Empty(t, failed.Done)
	require.Empty(t, client.replies)
}
