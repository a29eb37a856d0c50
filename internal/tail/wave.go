package tail

import (
	"runtime"
	"slices"
	"time"

	"github.com/syndarix/eventbus/internal/pace"
)

// The waves of a tail are how it wakes its readers. What comes while readers still send the last
// wave goes into the next one, so that under load a reader sends many events with one Write. The
// tail's mu guards them.
type waves struct {
	waiting []sleeper // readers to wake when there is something new

	wave   uint64        // number of the last wave
	shown  uint64        // ordinal of the entry to come when the last wave began
	pause  time.Duration // estimated time from the last wave to the next
	calm   time.Time     // when the next wave may begin at the earliest; zero means at once
	quorum int           // number of readers that the next wave waits for
	latest time.Time     // from here on, the next wave waits for no reader
	surge  bool          // another wave is to come
	timer  *time.Timer   // calls tick
}

// A sleeper is a reader that waits for something new.
type sleeper struct {
	place  *Place
	waiter pace.Flag
}

// A wave costs about waveCost for each reader that it wakes. It is over when 7 of 8 readers are
// back, or after waveSlack times its cost, because some readers may be busy elsewhere. The pause
// after it is its cost times the number of events that it brings. No more than waveEvents count,
// and waveMost is the longest pause. One below waveLeast is left out: a timer is too coarse for it.
const (
	waveCost   = 10 * time.Microsecond
	waveSlack  = 10
	waveLeast  = time.Millisecond
	waveFew    = 64 // a wave of more readers is woken in slices, on its own goroutine
	waveSlice  = 16 // readers woken before other goroutines get a turn
	waveMost   = 50 * time.Millisecond
	waveEvents = 32
)

// asleepLocked reports whether the next wave is to wake the reader.
func (t *Tail) asleepLocked(p *Place) bool { return p.slept == t.wave+1 }

func (t *Tail) sleepLocked(p *Place) {
	if t.asleepLocked(p) {
		return
	}
	p.slept, p.slot = t.wave+1, len(t.waiting)
	t.waiting = append(t.waiting, sleeper{p, p.Waiter})
	if t.surge && len(t.waiting) >= t.quorum && t.overLocked(time.Now()) {
		t.waveLocked()
	}
}

// wakeLocked begins a wave: at once, or when the last one is over.
func (t *Tail) wakeLocked() {
	switch {
	case t.calm.IsZero():
		t.waveLocked()
	case !t.surge:
		if now := time.Now(); t.overLocked(now) {
			t.waveLocked()
		} else {
			t.surge = true
			t.tickLocked(now)
		}
	}
}

// overLocked reports whether the last wave is over.
func (t *Tail) overLocked(now time.Time) bool {
	return !now.Before(t.calm) && (len(t.waiting) >= t.quorum || !now.Before(t.latest))
}

// tickLocked sets the timer to when the last wave may be over.
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

// tick begins the next wave if the last one is over. The timer calls it.
func (t *Tail) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch now := time.Now(); {
	case !t.surge:
	case t.overLocked(now):
		t.waveLocked()
	default:
		t.tickLocked(now)
	}
}

// Wake begins a wave at once.
func (t *Tail) Wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waveLocked()
}

func (t *Tail) waveLocked() {
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

// wakeMany wakes readers in slices, and lets other goroutines have their turn in between. Readers
// that are woken later also get what has come meanwhile.
func (t *Tail) wakeMany(waiting []sleeper) {
	for slice := range slices.Chunk(waiting, waveSlice) {
		wakeAll(slice)
		runtime.Gosched()
		if t.surging() {
			// While a goroutine can run, Go's scheduler hardly looks at the network.
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

// Forget takes a reader that ends out of the list of those to be woken.
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
