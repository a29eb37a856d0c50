// Package chaos holds one test, in a module of its own because of what it needs: for a
// given time it breaks everything around the bus that can break, while events are
// published and read; then everything heals, and it holds every event that was delivered
// against the logs.
//
//	go test -race -run TestChaos -v . -for 5m -seed 42
//
// The rooms: ledger_test.go has what was done and decides what is wrong with it,
// workload_test.go publishes, subscribers_test.go reads, faults_test.go breaks, on lines
// (network_test.go) and in deployments (deployments_test.go). The seed decides which
// faults come when; how they meet the workload is up to the machine.
package chaos
