package redislog

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/embedded"
	"pgregory.net/rapid"
)

// faulty is append.lua with an XADD that fails when the key 'fault:<log>' says so: it has the number
// of the attempt that fails, and the error. OOM goes away, and other errors stay.
var faulty = newScript(strings.Replace(beginSource, "local pcall, find, match = redis.pcall, string.find, string.match", `
local find, match = string.find, string.match
local function pcall(command, key, ...)
  local fault = command == 'XADD' and redis.call('GET', 'fault:' .. key)
  if fault then
    local n, err = match(fault, '^(%d+) (.*)$')
    if n ~= '1' then
      redis.call('SET', 'fault:' .. key, (n - 1) .. ' ' .. err)
    else
      if find(err, '^OOM') then redis.call('DEL', 'fault:' .. key) end
      return {err = err}
    end
  end
  return redis.pcall(command, key, ...)
end`, 1) + appendSource)

// A batchWorld is a Redis whose appends fail, and a producer whose replies are lost.
type batchWorld struct {
	t       *rapid.T
	l       *Log
	client  *redis.Client
	names   []string
	name    string // of the producer
	number  int64
	call    *Call
	batches []*sentBatch
}

// A sentBatch is what a batch had when it was sent.
type sentBatch struct {
	*Batch
	all []*Commit
}

func (w *batchWorld) begin() {
	if w.call != nil {
		return
	}
	var batches []*Batch
	for range rapid.IntRange(1, 3).Draw(w.t, "batches") {
		logs := rapid.SliceOfNDistinct(rapid.SampledFrom(w.names), 1, len(w.names), rapid.ID).Draw(w.t, "logs")
		b := &sentBatch{Batch: &Batch{Done: make(chan struct{})}}
		for range rapid.IntRange(1, 4).Draw(w.t, "events") {
			b.all = append(b.all, newCommit(w.t, false, logs...))
		}
		last := b.all[len(b.all)-1]
		for i := range last.Records {
			last.Records[i].Final = rapid.IntRange(0, 19).Draw(w.t, "ends") == 0
		}
		b.Commits = slices.Clone(b.all)
		w.batches = append(w.batches, b)
		batches = append(batches, b.Batch)
	}
	w.number++
	w.call = w.l.newCall(w.name, w.number, batches)
}

// attempt sends the call. Where the reply is lost, the whole of it is sent again, with its number.
func (w *batchWorld) attempt(lost bool) {
	switch {
	case w.call == nil:
	case lost:
		require.NoError(w.t, appendScript.runOnce(context.Background(), w.client, []scriptCall{w.call.scriptCall})[0].Err())
		w.call.Lost = true
	default:
		left := w.l.Send(context.Background(), []*Call{w.call})
		if w.call = nil; len(left) > 0 {
			w.call = left[0]
		}
		w.another()
	}
}

func (w *batchWorld) giveUp() {
	if w.call != nil && !w.call.Lost {
		w.call = w.l.GiveUp(w.call, func(*Batch) bool { return rapid.Bool().Draw(w.t, "tired") })
		w.another()
	}
}

// another makes the worker go on as another producer, as it does where a call was not done at once.
func (w *batchWorld) another() {
	if w.call == nil {
		w.name, w.number = uuid.NewString(), 0
	}
}

// check: of each batch, each log has the first events, in order and once, and what is answered is so.
func (w *batchWorld) check() {
	in := make(map[string][]string)
	at := make(map[string]map[string]string)
	for _, name := range w.names {
		at[name] = make(map[string]string)
		for _, e := range w.client.XRange(context.Background(), logKey(name), "-", "+").Val() {
			id := string(eventID([]byte(e.Values["event"].(string))))
			in[name] = append(in[name], id)
			at[name][id] = e.ID
		}
	}
	for _, b := range w.batches {
		for i := range b.all[0].Records {
			name := b.all[0].Records[i].Channel
			want, got := []string{}, []string{}
			for _, c := range b.all {
				want = append(want, c.ID)
				if r := c.Records[i]; c.Closed() {
					require.Equal(w.t, r.Pos.String(), at[name][c.ID], "the answer about %s, with error %v", name, r.Err)
				}
			}
			for _, id := range in[name] {
				if slices.Contains(want, id) {
					got = append(got, id)
				}
			}
			require.Equal(w.t, want[:len(got)], got, "%s has the first events of the batch, in order", name)
		}
	}
}

// TestBatchesKeepTheirOrder, whatever fails: appends, with errors that last or not, replies that are
// lost, and batches of the same call that are given up.
func TestBatchesKeepTheirOrder(t *testing.T) {
	local, err := embedded.New()
	require.NoError(t, err)
	defer local.Close()
	whole := appendScript
	defer func() { appendScript = whole }()
	appendScript = faulty
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		require.NoError(t, local.FlushDB(ctx).Err())
		w := &batchWorld{t: t, l: newTestLog(local.Client), client: local.Client, names: []string{"project:p", "agent:a", "run:r"}, name: "one"}
		t.Repeat(map[string]func(*rapid.T){
			"begin":   func(*rapid.T) { w.begin() },
			"attempt": func(*rapid.T) { w.attempt(false) },
			"lost":    func(*rapid.T) { w.attempt(true) },
			"giveUp":  func(*rapid.T) { w.giveUp() },
			"fault": func(t *rapid.T) {
				key := "fault:" + logKey(rapid.SampledFrom(w.names).Draw(t, "log"))
				fault := rapid.SampledFrom([]string{"OOM full", "WRONGTYPE no log"}).Draw(t, "error")
				value := fmt.Sprint(rapid.IntRange(1, 4).Draw(t, "which"), " ", fault)
				// An error that goes away before a lost call is repeated is the one hole in the order.
				if w.call == nil || !w.call.Lost {
					local.Set(ctx, key, value, 0)
				} else {
					local.SetNX(ctx, key, value, 0)
				}
			},
			"mend": func(t *rapid.T) {
				if w.call == nil || !w.call.Lost {
					local.Del(ctx, "fault:"+logKey(rapid.SampledFrom(w.names).Draw(t, "log")))
				}
			},
			"": func(*rapid.T) { w.check() },
		})
	})
}
