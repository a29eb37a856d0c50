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
