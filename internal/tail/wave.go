package tail

import (
	"runtime"
	"slices"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
)

// The waves of a tail are how it wakes its readers: what comes while the last wave is
// still being sent goes into the next, so that under load a reader sends many events
// with one Write. The tail's lock guards them.
type waves struct {
	waiting []sleeper // readers to wake when there is something new

	wave   uint64        // number of the last one
	shown  uint64        // ordinal of what came after it began
	pause  time.Duration // from its begin to the next, by estimate
	calm   time.Time     // the end of that: from here on, another one may begin; zero: at once
	quorum int           // when so many readers have come back,
	latest time.Time     // or at this time, whoever is back
	surge  bool          // another wave is to come
	timer  *time.Timer   // makes it
}

// A sleeper is a reader that waits for something new.
type sleeper struct {
	place  *Place
	waiter pace.Flag
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

// asleepLocked tells whether the next wave is to wake the reader.
func (t *Tail) asleepLocked(p *Place) bool { return p.slept == t.wave+1 }

func (t *Tail) sleepLocked(p *Place) {
	if t.asleepLocked(p) {
		return
	}
	p.slept, p.slot = t.wave+1, len(t.waiting)
	t.waiting = append(t.waiting, sleeper{p, p.Waiter})
	if t.surge && len(t.waiting) >= t.quorum && t.overLocked(time.Now()) {
		t.showLocked()
	}
}

// wakeLocked shows readers what is new: at once, or when the last wave is over.
func (t *Tail) wakeLocked() {
	switch {
	case t.calm.IsZero():
		t.showLocked()
	case !t.surge:
		if now := time.Now(); t.overLocked(now) {
			t.showLocked()
		} else {
			t.surge = true
			t.tickLocked(now)
		}
	}
}

// overLocked tells whether the last wave is over.
func (t *Tail) overLocked(now time.Time) bool {
	return !now.Before(t.calm) && (len(t.waiting) >= t.quorum || !now.Before(t.latest))
}

// tickLocked makes tick come when the last wave may be over.
func (t *Tail) tickLocked(now time.Time) {
	in := t.calm.Sub(now)
	if in <= 0 {
		in = t.latest.Sub(now)
	}
	if t.timer == nil {
		t.timer = time.AfterFunc(in, t.tick)
	} else {
		t.timer.Reset(in)
	}
}

// tick makes the next wave, if the last one is over.
func (t *Tail) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch now := time.Now(); {
	case !t.surge:
	case t.overLocked(now):
		t.showLocked()
	default:
		t.tickLocked(now)
	}
}

// Show shows readers everything.
func (t *Tail) Show() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.showLocked()
}

func (t *Tail) showLocked() {
	t.surge = false
	t.wave++
	if len(t.waiting) > 0 {
		cost := time.Duration(len(t.waiting)) * waveCost
		t.pause = min(cost*time.Duration(min(t.next-t.shown, waveEvents)), waveMost)
		if t.calm = (time.Time{}); t.pause >= waveLeast {
			now := time.Now()
			t.calm, t.latest = now.Add(t.pause), now.Add(max(t.pause, waveSlack*cost))
			t.quorum = len(t.waiting) - len(t.waiting)/8
		}
	}
	t.shown = t.next
	if len(t.waiting) <= waveFew {
		wakeAll(t.waiting)
		clear(t.waiting)
		t.waiting = t.waiting[:0]
		return
	}
	waiting := t.waiting
	t.waiting = make([]sleeper, 0, cap(waiting))
	t.spawn(func() { t.wakeMany(waiting) })
}

// wakeMany lets others have their turn. What comes meanwhile can join the wave: those who
// are woken later get more.
func (t *Tail) wakeMany(waiting []sleeper) {
	for slice := range slices.Chunk(waiting, waveSlice) {
		wakeAll(slice)
		runtime.Gosched()
		if t.surging() {
			// While there is somebody to run, the scheduler does not look at the network.
			time.Sleep(time.Microsecond)
		}
	}
}

// surging reports whether another wave is to come.
func (t *Tail) surging() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.surge
}

func wakeAll(waiting []sleeper) {
	for _, s := range waiting {
		s.waiter.Set()
	}
}

// Forget takes a reader that goes away out of the list of those to be woken.
func (t *Tail) Forget(p *Place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.asleepLocked(p) {
		return
	}
	n := len(t.waiting) - 1
	t.waiting[p.slot] = t.waiting[n]
	t.waiting[p.slot].place.slot = p.slot
	t.waiting[n] = sleeper{}
	t.waiting = t.waiting[:n]
	p.slept = 0
}
