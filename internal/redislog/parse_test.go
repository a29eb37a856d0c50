package redislog

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sample"
)

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
			l := &Log{client: rdb, epochs: make(map[string]int64), retention: func(string) Retention { return Retention{Events: 10_000, Age: time.Hour} }}
			commits := make([]*Commit, n)
			b.ReportAllocs()
			for number := int64(1); b.Loop(); number++ {
				for i := range commits {
					ev := sample.Event()
					commits[i] = &Commit{ID: ev.ID, Event: ev.AppendJSON(nil),
						Records: []Record{{Channel: "project:p"}}}
				}
				if left := l.Send(context.Background(), []*Call{l.newCall("bench", number, alone(commits...))}); left != nil {
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
	l := &Log{client: rdb, epochs: make(map[string]int64), retention: func(string) Retention { return Retention{Events: 0, Age: 0} }}
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
