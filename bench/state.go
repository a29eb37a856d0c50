package main

import (
	"encoding/json"
	"strings"
	"sync/atomic"
	"time"
)

// The state of a page is a few KB in a database, which takes a while for it, and answers so many at
// a time.
const (
	stateTakes   = 20 * time.Millisecond
	stateQueries = 20
)

var (
	stateBytes = json.RawMessage(`{"text":"` + strings.Repeat("state of the run ", 200) + `"}`)
	database   = make(chan struct{}, stateQueries)
	loads      atomic.Int64
)

// loadState asks the database.
func loadState() json.RawMessage {
	database <- struct{}{}
	defer func() { <-database }()
	loads.Add(1)
	time.Sleep(stateTakes)
	return stateBytes
}
