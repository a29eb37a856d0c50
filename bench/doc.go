// Bench measures the event bus beside what its users would take instead, in one run:
//
//	go run . [-workloads W1,W3] [-contestants limit,ours] [-runs 3] [-json results.json] [-profile name]
//	go run . growth
//
// The command is the load: SSE clients on raw TCP connections, with a parser that costs
// little. Each contestant is a server process of its own (this executable again), on a
// redis-server that is started for it:
//
//	limit       net/http alone, broadcasting bytes from memory: the ceiling
//	ours        this module, as it comes
//	centrifuge  github.com/centrifugal/centrifuge, its Redis broker and SSE transport
//	go-sse      github.com/tmaxmax/go-sse, fed by one go-redis subscription
//	naive       one go-redis Subscribe for each browser
//	streams     Redis Streams by hand: one blocking XREAD for each browser
//
// Every event carries its publisher, number and time, so each client knows what it has
// lost, or got twice or out of order. Files: workloads.go and runs.go what is measured,
// server.go the server process, one file for each contestant, state.go the state that
// streams begin with, load.go and parser.go the clients, report.go the table, growth.go how
// cost grows.
package main
