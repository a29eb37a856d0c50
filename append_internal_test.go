package eventbus

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

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
