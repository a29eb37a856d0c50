// Agentrun asks an agent, and shows its answer in the browser while the model writes it:
//
//	go run ./examples/agentrun
//
// Each run has a channel of its own. Its log is the answer: a reload, a second window and a phone
// all read it from the beginning, and go on live. With -redis, or REDIS_URL, the log outlives the
// server. Stop the server in the middle of an answer and start it again: the run goes on, and the
// browser has each token once. Without, there is a Redis inside the process, which goes with it.
package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal("agentrun: ", err)
	}
}

// run serves until the context ends.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("agentrun", flag.ExitOnError)
	addr := flags.String("addr", "127.0.0.1:8081", "`address` to listen on")
	redisURL := flags.String("redis", "", "`URL` of Redis (default $REDIS_URL, else a Redis inside the process)")
	pause := flags.Duration("pause", 60*time.Millisecond, "time between two tokens")
	_ = flags.Parse(args) // It exits where they are wrong.
	rdb, err := openRedis(cmp.Or(*redisURL, os.Getenv("REDIS_URL")))
	if err != nil {
		return err
	}
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		return err
	}
	defer bus.Close()

	a := &agent{bus: bus, ctx: ctx, pause: *pause}
	if err := a.resume(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.NewCrossOriginProtection().Handler(routes(a)), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprintf(stdout, "listening on http://%s\n", listener.Addr())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	a.runs.Wait()
	drained, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(bus.Shutdown(drained), server.Shutdown(drained)) // in this order: streams would hold the server
}

func openRedis(url string) (redis.UniversalClient, error) {
	if url == "" {
		return embedded.New()
	}
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the URL of Redis cannot be read") // It may have a password.
	}
	return redis.NewClient(o), nil
}

//go:embed index.html
var page []byte

func routes(a *agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(page)
	})
	mux.HandleFunc("POST /runs", func(w http.ResponseWriter, r *http.Request) {
		question, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2000))
		if err != nil {
			http.Error(w, "a question has 2,000 bytes at most", http.StatusRequestEntityTooLarge)
			return
		}
		id := uuid.NewString()
		if err := a.start(r.Context(), id, strings.ToValidUTF8(string(question), "?")); err != nil {
			log.Print(err)
			http.Error(w, "the run could not be started; try again", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, id)
	})
	mux.Handle("GET /runs/{run}/events", a.bus.Handler(func(r *http.Request) (eventbus.Subscription, error) {
		// Yours also checks whose run it is. This check is needed anyway: each name of a channel
		// that is let through becomes a log in Redis.
		channel, err := eventbus.NewChannel("run", r.PathValue("run"))
		if err != nil {
			return eventbus.Subscription{}, eventbus.ErrNotFound
		}
		if ok, err := a.exists(r.Context(), channel); err != nil {
			return eventbus.Subscription{}, err // Redis is away: the browser comes back later.
		} else if !ok {
			return eventbus.Subscription{}, eventbus.ErrNotFound
		}
		// From the first token on, or behind the last one that the browser has had.
		return eventbus.Subscription{Channels: []eventbus.Channel{channel}, Oldest: true}, nil
	}))
	return mux
}
