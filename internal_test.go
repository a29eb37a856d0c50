package eventbus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
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
		require.NoError(t, eachMember([]byte(text), func(name, value []byte) { got[string(name)] = value }))
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
	require.True(t, at(8, 1, 0).follows(at(5, noLog, 0)), "the first event of a log that was not there")
	require.False(t, at(8, 2, 0).follows(at(5, noLog, 0)))
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
	seqs := []int64{noLog, 0, 1, 126, 127, 128, 1 << 31, maxSeq}
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

	long := encodeCursor(channelNames(200), slices.Repeat([]Position{{epoch: 1, seq: 1}}, 200)).String()
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
	names := channelNames(40) // the most that WithMaxChannels takes
	var at []Position
	holes := make([][]hole, len(names))
	for i := range int64(40) {
		pos := Position{1763868000000 + i%2*100_000_000_000, 1 << 31, fingerprint(someEvent)}
		at = append(at, pos)
		for range maxHoles {
			holes[i] = append(holes[i], hole{Position{}, pos}, hole{Position{epoch: 1, seq: 1 << 31}, pos})
		}
		holes[i] = holes[i][:maxHoles]
	}
	plain := encodeCursor(names, at)
	_, err := ParseCursor(plain.String())
	require.NoError(t, err)
	holed := newCursorKey(names).append(nil, func(i int) Position { return at[i] }, holes...)
	_, err = ParseCursor(string(holed))
	require.NoError(t, err, "%d characters", len(holed))
}

func TestCursorKeepsHolesWhereThereIsRoom(t *testing.T) {
	names := channelNames(2)
	at := []Position{{1763868000000, 42, 1}, {1763868000500, 7, 2}}
	holes := [][]hole{
		{{Position{epoch: 1, seq: 3}, Position{epoch: 1763868000500, seq: noLog}}, {Position{}, Position{epoch: 1763868000000, seq: 40}}, {Position{epoch: 1763868000000, seq: 40}, Position{epoch: 1763868000000, seq: 41}}},
		{{Position{epoch: 1763868000500, seq: 9, mark: 5}, Position{epoch: 1763868000500, seq: 7}}},
	}
	c := Cursor{string(newCursorKey(names).append(nil, func(i int) Position { return at[i] }, holes...))}
	entries, err := c.entries(names)
	require.NoError(t, err)
	for i, e := range entries {
		require.Equal(t, at[i], e.pos)
		require.Equal(t, holes[i], e.holes)
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
		var at []Position
		for i := range int64(n) {
			at = append(at, Position{1763868000000 + i*i*1_000_000, i - 1, uint16(i)})
		}
		holes := [][]hole{{{Position{}, Position{epoch: 5, seq: 3}}, {Position{epoch: 5, seq: 7, mark: 9}, Position{epoch: 5, seq: 2}}}}
		f.Add(encodeCursor(channelNames(n), at).String())
		f.Add(string(newCursorKey(channelNames(n)).append(nil, func(i int) Position { return at[i] }, holes...)))
	}
	far := []Position{{maxEpoch, maxSeq, 0xFFFF}, {0, noLog, 0}, {maxEpoch, 0, 1}, {0, 0, 1}}
	many := make([][]hole, len(far))
	for i := range many {
		for seq := range int64(maxHoles) {
			many[i] = append(many[i], hole{Position{epoch: seq, seq: seq}, Position{epoch: maxEpoch - seq, seq: maxSeq - seq}})
		}
	}
	for n := 1; n <= 4; n++ {
		f.Add(string(newCursorKey(channelNames(n)).append(nil, func(i int) Position { return far[i] }, many[:n]...)))
	}
	f.Add("")
	f.Add("4AAAAA")
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
		holes := make([][]hole, len(entries))
		for i, e := range entries {
			require.GreaterOrEqual(t, e.pos.seq, int64(noLog))
			require.LessOrEqual(t, e.pos.seq, int64(maxSeq))
			require.GreaterOrEqual(t, e.pos.epoch, int64(0))
			require.LessOrEqual(t, e.pos.epoch, int64(maxEpoch))
			key.hashes = append(key.hashes, e.hash)
			holes[i] = e.holes
		}
		again, err := decodeCursor(string(key.append(nil, func(i int) Position { return entries[i].pos }, holes...)))
		require.NoError(t, err)
		require.Len(t, again, len(entries))
		for i := range again {
			require.Equal(t, entries[i].hash, again[i].hash)
			require.Equal(t, entries[i].pos, again[i].pos)
			// There may be room for fewer holes.
			require.LessOrEqual(t, len(again[i].holes), len(entries[i].holes))
			for _, h := range again[i].holes {
				require.Contains(t, entries[i].holes, h)
			}
		}
	})
}

// The log in the tests of resume: its epoch, and the time of the page.
const (
	testEpoch = 100_000
	testNow   = 200_000
	testAge   = 50 * time.Second
)

// at is behind the seq-th event of the log.
func at(seq int64) Position { return Position{testEpoch, seq, uint16(1000 + seq)} }

// pageOf is what a read finds in a log that has the events first to last, of which
// it returns seqs.
func pageOf(first, last int64, seqs ...int64) *logPage {
	p := &logPage{now: testNow, last: at(last)}
	if first > 0 {
		p.first = Position{epoch: testEpoch, seq: first}
	}
	for _, seq := range seqs {
		p.entries = append(p.entries, logEntry{pos: at(seq)})
	}
	return p
}

func TestResumeGoesOnWithoutLossOrSaysWhere(t *testing.T) {
	none := &logPage{now: testNow}
	noLogAt := func(ms int64) Position { return Position{epoch: ms, seq: noLog} }
	other := func(p Position) Position { p.mark++; return p }
	unmarked := func(p Position) Position { p.mark = 0; return p }
	from := func(asked Position, p *logPage) *logPage { p.asked = asked; return p }
	const ageMillis = int64(testAge / time.Millisecond)
	plain := func(seq int64) Position { return Position{epoch: testEpoch, seq: seq} }

	for _, tc := range []struct {
		name string
		page *logPage
		pos  Position
		age  time.Duration
		want Position
		gap  GapReason
	}{
		{"oldest, no log", none, Position{}, testAge, noLogAt(testNow), ""},
		{"oldest, whole log", pageOf(1, 3, 1, 2, 3), Position{}, testAge, plain(0), ""},
		{"oldest, trimmed log", pageOf(5, 9, 5, 6), Position{}, testAge, plain(4), ""},
		{"oldest, emptied log", pageOf(0, 9), Position{}, testAge, at(9), ""},

		{"none, still none", none, noLogAt(testNow - ageMillis), testAge, noLogAt(testNow), ""},
		{"none, still none, but one may have come and gone", none, noLogAt(testNow - ageMillis - 1), testAge, noLogAt(testNow), GapLost},
		{"none, still none, logs stay for ever", none, noLogAt(1), 0, noLogAt(testNow), ""},
		{"none, a log began", pageOf(1, 3, 1, 2, 3), noLogAt(testEpoch - 1), testAge, plain(0), ""},
		{"none, a log began at the last moment", pageOf(1, 3, 1), noLogAt(testEpoch - ageMillis), testAge, plain(0), ""},
		{"none, a log began, but one may have been before it", pageOf(1, 3, 1), noLogAt(testEpoch - ageMillis - 1), testAge, plain(0), GapLost},
		{"none, a log began after long, logs stay for ever", pageOf(1, 3, 1), noLogAt(1), 0, plain(0), ""},
		{"none, a log began and was trimmed", pageOf(5, 9, 5), noLogAt(testEpoch - 1), testAge, plain(4), GapTrimmed},
		{"none, a log began and was emptied", pageOf(0, 9), noLogAt(testEpoch - 1), testAge, at(9), GapTrimmed},

		{"the log is gone", none, at(3), testAge, noLogAt(testNow), GapLost},
		{"the log is another", pageOf(1, 3, 1), Position{testEpoch - 1, 3, 0}, testAge, plain(0), GapLost},
		{"the log is another, of before", pageOf(1, 3, 1), Position{testEpoch + 1, 3, 0}, testAge, plain(0), GapLost},

		{"the log ends before", pageOf(1, 3), at(4), testAge, at(3), GapRewound},
		{"the log ends with another event", pageOf(1, 3, 3), other(at(3)), testAge, at(3), GapRewound},
		{"the log has another event there", pageOf(1, 5, 3, 4, 5), other(at(3)), testAge, at(3), GapRewound},
		{"the log was trimmed empty, with another end", pageOf(0, 3), other(at(3)), testAge, at(3), GapRewound},

		{"trimmed", pageOf(5, 9, 5, 6), at(3), testAge, plain(4), GapTrimmed},
		{"trimmed up to the position", pageOf(5, 9, 5, 6), at(4), testAge, at(4), ""},
		{"trimmed empty", pageOf(0, 9), at(8), testAge, at(9), GapTrimmed},
		{"trimmed empty, but all was read", pageOf(0, 9), at(9), testAge, at(9), ""},

		{"entries were deleted behind it", from(at(3), pageOf(1, 9, 3, 6, 7)), at(3), testAge, plain(5), GapTrimmed},
		{"its own entry was deleted", from(at(3), pageOf(1, 9, 4, 5)), at(3), testAge, at(3), ""},
		{"its own entry and more were deleted", from(at(3), pageOf(1, 9, 5, 6)), at(3), testAge, plain(4), GapTrimmed},
		{"entries were deleted later on", from(at(3), pageOf(1, 9, 3, 4, 7)), at(3), testAge, at(3), ""},
		{"entries were deleted before it", from(at(1), pageOf(1, 9, 1, 3, 4)), at(3), testAge, at(3), ""},
		{"the page is another reader's, who is ahead", from(at(6), pageOf(1, 9, 6, 7)), at(3), testAge, at(3), ""},

		{"before the first event", pageOf(1, 3, 1, 2, 3), plain(0), testAge, plain(0), ""},
		{"in order", from(at(2), pageOf(1, 3, 2, 3)), at(2), testAge, at(2), ""},
		{"in order, from further back", pageOf(1, 9, 1, 2, 3), at(2), testAge, at(2), ""},
		{"in order, fingerprint unknown", pageOf(1, 3, 2, 3), unmarked(at(2)), testAge, plain(2), ""},
		{"at the end", pageOf(1, 3, 3), at(3), testAge, at(3), ""},
		{"at the end, fingerprint unknown", pageOf(1, 3), unmarked(at(3)), testAge, plain(3), ""},
		{"a state without entries", pageOf(1, 9), at(3), testAge, at(3), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pos, gap := tc.page.resume(tc.pos, tc.age)
			require.Equal(t, tc.want, pos)
			require.Equal(t, tc.gap, gap)
			// Going on from there announces nothing again.
			again, gap := tc.page.resume(pos, tc.age)
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
	first := pageOf(1, 2, 1, 2)
	require.Len(t, first.after(Position{testNow, noLog, 0}), 2, "a log that begins")
	require.True(t, bytes.Equal(nil, first.after(Position{testNow, noLog, 0})[0].event))
}

// TestHeldEventOfANewLog: the log is lost and begun anew while a read of the old one is
// on its way. What came of the new one is no foreign event.
func TestHeldEventOfANewLog(t *testing.T) {
	tl := newTail(ProjectChannel(uuid.New()), "p", time.Hour, func(error) {}, nil)
	page := func(now int64) *logPage {
		return &logPage{now: now, last: Position{epoch: 1000, seq: 5}, first: Position{epoch: 1000, seq: 1}}
	}
	require.True(t, tl.fill(tl.want(), page(2000), true))
	tl.question()
	asked := tl.want()
	ev := validEvent(t)
	ev.Position = Position{epoch: 2002, seq: 1}
	tl.offer(ev, "", true, false)
	require.False(t, tl.fill(asked, page(2001), true))
	for _, s := range tl.segments {
		for i := range s.entries {
			require.False(t, s.entries[i].foreign)
		}
	}
}

// TestHeldEventOfALostLog: what the channel still brings of a log that is lost is in the gap
// that readers are told of. Some have read it in that log: it must not come again.
func TestHeldEventOfALostLog(t *testing.T) {
	tl := newTail(ProjectChannel(uuid.New()), "p", time.Hour, func(error) {}, nil)
	before := Position{epoch: 1000, seq: 5}
	require.True(t, tl.fill(tl.want(), &logPage{now: 2000, last: before, first: Position{epoch: 1000, seq: 1}}, true))
	offer := func(seq int64) {
		ev := validEvent(t)
		ev.Position = Position{epoch: before.epoch, seq: seq}
		tl.offer(ev, "", true, false)
	}
	lost := &logPage{now: 3000, last: Position{epoch: 2500, seq: 1}, first: Position{epoch: 2500, seq: 1}}
	tl.question()
	offer(6)
	require.True(t, tl.fill(tl.want(), lost, true))
	offer(7) // it comes late
	require.True(t, tl.fill(tl.want(), lost, true))
	require.Empty(t, tl.segments)
	require.Equal(t, lost.last, tl.last)
	tl.question() // the log goes, and comes back with its server
	require.True(t, tl.fill(tl.want(), &logPage{now: 3500}, true))
	require.Equal(t, lost.last.epoch, tl.former)
	again := validEvent(t)
	raw := again.appendJSON(nil)
	lost.entries = []logEntry{{pos: lost.last, event: raw}}
	tl.question()
	require.True(t, tl.fill(tl.want(), lost, true))
	require.Zero(t, tl.former)
}

func TestWhatIsHeldBackIsBoundedInBytes(t *testing.T) {
	tl := newTail(ProjectChannel(uuid.New()), "p", time.Hour, nil, nil)
	for i := range 600 {
		ev := validEvent(t)
		ev.Payload = []byte(`{"a":"` + strings.Repeat("x", 200<<10) + `"}`)
		ev.Position = Position{epoch: 5, seq: int64(i + 1)}
		tl.offer(ev, "", true, false)
	}
	n := 0
	for _, h := range tl.held {
		n += len(h.Payload)
	}
	require.LessOrEqual(t, n, tailBytes)
	require.True(t, tl.overflow)
}

// TestTimesAreWrittenAndReadAsByTime holds the quick ways against those of package time.
func TestTimesAreWrittenAndReadAsByTime(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		at := time.Unix(r.Int64N(253402300800+62135596800)-62135596800, r.Int64N(2)*r.Int64N(1e9)).In(time.FixedZone("", r.IntN(80000)-40000))
		layout := "2006-01-02T15:04:05Z"
		if at.Nanosecond() >= 1000 {
			layout = "2006-01-02T15:04:05.000000Z"
		}
		want := at.UTC().Truncate(time.Microsecond)
		text := string(appendTime(nil, at))
		require.Equal(t, want.Format(layout), text)
		if want.Year() < 1 {
			continue
		}
		read, ok := parseWireTime([]byte(text))
		require.True(t, ok, text)
		require.True(t, want.Equal(read), text)
	}
	for _, text := range []string{
		"2023-02-29T00:00:00Z", "2024-02-29T00:00:00Z", "2023-06-31T00:00:00Z", "2023-00-01T00:00:00Z", "2023-13-01T00:00:00Z", "2023-01-00T00:00:00Z",
		"2023-01-01T24:00:00Z", "2023-01-01T23:60:00Z", "2023-01-01T23:59:60Z", "0000-01-01T00:00:00Z", "2023-01-01 00:00:00Z", "2023-01-01T00:00:00z",
		"2023-01-01T00:00:00.00000Z", "2023-01-01T00:00:00.000000Z", "2023-01-01T00:00:00,000000Z", "2023-01-01T00:00:0/Z", "2023-01-01T00:00:0:Z", "",
	} {
		quick, ok := parseWireTime([]byte(text))
		slow, err := time.Parse(time.RFC3339, text)
		if ok {
			require.NoError(t, err, text)
			require.Equal(t, slow, quick, text)
		} else if err == nil {
			require.Contains(t, []string{"0000-01-01T00:00:00Z", "2023-01-01T00:00:00.00000Z", "2023-01-01T00:00:00,000000Z"}, text)
		}
	}
}

// FuzzValidJSON holds validJSON against encoding/json.
func FuzzValidJSON(f *testing.F) {
	for _, text := range []string{
		"", " ", "null", "nul", "true ", "fals", "{}", "[]", "{]", "[1,2]", "[1,]", "[,1]", `{"a":1,"b":[{}]}`, `{"a" : 1 , "b":2}`, `{"a":1,}`, `{a:1}`, `{"a"1}`, `{"a":}`,
		"0", "-0", "00", "-", "1.", ".1", "1.5e+10", "1e", "1E-", "1e5.5", "+1", "1 2", "\"", `"\u12"`, `"\u12ab"`, `"\u12AG"`, `"\x"`, `"\"`, `"a\\"`, "\"\x1f\"", "\"\x7f\xff\"", "[\n\t\r 1 ]", "\v1",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		require.Equal(t, json.Valid(text), validJSON(text), "%q", text)
	})
}

func TestValidJSONNestsAsDeepAsEncodingJSON(t *testing.T) {
	for _, depth := range []int{maxNesting - 1, maxNesting, maxNesting + 1} {
		for _, text := range []string{strings.Repeat("[", depth) + strings.Repeat("]", depth), strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth)} {
			require.Equal(t, json.Valid([]byte(text)), validJSON([]byte(text)), depth)
		}
	}
}
