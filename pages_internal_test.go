package eventbus

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/redistest"
)

// TestPageOfBefore: what was being read when the log turned out to be another is not kept.
func TestPageOfBefore(t *testing.T) {
	c := ProjectChannel(uuid.New())
	pos := Position{epoch: 1000, seq: 1}
	lp := &logPage{first: pos, last: Position{epoch: 1000, seq: 2}, entries: []logEntry{{pos: pos, event: []byte("{}")}, {pos: Position{epoch: 1000, seq: 2}, event: []byte("{}")}}}
	for _, cleared := range []bool{false, true} {
		tl := newTail(c, c.String(), 0, func(error) {}, nil)
		tl.pages.taken = new(atomic.Int64)
		var land func(*logPage, error)
		tl.pages.read = func(_ readRequest, done func(*logPage, error)) { land = done }
		tl.pages.join(tl, pos, true)
		if cleared {
			tl.pages.clear()
		}
		land(lp, nil)
		_, kept := tl.pages.at(pos)
		require.NotEqual(t, cleared, kept)
	}
}

// TestPagesAreReadAhead: while a page is encoded and used, the next is read, but not the one behind
// that before somebody wants it. What was read ahead goes on being read ahead.
func TestPagesAreReadAhead(t *testing.T) {
	const events = 10*pageEvents + 7
	tl, reads := pagedTail(events)
	pos := Position{epoch: 1000, seq: 1}
	first, own, _ := tl.pages.join(tl, pos, false)
	require.True(t, own)
	reads.land[0]()
	require.Equal(t, []int64{0, pageEvents}, reads.from)
	<-first.done
	reads.land[1]() // nobody has asked for it yet
	require.Len(t, reads.from, 2)
	for n := int64(1); pos.seq < events; n++ {
		v, _, gap, err := tl.after(t.Context(), pos)
		require.NoError(t, err)
		require.Empty(t, gap)
		require.Equal(t, pos.seq+1, v.entries[0].pos.seq)
		pos = v.entries[len(v.entries)-1].pos
		if int(n) < len(reads.land) && n > 1 {
			reads.land[n]()
		}
		require.LessOrEqual(t, len(reads.from), int(n+1), "one page ahead")
		require.GreaterOrEqual(t, len(reads.from), min(int(n+1), 11))
	}
	require.Len(t, reads.from, 11)
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

// TestNextPageOfAKnownLog: where it begins is known before the answer is there. Answers may come in any order.
func TestNextPageOfAKnownLog(t *testing.T) {
	at := func(seq int64) Position { return Position{epoch: 1000, seq: seq} }
	other := func(seq int64) Position { return Position{epoch: 2000, seq: seq} }
	for _, tc := range []struct {
		first, last Position
		pos         int64
		largest     int
		want        []int64
	}{
		{at(1), at(10 * pageEvents), 1, 99, []int64{pageEvents, 0}},
		{at(1), at(pageEvents + 1), 1, 99, []int64{pageEvents, 0}},
		{at(1), at(pageEvents), 1, 99, []int64{0}},
		{at(pageEvents + 1), at(10 * pageEvents), pageEvents + 7, 99, []int64{2 * pageEvents, pageEvents}},
		{at(pageEvents + 2), at(10 * pageEvents), pageEvents + 7, 99, []int64{pageEvents}}, // it does not begin on the grid
		{at(1), at(10 * pageEvents), 1, 2 * pageBytes / pageEvents, []int64{0}},            // a page may have less
		{other(1), at(10 * pageEvents), 1, 99, []int64{0}},
		{at(1), other(10 * pageEvents), 1, 99, []int64{0}},
		{at(1), at(10 * pageEvents), 1, 0, []int64{0}},
	} {
		tl, reads := pagedTail(tc.last.seq)
		tl.pages.sized(&logPage{first: tc.first, last: tc.last, largest: tc.largest})
		tl.pages.join(tl, at(tc.pos), false)
		require.Equal(t, tc.want, reads.from, tc)
	}
	const events = 3*pageEvents + 7
	tl, reads := pagedTail(events)
	tl.pages.sized(&logPage{first: at(1), last: at(events), largest: 99})
	tl.pages.join(tl, at(1), false)
	reads.land[0]()
	require.Len(t, reads.from, 2)
	v, _, _, err := tl.after(t.Context(), at(pageEvents))
	require.NoError(t, err)
	require.Equal(t, int64(pageEvents+1), v.entries[0].pos.seq)
	require.Equal(t, []int64{pageEvents, 0, 2 * pageEvents}, reads.from)
	reads.land[1]()
	require.Len(t, reads.from, 3)
}

// TestReadsAtTheSameTime: of one page there is one, and of others only so many. Who finds too many
// has the turn of the first that ends.
func TestReadsAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl, reads := pagedTail(20 * pageEvents)
		at := func(page int64) Position { return Position{epoch: 1000, seq: page*pageEvents + 7} }
		for i := range int64(pageFlights) {
			f, own, _ := tl.pages.join(tl, at(3*i), false)
			require.True(t, own)
			again, own, _ := tl.pages.join(tl, at(3*i), false)
			require.False(t, own)
			require.Same(t, f, again)
		}
		var got view
		go func() { got, _, _, _ = tl.after(t.Context(), at(4)) }()
		synctest.Wait()
		require.Len(t, reads.from, pageFlights)
		reads.land[2]()
		synctest.Wait()
		require.Equal(t, []int64{0, 3 * pageEvents, 6 * pageEvents, 9 * pageEvents, 4 * pageEvents}, reads.from)
		reads.land[4]()
		synctest.Wait()
		require.Equal(t, at(4).seq+1, got.entries[0].pos.seq)
	})
}

// TestNothingIsReadAheadOfPagesThatWereDropped.
func TestNothingIsReadAheadOfPagesThatWereDropped(t *testing.T) {
	tl, reads := pagedTail(10 * pageEvents)
	tl.pages.join(tl, Position{epoch: 1000, seq: 1}, false)
	tl.pages.clear()
	reads.land[0]()
	require.Len(t, reads.from, 1)
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
		synctest.Wait() // what is read ahead nobody waits for
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
	tl := newTail(c, c.String(), 0, func(error) {}, nil)
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

// TestSmallPagesAreTheSame, be they read through the script or beside it.
func TestSmallPagesAreTheSame(t *testing.T) {
	local, err := embedded.New()
	require.NoError(t, err)
	defer local.Close()
	for name, client := range map[string]*redis.Client{"miniredis": local.Client, "redis": redistest.Start(t).Client(t)} {
		t.Run(name, func(t *testing.T) {
			ctx, log := context.Background(), "project:p"
			l := &redisLog{client: client}
			add := func(id string, values ...any) {
				require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: logKey(log), ID: id, Values: values}).Err())
			}
			same := func(n int, froms ...Position) {
				t.Helper()
				for _, from := range froms {
					r := readRequest{name: log, from: from, count: 5}
					want, err := l.read(ctx, r)
					require.NoError(t, err)
					require.Len(t, want.entries, n)
					r.small = true
					got, err := l.read(ctx, r)
					require.NoError(t, err)
					want.now, want.expires, got.now, got.expires = 0, 0, 0, 0
					require.Equal(t, want, got)
				}
			}
			at := func(epoch, seq int64) Position { return Position{epoch: epoch, seq: seq} }
			_, err := l.read(ctx, readRequest{name: log, count: 5}) // loads the script
			require.NoError(t, err)
			same(0, Position{}, at(5000, 1))
			add("4000-0", "event", `{"id":"x"}`)
			add("4000-1", "event", `{"id":"x"}`)
			add("5000-0", "event", `{"id":"x"}`)
			for i := range 9 {
				ev := validEvent(t)
				add(fmt.Sprintf("5000-%d", i+1), "event", ev.appendJSON(nil), "also", fmt.Sprint("agent:a@1-", i))
			}
			add("5000-10", "neither", "this", "nor", "that")
			add("5000-11", "also", "x@1-1", "event", "{}")
			add("5000-12", "event", "first", "event", "second")
			same(5, Position{}, at(5000, 0), at(5000, 1), at(5000, 8))
			same(2, at(5000, 11))
			require.NoError(t, client.XDel(ctx, logKey(log), "5000-9").Err())
			same(3, at(5000, 9))
			same(0, at(5000, 13))
			require.NotNil(t, l.readSmall(ctx, readRequest{name: log, from: at(5000, 1), count: 5, small: true}))
			require.NoError(t, client.PExpire(ctx, logKey(log), time.Hour).Err())
			require.NoError(t, client.XTrimMaxLen(ctx, logKey(log), 0).Err())
			same(0, Position{}, at(5000, 3))
		})
	}
}

// TestSmallPagesWithoutTransactions: where a user may not use them, the script reads.
func TestSmallPagesWithoutTransactions(t *testing.T) {
	s, ctx := redistest.Start(t), context.Background()
	direct := s.Client(t)
	for seq := range 3 {
		require.NoError(t, direct.XAdd(ctx, &redis.XAddArgs{Stream: logKey("project:p"), ID: fmt.Sprintf("5000-%d", seq+1), Values: []any{"event", "{}"}}).Err())
	}
	for _, forbidden := range []string{"-multi", "-exec", "-xrange"} {
		require.NoError(t, direct.Do(ctx, "ACL", "SETUSER", "u", "reset", "on", ">p", "~*", "&*", "+@all", forbidden).Err())
		client := redis.NewClient(&redis.Options{Addr: s.Addr, Username: "u", Password: "p"})
		defer client.Close()
		l := &redisLog{client: client}
		for range 3 {
			page, err := l.read(ctx, readRequest{name: "project:p", from: Position{epoch: 5000, seq: 2}, count: 5, small: true})
			if forbidden == "-xrange" { // the script needs it, too
				require.Error(t, err)
				continue
			}
			require.NoError(t, err)
			require.Len(t, page.entries, 2)
		}
	}
}

// TestUnreadableEntriesAreToldOfOnce, in whatever order they are read, and read again.
func TestUnreadableEntriesAreToldOfOnce(t *testing.T) {
	var told told
	times := make(map[int64]int)
	read := func(epoch, first, last int64) {
		took := taking{epoch: epoch, first: first, last: last}
		for seq := first; seq <= last; seq++ {
			took.bad = append(took.bad, badEntry{seq, fmt.Errorf("%d", epoch*1000+seq)})
		}
		told.tell(took, func(err error) {
			var key int64
			_, _ = fmt.Sscan(err.Error(), &key)
			times[key]++
		})
	}
	for range 2 {
		for _, page := range []int64{5, 1, 9, 2, 3, 8, 4} {
			read(1, 10*page, 10*page+10)
		}
	}
	read(2, 20, 30)
	require.Len(t, times, 51+21+11)
	for key, n := range times {
		require.Equal(t, 1, n, key)
	}
	for page := range int64(2 * mostStretches) {
		read(3, 20*page, 20*page+1)
	}
	require.Len(t, told.stretches, mostStretches)
}
