package eventbus_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus"
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

// TestPositionsAreText: a position that was read back equals the one that was written, also in a gap.
func TestPositionsAreText(t *testing.T) {
	p, err := eventbus.ParsePosition("1763868000000-42")
	require.NoError(t, err)
	data, err := json.Marshal(map[string]eventbus.Position{"at": p, "none": {}})
	require.NoError(t, err)
	require.JSONEq(t, `{"at":"1763868000000-42","none":""}`, string(data))
	var back map[string]eventbus.Position
	require.NoError(t, json.Unmarshal(data, &back))
	require.True(t, back["at"] == p && back["none"].IsZero())
	require.Error(t, p.UnmarshalText([]byte("x")))
	require.Equal(t, back["at"], p, "a refused text changes nothing")

	gap := eventbus.GapError{Channel: eventbus.UserChannel(uuid.New()), Reason: eventbus.GapTrimmed, From: p}
	data, err = json.Marshal(gap)
	require.NoError(t, err)
	var again eventbus.GapError
	require.NoError(t, json.Unmarshal(data, &again))
	require.Equal(t, gap, again)
}
