package eventbus

import (
	"runtime"
	"slices"
	"time"
)

// The waves of a tail are how it wakes its readers: what comes while the last wave is
// still being sent goes into the next, so that under load a reader sends many events
// with one Write. The tail's lock guards them.
type waves struct {
	waiting []*place // readers to wake when there is something new

	wave   uint64    // number of the last one
	shown  uint64    // ordinal of what came after it began
	calm   time.Time // it is over, by estimate,
	quorum int       // if so many readers have come back,
	latest time.Time // or at this time
	surge  bool      // another wave is to come
	timer  *time.Timer
}

// A wave takes about waveCost for each reader that it wakes, and is over when 7 of 8 are
// back; or after waveSlack times that, since some may do something else. The more events
// come meanwhile, the longer the pause to the next is, but waveMost at most; for less
// than waveLeast, a timer is too coarse.
const (
	waveCost   = 10 * time.Microsecond
	waveSlack  = 10
	waveLeast  = time.Millisecond
	waveFew    = 64 // readers that are woken at once; of more, only so many
	waveSlice  = 16 // before others get a turn
	waveMost   = 50 * time.Millisecond
	waveEvents = 32
)

// A waiter is how a reader is woken: by a tail that has something new.
type waiter struct{ woken chan struct{} }

func newWaiter() *waiter { return &waiter{make(chan struct{}, 1)} }

func (w *waiter) wake() {
	select {
	case w.woken <- struct{}{}:
	default: // it has not slept since it was woken last
	}
}

func (t *tail) sleepLocked(p *place) {
	if p.asleep == 0 {
		t.waiting = append(t.waiting, p)
		p.asleep = len(t.waiting)
		if t.surge && len(t.waiting) >= t.quorum && t.overLocked() {
			t.showLocked()
		}
	}
}

// wakeLocked shows readers what is new: at once, or when the last wave is over.
func (t *tail) wakeLocked() {
	if t.overLocked() {
		t.showLocked()
	} else if !t.surge {
		t.surge = true
		t.tickLocked(t.calm)
	}
}

// overLocked tells whether the last wave is over.
func (t *tail) overLocked() bool {
	if t.calm.IsZero() {
		return true
	}
	now := time.Now()
	return !now.Before(t.calm) && (len(t.waiting) >= t.quorum || !now.Before(t.latest))
}

// surging tells whether another wave is to come.
func (t *tail) surging() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.surge
}

// tickLocked makes a wave come at this time, if the last one is over by then.
func (t *tail) tickLocked(at time.Time) {
	if t.timer == nil {
		t.timer = time.AfterFunc(time.Until(at), t.tick)
	} else {
		t.timer.Reset(time.Until(at))
	}
}

func (t *tail) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !t.surge:
	case t.overLocked():
		t.showLocked()
	default:
		t.tickLocked(t.latest)
	}
}

// show shows readers everything.
func (t *tail) show() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.showLocked()
}

func (t *tail) showLocked() {
	t.surge = false
	t.wave++
	if len(t.waiting) > 0 {
		cost := time.Duration(len(t.waiting)) * waveCost
		pause := min(cost*time.Duration(min(t.next-t.shown, waveEvents)), waveMost)
		if t.calm = (time.Time{}); pause >= waveLeast {
			now := time.Now()
			t.calm, t.latest = now.Add(pause), now.Add(max(pause, waveSlack*cost))
			t.quorum = len(t.waiting) - len(t.waiting)/8
		}
	}
	t.shown = t.next
	for _, p := range t.waiting {
		p.asleep = 0
	}
	if len(t.waiting) <= waveFew {
		wakeAll(t.waiting)
		clear(t.waiting)
		t.waiting = t.waiting[:0]
		return
	}
	waiting := t.waiting
	t.waiting = make([]*place, 0, cap(waiting))
	t.spawn(func() {
		for slice := range slices.Chunk(waiting, waveSlice) {
			wakeAll(slice)
			runtime.Gosched()
			if t.surging() {
				// While there is somebody to run, the scheduler does not look at the network, and
				// what comes from there could not join this wave. A longer sleep would be a
				// millisecond, where there is nobody.
				time.Sleep(time.Microsecond)
			}
		}
	})
}

func wakeAll(places []*place) {
	for _, p := range places {
		p.waiter.wake()
	}
}

// forget takes a reader that goes away out of the list of those to be woken.
func (t *tail) forget(p *place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.asleep == 0 {
		return
	}
	n := len(t.waiting) - 1
	t.waiting[p.asleep-1] = t.waiting[n]
	t.waiting[p.asleep-1].asleep = p.asleep
	t.waiting[n] = nil
	t.waiting = t.waiting[:n]
	p.asleep = 0
}
