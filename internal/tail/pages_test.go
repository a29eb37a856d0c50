package tail

import (
	"cmp"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/position"
)

// TestPageOfBefore: a page is not kept if the pages were cleared while it was read.
func TestPageOfBefore(t *testing.T) {
	pos := position.Position{Epoch: 1000, Seq: 1}
	lp := &position.Page{First: pos, Last: position.Position{Epoch: 1000, Seq: 2}, Entries: []position.LogEntry{{Pos: pos, Event: []byte("{}")}, {Pos: position.Position{Epoch: 1000, Seq: 2}, Event: []byte("{}")}}}
	for _, cleared := range []bool{false, true} {
		var land func(*position.Page, error)
		tl := New("project:p", "project:p", new(Memory), func(error) {}, nil, func(_ Request, done func(*position.Page, error)) { land = done })
		tl.pages.join(tl, Request{From: pos, Count: pageEvents + 1})
		if cleared {
			tl.pages.clear()
		}
		land(lp, nil)
		_, kept, _ := tl.pages.find(pos)
		require.NotEqual(t, cleared, kept)
	}
}

// TestKeptPagesAreNotReadAgain: readers that come later, from further back, use the kept pages.
func TestKeptPagesAreNotReadAgain(t *testing.T) {
	const events = 10*pageEvents + 7
	tl, reads := pagedTail(events)
	reads.atOnce = true
	for _, from := range []int64{5*pageEvents + 1, 1, 3} {
		for pos := (position.Position{Epoch: 1000, Seq: from}); pos.Seq < events; {
			v, _, _, err := tl.After(t.Context(), pos)
			require.NoError(t, err)
			pos = v.Entries[len(v.Entries)-1].pos
		}
	}
	require.Len(t, reads.from, 11)
}

// TestPagesOfLargeEvents: a page of large events ends before the next one begins on the grid. What
// follows is read from there, once.
func TestPagesOfLargeEvents(t *testing.T) {
	const events = 1000
	tl, reads := pagedTail(events)
	reads.atOnce, reads.most = true, 100
	for range 2 {
		for pos := (position.Position{Epoch: 1000, Seq: 1}); pos.Seq < events; {
			v, _, gap, err := tl.After(t.Context(), pos)
			require.NoError(t, err)
			require.Empty(t, gap)
			require.Equal(t, pos.Seq+1, v.Entries[0].pos.Seq)
			pos = v.Entries[len(v.Entries)-1].pos
		}
	}
	require.Len(t, reads.from, 11)
}

// TestManyReadersOfManyPages: each reader gets what it wants, whatever is dropped meanwhile.
func TestManyReadersOfManyPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 60 * pageEvents
		tl, reads := pagedTail(events)
		reads.atOnce = true
		var wg sync.WaitGroup
		for i := range int64(100) {
			wg.Go(func() {
				for n := range int64(20) {
					pos := position.Position{Epoch: 1000, Seq: 1 + (i*i*997+n*pageEvents)%(events-1)}
					v, _, gap, err := tl.After(t.Context(), pos)
					if err != nil || gap != "" || len(v.Entries) == 0 || v.Entries[0].pos.Seq != pos.Seq+1 {
						t.Error("behind", pos, "came", len(v.Entries), gap, err)
					}
					if i == 0 {
						tl.pages.clear()
					}
				}
			})
		}
		wg.Wait()
		require.Empty(t, tl.pages.flights)
	})
}

// pageReads are the reads that a tail has begun.
type pageReads struct {
	from   []int64  // number at which each read begins
	land   []func() // ends each read
	atOnce bool
	most   int // the most entries in an answer; 0 for all
}

// pagedTail makes a tail whose log has so many events.
func pagedTail(events int64) (*Tail, *pageReads) {
	reads := &pageReads{}
	tl := New("project:p", "project:p", new(Memory), func(error) {}, nil, func(r Request, done func(*position.Page, error)) {
		lp := &position.Page{Asked: r.From, First: position.Position{Epoch: 1000, Seq: 1}, Last: position.Position{Epoch: 1000, Seq: events}}
		for seq := max(r.From.Seq, 1); seq <= events && len(lp.Entries) < min(r.Count, cmp.Or(reads.most, r.Count)); seq++ {
			lp.Entries = append(lp.Entries, position.LogEntry{Pos: position.Position{Epoch: 1000, Seq: seq}, Event: []byte("{}")})
		}
		reads.from = append(reads.from, r.From.Seq)
		reads.land = append(reads.land, func() { done(lp, nil) })
		if reads.atOnce {
			go done(lp, nil)
		}
	})
	return tl, reads
}
