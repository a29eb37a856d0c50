package main

import (
	"os"
	"testing"
	"time"
)

// TestMain lets the test executable be the server processes, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestContestantsDeliver brings a few events to a few streams of each contestant, and
// replays them where it can.
func TestContestantsDeliver(t *testing.T) {
	redis, err := startRedis()
	if err != nil {
		t.Fatal(err)
	}
	defer redis.stop()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			s, err := start(name, redis.addr)
			if err != nil {
				t.Fatal(err)
			}
			r := &run{contestant: name, redis: redis, server: s}
			defer r.server.stop()
			const streams, events = 5, 40
			l, err := r.connect(streams, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.do(order{Do: "publish", Publishers: 4, Events: events}); err != nil {
				t.Fatal(err)
			}
			l.await(streams*events, 10*time.Second)
			if got := l.tally(events); got != (tally{}) {
				t.Errorf("%d streams of %d events: %+v", streams, events, got)
			}
			if name == "limit" || name == "naive" {
				return
			}
			a, err := s.do(order{Do: "publish", Publishers: 1, Events: events})
			if err != nil {
				t.Fatal(err)
			}
			again, err := s.request(0, a.After)
			if err != nil {
				t.Fatal(err)
			}
			if l, err = connect(s.addr, []request{again}); err != nil {
				t.Fatal(err)
			}
			l.await(events-1, 10*time.Second)
			if got := l.tally(events - 1); got != (tally{}) {
				t.Errorf("replay: %+v", got)
			}
		})
	}
}
