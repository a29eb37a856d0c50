package tests

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

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

// Base64url has the characters of a UUID, but as a cursor it would have 64 channels at least, and no
// bytes for them.
func TestUUIDIsNeverTakenForACursor(t *testing.T) {
	for range 10_000 {
		_, err := eventbus.ParseCursor(uuid.NewString())
		require.Error(t, err)
	}
}
