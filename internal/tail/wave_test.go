package tail

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/testing/sample"
	"github.com/syndarix/eventbus/internal/wire"
)

// A crowd is one tail and its readers.
type crowd struct {
	*testing.T
	tail   *Tail
	places []Place
}

const (
	crowdSize = 200
	crowdCost = crowdSize * waveCost
)

// inCrowd runs a test in which all readers sleep.
func inCrowd(t *testing.T, name string, test func(c *crowd)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := &crowd{t, benchTail(t, 1), make([]Place, crowdSize)}
			for i := range c.places {
				c.places[i] = Place{Waiter: pace.NewFlag(), Pos: c.tail.last}
			}
			c.tail.Wake()
			c.visit(0, crowdSize, 0)
			test(c)
		})
	})
}

// publish adds n events to the tail in one moment.
func (c *crowd) publish(n int) {
	var events []wire.Event
	for range n {
		events = append(events, sample.Event())
	}
	c.tail.mu.Lock()
	defer c.tail.mu.Unlock()
	for _, ev := range events {
		ev.Position = position.Position{Epoch: c.tail.last.Epoch, Seq: c.tail.last.Seq + 1}
		c.tail.addLocked(ev)
		c.tail.wakeLocked()
	}
}

// visit lets some readers look. Each finds so many events, and sleeps again.
func (c *crowd) visit(from, to, want int) {
	for i := from; i < to; i++ {
		g := c.tail.Look(&c.places[i])
		require.Len(c, g.Entries, want, i)
		if want > 0 {
			c.places[i].Advance(g.Entries)
			require.Empty(c, c.tail.Look(&c.places[i]).Entries)
		}
	}
}

// woken gives the number of readers that were woken since the last call.
func (c *crowd) woken() (n int) {
	synctest.Wait()
	for i := range c.places {
		select {
		case <-c.places[i].Waiter:
			n++
		default:
		}
	}
	return n
}

// TestWaves: what comes while a wave is under way waits for the next wave, but a reader that comes
// late gets all that there is.
func TestWaves(t *testing.T) {
	begin := func(c *crowd) {
		c.publish(1)
		require.Equal(c, crowdSize, c.woken(), "nothing waits when little happens")
		c.visit(0, 1, 1)
		c.publish(2)
		c.visit(0, 1, 0)
	}
	const most = crowdSize - crowdSize/8
	inCrowd(t, "over", func(c *crowd) {
		begin(c)
		c.visit(1, most, 3)
		require.Zero(c, c.woken())
		time.Sleep(crowdCost)
		require.Equal(c, most, c.woken(), "the estimate has passed, and most are back")
		c.visit(0, 1, 2)
	})
	inCrowd(t, "takes longer", func(c *crowd) {
		begin(c)
		time.Sleep(2 * crowdCost)
		c.visit(1, most-1, 3)
		require.Zero(c, c.woken())
		c.visit(most-1, most, 3)
		time.Sleep(time.Millisecond)
		require.Equal(c, most, c.woken(), "when most are back")
		c.visit(0, 1, 2)
	})
	inCrowd(t, "does not come back", func(c *crowd) {
		begin(c)
		time.Sleep((waveSlack - 1) * crowdCost)
		require.Zero(c, c.woken())
		time.Sleep(crowdCost)
		require.Equal(c, 1, c.woken(), "who is back does not wait for ever")
		c.visit(0, 1, 2)
		c.visit(1, crowdSize, 3)
	})
}
