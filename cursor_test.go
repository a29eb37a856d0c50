package eventbus_test

import (
	"encoding/json"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

func TestPositionsAreTheIDsOfStreamEntries(t *testing.T) {
	for _, text := range []string{"1763868000000-42", "1-0", "1-1", "281474976710655-9007199254740991"} {
		p, err := eventbus.ParsePosition(text)
		require.NoError(t, err)
		require.Equal(t, text, p.String())
		require.False(t, p.IsZero())
		again, err := eventbus.ParsePosition(p.String())
		require.NoError(t, err)
		require.Equal(t, p, again)
	}
	require.Equal(t, "", eventbus.Position{}.String())
	require.True(t, eventbus.Position{}.IsZero())
}

func TestParsePositionRefuses(t *testing.T) {
	for _, text := range []string{
		"", "-", "1", "1-", "-1", "0-0", "0-1", "1-1-1", "1--1", "-1-1", "+1-1", "1-+1", " 1-1", "1-1 ", "1-1\n",
		"0x1-1", "1_0-1", "1.0-1", "1e3-1", "a-b", "١-١", "1-*", "$", "+", "(1-1",
		"281474976710656-1", "1-9007199254740992", "18446744073709551616-1", "1-18446744073709551616",
		strings.Repeat("9", 100_000) + "-1", someID,
	} {
		p, err := eventbus.ParsePosition(text)
		require.Error(t, err, "%q", text)
		require.True(t, p.IsZero(), "%q", text)
	}
}

func TestZeroCursorIsEmpty(t *testing.T) {
	c, err := eventbus.ParseCursor("")
	require.NoError(t, err)
	require.True(t, c.IsZero())
	require.Equal(t, eventbus.Cursor{}, c)
	require.Equal(t, "", c.String())
}

func TestParseCursorRefuses(t *testing.T) {
	good := someCursor(t)
	for name, text := range map[string]string{
		"garbage":                 "garbage!",
		"a blank":                 " ",
		"base64 of nothing known": "AAAAAAAAAAAAAAAA",
		"another version":         "8" + good[1:],
		"the version alone":       good[:2],
		"a truncated one":         good[:len(good)-2],
		"an extended one":         good + "AAAA",
		"padding":                 good + "=",
		"a line break":            good + "\n",
		"standard base64":         strings.Repeat("+/", len(good)/2),
		"bytes beyond ASCII":      good[:4] + "ä" + good[6:],
		"a position":              "1763868000000-42",
		"zeros without end":       good[:2] + strings.Repeat("A", 1<<20),
		"oversize":                strings.Repeat(good, 1024/len(good)+1),
	} {
		c, err := eventbus.ParseCursor(text)
		require.Error(t, err, name)
		require.True(t, c.IsZero(), name)
		require.Less(t, len(err.Error()), 200, name)
		into, err := eventbus.ParseCursor(good)
		require.NoError(t, err)
		require.Error(t, into.UnmarshalText([]byte(text)), name)
		require.Equal(t, good, into.String(), "a refused text changes nothing")
	}
}

func TestCursorsAreText(t *testing.T) {
	c, err := eventbus.ParseCursor(someCursor(t))
	require.NoError(t, err)
	require.Regexp(t, regexp.MustCompile(`^[A-Za-z0-9_-]+$`), c.String())
	data, err := json.Marshal(map[string]eventbus.Cursor{"after": c, "none": {}})
	require.NoError(t, err)
	var back map[string]eventbus.Cursor
	require.NoError(t, json.Unmarshal(data, &back))
	require.Equal(t, map[string]eventbus.Cursor{"after": c, "none": {}}, back)
}

// someCursor is one that a bus has made.
func someCursor(t *testing.T) string {
	t.Helper()
	rdb, err := embedded.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	bus := newBus(t, rdb)
	receipt, err := bus.PublishWith(deadline(t), message(t, uuid.New(), "x"), eventbus.PublishOptions{})
	require.NoError(t, err)
	return receipt.Cursor.String()
}

// Base64url has the characters of a UUID, so that some UUIDs can be read as
// cursors; one that a client sends is always the id of an event.
func TestUUIDIsNeverTakenForACursor(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	id := uuid.New()
	for range 1_000_000 {
		u, err := uuid.NewRandomFromReader(random)
		require.NoError(t, err)
		if _, err := eventbus.ParseCursor(u.String()); err == nil {
			id = u
			break
		}
	}
	rdb, err := embedded.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	bus := newBus(t, rdb)
	ctx := deadline(t)
	project := uuid.New()
	first, second := message(t, project, "first"), message(t, project, "second")
	first.ID = id.String()
	require.NoError(t, bus.Publish(ctx, first))
	require.NoError(t, bus.Publish(ctx, second))
	for ev, err := range bus.SubscribeWith(ctx, eventbus.Subscription{
		Channels:    []eventbus.Channel{eventbus.ProjectChannel(project)},
		LastEventID: first.ID,
	}) {
		require.NoError(t, err)
		require.Equal(t, second.ID, ev.ID)
		break
	}
}

// FuzzParsePosition: what is parsed is written the same but for leading zeros.
func FuzzParsePosition(f *testing.F) {
	for _, text := range []string{"1763868000000-42", "1-0", "0-1", "007-0042", "281474976710655-9007199254740991", "-", ""} {
		f.Add(text)
	}
	form := regexp.MustCompile(`^0*([1-9][0-9]*)-0*([0-9]+)$`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := eventbus.ParsePosition(text)
		if err != nil {
			require.True(t, p.IsZero())
			return
		}
		parts := form.FindStringSubmatch(text)
		require.NotNil(t, parts, "%q", text)
		require.Equal(t, parts[1]+"-"+parts[2], p.String())
		again, err := eventbus.ParsePosition(p.String())
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}
