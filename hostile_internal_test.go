package eventbus

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/position"
)

// Whatever Redis answers to a read, it is refused, or is a page that every reader can
// go on in: at a place that does not move again.
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
		switch n := int(odd/8) % len(reply); odd % 8 { // what no script of ours gives
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
			require.True(t, e.Pos.Epoch > 0 && e.Pos.Epoch <= position.MaxEpoch && e.Pos.Seq >= 0 && e.Pos.Seq <= position.MaxSeq && e.Pos.Mark != 0, "%+v", e.Pos)
			known = append(known, e.Pos)
			for range notes(e.Also) {
			}
		}
		// The rest is what read.lua vouches for: one epoch, no number 0, in order, and one
		// id for the newest entry.
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
			if gap != "" { // behind a hole, there may be another one
				again, gap = page.Resume(again)
				require.Empty(t, gap)
			}
			require.GreaterOrEqual(t, again.Seq, start.Seq)
		}
		// A tail that is filled with it, and a page of it, hold up too.
		var bad int
		c := ProjectChannel([16]byte{1})
		tl := newTail(c.String(), c.String(), func(error) { bad++ }, nil)
		for range 3 {
			tl.fill(tl.want(), page, true)
		}
		p := &position.Page{Asked: asked, Entries: page.Entries}
		(&page_{p, tl}).check(t)
	})
}

// A page_ is a page as readers of a tail see it.
type page_ struct {
	*position.Page
	tail *tail
}

func (p *page_) check(t *testing.T) {
	s, _ := encode(p.tail.key, p.Page)
	require.LessOrEqual(t, len(s.entries), len(p.Entries))
	for _, e := range p.Entries {
		v, ok := (&page{Page: p.Page, segment: s}).from(e.Pos)
		require.True(t, !ok || len(v.entries) > 0 && v.entries[0].pos.Seq == e.Pos.Seq+1)
	}
}

// Whatever Redis answers to an append, it is a position, or an error that says whether
// the log has the event.
func FuzzParseAppended(f *testing.F) {
	for _, reply := range []string{"", "+", "=", "!", "~", "+1-1", "=281474976710655-9007199254740991", "+281474976710656-1", "+1-1\n", "!OOM", "~READONLY x", "1-1", "+1--1", "-", "=1-1 project:x@1-1", "=1-1  "} {
		f.Add(reply, "id", uint8(0))
		f.Add(reply, "", uint8(1))
		f.Add(reply, "", uint8(6))
	}
	f.Fuzz(func(t *testing.T, reply, id string, odd uint8) {
		records := []*record{{mark: position.Fingerprint(id)}, {mark: position.Fingerprint(id + "2")}}
		c := logCall{records: records}
		var any any = reply
		if odd%2 == 1 {
			any = []byte(reply)
		}
		c.settle(any, false)
		lines := strings.Split(reply, "\n")
		for n, r := range records {
			if odd%2 == 1 || len(lines) == 1 && !strings.HasPrefix(reply, "+") || len(lines) > 2 {
				require.Error(t, r.err)
				require.False(t, r.sure)
				continue
			}
			line := lines[n%len(lines)]
			if r.err == nil {
				require.Contains(t, "+=", line[:1])
				require.Equal(t, line[:1] == "=", r.again)
				require.Equal(t, r.mark, r.pos.Mark)
				require.Positive(t, r.pos.Epoch)
				continue
			}
			require.Equal(t, line != "" && line[0] == '!', r.sure, "only a refusal is certain")
		}
		if len(lines) == 1 && records[0].err == nil {
			require.Equal(t, records[0].pos.Seq+1, records[1].pos.Seq, "they follow one another")
		}
	})
}
