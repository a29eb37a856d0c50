// Package pace says when to act: a Flag wakes a goroutine that waits, a Backoff gives the pause
// before the next attempt, and a Warner limits how often a warning is logged.
//
// It starts no goroutines. Its only lock is the Warner's, and nothing is logged while that is held.
// Every other package may call it.
package pace

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// A Flag wakes a goroutine that receives from it. Set never blocks, and several calls wake it once.
type Flag chan struct{}

// NewFlag makes a flag that is not set.
func NewFlag() Flag { return make(Flag, 1) }

// Set wakes the receiver, now or when it next waits.
func (f Flag) Set() {
	select {
	case f <- struct{}{}:
	default: // it is set already
	}
}

// A Backoff gives the pauses between attempts: 25 ms at first, doubled each time up to 1 s. Each
// pause is shorter by a random part, half of it at most, so that processes do not try in step. The
// zero Backoff is ready.
type Backoff struct{ attempts int }

// After gives a channel that fires when the next attempt is due.
func (b *Backoff) After() <-chan time.Time { return time.After(b.Next()) }

// Next gives the pause before the next attempt.
func (b *Backoff) Next() time.Duration {
	d := min(25*time.Millisecond<<min(b.attempts, 10), time.Second)
	b.attempts++
	return d - rand.N(d/2)
}

// A Warner logs each kind of warning at most once in ten seconds, with the number of warnings that
// it left out before. It is safe for concurrent use.
type Warner struct {
	logger *slog.Logger

	mu     sync.Mutex        // guards bursts
	bursts map[string]*burst // by message
}

type burst struct {
	last time.Time // when the warning was logged
	more int       // how many were left out since then
}

const burstPause = 10 * time.Second

// NewWarner makes a Warner.
func NewWarner(logger *slog.Logger) *Warner {
	return &Warner{logger: logger, bursts: make(map[string]*burst)}
}

// Warn logs a message with an error. The messages must be few: the Warner remembers each.
func (w *Warner) Warn(message string, err error) {
	w.mu.Lock()
	b := w.bursts[message]
	if b == nil {
		b = &burst{}
		w.bursts[message] = b
	}
	if time.Since(b.last) < burstPause {
		b.more++
		w.mu.Unlock()
		return
	}
	more := b.more
	*b = burst{last: time.Now()}
	w.mu.Unlock()
	w.logger.Warn("eventbus: "+message, "error", err, "left_out", more)
}
