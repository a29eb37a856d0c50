package eventbus

import (
	"cmp"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// TestPageOfBefore: what was being read when the log turned out to be another is not kept.
func TestPageOfBefore(t *testing.T) {
	c := ProjectChannel(uuid.New())
	pos := Position{epoch: 1000, seq: 1}
	lp := &logPage{first: pos, last: Position{epoch: 1000, seq: 2}, entries: []logEntry{{pos: pos, event: []byte("{}")}, {pos: Position{epoch: 1000, seq: 2}, event: []byte("{}")}}}
	for _, cleared := range []bool{false, true} {
		tl := newTail(c, c.String(), func(error) {}, nil)
		tl.pages.taken = new(atomic.Int64)
		var land func(*logPage, error)
		tl.pages.read = func(_ readRequest, done func(*logPage, error)) { land = done }
		tl.pages.join(tl, pos)
		if cleared {
			tl.pages.clear()
		}
		land(lp, nil)
		_, kept, _ := tl.pages.find(pos)
		require.NotEqual(t, cleared, kept)
	}
}

// TestKeptPagesAreNotReadAgain by who comes to them from before.
func TestKeptPagesAreNotReadAgain(t *testing.T) {
	const events = 10*pageEvents + 7
	tl, reads := pagedTail(events)
	reads.atOnce = true
	for _, from := range []int64{5*pageEvents + 1, 1, 3} {
		for pos := (Position{epoch: 1000, seq: from}); pos.seq < events; {
			v, _, _, err := tl.after(t.Context(), pos)
			require.NoError(t, err)
			pos = v.entries[len(v.entries)-1].pos
		}
	}
	require.Len(t, reads.from, 11)
}

// TestPagesOfLargeEvents end before the next begins on the grid: what follows is read from there, once.
func TestPagesOfLargeEvents(t *testing.T) {
	const events = 1000
	tl, reads := pagedTail(events)
	reads.atOnce, reads.most = true, 100
	for range 2 {
		for pos := (Position{epoch: 1000, seq: 1}); pos.seq < events; {
			v, _, gap, err := tl.after(t.Context(), pos)
			require.NoError(t, err)
			require.Empty(t, gap)
			require.Equal(t, pos.seq+1, v.entries[0].pos.seq)
			pos = v.entries[len(v.entries)-1].pos
		}
	}
	require.Len(t, reads.from, 11)
}

// TestManyReadersOfManyPages: each gets what it wants, whatever is dropped meanwhile.
func TestManyReadersOfManyPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 60 * pageEvents
		tl, reads := pagedTail(events)
		reads.atOnce = true
		var wg sync.WaitGroup
		for i := range int64(100) {
			wg.Go(func() {
				for n := range int64(20) {
					pos := Position{epoch: 1000, seq: 1 + (i*i*997+n*pageEvents)%(events-1)}
					v, _, gap, err := tl.after(t.Context(), pos)
					if err != nil || gap != "" || len(v.entries) == 0 || v.entries[0].pos.seq != pos.seq+1 {
						t.Error("behind", pos, "came", len(v.entries), gap, err)
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

// pageReads are the reads that a tail has begun: where, and what makes them end.
type pageReads struct {
	from   []int64
	land   []func()
	atOnce bool
	most   int // entries in an answer; 0 for all
}

// pagedTail makes a tail whose log has so many events.
func pagedTail(events int64) (*tail, *pageReads) {
	c, reads := ProjectChannel(uuid.New()), &pageReads{}
	tl := newTail(c, c.String(), func(error) {}, nil)
	tl.pages.taken = new(atomic.Int64)
	tl.pages.read = func(r readRequest, done func(*logPage, error)) {
		lp := &logPage{asked: r.from, first: Position{epoch: 1000, seq: 1}, last: Position{epoch: 1000, seq: events}}
		for seq := max(r.from.seq, 1); seq <= events && len(lp.entries) < min(r.count, cmp.Or(reads.most, r.count)); seq++ {
			lp.entries = append(lp.entries, logEntry{pos: Position{epoch: 1000, seq: seq}, event: []byte("{}")})
		}
		reads.from = append(reads.from, r.from.seq)
		reads.land = append(reads.land, func() { done(lp, nil) })
		if reads.atOnce {
			go done(lp, nil)
		}
	}
	return tl, reads
}
