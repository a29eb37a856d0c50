package eventbus

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// A backoff spaces attempts out: 25 ms at first, doubled each time up to 1 s,
// each a random half shorter, so that processes do not try in step.
type backoff struct{ attempts int }

func (b *backoff) next() time.Duration {
	d := min(25*time.Millisecond<<min(b.attempts, 10), time.Second)
	b.attempts++
	return d - rand.N(d/2)
}

func (b *backoff) after() <-chan time.Time { return time.After(b.next()) }

// A burstLog logs a warning once per burst: the first at once, then at most one
// every ten seconds, with the number of those that were left out.
type burstLog struct {
	logger *slog.Logger

	mu     sync.Mutex // guards following
	bursts map[string]*burst
}

type burst struct {
	last time.Time
	more int
}

const burstPause = 10 * time.Second

// warn logs a message, one of a few that the code has, with the error of this time.
func (l *burstLog) warn(message string, err error) {
	l.mu.Lock()
	if l.bursts == nil {
		l.bursts = make(map[string]*burst)
	}
	b := l.bursts[message]
	if b == nil {
		b = &burst{}
		l.bursts[message] = b
	}
	if time.Since(b.last) < burstPause {
		b.more++
		l.mu.Unlock()
		return
	}
	more := b.more
	*b = burst{last: time.Now()}
	l.mu.Unlock()
	l.logger.Warn("eventbus: "+message, "error", err, "left_out", more)
}
