package eventbus

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// replyOf makes what a script could answer: texts, and where odd says so, something
// that no script of ours gives.
func replyOf(texts []string, odd uint8) any {
	parts := make([]any, len(texts))
	for i, text := range texts {
		parts[i] = text
	}
	if len(parts) > 2 && odd < 0x80 {
		parts[2] = int64(len(texts[2])) * 1000
	}
	switch odd % 8 {
	case 1:
		return texts
	case 2:
		return parts[:int(odd/8)%(len(parts)+1)]
	case 3:
		parts[int(odd/8)%len(parts)] = nil
	case 4:
		parts[int(odd/8)%len(parts)] = int64(odd)
	case 5:
		parts[int(odd/8)%len(parts)] = []any{}
	}
	return parts
}

// Whatever Redis answers to a read, it is refused, or is a page that every reader can
// go on in: at a place that does not move again.
func FuzzParsePage(f *testing.F) {
	const entry = `{"id":"550e8400-e29b-41d4-a716-446655440000","type":"a.b"}`
	f.Add("200000", "100000-3", "", "100000-1", "x", "100000-2", entry, "", "100000-3", "garbage", "project:x@1-1 y", int64(100000), int64(2), uint8(0))
	f.Add("200000", "", "", "", "", "", "", "", "", "", "", int64(0), int64(0), uint8(2+8*5))
	f.Add("200000", "300000-0", "", "", "", "300000-0", `{"id":"`, "@", "300000-0", "", "@@ @", int64(300000), int64(-1), uint8(0))
	f.Add("-1", "281474976710655-9007199254740991", "", "281474976710655-9007199254740991", "\xff", "281474976710655-9007199254740991", "", "", "1-1", "", "", int64(maxEpoch), int64(maxSeq), uint8(0x80))
	f.Add("9223372036854775807", "5-5", "", "5-9", "", "5-9", "", "", "5-1", "", "", int64(5), int64(3), uint8(3))
	f.Fuzz(func(t *testing.T, now, last, ttl, first, id, at1, event1, also1, at2, event2, also2 string, epoch, seq int64, odd uint8) {
		texts := []string{now, last, ttl, first, id, "1 " + id + "\n2", ttl, at1, event1, also1, at2, event2, also2}
		asked := Position{epoch: epoch, seq: seq}
		page, err := parsePage(asked, replyOf(texts, odd))
		if err != nil {
			require.Nil(t, page)
			return
		}
		require.LessOrEqual(t, len(page.entries), 2)
		known := []Position{{}, unknown, asked, page.head(), page.origin(), page.last, page.first, {epoch: page.now, seq: noLog}}
		for _, e := range page.entries {
			require.True(t, e.pos.epoch > 0 && e.pos.epoch <= maxEpoch && e.pos.seq >= 0 && e.pos.seq <= maxSeq && e.pos.mark != 0, "%+v", e.pos)
			known = append(known, e.pos)
			for range notes(e.also) {
			}
		}
		// The rest is what read.lua vouches for: one epoch, no number 0, in order, and one
		// id for the newest entry.
		log := page.first.IsZero() || page.first.epoch == page.last.epoch && page.first.seq > 0 && page.first.seq <= page.last.seq
		before := page.first
		for _, e := range page.entries {
			log = log && e.pos.epoch == page.last.epoch && !page.first.IsZero() && e.pos.seq >= before.seq && e.pos.seq <= page.last.seq
			before = Position{epoch: e.pos.epoch, seq: e.pos.seq + 1}
			log = log && (e.pos.seq != page.last.seq || e.pos.same(page.last))
		}
		for _, pos := range known {
			start, _ := page.resume(pos, time.Hour)
			page.after(start)
			if !log || start.IsZero() {
				continue
			}
			again, gap := page.resume(start, 0)
			if gap != "" { // behind a hole, there may be another one
				again, gap = page.resume(again, 0)
				require.Empty(t, gap)
			}
			require.GreaterOrEqual(t, again.seq, start.seq)
		}
		// A tail that is filled with it, and a page of it, hold up too.
		var bad int
		c := ProjectChannel([16]byte{1})
		tl := newTail(c, c.String(), time.Hour, func(error) { bad++ }, nil)
		for range 3 {
			tl.fill(tl.want(), page, true)
		}
		p := &logPage{asked: asked, entries: page.entries}
		(&page_{p, tl}).check(t)
	})
}

// A page_ is a page as readers of a tail see it.
type page_ struct {
	*logPage
	tail *tail
}

func (p *page_) check(t *testing.T) {
	s := p.tail.encode(p.logPage)
	require.LessOrEqual(t, len(s.entries), len(p.entries))
	for _, e := range p.entries {
		v, ok := (&page{logPage: p.logPage, segment: s}).from(e.pos)
		require.True(t, !ok || len(v.entries) > 0 && v.entries[0].pos.seq == e.pos.seq+1)
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
		only := odd%8 >= 4
		records := []*record{{id: id, only: only}, {id: id + "2", only: only}}
		results := make([]appended, len(records))
		var any any = reply
		understood := reply != ""
		switch odd % 4 {
		case 1:
			any, understood = []byte(reply), false
		case 2:
			any = []interface{}{reply, reply}
		case 3:
			any, understood = []interface{}{reply}, false
		}
		parseGroup(any, group{records: []int{0, 1}}, records, results)
		for n, a := range results {
			if a.err == nil && a.pos.IsZero() {
				require.True(t, only && reply == "-")
				continue
			}
			if a.err == nil {
				require.Contains(t, "+=", reply[:1])
				require.Equal(t, reply[:1] == "=", a.again)
				require.Equal(t, fingerprint(records[n].id), a.pos.mark)
				require.Positive(t, a.pos.epoch)
				continue
			}
			require.Equal(t, understood && reply[0] == '!', a.sure, "only a refusal is certain")
		}
		if odd%8 == 0 && results[0].err == nil {
			require.Equal(t, results[0].pos.seq+1, results[1].pos.seq, "they follow one another")
		}
	})
}
