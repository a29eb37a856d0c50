package eventbus

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// lanesOf makes a reader of so many channels, each of whose tails has n events of epoch 2000.
func lanesOf(t *testing.T, cluster bool, n int, places ...Position) *reader {
	r := &reader{bus: &Bus{log: &redisLog{perChannel: cluster}}, waiter: newWaiter()}
	r.bus.feed = newFeed(r.bus)
	for _, pos := range places {
		c := AgentChannel(uuid.New())
		tl := newTail(c, c.String(), time.Hour, func(error) {}, func(f func()) { go f() })
		tl.pages.taken = new(atomic.Int64)
		tl.ready, tl.doubt = true, false
		for i := range n {
			ev := validEvent(t)
			ev.Position = Position{epoch: 2000, seq: int64(i + 1), mark: fingerprint(ev.ID)}
			tl.addLocked(ev, "")
		}
		r.lanes = append(r.lanes, &lane{tail: tl, place: place{pos: pos, waiter: r.waiter}})
	}
	return r
}

func someEnvelope() *envelope { return &envelope{id: uuid.NewString()} }

// next sets an event that notes a position in another lane as the next one of a lane.
func (l *lane) next(ev *envelope, of *lane, at Position) {
	l.view.entries = []entry{{event: ev, also: of.tail.name + "@" + at.String()}}
}

// TestWhatAnEntryNotes: whether another lane has delivered what an entry notes to be there.
func TestWhatAnEntryNotes(t *testing.T) {
	at := func(epoch, seq int64) Position { return Position{epoch: epoch, seq: seq} }
	const n = 9
	for _, tc := range []struct {
		name          string
		place         Position // of the other lane, whose log has 2000-1 to 2000-9
		holes         []hole
		noted         Position
		lone, cluster answer
	}{
		{name: "gone over", place: at(2000, 5), noted: at(2000, 5), lone: yes, cluster: yes},
		{name: "still to come", place: at(2000, 4), noted: at(2000, 5), lone: notYet, cluster: notYet},
		{name: "still to come in the next log", place: at(1000, 4), noted: at(2000, 5), lone: notYet, cluster: notYet},
		{name: "still to come in the first log", place: at(1500, noLog), noted: at(2000, 5), lone: notYet, cluster: notYet},
		{name: "still to come in the first log, by a clock that is behind", place: at(2500, noLog), noted: at(2000, 5), lone: notYet, cluster: notYet},
		{name: "not known to be there", place: at(2000, 9), noted: at(2000, 10), lone: notYet, cluster: notYet},
		{name: "in a gap", place: at(2000, 5), holes: []hole{{at(2000, 2), at(2000, 4)}}, noted: at(2000, 3), lone: no, cluster: no},
		{name: "behind a gap", place: at(2000, 5), holes: []hole{{at(2000, 2), at(2000, 4)}}, noted: at(2000, 5), lone: yes, cluster: yes},
		{name: "before a gap", place: at(2000, 5), holes: []hole{{at(2000, 2), at(2000, 4)}}, noted: at(2000, 2), lone: yes, cluster: yes},
		{name: "before the log was lost", place: at(2000, 0), holes: []hole{{at(1000, 7), at(2000, 0)}}, noted: at(1000, 7), lone: yes, cluster: yes},
		{name: "when the log was lost", place: at(2000, 0), holes: []hole{{at(1000, 7), at(2000, 0)}}, noted: at(1000, 8), lone: no, cluster: no},
		{name: "in a log in between", place: at(2000, 0), holes: []hole{{at(1000, 7), at(2000, 0)}}, noted: at(1500, 1), lone: no, cluster: no},
		{name: "given again since the log went back", place: at(2000, 5), holes: []hole{{at(2000, 7), at(2000, 5)}}, noted: at(2000, 7), lone: notYet, cluster: notYet},
		{name: "in what the log had when it had gone back", place: at(2000, 5), holes: []hole{{at(2000, 7), at(2000, 5)}}, noted: at(2000, 4), lone: no, cluster: no},
		{name: "in a log before the one that went back", place: at(2000, 5), holes: []hole{{at(1000, 7), at(2000, 0)}, {at(2000, 7), at(2000, 5)}}, noted: at(1000, 7), lone: yes, cluster: yes},
		{name: "in a log of which nothing is known", place: at(2000, 9), noted: at(1000, 1), lone: no, cluster: no},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for cluster, want := range map[bool]answer{false: tc.lone, true: tc.cluster} {
				r := lanesOf(t, cluster, n, at(2000, 0), tc.place)
				l, m := r.lanes[0], r.lanes[1]
				m.holes = append(m.holes, tc.holes...)
				ev := someEnvelope()
				if found, _, ok := m.tail.findLocked(tc.noted); ok {
					ev = m.tail.entryLocked(found - 1).event
				}
				l.next(ev, m, tc.noted)
				require.Equal(t, want, r.judge(l), "cluster %v", cluster)
				m.tail.reads += 2
				if tc.noted.seq > n {
					require.Equal(t, no, r.judge(l), "it was read since")
				}
				if want != notYet || tc.noted.seq > n {
					continue
				}
				m.next(someEnvelope(), l, at(2000, 0)) // the other lane has something before it
				require.Equal(t, behind, r.judge(l))
			}
		})
	}
}

// TestNotesAreReadWithAnyPrefix, and nothing but notes.
func TestNotesAreReadWithAnyPrefix(t *testing.T) {
	var got []string
	for name, at := range notes(" a@b:project:p@5-1  user:u@6-2 5-1 @5-1 agent:a@ agent:a@x-1 agent:a agent:a@5-1@ ") {
		got = append(got, name+" "+at.String())
	}
	require.Equal(t, []string{"a@b:project:p 5-1", "user:u 6-2"}, got)
}

// TestWhatAnExpiredLogHad was delivered to who was there when it expired.
func TestWhatAnExpiredLogHad(t *testing.T) {
	gone := Position{epoch: 9000, seq: noLog}
	r := lanesOf(t, false, 9, Position{epoch: 2000}, gone)
	l, m := r.lanes[0], r.lanes[1]
	m.tail.last = gone // the ring still has what was in it
	l.next(m.tail.entryLocked(4).event, m, Position{epoch: 2000, seq: 5})
	require.Equal(t, yes, r.judge(l))
}

// TestWhatALanesOwnLogHadBefore: a place in a gap that is forgotten says nothing; the event is there now.
func TestWhatALanesOwnLogHadBefore(t *testing.T) {
	for _, cluster := range []bool{false, true} {
		r := lanesOf(t, cluster, 9, Position{epoch: 2000, seq: 8}, Position{epoch: 2000})
		l := r.lanes[0]
		l.next(l.tail.entryLocked(1).event, l, Position{epoch: 2000, seq: 2})
		require.Equal(t, no, r.judge(l))
	}
}

// TestAnotherEventIsWhereAnEntryNotes: the node of a cluster has lost its end.
func TestAnotherEventIsWhereAnEntryNotes(t *testing.T) {
	for _, place := range []int64{4, 5, 9} {
		r := lanesOf(t, true, 9, Position{epoch: 2000}, Position{epoch: 2000, seq: place})
		r.lanes[0].next(someEnvelope(), r.lanes[1], Position{epoch: 2000, seq: 5})
		require.Equal(t, no, r.judge(r.lanes[0]))
	}
}

// TestTheLogWentBackSince: the note is about the event that was delivered last before that.
func TestTheLogWentBackSince(t *testing.T) {
	for _, end := range []int64{5, 7} {
		for _, cluster := range []bool{false, true} {
			r := lanesOf(t, cluster, 9, Position{epoch: 2000}, Position{epoch: 2000, seq: end})
			l, m, ev := r.lanes[0], r.lanes[1], someEnvelope()
			last := Position{epoch: 2000, seq: 7, mark: fingerprint(ev.id)}
			m.remember(hole{last, Position{epoch: 2000, seq: end}})
			l.next(ev, m, last)
			require.Equal(t, yes, r.judge(l))
			l.next(someEnvelope(), m, last)
			require.Equal(t, no, r.judge(l), "another event")
		}
	}
}

// TestLogWentBackBehindAGap: the reader had not been given the last event there, but passed over it.
func TestLogWentBackBehindAGap(t *testing.T) {
	for _, before := range []hole{{upto: Position{epoch: 2000, seq: 9}}, {Position{epoch: 2000, seq: 12}, Position{epoch: 2000, seq: 9}}} {
		r := lanesOf(t, false, 5, Position{epoch: 2000}, Position{epoch: 2000, seq: 5})
		l, m, ev := r.lanes[0], r.lanes[1], someEnvelope()
		last := Position{epoch: 2000, seq: 9, mark: fingerprint(ev.id)}
		m.remember(before)
		m.remember(hole{last, Position{epoch: 2000, seq: 5}})
		l.next(ev, m, last)
		require.NotEqual(t, yes, r.judge(l))
	}
}

// TestGapBeforeTheLogWentBack: the numbers that it had are given again.
func TestGapBeforeTheLogWentBack(t *testing.T) {
	at := func(seq int64) Position { return Position{epoch: 2000, seq: seq} }
	for _, old := range []hole{{at(2), at(8)}, {at(7), at(8)}, {Position{epoch: 1000, seq: 3}, at(8)}} {
		r := lanesOf(t, false, 9, at(0), at(9))
		l, m := r.lanes[0], r.lanes[1]
		m.remember(old)
		m.remember(hole{at(8), at(5)})
		for seq, want := range map[int64]answer{4: no, 5: no, 6: yes, 7: yes} {
			l.next(m.tail.entryLocked(uint64(seq-1)).event, m, at(seq))
			require.Equal(t, want, r.judge(l), "%d, behind %v", seq, old)
		}
	}
}

// TestReadThatTheTailPassesOver: it has moved on since it was asked for. What the log had then
// is still to come.
func TestReadThatTheTailPassesOver(t *testing.T) {
	r := lanesOf(t, false, 9, Position{epoch: 2000}, Position{epoch: 2000, seq: 9})
	l, m := r.lanes[0], r.lanes[1]
	ask := func(end int64) answer {
		l.next(someEnvelope(), m, Position{epoch: 2000, seq: 11})
		if end > 0 {
			m.tail.fill(readRequest{from: Position{epoch: 2000, seq: 8}}, &logPage{last: Position{epoch: 2000, seq: end}}, true)
		}
		return r.judge(l)
	}
	require.Equal(t, notYet, ask(0))
	require.Equal(t, notYet, ask(10), "this read may have been under way")
	require.Equal(t, notYet, ask(11))
	require.Equal(t, no, ask(10), "the log went back")
}

// TestLanesTakeTurns: the oldest event first, unless it notes what another lane has yet to
// deliver. Notes that are not true can point in a circle; nobody waits for that.
func TestLanesTakeTurns(t *testing.T) {
	start := Position{epoch: 2000}
	r := lanesOf(t, false, 9, start, start, start)
	events := make([]*envelope, 3)
	for i := range events {
		events[i] = &envelope{id: uuid.NewString(), timestamp: time.UnixMilli(int64(i))}
	}
	turn := func(notes ...int) (*lane, bool) {
		for i, of := range notes {
			r.lanes[i].next(events[i], r.lanes[of], Position{epoch: 2000, seq: 5})
		}
		return r.turn()
	}
	next, _ := turn(0, 1, 2) // their own logs: nothing to wait for
	require.Same(t, r.lanes[0], next)
	events[0], events[1] = events[1], events[0]
	next, _ = turn(0, 1, 2)
	require.Same(t, r.lanes[1], next)
	tailEvent := func(m *lane) *envelope { return m.tail.entryLocked(4).event }
	events[0], events[1] = tailEvent(r.lanes[1]), tailEvent(r.lanes[2])
	next, _ = turn(1, 2, 2)
	require.Same(t, r.lanes[2], next, "who is waited for by all")
	events[2] = tailEvent(r.lanes[0])
	next, waits := turn(1, 2, 0)
	require.NotNil(t, next)
	require.False(t, waits)
	require.Equal(t, no, next.verdict)

	r.lanes[2].view = view{}
	next, waits = r.turn()
	require.Nil(t, next, "its event is still on its way")
	require.True(t, waits)
}

// TestHolesAreRemembered, the newest first, also in the cursor, and of a log that expired.
func TestHolesAreRemembered(t *testing.T) {
	r := lanesOf(t, false, 9, Position{epoch: 2000, seq: 9}, Position{epoch: 2000, seq: 9})
	r.key = newCursorKey([]string{r.lanes[0].tail.name, r.lanes[1].tail.name})
	l := r.lanes[0]
	var want []hole
	for i := range int64(maxHoles + 2) {
		h := hole{Position{epoch: 1000 + i, seq: 7}, Position{epoch: 1001 + i}}
		r.pass(l, h)
		want = append(want, h)
	}
	require.Equal(t, want[2:], l.holes)
	entries, err := decodeCursor(r.cursor().String())
	require.NoError(t, err)
	require.NotEmpty(t, entries[0].holes)
	require.Equal(t, want[len(want)-len(entries[0].holes):], entries[0].holes)

	m := r.lanes[1]
	_, err = r.load(t.Context(), m) // at the end of its tail
	require.NoError(t, err)
	require.Empty(t, m.holes)
	last, gone := m.place.pos, Position{epoch: 9000, seq: noLog}
	m.tail.last = gone
	_, err = r.load(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, []hole{{last, gone}}, m.holes)
}

// TestHoleCoversWholeLogsInBetween: one that came and went between its ends.
func TestHoleCoversWholeLogsInBetween(t *testing.T) {
	h := hole{after: Position{epoch: 1000, seq: noLog}, upto: Position{epoch: 3000, seq: noLog}}
	require.True(t, h.has(Position{epoch: 2000, seq: 1}))
	require.False(t, h.has(Position{epoch: 4000, seq: 1}))
}

// TestLookUp: what a reader remembers no more, the other lane's log tells.
func TestLookUp(t *testing.T) {
	c := ProjectChannel(uuid.New())
	id := uuid.NewString()
	at := func(seq int64, id string) Position { return Position{epoch: 1000, seq: seq, mark: fingerprint(id)} }
	entries := func(from, to int64) []logEntry {
		var es []logEntry
		for seq := from; seq <= to; seq++ {
			es = append(es, logEntry{pos: at(seq, id), event: []byte("{}")})
		}
		return es
	}
	for name, tc := range map[string]struct {
		page *logPage
		err  error
		at   Position
		want answer
	}{
		"there":   {&logPage{first: at(1, id), last: at(9, id), entries: entries(1, 9)}, nil, at(5, id), yes},
		"another": {&logPage{first: at(1, id), last: at(9, id), entries: entries(1, 9)}, nil, at(5, "another"), no},
		"trimmed": {&logPage{first: at(6, id), last: at(9, id), entries: entries(6, 9)}, nil, at(5, id), yes},
		"gone":    {&logPage{}, nil, at(5, id), no},
		"failed":  {nil, errPending, at(5, id), notYet},
	} {
		t.Run(name, func(t *testing.T) {
			tl := newTail(c, c.String(), 0, func(error) {}, nil)
			tl.pages.taken = new(atomic.Int64)
			reads := 0
			tl.pages.read = func(_ readRequest, done func(*logPage, error)) {
				reads++
				go done(tc.page, tc.err)
			}
			l, m := &lane{}, &lane{tail: tl}
			require.Equal(t, notYet, l.lookUp(m, tc.at))
			<-l.asked[m].flight.done
			require.Equal(t, tc.want, l.lookUp(m, tc.at))
			if tc.err == nil {
				require.Equal(t, 1, reads)
			}
		})
	}
}
