package chaos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

var (
	runFor = flag.Duration("for", 10*time.Second, "how long to break things, all deployments together")
	seed   = flag.Uint64("seed", 0, "decides which faults come when; 0: a random one")
)

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(silent{}) // it would tell of every connection that is cut
	goleak.VerifyTestMain(m)
}

const subscribers = 50

// TestChaos breaks everything for a while, and then holds everything that was delivered
// against the logs.
func TestChaos(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64N(1_000_000) + 1
	}
	t.Logf("-for %s -seed %d", *runFor, *seed)
	deployments := []struct {
		name  string
		begin func(testing.TB, *rand.Rand) *deployment
	}{{"lone", lone}, {"sentinels", sentinels}, {"cluster", cluster}}
	var total balance
	rows := []string{fmt.Sprintf("%-10s %s", "", columns)}
	for i, d := range deployments {
		t.Run(d.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(*seed, uint64(i)))
			b := wreak(t, d.begin(t, r), r, *runFor/time.Duration(len(deployments)))
			rows = append(rows, fmt.Sprintf("%-10s %s", d.name, &b))
			total.add(b)
		})
	}
	rows = append(rows, fmt.Sprintf("%-10s %s", "total", &total))
	fmt.Printf("chaos: -for %s -seed %d\n%s\n", *runFor, *seed, strings.Join(rows, "\n"))
}

// wreak runs the workload on a deployment while faults hit, and gives the balance.
func wreak(t *testing.T, d *deployment, r *rand.Rand, runFor time.Duration) balance {
	ctx, cancel := context.WithCancel(context.Background())
	w := newWorld(ctx, t, d, r.Uint64())
	over := make(chan struct{})
	stop := func() { // also when the test fails on its way
		cancel()
		w.restarts.Wait()
		w.published.Wait()
		w.readers.Wait()
		w.close()
	}
	t.Cleanup(stop)

	// All logs exist and all subscribers have begun before anything breaks: one that has
	// seen nothing yet could not be told what it misses.
	var accounts []*account
	for n := range uint64(subscribers) {
		accounts = append(accounts, w.subscribe(n))
	}
	w.mark(accounts, "begin")
	w.mark(accounts, "go")

	for n := range uint64(publishers) {
		w.published.Go(func() { w.publish(n, over) })
	}
	for n := range uint64(writers) {
		w.published.Go(func() { w.write(100+n, over) })
	}
	f := newFaults(t, w, r)
	f.run(runFor)
	close(over)
	f.heal()
	t.Log(f)
	w.published.Wait()
	w.calm.Store(true)
	for n := range uint64(6) { // who comes only now is given all that there is
		accounts = append(accounts, w.subscribe(subscribers+n))
	}
	w.mark(accounts, "end")
	for _, p := range w.processes {
		eventually(t, "the buses to be healthy", func() bool { return p.bus.Load().Health() == nil })
	}

	var logs map[string][]entry
	eventually(t, "the logs to stand still", func() bool {
		before := logs
		logs = w.logs()
		time.Sleep(time.Second) // what is still on its way would come now
		return before != nil && reflect.DeepEqual(before, logs)
	})
	waiting := accounts
	late := time.Now().Add(time.Minute)
	for c := newChecker(w.ledger, logs, d.sharded); len(waiting) > 0 && time.Now().Before(late); {
		if c.settled(waiting[0]) {
			waiting = waiting[1:]
			continue
		}
		time.Sleep(200 * time.Millisecond)
		c = newChecker(w.ledger, logs, d.sharded)
	}
	stop()
	b := newChecker(w.ledger, logs, d.sharded).all(w.ledger, d.lossless)
	for _, kind := range b.notes {
		t.Log(strings.Join(kind, "\n"))
	}
	if b.broken() {
		t.Errorf("%d lost, %d duplicated, %d out of order", b.lost, b.duplicated, b.disordered)
	}
	if d.lossless && b.gaps > 0 {
		t.Errorf("%d gaps were announced, and nothing was lost", b.gaps)
	}
	return b
}

// mark publishes an event to all channels of each project, and waits until all
// subscribers have it.
func (w *world) mark(accounts []*account, text string) {
	w.t.Helper()
	marks := make(map[string]string)
	for i, p := range w.projects {
		id := w.insist(w.random(uint64(2000+i)), p, p.others, text, true)
		for _, c := range p.channels() {
			marks[c.String()] = id
		}
	}
	for _, a := range accounts {
		for _, c := range a.channels {
			if !within(2*time.Minute, func() bool { return a.has(marks[c]) }) {
				w.t.Fatalf("%s does not get %q of %s\n%s", a.name, text, c, w.state())
			}
		}
	}
}
