// Dashboard is a web page on which agents work, and every event appears as it
// happens:
//
//	go run ./examples/dashboard
//
// Without -redis, or REDIS_URL, it runs on a Redis inside the process. The agents are
// simulated; -demo=false leaves the stage to you. -addr says where it listens, -keepalive how
// long a stream may be silent. GET /healthz says whether the bus delivers.
//
// Any UUID will do as a project. That of the page is in its HTML (<meta name="project">), and is a
// new one at each start without -redis:
//
//	PROJECT=$(curl -s http://127.0.0.1:8080 | sed -n 's/.*name="project" content="\([^"]*\)".*/\1/p')
//	curl -N "http://127.0.0.1:8080/projects/$PROJECT/events?type=issue.*"
//	curl "http://127.0.0.1:8080/projects/$PROJECT/events" -d '{
//		"type": "issue.closed", "actor_type": "system",
//		"payload": {"issue_id": "SYN-42", "resolution": "fixed"}}'
//
// What an agent writes is on a channel of its own, run:<id>, with the id from run.started. The stream
// ends with the run:
//
//	curl -N "http://127.0.0.1:8080/projects/$PROJECT/events?only=1&channel=run:$RUN&last=1000"
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	logging.Disable()            // the bus says what there is to say about Redis, and less often
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

// sharedProject is the project of the page on a real Redis, so that several processes
// show, and work on, the same one.
var sharedProject = uuid.MustParse("5e9d3a1c-7b42-4f0e-9c56-2d8f1a6b7c30")

// run serves until the context ends. Its error says why it could not.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("dashboard", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "`address` to listen on")
	redisURL := flags.String("redis", "", "`URL` of Redis: redis://, rediss:// or unix://; with ?addr=, repeated, a cluster, "+
		"with ?master_name= a sentinel (default $REDIS_URL, else a Redis inside the process)")
	demo := flags.Bool("demo", true, "run the simulated agents")
	keepalive := flags.Duration("keepalive", 15*time.Second, "how long a stream may be silent")
	flags.SetOutput(io.Discard) // main prints the error
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(stdout)
		flags.Usage()
		return nil
	case err != nil:
		return err
	case flags.NArg() > 0:
		return errArguments
	}
	if _, _, err := net.SplitHostPort(*addr); err != nil {
		return errAddr
	}
	if *keepalive < 10*time.Millisecond {
		return errKeepalive
	}
	if *redisURL == "" {
		*redisURL = os.Getenv("REDIS_URL")
	}

	project := sharedProject
	if *redisURL == "" {
		project = uuid.New()
	}
	rdb, err := openRedis(*redisURL)
	if err != nil {
		return err
	}
	defer rdb.Close()
	bus, err := eventbus.New(rdb)
	if err != nil {
		return err
	}
	defer bus.Close()
	handler, err := newHandler(bus, project, *keepalive)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           localNames(handler, listener.Addr()),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second, // streams have a deadline for each write instead
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprintf(stdout, "listening on http://%s\n", listener.Addr())

	var agents sync.WaitGroup
	defer agents.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *demo {
		agents.Go(func() { newSimulation(bus, project).run(ctx) })
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		agents.Wait() // they leave, and what they were writing ends
		drain(bus, server)
		<-served
		return nil
	}
}

// drain ends the streams between two events, then the connections, within 5s.
func drain(bus *eventbus.Bus, server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := bus.Shutdown(ctx); err != nil {
		slog.Warn("some streams or publishes were cut", "error", err)
	}
	if err := server.Shutdown(ctx); err != nil {
		_ = server.Close() // those who do not read, or have not asked for anything
	}
}

// These do not repeat what was given: it may be the URL of Redis, put where it does
// not belong, with its password.
var (
	errArguments = errors.New("unexpected argument: all there is to set are flags, see -help")
	errAddr      = errors.New("-addr must be host:port")
	errKeepalive = errors.New("-keepalive must be 10ms at least")
)

// errRedisURL does not say more, because a part of a URL that cannot be read may be
// the password.
var errRedisURL = errors.New("the URL of Redis cannot be read, or has an unknown option; it must look like " +
	"redis://user:password@host:6379/0 or unix://user:password@/path/to/redis.sock?db=0, with special characters escaped")

// openRedis makes the client that the URL asks for. For a sentinel, user and password
// before the host are its own; those of Redis are the parameters username and password.
func openRedis(rawURL string) (redis.UniversalClient, error) {
	if rawURL == "" {
		return embedded.New()
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errRedisURL
	}
	switch query := u.Query(); {
	case query.Has("master_name"):
		o, err := redis.ParseFailoverURL(rawURL)
		if err != nil || o.RouteByLatency || o.RouteRandomly { // for those the client panics
			return nil, errRedisURL
		}
		return redis.NewFailoverClient(o), nil
	case query.Has("addr"):
		o, err := redis.ParseClusterURL(rawURL)
		if err != nil {
			return nil, errRedisURL
		}
		return redis.NewClusterClient(o), nil
	default:
		o, err := redis.ParseURL(rawURL)
		if err != nil {
			return nil, errRedisURL
		}
		return redis.NewClient(o), nil
	}
}
