package position

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

const someEvent = "550e8400-e29b-41d4-a716-446655440000"

func TestFingerprintsTellEventsApart(t *testing.T) {
	seen := map[uint16]bool{}
	for range 200_000 {
		f := Fingerprint(uuid.NewString())
		require.NotZero(t, f)
		seen[f] = true
	}
	require.Greater(t, len(seen), 1<<11, "a few bits, evenly used")
}

func TestPositionsOfOnePlace(t *testing.T) {
	at := func(epoch, seq int64, mark uint16) Position { return Position{epoch, seq, mark} }
	require.True(t, at(1, 2, 3).Same(at(1, 2, 3)))
	require.True(t, at(1, 2, 3).Same(at(1, 2, 0)), "an unknown fingerprint says nothing")
	require.True(t, at(1, 2, 0).Same(at(1, 2, 3)))
	require.False(t, at(1, 2, 3).Same(at(1, 2, 4)))
	require.False(t, at(1, 2, 3).Same(at(1, 3, 3)))
	require.False(t, at(1, 2, 3).Same(at(2, 2, 3)))

	require.True(t, at(1, 3, 9).Follows(at(1, 2, 3)))
	require.False(t, at(1, 3, 0).Follows(at(1, 3, 0)))
	require.False(t, at(1, 4, 0).Follows(at(1, 2, 0)))
	require.False(t, at(2, 3, 0).Follows(at(1, 2, 0)))
	require.True(t, at(1, 3, 0).Beyond(at(1, 2, 0)))
	require.True(t, at(2, 0, 0).Beyond(at(1, 2, 0)))
	require.False(t, at(1, 2, 3).Beyond(at(1, 2, 0)))
	require.False(t, at(1, 3, 0).Beyond(at(2, 2, 0)))
}

// channelNames gives the names of n channels, with a prefix.
func channelNames(n int) []string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("staging:project:550e8400-e29b-41d4-a716-%012d", i))
	}
	return names
}

func encodeCursor(names []string, at []Position) string {
	return string(NewKey(names).Append(nil, func(i int) Position { return at[i] }))
}

// positionsIn gives the cursor's positions, and which of the channels it covers.
func positionsIn(t testing.TB, c string, names []string) (at []Position, covered []bool) {
	t.Helper()
	entries, err := Entries(c, names)
	require.NoError(t, err)
	for _, e := range entries {
		covered = append(covered, e != nil)
		if e == nil {
			e = &Entry{}
		}
		at = append(at, e.Pos)
	}
	return at, covered
}

func TestCursorKeepsThePositionOfEachChannel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	seqs := []int64{0, 1, 126, 127, 128, 1 << 31, MaxSeq}
	epochs := []int64{0, 1, 1763868000000, 1763868000001, MaxEpoch}
	for n := 1; n <= 20; n++ {
		names := channelNames(n)
		var at []Position
		for range n {
			at = append(at, Position{epochs[random.IntN(len(epochs))], seqs[random.IntN(len(seqs))], Fingerprint(fmt.Sprint(random.Uint32()))})
		}
		c := encodeCursor(names, at)
		require.Regexp(t, `^[A-Za-z0-9_-]+$`, c)
		got, covered := positionsIn(t, c, names)
		require.Equal(t, at, got)
		require.NotContains(t, covered, false)

		// In another order, and asked for channels that it does not have.
		slices.Reverse(names)
		slices.Reverse(at)
		got, covered = positionsIn(t, c, append(names, "user:other"))
		require.Equal(t, append(at, Position{}), got)
		require.Equal(t, []bool{true, false}, covered[n-1:])
	}
}

// TestCursorOutOfBoundsIsRefused: a cursor from outside must not bring in what no log can have, and
// has only one text.
func TestCursorOutOfBoundsIsRefused(t *testing.T) {
	most := Position{Epoch: MaxEpoch, Seq: MaxSeq}
	for _, at := range [][]Position{
		{{Epoch: MaxEpoch, Seq: MaxSeq + 1}},
		{{Epoch: MaxEpoch + 1, Seq: MaxSeq}},
		{{Epoch: -1, Seq: 1}},
		{most, {Epoch: MaxEpoch + 1}},
		{{Epoch: 1}, {Epoch: -1}},
	} {
		_, err := DecodeCursor(encodeCursor(channelNames(len(at)), at))
		require.Error(t, err, "%v", at)
	}
	_, err := DecodeCursor(encodeCursor(channelNames(2), []Position{most, most}))
	require.NoError(t, err)

	long := encodeCursor(channelNames(254), slices.Repeat([]Position{most, {Epoch: 1, Seq: MaxSeq}}, 127))
	require.Greater(t, len(long), MaxCursorLength)
	_, err = DecodeCursor(long)
	require.Error(t, err)

	respelt := 0
	for seq := int64(1); seq < 1<<40; seq <<= 7 { // of every length
		text := encodeCursor(channelNames(1), []Position{{Epoch: 1763868000000, Seq: seq}})
		if len(text)%4 != 0 { // the spare bits of the last character are 0
			_, err = DecodeCursor(text[:len(text)-1] + string(text[len(text)-1]+1))
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
				at = append(at, Position{1763868000000 + i%2*apart, seq, Fingerprint(someEvent)})
			}
			require.LessOrEqual(t, len(encodeCursor(channelNames(6), at)), 128, "%d ms apart, seq %d", apart, seq)
		}
	}
}

// TestLongestCursorCanBeRead: a bus must be able to read every cursor that it writes.
func TestLongestCursorCanBeRead(t *testing.T) {
	var entries []Entry
	for i := range int64(40) { // the most that WithMaxChannels takes
		pos := Position{1 + i%2*(MaxEpoch-1), MaxSeq, Fingerprint(someEvent)}
		far := Position{MaxEpoch - i%2*(MaxEpoch-1), MaxSeq, 0}
		entries = append(entries, Entry{Pos: pos, Began: far, Hole: Hole{From: pos, Upto: far}})
	}
	key := NewKey(channelNames(40))
	long := string(key.AppendAll(nil, entries))
	_, err := DecodeCursor(long)
	require.NoError(t, err, "%d characters", len(long))
}

func TestCursorKeepsWhatWasPassedOver(t *testing.T) {
	names := channelNames(3)
	at := func(seq int64) Position { return Position{Epoch: 1763868000000, Seq: seq} }
	want := []Entry{
		{Pos: Position{1763868000000, 42, 1}, Began: Position{1763868000000, 42, 1}, Hole: Hole{at(7), at(41)}},
		{Pos: Position{1763868000500, 7, 2}, Began: at(3), Hole: Hole{at(9), at(2)}},
		{Pos: Position{1763868000500, 7, 2}},
	}
	entries, err := Entries(string(NewKey(names).AppendAll(nil, want)), names)
	require.NoError(t, err)
	for i, e := range entries {
		e.hash = 0
		require.Equal(t, want[i], *e)
	}
}

// TestCursorsOfBefore: browsers may still have cursors that an earlier version has written.
func TestCursorsOfBefore(t *testing.T) {
	names := channelNames(2)
	before := func(seq int64) Position { return Position{Epoch: 1763868000000, Seq: seq} }
	for _, tc := range []struct {
		text string
		want []Entry
	}{
		// Positions alone.
		{"4AJt6gABK4D-5vWqM25ZAAII6Ac", []Entry{{Pos: Position{1763868000000, 42, 1}}, {Pos: Position{1763868000500, 7, 2}}}},
		// One channel began at 40 and has two holes: 40 to 41, and 41 to 42. The other log went
		// back from 9 to 7.
		{"4AJt6gABK4D-5vWqM25ZAAII6AcAKwAqAAEIAAoAAAUAKgApAAApAAH_-83r1WY", []Entry{
			{Pos: Position{1763868000000, 42, 1}, Began: before(40), Hole: Hole{before(40), before(42)}},
			{Pos: Position{1763868000500, 7, 2}, Hole: Hole{Position{Epoch: 1763868000500, Seq: 9}, Position{Epoch: 1763868000500, Seq: 7}}},
		}},
		// There was no log.
		{"4AFt6gAAAID-5vWqMw", []Entry{{Pos: Position{Epoch: 1763868000000}}}},
	} {
		entries, err := Entries(tc.text, names[:len(tc.want)])
		require.NoError(t, err, tc.text)
		for i, e := range entries {
			require.NotNil(t, e)
			e.hash = 0
			require.Equal(t, tc.want[i], *e, tc.text)
		}
	}
}

// TestSaltTellsChannelsWithOneHashApart: of so many names, some share a hash. The salt must make
// their hashes differ.
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
		require.NotZero(t, NewKey(names).salt)
		got, covered := positionsIn(t, encodeCursor(names, at), names)
		require.Equal(t, at, got)
		require.Equal(t, []bool{true, true}, covered)
		return
	}
	t.Fatal("no two names share a hash")
}

// FuzzDecodeCursor: what is read and written again says the same.
func FuzzDecodeCursor(f *testing.F) {
	for n := 1; n <= 6; n++ {
		var entries []Entry
		for i := range int64(n) {
			pos := Position{1763868000000 + i*i*1_000_000, i, uint16(i)}
			entries = append(entries, Entry{Pos: pos, Began: Position{Epoch: 5, Seq: i}, Hole: Hole{Position{Epoch: 5, Seq: 2 * i}, pos}})
		}
		f.Add(string(NewKey(channelNames(n)).AppendAll(nil, entries)))
		f.Add(string(NewKey(channelNames(n)).Append(nil, func(i int) Position { return entries[i].Pos })))
		entries[0].Began = entries[0].Pos
		f.Add(string(NewKey(channelNames(n)).AppendAll(nil, entries)))
	}
	far := []Position{{MaxEpoch, MaxSeq, 0xFFFF}, {0, 0, 0}, {MaxEpoch, 0, 1}, {0, 0, 1}}
	for n := 1; n <= 4; n++ {
		f.Add(string(NewKey(channelNames(n)).Append(nil, func(i int) Position { return far[i] })))
	}
	f.Add("")
	f.Add("4AAAAA")
	f.Add("4AJt6gABK4D-5vWqM25ZAAII6AcAKwAqAAEIAAoAAAUAKgApAAApAAH_-83r1WY") // of an earlier version
	f.Add("550e8400-e29b-41d4-a716-446655440000")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := DecodeCursor(text)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(text), MaxCursorLength)
		require.Regexp(t, `^[A-Za-z0-9_-]+$`, text)
		require.NotEmpty(t, entries)
		var key Key
		for _, e := range entries {
			for _, p := range []Position{e.Pos, e.Began, e.Hole.From, e.Hole.Upto} {
				require.True(t, p.Seq >= 0 && p.Seq <= MaxSeq && p.Epoch >= 0 && p.Epoch <= MaxEpoch, "%v", p)
			}
			key.hashes = append(key.hashes, e.hash)
		}
		if len(entries) > 40 {
			return // a bus writes none
		}
		again, err := DecodeCursor(string(key.AppendAll(nil, entries)))
		require.NoError(t, err)
		require.Equal(t, entries, again)
	})
}

// testEpoch is the epoch of the log in the tests of Resume.
const testEpoch = 100_000

// at gives the position behind the seq-th event of the log.
func at(seq int64) Position { return Position{testEpoch, seq, uint16(1000 + seq)} }

// pageOf makes the page of a log that has the events first to last. The page has those of seqs.
func pageOf(first, last int64, seqs ...int64) *Page {
	p := &Page{Last: at(last)}
	if first > 0 {
		p.First = Position{Epoch: testEpoch, Seq: first}
	}
	for _, seq := range seqs {
		p.Entries = append(p.Entries, LogEntry{Pos: at(seq)})
	}
	return p
}

func TestResumeGoesOnWithoutLossOrSaysWhere(t *testing.T) {
	other := func(p Position) Position { p.Fingerprint++; return p }
	unmarked := func(p Position) Position { p.Fingerprint = 0; return p }
	from := func(asked Position, p *Page) *Page { p.Asked = asked; return p }
	plain := func(seq int64) Position { return Position{Epoch: testEpoch, Seq: seq} }
	empty := &Page{Last: plain(0)}

	for _, tc := range []struct {
		name string
		page *Page
		pos  Position
		want Position
		gap  Reason
	}{
		{"oldest, empty log", empty, Position{}, plain(0), ""},
		{"oldest, whole log", pageOf(1, 3, 1, 2, 3), Position{}, plain(0), ""},
		{"oldest, trimmed log", pageOf(5, 9, 5, 6), Position{}, plain(4), ""},
		{"oldest, emptied log", pageOf(0, 9), Position{}, at(9), ""},

		{"empty, still empty", empty, plain(0), plain(0), ""},
		{"empty, another log", empty, Position{Epoch: testEpoch - 1}, plain(0), Lost},
		{"empty, now trimmed", pageOf(5, 9, 5), plain(0), plain(4), Trimmed},
		{"nobody knows where", pageOf(5, 9, 5), Unknown, plain(4), Unreadable},

		{"the log is another", pageOf(1, 3, 1), Position{testEpoch - 1, 3, 0}, plain(0), Lost},
		{"the log is another, of before", pageOf(1, 3, 1), Position{testEpoch + 1, 3, 0}, plain(0), Lost},

		{"the log ends before", pageOf(1, 3), at(4), at(3), Rewound},
		{"the log ends with another event", pageOf(1, 3, 3), other(at(3)), at(3), Rewound},
		{"the log has another event there", pageOf(1, 5, 3, 4, 5), other(at(3)), at(3), Rewound},
		{"the log was trimmed empty, with another end", pageOf(0, 3), other(at(3)), at(3), Rewound},

		{"trimmed", pageOf(5, 9, 5, 6), at(3), plain(4), Trimmed},
		{"trimmed up to the position", pageOf(5, 9, 5, 6), at(4), at(4), ""},
		{"trimmed empty", pageOf(0, 9), at(8), at(9), Trimmed},
		{"trimmed empty, but all was read", pageOf(0, 9), at(9), at(9), ""},

		{"entries were deleted behind it", from(at(3), pageOf(1, 9, 3, 6, 7)), at(3), plain(5), Trimmed},
		{"its own entry was deleted", from(at(3), pageOf(1, 9, 4, 5)), at(3), at(3), ""},
		{"its own entry and more were deleted", from(at(3), pageOf(1, 9, 5, 6)), at(3), plain(4), Trimmed},
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
			pos, gap := tc.page.Resume(tc.pos)
			require.Equal(t, tc.want, pos)
			require.Equal(t, tc.gap, gap)
			// Going on from there announces nothing again.
			again, gap := tc.page.Resume(pos)
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
		for _, e := range p.After(tc.pos) {
			got = append(got, e.Pos.Seq)
		}
		require.Equal(t, tc.want, got, tc.pos.String())
	}
}
