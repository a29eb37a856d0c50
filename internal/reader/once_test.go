package reader

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/redislog"
	"github.com/syndarix/eventbus/internal/tail"
	"github.com/syndarix/eventbus/internal/testing/sample"
	"github.com/syndarix/eventbus/internal/wire"
	"pgregory.net/rapid"
)

// TestWhatALaneDelivers checks the table at the top of once.go.
func TestWhatALaneDelivers(t *testing.T) {
	at := func(epoch, seq int64) position.Position { return position.Position{Epoch: epoch, Seq: seq} }
	for _, tc := range []struct {
		name     string
		began    position.Position
		hole     position.Hole
		named    position.Position
		delivers bool
	}{
		{name: "resumed by a cursor", named: at(2000, 5), delivers: true},
		{name: "before it began", began: at(2000, 5), named: at(2000, 5)},
		{name: "in a log before it began", began: at(2000, 5), named: at(1000, 9)},
		{name: "behind where it began", began: at(2000, 5), named: at(2000, 6), delivers: true},
		{name: "before a gap", hole: position.Hole{From: at(2000, 3), Upto: at(2000, 7)}, named: at(2000, 3), delivers: true},
		{name: "in a gap", hole: position.Hole{From: at(2000, 3), Upto: at(2000, 7)}, named: at(2000, 7)},
		{name: "behind a gap", hole: position.Hole{From: at(2000, 3), Upto: at(2000, 7)}, named: at(2000, 8), delivers: true},
		{name: "in the gap of a log that is lost", hole: position.Hole{From: at(1000, 3), Upto: at(2000, 0)}, named: at(1000, 4)},
		{name: "in a log in between", hole: position.Hole{From: at(1000, 3), Upto: at(2000, 0)}, named: at(1500, 1)},
		{name: "given again, since the log went back", hole: position.Hole{From: at(2000, 7), Upto: at(2000, 3)}, named: at(2000, 5), delivers: true},
	} {
		l := lane{began: tc.began, hole: tc.hole}
		require.Equal(t, tc.delivers, l.delivers(tc.named), tc.name)
	}
}

// TestLogThatWentBackBehindWhereALaneBegan: the log gives its numbers again, to events that the
// lane delivers.
func TestLogThatWentBackBehindWhereALaneBegan(t *testing.T) {
	at := func(seq int64) position.Position { return position.Position{Epoch: 2000, Seq: seq} }
	l := lane{began: at(5)}
	l.pass(at(5), at(3))
	require.True(t, l.delivers(at(4)))
	require.False(t, l.delivers(at(3)))
}

// TestNewChannelBeginsWhereItsLogEnds: its tail is behind that. What is on its way to the tail may
// already have been delivered from other channels of the cursor.
func TestNewChannelBeginsWhereItsLogEnds(t *testing.T) {
	r := &Reader{Readers: NewReaders(Config{Log: &redislog.Log{}}), waiter: pace.NewFlag()}
	end := position.Position{Epoch: 1000, Seq: 9}
	for _, last := range []position.Position{{Epoch: 1000, Seq: 7}, {Epoch: 1000, Seq: 7}} {
		tl := tail.New("project:p", "p", new(tail.Memory), nil, nil, func(_ tail.Request, done func(*position.Page, error)) { go done(&position.Page{Last: end}, nil) })
		require.True(t, tl.Fill(tl.Want(), &position.Page{Last: last}, true))
		r.lanes = append(r.lanes, &lane{tail: tl})
	}
	covered := string(position.NewKey([]string{"project:p"}).Append(nil, func(int) position.Position { return position.Position{Epoch: 1000, Seq: 3} }))
	require.NoError(t, r.start(t.Context(), Subscription{After: covered}, []string{"project:p", "agent:a"}))
	require.EqualValues(t, 3, r.lanes[0].place.Pos.Seq)
	require.Equal(t, end, r.lanes[1].place.Pos)
	require.Equal(t, end, r.lanes[1].began)
}

func TestPlacesAreReadWithAnyPrefix(t *testing.T) {
	var got []string
	for name, at := range places("a@b:project:p@5-1 nothing @5-2 x@ agent:a@6-7") {
		got = append(got, name+" "+at.String())
	}
	require.Equal(t, []string{"a@b:project:p 5-1", "agent:a 6-7"}, got)
}

// A modelLog is a log, and the tail that one process has of it.
type modelLog struct {
	name    string
	epoch   int64
	seq     int64
	entries []position.LogEntry
	tail    *tail.Tail
	removed int // how often entries were taken away
}

func (l *modelLog) last() (position.Position, string) {
	p := position.Position{Epoch: l.epoch, Seq: l.seq}
	if n := len(l.entries); n > 0 && l.entries[n-1].Pos.Seq == l.seq {
		p.Fingerprint = l.entries[n-1].Pos.Fingerprint
		return p, idOf(l.entries[n-1].Event)
	}
	return p, ""
}

func (l *modelLog) page(r tail.Request) *position.Page {
	p := &position.Page{Asked: r.From}
	p.Last, p.LastID = l.last()
	if len(l.entries) > 0 {
		p.First = position.Position{Epoch: l.epoch, Seq: l.entries[0].Pos.Seq}
	}
	for _, e := range l.entries {
		if len(p.Entries) < r.Count && (r.From.Epoch != l.epoch || e.Pos.Seq >= r.From.Seq) {
			p.Entries = append(p.Entries, e)
		}
	}
	return p
}

// A modelEvent is an event that was published, and where.
type modelEvent struct {
	at      map[string]position.Position
	removed map[string]int // by log: the number of the removal that has taken it away
	rewound bool           // its positions may have been those of other events before
}

// A chain is a subscription that is resumed by its cursor, again and again.
type chain struct {
	channels  []string
	cursor    string
	reader    *Reader
	expected  map[string]bool // events that are to be delivered, or announced
	delivered map[string]int
	gaps      map[string][]position.Hole // the gaps that were announced, by channel
	told      map[string]int             // by channel: so many removals justify the next gap
	left      map[string]bool            // channels that a resume has left out
}

type onceModel struct {
	t        *rapid.T
	clock    int64
	logs     map[string]*modelLog
	names    []string
	events   map[string]*modelEvent
	rewinds  int
	order    []string // the events, as they were published
	messages []func()
	chain    *chain
	corners  *int
}

func newOnceModel(t *rapid.T, corners *int) *onceModel {
	m := &onceModel{t: t, clock: 1000, logs: make(map[string]*modelLog), names: []string{"project:p", "agent:a", "user:u"}, events: make(map[string]*modelEvent), corners: corners}
	for _, name := range m.names {
		l := &modelLog{name: name, epoch: m.clock}
		l.tail = tail.New(name, name, new(tail.Memory), func(err error) { require.ErrorIs(t, err, tail.ErrElsewhere) }, func(f func()) { go f() }, func(r tail.Request, done func(*position.Page, error)) {
			page := l.page(r)
			go done(page, nil)
		})
		m.logs[name] = l
		m.fill(l)
	}
	return m
}

func (m *onceModel) fill(l *modelLog) {
	r := l.tail.Want()
	l.tail.Fill(r, l.page(r), true)
}

func (m *onceModel) some(label string) []string {
	var some []string
	for _, name := range m.names {
		if rapid.Bool().Draw(m.t, label+" "+name) {
			some = append(some, name)
		}
	}
	if len(some) == 0 {
		some = []string{rapid.SampledFrom(m.names).Draw(m.t, label)}
	}
	return some
}

// publish appends an event to some logs, as append.lua does.
func (m *onceModel) publish() {
	ev := sample.Event()
	e := &modelEvent{at: make(map[string]position.Position), removed: make(map[string]int), rewound: m.rewinds > 0}
	m.events[ev.ID] = e
	m.order = append(m.order, ev.ID)
	also := ""
	for _, name := range m.some("to") {
		l := m.logs[name]
		_, prev := l.last()
		l.seq++
		pos := position.Position{Epoch: l.epoch, Seq: l.seq, Fingerprint: position.Fingerprint(ev.ID)}
		l.entries = append(l.entries, position.LogEntry{Pos: pos, Event: ev.AppendJSON(nil), Also: also})
		e.at[name] = pos
		a := ev
		a.Also, a.Prev = also, prev
		a.Position = position.Position{Epoch: pos.Epoch, Seq: pos.Seq}
		m.messages = append(m.messages, func() {
			if !l.tail.Offer(a) {
				m.fill(l)
			}
		})
		also = strings.TrimPrefix(also+" "+name+"@"+pos.String(), " ")
		if m.chain != nil && slices.Contains(m.chain.channels, name) {
			m.chain.expected[ev.ID] = true
		}
	}
}

// remove counts a removal in a log, and marks the events that it takes away.
func (m *onceModel) remove(l *modelLog, gone []position.LogEntry) {
	l.removed++
	for _, e := range gone {
		m.events[idOf(e.Event)].removed[l.name] = l.removed
	}
}

func (m *onceModel) trim() {
	l := m.logs[rapid.SampledFrom(m.names).Draw(m.t, "log")]
	n := rapid.IntRange(0, max(len(l.entries)-1, 0)).Draw(m.t, "n")
	m.remove(l, l.entries[:n])
	l.entries = slices.Clone(l.entries[n:])
}

func (m *onceModel) lose() {
	l := m.logs[rapid.SampledFrom(m.names).Draw(m.t, "log")]
	m.clock += rapid.Int64Range(-500, 1000).Draw(m.t, "clock")
	m.remove(l, l.entries)
	l.entries, l.epoch, l.seq = nil, max(m.clock, l.epoch+1), 0
	m.cut()
}

// rewind is a failover to a replica that lacks the last publishes. A chain that has not had them
// hears nothing of them: they are in no log any more.
func (m *onceModel) rewind() {
	m.rewinds++
	for range rapid.IntRange(1, 4).Draw(m.t, "n") {
		if len(m.order) == 0 {
			break
		}
		id := m.order[len(m.order)-1]
		for name, at := range m.events[id].at {
			if l := m.logs[name]; l.epoch != at.Epoch || len(l.entries) < 2 && at.Seq > 1 {
				return // the log was lost since, or trimmed up to here
			}
		}
		m.order = m.order[:len(m.order)-1]
		for name, at := range m.events[id].at {
			l := m.logs[name]
			m.remove(l, nil)
			m.events[id].removed[name] = l.removed
			if n := len(l.entries); n > 0 && l.entries[n-1].Pos.Seq == at.Seq {
				l.entries = slices.Clone(l.entries[:n-1])
			}
			l.seq = at.Seq - 1
		}
		if m.chain != nil {
			delete(m.chain.expected, id)
		}
	}
	if rapid.Bool().Draw(m.t, "the connection breaks") {
		m.cut()
	}
}

// cut breaks the connection. What was on its way is lost.
func (m *onceModel) cut() {
	m.messages = nil
	for _, l := range m.logs {
		l.tail.Cut()
	}
}

// deliver brings some messages to the tails, in their order.
func (m *onceModel) deliver() {
	n := rapid.IntRange(0, len(m.messages)).Draw(m.t, "messages")
	for _, message := range m.messages[:n] {
		message()
	}
	m.messages = m.messages[n:]
}

// connect begins a chain, or resumes the one that there is.
func (m *onceModel) connect(sub Subscription, channels []string) {
	c := m.chain
	r := &Reader{Readers: NewReaders(Config{Log: &redislog.Log{}}), waiter: pace.NewFlag(), key: position.NewKey(channels)}
	for _, name := range channels {
		r.lanes = append(r.lanes, &lane{tail: m.logs[name].tail, place: tail.Place{Waiter: r.waiter}})
	}
	sub.After = c.cursor
	require.NoError(m.t, r.start(context.Background(), sub, channels))
	for _, l := range r.lanes {
		if slices.Contains(c.channels, l.tail.Name) {
			continue
		}
		log := m.logs[l.tail.Name]
		c.told[l.tail.Name] = 0
		if sub.Oldest {
			c.told[l.tail.Name] = log.removed
		}
		for _, e := range log.entries {
			if sub.Oldest || e.Pos.Beyond(l.place.Pos) {
				c.expected[idOf(e.Event)] = true
			}
		}
	}
	for _, name := range c.channels {
		if !slices.Contains(channels, name) {
			c.left[name] = true
		}
	}
	c.reader, c.channels = r, channels
	m.read(1)
}

func (m *onceModel) begin() {
	m.chain = &chain{expected: make(map[string]bool), delivered: make(map[string]int), gaps: make(map[string][]position.Hole), told: make(map[string]int), left: make(map[string]bool)}
	m.connect(Subscription{Oldest: rapid.Bool().Draw(m.t, "oldest")}, m.some("of"))
}

func (m *onceModel) resume() {
	if m.chain == nil {
		return
	}
	m.disconnect()
	channels := m.chain.channels
	if rapid.IntRange(0, 3).Draw(m.t, "other channels") == 0 {
		channels = m.some("of")
	}
	m.connect(Subscription{}, channels)
}

func (m *onceModel) disconnect() {
	c := m.chain
	c.cursor = c.reader.cursor()
	for _, l := range c.reader.lanes {
		l.tail.Forget(&l.place)
	}
}

// read takes some steps.
func (m *onceModel) read(steps int) {
	c := m.chain
	if c == nil {
		return
	}
	for range steps {
		st, err := c.reader.step(context.Background())
		require.NoError(m.t, err)
		switch {
		case st.Gap != nil:
			name := c.reader.lanes[st.Gap.Channel].tail.Name
			require.Less(m.t, c.told[name], m.logs[name].removed+1, "a gap in %s, where nothing was removed", name)
			c.told[name] = m.logs[name].removed + 1
			i := slices.IndexFunc(c.reader.lanes, func(l *lane) bool { return l.tail.Name == name })
			c.gaps[name] = append(c.gaps[name], position.Hole{From: st.Gap.From, Upto: c.reader.lanes[i].place.Pos})
		case len(st.Entries) == 0:
			return
		default:
			e := &st.Entries[0]
			wanted := c.reader.wants(st.lane, e)
			c.reader.take(st, 1)
			if m.events[e.Event.ID].removed[st.lane.tail.Name] > 0 {
				c.told[st.lane.tail.Name] = 0 // the message outlived the entry: a gap may follow
			}
			if wanted {
				c.delivered[e.Event.ID]++
			}
		}
	}
}

// announced reports whether a gap of the chain has announced that an event is missing.
func (m *onceModel) announced(e *modelEvent) bool {
	c := m.chain
	for name, at := range e.at {
		for _, gap := range c.gaps[name] {
			again := e.rewound && at.Epoch == gap.Upto.Epoch && !at.Beyond(gap.Upto) && !gap.Upto.Beyond(gap.From)
			if gap.Has(at) || again || e.removed[name] > 0 {
				return true
			}
		}
	}
	return false
}

// check drains the chain, and compares what was delivered with what was published.
func (m *onceModel) check() {
	c := m.chain
	if c == nil {
		return
	}
	for _, message := range m.messages {
		message()
	}
	m.messages = nil
	for range 3 {
		for _, l := range m.logs {
			m.fill(l)
		}
		m.read(10_000)
	}
	for id, e := range m.events {
		left, gaps := false, 0
		for name := range e.at {
			left = left || c.left[name]
			gaps += len(c.gaps[name])
		}
		// The position was given twice, and the log trimmed up to it. Nothing shows the difference.
		left = left || e.rewound && len(e.removed) > 0
		switch n := c.delivered[id]; {
		case n > 1 && (left || gaps > 1):
			*m.corners++
		case n > 1:
			m.t.Fatalf("%v was delivered %d times", e.at, n)
		case n == 0 && c.expected[id] && !m.announced(e):
			if !left {
				m.t.Fatalf("%v was neither delivered nor announced: %v", e.at, m.describe())
			}
			*m.corners++
		}
	}
}

func (m *onceModel) describe() (s string) {
	for _, l := range m.chain.reader.lanes {
		s += fmt.Sprintf("\n%s stands at %v, began at %v, hole %v, log %v, gaps %v", l.tail.Name, l.place.Pos, l.began, l.hole, m.logs[l.tail.Name].page(tail.Request{}).Last, m.chain.gaps[l.tail.Name])
	}
	return s
}

// TestOnceAgainstAModel: an event that several channels have is delivered once, or a gap announces
// it. That holds whatever happens to their logs, and wherever a reader resumes. The cases that the
// docs give up are only counted: two gaps that meet, and channels that a resume leaves out.
func TestOnceAgainstAModel(t *testing.T) {
	corners := 0
	for range 30 { // some mistakes show only once in a thousand sequences
		rapid.Check(t, func(t *rapid.T) { checkOnce(t, &corners) })
	}
	t.Logf("%d events came twice, or not, in a corner", corners)
}

func checkOnce(t *rapid.T, corners *int) {
	m := newOnceModel(t, corners)
	t.Repeat(map[string]func(*rapid.T){
		"publish":  func(*rapid.T) { m.publish() },
		"publish2": func(*rapid.T) { m.publish() },
		"publish3": func(*rapid.T) { m.publish() },
		"trim":     func(*rapid.T) { m.trim() },
		"lose":     func(*rapid.T) { m.lose() },
		"rewind":   func(*rapid.T) { m.rewind() },
		"cut":      func(*rapid.T) { m.cut() },
		"deliver":  func(*rapid.T) { m.deliver() },
		"deliver2": func(*rapid.T) { m.deliver() },
		"fill":     func(t *rapid.T) { m.fill(m.logs[rapid.SampledFrom(m.names).Draw(t, "log")]) },
		"begin": func(t *rapid.T) {
			if m.chain == nil || rapid.IntRange(0, 9).Draw(t, "anew") == 0 {
				m.begin()
			}
		},
		"resume": func(*rapid.T) { m.resume() },
		"read":   func(t *rapid.T) { m.read(rapid.IntRange(1, 5).Draw(t, "steps")) },
		"check": func(t *rapid.T) {
			if rapid.IntRange(0, 9).Draw(t, "check") == 0 {
				m.check()
			}
		},
	})
	m.check()
}

// idOf is the id of an event in a log.
func idOf(event []byte) string {
	ev, _ := wire.Decode(event)
	return ev.ID
}
