package eventbus

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/rawjson"
)

// complaints are the names of the fields that err complains of.
func complaints(t testing.TB, err error) []string {
	t.Helper()
	var bad *ValidationError
	require.ErrorAs(t, err, &bad)
	var names []string
	for _, f := range bad.Fields {
		names = append(names, f.Field)
	}
	return names
}

func validEvent(t testing.TB) Event {
	t.Helper()
	ev, err := NewEvent(uuid.New(), System(), AgentMessagePayload{AgentInstanceID: uuid.New(), Message: "x"})
	require.NoError(t, err)
	return ev
}

func TestPublishChecksEveryField(t *testing.T) {
	ev := validEvent(t)
	require.NoError(t, ev.Validate())
	require.Equal(t, []string{"id", "type", "timestamp", "project_id", "actor_type"}, complaints(t, (&Event{}).Validate()))
	for field, spoils := range map[string][]func(*Event){
		"id": {
			func(ev *Event) { ev.ID = "x" },
			func(ev *Event) { ev.ID = "{" + ev.ID + "}" },
			func(ev *Event) { ev.ID = "\xff" },
		},
		"type": {
			func(ev *Event) { ev.Type = "nobody.registered" },
			func(ev *Event) { ev.Type = "agent.message\n" },
			func(ev *Event) { ev.Type = "AGENT.MESSAGE" },
		},
		"timestamp": {
			func(ev *Event) { ev.Timestamp = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC) },
			func(ev *Event) { ev.Timestamp = time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -2*60*60)) },
			func(ev *Event) { ev.Timestamp = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC) },
		},
		"actor_type": {func(ev *Event) { ev.ActorType = "robot" }},
		"payload": {
			func(ev *Event) { ev.Payload = json.RawMessage(`[]`) },
			func(ev *Event) { ev.Payload = json.RawMessage(`null`) },
			func(ev *Event) { ev.Payload = json.RawMessage(`{`) },
			func(ev *Event) { ev.Payload = json.RawMessage("{\"\xff\":1}") },
		},
	} {
		for i, spoil := range spoils {
			ev := validEvent(t)
			spoil(&ev)
			require.Equal(t, []string{field}, complaints(t, ev.Validate()), "%s %d", field, i)
		}
	}
}

// An event made by hand must not get past its schema.
func TestPublishChecksThePayloadAgainstItsType(t *testing.T) {
	ev := validEvent(t)
	ev.Type = AgentSpawned // with the payload of agent.message
	require.Equal(t, []string{"payload.agent_type_id", "payload.agent_name", "payload.role"}, complaints(t, ev.Validate()))
	ev.Payload = nil
	require.Equal(t, []string{"payload.agent_instance_id", "payload.agent_type_id", "payload.agent_name", "payload.role"},
		complaints(t, ev.Validate()))

	data, err := os.ReadFile("testdata/payloads.json")
	require.NoError(t, err)
	var vectors []struct {
		Struct, Case, Field string
		Type                Type
		Input               json.RawMessage
		Error               bool
	}
	require.NoError(t, json.Unmarshal(data, &vectors))
	for _, v := range vectors {
		ev := validEvent(t)
		ev.Type, ev.Payload = v.Type, v.Input
		if v.Error {
			require.Equal(t, []string{"payload." + v.Field}, complaints(t, ev.Validate()), "%s %s", v.Struct, v.Case)
		} else {
			require.NoError(t, ev.Validate(), "%s %s", v.Struct, v.Case)
		}
	}
}

// What is published must be readable: the event around a payload is one more
// level, and readers skip what is too deep.
func TestWhatPublishTakesReadersCanRead(t *testing.T) {
	for _, levels := range []int{1, 9_998, 9_999, 10_000, 10_001} {
		ev := validEvent(t)
		ev.Type = ProjectUpdated
		ev.Payload = json.RawMessage(strings.Repeat(`{"a":`, levels-1) + `{"]":"}\\\""}` + strings.Repeat("}", levels-1))
		_, readable := decode(ev.appendJSON(nil))
		require.Equal(t, readable == nil, ev.Validate() == nil, "%d levels", levels)
	}
}

func TestLogTextIsTheEventWithoutCursor(t *testing.T) {
	ev := validEvent(t)
	ev.Position = Position{epoch: 5, seq: 6}
	text := ev.appendJSON(nil)
	require.NotContains(t, string(text), "cursor")
	require.Equal(t, string(text[:len(text)-1])+`,"cursor":"5-6"}`, string(ev.appendWire(nil)))
	require.Equal(t, ev.ID, string(eventID(text)))
	for _, other := range []string{"", "{}", `{"type":"x"}`, `["id"]`, `{"id":`, `{"id":7}`} {
		require.Empty(t, eventID([]byte(other)), other)
	}
}

func TestMembersAreFoundAsEncodingJSONFindsThem(t *testing.T) {
	for _, text := range []string{
		`{}`, ` { } `, `{"a":1}`, "\t{ \"a\" : [ { \"}\" : \"]\" } ] , \"b\\\"\" : \"\\\\\" }\n",
		`{"a":{"b":{"c":[[],{}]}},"d":null,"e":true,"f":-1.5e+3,"":""}`, `{"a":1,"a":2}`, `{"\u0061\n":"\u0022"}`,
	} {
		want, got := map[string]json.RawMessage{}, map[string]json.RawMessage{}
		require.NoError(t, json.Unmarshal([]byte(text), &want))
		require.NoError(t, rawjson.EachMember([]byte(text), func(name, value []byte) { got[string(name)] = value }))
		require.Equal(t, want, got, text)
	}
}

func TestSegmentsKeepEventsInTheirFrames(t *testing.T) {
	channel := ProjectChannel(uuid.New())
	key := newCursorKey([]string{channel.String()})
	s := &segment{}
	var events []Event
	var early view // of what was there before the segment had to move
	for i := 1; s.takes(len(`{"a":1}`)); i++ {
		ev := validEvent(t)
		if i%2 == 1 { // the others are foreign
			ev.Position = Position{epoch: 7, seq: int64(i)}
		}
		s.add(key, ev, Position{epoch: 7, seq: int64(i)}, "")
		events = append(events, ev)
		if i == 2 {
			early = s.from(0)
		}
	}
	require.LessOrEqual(t, len(events), mostSegmentEntries)
	require.LessOrEqual(t, cap(s.buf), mostSegmentBytes)
	require.Greater(t, len(s.buf), 2*leastSegmentBytes)
	v := s.from(0)
	require.Equal(t, string(v.frames(0, 2)), string(early.frames(0, 2)))
	for i, e := range v.entries {
		frame := string(v.frames(i, i+1))
		want := fmt.Sprintf("event: agent.message\ndata: %s\n\n", events[i].appendWire(nil))
		require.Equal(t, events[i].Position.IsZero(), e.foreign)
		if !e.foreign {
			want = "id: " + v.event(&e, channel).Cursor.String() + "\n" + want
		}
		require.Equal(t, want, frame)
		require.Equal(t, string(events[i].Payload), string(v.event(&e, channel).Payload))
		require.Equal(t, channel, v.event(&e, channel).Channel)
	}
	require.Equal(t, string(s.buf), string(v.frames(0, len(v.entries))))

	big := validEvent(t)
	big.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", mostSegmentBytes) + `"}`)
	require.False(t, s.takes(len(big.Payload)))
	s = &segment{}
	require.True(t, s.takes(len(big.Payload)), "an empty segment takes any event")
	s.add(key, big, Position{epoch: 7, seq: 99}, "")
	require.False(t, s.takes(0))
	require.Equal(t, string(big.Payload), string(s.from(0).event(&s.entries[0], channel).Payload))
}

const someEvent = "550e8400-e29b-41d4-a716-446655440000"

func TestFingerprintsTellEventsApart(t *testing.T) {
	seen := map[uint16]bool{}
	for range 200_000 {
		f := fingerprint(uuid.NewString())
		require.NotZero(t, f)
		seen[f] = true
	}
	require.Greater(t, len(seen), 1<<11, "a few bits, evenly used")
}

func TestPositionsOfOnePlace(t *testing.T) {
	at := func(epoch, seq int64, mark uint16) Position { return Position{epoch, seq, mark} }
	require.True(t, at(1, 2, 3).same(at(1, 2, 3)))
	require.True(t, at(1, 2, 3).same(at(1, 2, 0)), "an unknown fingerprint says nothing")
	require.True(t, at(1, 2, 0).same(at(1, 2, 3)))
	require.False(t, at(1, 2, 3).same(at(1, 2, 4)))
	require.False(t, at(1, 2, 3).same(at(1, 3, 3)))
	require.False(t, at(1, 2, 3).same(at(2, 2, 3)))

	require.True(t, at(1, 3, 9).follows(at(1, 2, 3)))
	require.False(t, at(1, 3, 0).follows(at(1, 3, 0)))
	require.False(t, at(1, 4, 0).follows(at(1, 2, 0)))
	require.False(t, at(2, 3, 0).follows(at(1, 2, 0)))
	require.True(t, at(1, 3, 0).beyond(at(1, 2, 0)))
	require.True(t, at(2, 0, 0).beyond(at(1, 2, 0)))
	require.False(t, at(1, 2, 3).beyond(at(1, 2, 0)))
	require.False(t, at(1, 3, 0).beyond(at(2, 2, 0)))
}

// channelNames are the names of n channels, with the longest prefix anyone uses.
func channelNames(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("staging:project:550e8400-e29b-41d4-a716-%012d", i))
	}
	return names
}

func encodeCursor(names []string, at []Position) Cursor {
	return Cursor{string(newCursorKey(names).append(nil, func(i int) Position { return at[i] }))}
}

// positionsIn are the cursor's positions, and which of the channels it covers.
func positionsIn(t testing.TB, c Cursor, names []string) (at []Position, covered []bool) {
	t.Helper()
	entries, err := c.entries(names)
	require.NoError(t, err)
	for _, e := range entries {
		covered = append(covered, e != nil)
		if e == nil {
			e = &cursorEntry{}
		}
		at = append(at, e.pos)
	}
	return at, covered
}

func TestCursorKeepsThePositionOfEachChannel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	seqs := []int64{0, 1, 126, 127, 128, 1 << 31, maxSeq}
	epochs := []int64{0, 1, 1763868000000, 1763868000001, maxEpoch}
	for n := 1; n <= 20; n++ {
		names := channelNames(n)
		var at []Position
		for range n {
			at = append(at, Position{epochs[random.IntN(len(epochs))], seqs[random.IntN(len(seqs))], fingerprint(fmt.Sprint(random.Uint32()))})
		}
		c := encodeCursor(names, at)
		parsed, err := ParseCursor(c.String())
		require.NoError(t, err)
		require.Equal(t, c, parsed)
		require.Regexp(t, regexp.MustCompile(`^[A-Za-z0-9_-]+$`), c.String())
		got, covered := positionsIn(t, parsed, names)
		require.Equal(t, at, got)
		require.NotContains(t, covered, false)

		// In another order, and asked for channels that it does not have.
		slices.Reverse(names)
		slices.Reverse(at)
		got, covered = positionsIn(t, parsed, append(names, "user:other"))
		require.Equal(t, append(at, Position{}), got)
		require.Equal(t, []bool{true, false}, covered[n-1:])
	}
}

// A cursor from outside must not bring in what no log can have, nor be written
// in two ways.
func TestCursorOutOfBoundsIsRefused(t *testing.T) {
	most := Position{epoch: maxEpoch, seq: maxSeq}
	for _, at := range [][]Position{
		{{epoch: maxEpoch, seq: maxSeq + 1}},
		{{epoch: maxEpoch + 1, seq: maxSeq}},
		{{epoch: -1, seq: 1}},
		{most, {epoch: maxEpoch + 1}},
		{{epoch: 1}, {epoch: -1}},
	} {
		_, err := ParseCursor(encodeCursor(channelNames(len(at)), at).String())
		require.Error(t, err, "%v", at)
	}
	_, err := ParseCursor(encodeCursor(channelNames(2), []Position{most, most}).String())
	require.NoError(t, err)

	long := encodeCursor(channelNames(254), slices.Repeat([]Position{most, {epoch: 1, seq: maxSeq}}, 127)).String()
	require.Greater(t, len(long), maxCursorLength)
	_, err = ParseCursor(long)
	require.Error(t, err)

	respelt := 0
	for seq := int64(1); seq < 1<<40; seq <<= 7 { // of every length
		text := encodeCursor(channelNames(1), []Position{{epoch: 1763868000000, seq: seq}}).String()
		if len(text)%4 != 0 { // the last character has bits to spare, and they are 0
			_, err = ParseCursor(text[:len(text)-1] + string(text[len(text)-1]+1))
			require.Error(t, err)
			respelt++
		}
	}
	require.NotZero(t, respelt)
}

func TestCursorOfSixChannelsHasAtMost128Characters(t *testing.T) {
	const year = 365 * 24 * 60 * 60 * 1000
	for _, apart := range []int64{0, 1000, year / 2, 3 * year, 20 * year} {
		for _, seq := range []int64{0, 1000, 1 << 20, 1<<28 - 2, 1 << 28, 1 << 31} {
			var at []Position
			for i := range int64(6) {
				at = append(at, Position{1763868000000 + i%2*apart, seq, fingerprint(someEvent)})
			}
			require.LessOrEqual(t, len(encodeCursor(channelNames(6), at).String()), 128, "%d ms apart, seq %d", apart, seq)
		}
	}
}

// A cursor that a bus writes must be one that it reads.
func TestLongestCursorCanBeRead(t *testing.T) {
	var entries []cursorEntry
	for i := range int64(40) { // the most that WithMaxChannels takes
		pos := Position{1 + i%2*(maxEpoch-1), maxSeq, fingerprint(someEvent)}
		far := Position{maxEpoch - i%2*(maxEpoch-1), maxSeq, 0}
		entries = append(entries, cursorEntry{pos: pos, began: far, hole: hole{from: pos, upto: far}})
	}
	key := newCursorKey(channelNames(40))
	long := string(key.appendAll(nil, entries))
	_, err := ParseCursor(long)
	require.NoError(t, err, "%d characters", len(long))
}

func TestCursorKeepsWhatWasPassedOver(t *testing.T) {
	names := channelNames(3)
	at := func(seq int64) Position { return Position{epoch: 1763868000000, seq: seq} }
	want := []cursorEntry{
		{pos: Position{1763868000000, 42, 1}, began: Position{1763868000000, 42, 1}, hole: hole{at(7), at(41)}},
		{pos: Position{1763868000500, 7, 2}, began: at(3), hole: hole{at(9), at(2)}},
		{pos: Position{1763868000500, 7, 2}},
	}
	entries, err := Cursor{string(newCursorKey(names).appendAll(nil, want))}.entries(names)
	require.NoError(t, err)
	for i, e := range entries {
		e.hash = 0
		require.Equal(t, want[i], *e)
	}
}

// TestCursorsOfBefore were written by an earlier version, of which browsers may still have some.
func TestCursorsOfBefore(t *testing.T) {
	names := channelNames(2)
	before := func(seq int64) Position { return Position{epoch: 1763868000000, seq: seq} }
	for _, tc := range []struct {
		text string
		want []cursorEntry
	}{
		// No more than where it stands.
		{"4AJt6gABK4D-5vWqM25ZAAII6Ac", []cursorEntry{{pos: Position{1763868000000, 42, 1}}, {pos: Position{1763868000500, 7, 2}}}},
		// One began at 40, and passed from 40 to 41 and to 42. The other log went back from 9 to 7.
		{"4AJt6gABK4D-5vWqM25ZAAII6AcAKwAqAAEIAAoAAAUAKgApAAApAAH_-83r1WY", []cursorEntry{
			{pos: Position{1763868000000, 42, 1}, began: before(40), hole: hole{before(40), before(42)}},
			{pos: Position{1763868000500, 7, 2}, hole: hole{Position{epoch: 1763868000500, seq: 9}, Position{epoch: 1763868000500, seq: 7}}},
		}},
		// Without a log at that time.
		{"4AFt6gAAAID-5vWqMw", []cursorEntry{{pos: Position{epoch: 1763868000000}}}},
	} {
		entries, err := Cursor{tc.text}.entries(names[:len(tc.want)])
		require.NoError(t, err, tc.text)
		for i, e := range entries {
			require.NotNil(t, e)
			e.hash = 0
			require.Equal(t, tc.want[i], *e, tc.text)
		}
	}
}

// Of 10,000 names some share a hash: the salt must tell them apart.
func TestSaltTellsChannelsWithOneHashApart(t *testing.T) {
	byHash := map[uint32]string{}
	for i := range 100_000 {
		name := fmt.Sprintf("project:%d", i)
		hash := channelHash(0, name)
		other, ok := byHash[hash]
		if !ok {
			byHash[hash] = name
			continue
		}
		names, at := []string{other, name}, []Position{{5, 1, 0}, {5, 2, 0}}
		require.NotZero(t, newCursorKey(names).salt)
		got, covered := positionsIn(t, encodeCursor(names, at), names)
		require.Equal(t, at, got)
		require.Equal(t, []bool{true, true}, covered)
		return
	}
	t.Fatal("no two names share a hash")
}

// FuzzParseCursor: what is read and written again says the same.
func FuzzParseCursor(f *testing.F) {
	for n := 1; n <= 6; n++ {
		var entries []cursorEntry
		for i := range int64(n) {
			pos := Position{1763868000000 + i*i*1_000_000, i, uint16(i)}
			entries = append(entries, cursorEntry{pos: pos, began: Position{epoch: 5, seq: i}, hole: hole{Position{epoch: 5, seq: 2 * i}, pos}})
		}
		f.Add(string(newCursorKey(channelNames(n)).appendAll(nil, entries)))
		f.Add(string(newCursorKey(channelNames(n)).append(nil, func(i int) Position { return entries[i].pos })))
		entries[0].began = entries[0].pos
		f.Add(string(newCursorKey(channelNames(n)).appendAll(nil, entries)))
	}
	far := []Position{{maxEpoch, maxSeq, 0xFFFF}, {0, 0, 0}, {maxEpoch, 0, 1}, {0, 0, 1}}
	for n := 1; n <= 4; n++ {
		f.Add(string(newCursorKey(channelNames(n)).append(nil, func(i int) Position { return far[i] })))
	}
	f.Add("")
	f.Add("4AAAAA")
	f.Add("4AJt6gABK4D-5vWqM25ZAAII6AcAKwAqAAEIAAoAAAUAKgApAAApAAH_-83r1WY") // of an earlier version
	f.Add("550e8400-e29b-41d4-a716-446655440000")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCursor(text)
		if err != nil {
			require.True(t, c.IsZero())
			return
		}
		require.Equal(t, text, c.String())
		if text == "" {
			return
		}
		require.LessOrEqual(t, len(text), maxCursorLength)
		require.Regexp(t, `^[A-Za-z0-9_-]+$`, text)
		entries, err := decodeCursor(text)
		require.NoError(t, err)
		require.NotEmpty(t, entries)
		var key cursorKey
		for _, e := range entries {
			for _, p := range []Position{e.pos, e.began, e.hole.from, e.hole.upto} {
				require.True(t, p.seq >= 0 && p.seq <= maxSeq && p.epoch >= 0 && p.epoch <= maxEpoch, "%v", p)
			}
			key.hashes = append(key.hashes, e.hash)
		}
		if len(entries) > 40 {
			return // a bus writes none
		}
		again, err := decodeCursor(string(key.appendAll(nil, entries)))
		require.NoError(t, err)
		require.Equal(t, entries, again)
	})
}

// testEpoch is of the log in the tests of resume.
const testEpoch = 100_000

// at is behind the seq-th event of the log.
func at(seq int64) Position { return Position{testEpoch, seq, uint16(1000 + seq)} }

// pageOf is what a read finds in a log that has the events first to last, of which
// it returns seqs.
func pageOf(first, last int64, seqs ...int64) *logPage {
	p := &logPage{last: at(last)}
	if first > 0 {
		p.first = Position{epoch: testEpoch, seq: first}
	}
	for _, seq := range seqs {
		p.entries = append(p.entries, logEntry{pos: at(seq)})
	}
	return p
}

func TestResumeGoesOnWithoutLossOrSaysWhere(t *testing.T) {
	other := func(p Position) Position { p.mark++; return p }
	unmarked := func(p Position) Position { p.mark = 0; return p }
	from := func(asked Position, p *logPage) *logPage { p.asked = asked; return p }
	plain := func(seq int64) Position { return Position{epoch: testEpoch, seq: seq} }
	empty := &logPage{last: plain(0)}

	for _, tc := range []struct {
		name string
		page *logPage
		pos  Position
		want Position
		gap  GapReason
	}{
		{"oldest, empty log", empty, Position{}, plain(0), ""},
		{"oldest, whole log", pageOf(1, 3, 1, 2, 3), Position{}, plain(0), ""},
		{"oldest, trimmed log", pageOf(5, 9, 5, 6), Position{}, plain(4), ""},
		{"oldest, emptied log", pageOf(0, 9), Position{}, at(9), ""},

		{"empty, still empty", empty, plain(0), plain(0), ""},
		{"empty, another log", empty, Position{epoch: testEpoch - 1}, plain(0), GapLost},
		{"empty, now trimmed", pageOf(5, 9, 5), plain(0), plain(4), GapTrimmed},
		{"nobody knows where", pageOf(5, 9, 5), unknown, plain(4), GapUnknown},

		{"the log is another", pageOf(1, 3, 1), Position{testEpoch - 1, 3, 0}, plain(0), GapLost},
		{"the log is another, of before", pageOf(1, 3, 1), Position{testEpoch + 1, 3, 0}, plain(0), GapLost},

		{"the log ends before", pageOf(1, 3), at(4), at(3), GapRewound},
		{"the log ends with another event", pageOf(1, 3, 3), other(at(3)), at(3), GapRewound},
		{"the log has another event there", pageOf(1, 5, 3, 4, 5), other(at(3)), at(3), GapRewound},
		{"the log was trimmed empty, with another end", pageOf(0, 3), other(at(3)), at(3), GapRewound},

		{"trimmed", pageOf(5, 9, 5, 6), at(3), plain(4), GapTrimmed},
		{"trimmed up to the position", pageOf(5, 9, 5, 6), at(4), at(4), ""},
		{"trimmed empty", pageOf(0, 9), at(8), at(9), GapTrimmed},
		{"trimmed empty, but all was read", pageOf(0, 9), at(9), at(9), ""},

		{"entries were deleted behind it", from(at(3), pageOf(1, 9, 3, 6, 7)), at(3), plain(5), GapTrimmed},
		{"its own entry was deleted", from(at(3), pageOf(1, 9, 4, 5)), at(3), at(3), ""},
		{"its own entry and more were deleted", from(at(3), pageOf(1, 9, 5, 6)), at(3), plain(4), GapTrimmed},
		{"entries were deleted later on", from(at(3), pageOf(1, 9, 3, 4, 7)), at(3), at(3), ""},
		{"entries were deleted before it", from(at(1), pageOf(1, 9, 1, 3, 4)), at(3), at(3), ""},
		{"the page is another reader's, who is ahead", from(at(6), pageOf(1, 9, 6, 7)), at(3), at(3), ""},

		{"before the first event", pageOf(1, 3, 1, 2, 3), plain(0), plain(0), ""},
		{"in order", from(at(2), pageOf(1, 3, 2, 3)), at(2), at(2), ""},
		{"in order, from further back", pageOf(1, 9, 1, 2, 3), at(2), at(2), ""},
		{"in order, fingerprint unknown", pageOf(1, 3, 2, 3), unmarked(at(2)), plain(2), ""},
		{"at the end", pageOf(1, 3, 3), at(3), at(3), ""},
		{"at the end, fingerprint unknown", pageOf(1, 3), unmarked(at(3)), plain(3), ""},
		{"a state without entries", pageOf(1, 9), at(3), at(3), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pos, gap := tc.page.resume(tc.pos)
			require.Equal(t, tc.want, pos)
			require.Equal(t, tc.gap, gap)
			// Going on from there announces nothing again.
			again, gap := tc.page.resume(pos)
			require.Equal(t, pos, again)
			require.Empty(t, gap)
		})
	}
}

func TestPageGivesWhatFollowsUpToTheFirstHole(t *testing.T) {
	p := pageOf(1, 9, 2, 3, 4, 7, 8)
	for _, tc := range []struct {
		pos  Position
		want []int64
	}{
		{at(1), []int64{2, 3, 4}},
		{at(2), []int64{3, 4}},
		{at(4), nil},
		{at(6), []int64{7, 8}},
		{at(8), nil},
		{Position{testEpoch - 1, 2, 0}, nil},
	} {
		var got []int64
		for _, e := range p.after(tc.pos) {
			got = append(got, e.pos.seq)
		}
		require.Equal(t, tc.want, got, tc.pos.String())
	}
}

// arrive is an event that comes on the channel of a tail.
func arrive(t testing.TB, pos Position) arrival {
	ev := validEvent(t)
	ev.Position = pos
	return arrival{Event: ev}
}

// openTail is a whole tail of a log that ends at last.
func openTail(t testing.TB, last Position, onBad func(error)) *tail {
	tl := newTail(ProjectChannel(uuid.New()), "p", onBad, func(f func()) { go f() })
	require.True(t, tl.fill(tl.want(), &logPage{last: last}, true))
	return tl
}

// TestHeldEventOfANewLog: the log is lost and begun anew while a read of the old one is
// on its way. What came of the new one waits for the next read.
func TestHeldEventOfANewLog(t *testing.T) {
	old := Position{epoch: 1000, seq: 5}
	tl := openTail(t, old, nil)
	tl.question()
	asked := tl.want()
	a := arrive(t, Position{epoch: 2002, seq: 1})
	tl.offer(a)
	require.False(t, tl.fill(asked, &logPage{last: old}, true))
	require.True(t, tl.fill(tl.want(), &logPage{last: Position{epoch: 2002}}, true))
	require.Equal(t, a.Position.seq, tl.last.seq)
}

// TestHeldEventOfALostLog: what the channel still brings of a log that is lost is in the gap
// that readers are told of. Some have read it in that log: it must not come again.
func TestHeldEventOfALostLog(t *testing.T) {
	before, bad := Position{epoch: 1000, seq: 5}, 0
	tl := openTail(t, before, func(error) { bad++ })
	lost := &logPage{last: Position{epoch: 2500, seq: 1}, first: Position{epoch: 2500, seq: 1}}
	tl.question()
	for _, late := range []int64{6, 7} {
		tl.offer(arrive(t, Position{epoch: before.epoch, seq: late}))
		require.True(t, tl.fill(tl.want(), lost, true))
	}
	require.Empty(t, tl.segments)
	require.Equal(t, lost.last, tl.last)
	require.Equal(t, 2, bad)
}

// TestStaleTails: one is, from when it is not whole, or its log cannot be read.
func TestStaleTails(t *testing.T) {
	tl, later := openTail(t, Position{epoch: 1000, seq: 5}, nil), time.Now().Add(time.Hour)
	require.Zero(t, tl.stale(later))
	tl.question()
	require.Greater(t, tl.stale(later), 59*time.Minute)
	require.False(t, tl.fill(tl.want(), &logPage{last: tl.last}, false))
	require.Equal(t, behind, tl.state)
	require.Greater(t, tl.stale(later), 59*time.Minute)
	require.True(t, tl.fill(tl.want(), &logPage{last: tl.last}, true))
	require.Zero(t, tl.stale(later))
	tl.unfilled()
	require.Greater(t, tl.stale(later), 59*time.Minute)
}

// TestNumberGivenTwice: a master that lacked the newest event has given its number to another, and
// the channel brings only what follows that. The tail notices, and starts anew from the log.
func TestNumberGivenTwice(t *testing.T) {
	tl := openTail(t, Position{epoch: 1000}, nil)
	one, two, other := arrive(t, Position{epoch: 1000, seq: 1}), arrive(t, Position{epoch: 1000, seq: 2}), arrive(t, Position{epoch: 1000, seq: 3})
	require.True(t, tl.offer(one))
	two.prev = one.ID[28:]
	require.True(t, tl.offer(two))
	other.prev = validEvent(t).ID[28:]
	require.False(t, tl.offer(other))
	require.Equal(t, cut, tl.state)
	require.Equal(t, two.Position.seq, tl.last.seq, "nothing was added")

	late := place{pos: one.Position, waiter: pace.NewFlag()}
	late.pos.mark = fingerprint(one.ID)
	require.True(t, tl.look(&late).behind, "nor is what the log may lack given to anybody")
	page := &logPage{last: Position{epoch: 1000, seq: 3, mark: fingerprint(other.ID)}, asked: tl.last}
	page.entries = []logEntry{{pos: Position{epoch: 1000, seq: 2, mark: 77}}, {pos: page.last, event: other.appendJSON(nil)}}
	require.True(t, tl.fill(tl.want(), page, true))
	require.Empty(t, tl.segments)
	require.Equal(t, page.last, tl.last)
}

func TestWhatIsHeldBackIsBoundedInBytes(t *testing.T) {
	tl := newTail(ProjectChannel(uuid.New()), "p", nil, nil)
	for i := range 600 {
		a := arrive(t, Position{epoch: 5, seq: int64(i + 1)})
		a.Payload = []byte(`{"a":"` + strings.Repeat("x", 200<<10) + `"}`)
		tl.offer(a)
	}
	n := 0
	for _, h := range tl.held {
		n += len(h.Payload)
	}
	require.LessOrEqual(t, n, tailBytes)
	require.True(t, tl.overflow)
}

// TestTimesAreWrittenAsByTime holds the quick way against that of package time.
func TestTimesAreWrittenAsByTime(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		at := time.Unix(r.Int64N(253402300800+62135596800)-62135596800, r.Int64N(2)*r.Int64N(1e9)).In(time.FixedZone("", r.IntN(80000)-40000))
		layout := "2006-01-02T15:04:05Z"
		if at.Nanosecond() >= 1000 {
			layout = "2006-01-02T15:04:05.000000Z"
		}
		require.Equal(t, at.UTC().Truncate(time.Microsecond).Format(layout), string(appendTime(nil, at)))
	}
}

// FuzzEachMember holds rawjson.EachMember against encoding/json.
func FuzzEachMember(f *testing.F) {
	for _, text := range []string{
		"", " ", "null", "[]", "{", "{}", " { } ", `{"a":1,"b":[{}]}`, "{\"a\" : 1 ,\n\"b\":2}", `{"a":{"b":[1,"]"],"c":"}"}}`, `{"a\"":"\\","b":"\\\""}`, `{"a":-1.5e+10,"b":true}`, `{"a":1,"a":null}`, "{\"a\":\"\xff\"}",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var want map[string]json.RawMessage
		err := json.Unmarshal(text, &want)
		got := map[string]json.RawMessage{}
		if rawjson.EachMember(text, func(name, value []byte) { got[string(name)] = value }) != nil {
			require.True(t, err != nil || want == nil || !utf8.Valid(text), "%q", text)
			return
		}
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, got, "%q", text)
	})
}

// TestMessageBeyondTheLog: what was held back before a read began, and is not in what was read, is of
// no log, or lost. The tail does not wait for it.
func TestMessageBeyondTheLog(t *testing.T) {
	bad, end := 0, Position{epoch: 1000, seq: 5}
	tl := openTail(t, end, func(error) { bad++ })
	require.False(t, tl.offer(arrive(t, Position{epoch: 1000, seq: 9})))
	require.True(t, tl.fill(tl.want(), &logPage{last: end}, true))
	require.Equal(t, 1, bad)
	require.True(t, tl.offer(arrive(t, Position{epoch: 1000, seq: 6})))
	require.Equal(t, whole, tl.state)
}

// TestOutcomesAreBounded in number, by dropping the oldest.
func TestOutcomesAreBounded(t *testing.T) {
	var o outcomes
	for i := range mostOutcomes + 10 {
		o.put(&publication{id: fmt.Sprint(i)})
	}
	require.Len(t, o.of, mostOutcomes)
	require.Nil(t, o.get("9"))
	kept := o.get("10")
	require.NotNil(t, kept)
	o.drop(kept)
	require.Nil(t, o.get("10"))
	require.Equal(t, mostOutcomes-1, o.order.Len())
}
