package wire

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestTimesAreWrittenAsByTime compares appendTime with package time.
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

// TestOnlyTrueIsFinal: the member final is true on the last message of a channel, and only there.
func TestOnlyTrueIsFinal(t *testing.T) {
	const event = `{"id":"e","type":"agent.message","timestamp":"2025-11-23T02:40:00Z",` +
		`"project_id":"550e8400-e29b-41d4-a716-446655440001","actor_type":"system"`
	for value, want := range map[string]bool{
		"": false, `,"final":true`: true, `,"final": true `: true, `,"final":false`: false, `,"final":"true"`: false,
		`,"final":1`: false, `,"final":null`: false, `,"final":[true]`: false, `,"final":true,"final":false`: false,
	} {
		ev, err := Decode([]byte(event + value + "}"))
		require.NoError(t, err, value)
		require.Equal(t, want, ev.Final, value)
	}
}
