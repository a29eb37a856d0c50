// Package embedded gives a Redis inside the process, for tests, examples and
// trying things out: no server to install, nothing kept when the program ends.
//
// It is miniredis behind a go-redis client. It has what package eventbus needs,
// except cluster mode, sharded Pub/Sub and persistence, and it is slower than Redis.
package embedded

import (
	"fmt"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// A Redis is a client together with the server in the process that it talks to. It
// can be used wherever a [redis.UniversalClient] can, and is safe for concurrent use.
type Redis struct {
	*redis.Client

	server *miniredis.Miniredis
	stop   chan struct{}
	wg     sync.WaitGroup
	once   sync.Once
}

// New starts a server on a free port of 127.0.0.1 and gives a client of it. Close
// ends both. The error says why the port could not be opened.
func New() (*Redis, error) {
	server, err := miniredis.Run()
	if err != nil {
		return nil, fmt.Errorf("embedded: start: %w", err)
	}
	r := &Redis{
		Client: redis.NewClient(&redis.Options{Addr: server.Addr()}),
		server: server,
		stop:   make(chan struct{}),
	}
	r.wg.Go(r.age)
	return r, nil
}

// age lets keys expire, which miniredis leaves to its user.
func (r *Redis) age() {
	const step = 25 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case now := <-tick.C:
			r.server.FastForward(now.Sub(last))
			last = now
		case <-r.stop:
			return
		}
	}
}

// Addr is where the server listens, "127.0.0.1:<port>": redis-cli can connect.
func (r *Redis) Addr() string { return r.server.Addr() }

// Close closes the client and ends the server, with all that it holds. Closing
// again does nothing. A bus on it is to be closed before.
func (r *Redis) Close() error {
	var err error
	r.once.Do(func() {
		close(r.stop)
		r.wg.Wait()
		err = r.Client.Close()
		r.server.Close()
	})
	return err
}
