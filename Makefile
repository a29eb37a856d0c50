MODULES = . chaos bench
GOTESTSUM = gotest.tools/gotestsum@v1.13.0
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 30s
FOR ?= 5m

.PHONY: help test run bench bench-peers bench-growth fuzz chaos rooms

help: ## lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

test: ## checks and tests everything, in about 8 minutes on two cores
	@echo "make test: checks; then all tests with -race, against real Redis servers."
	@echo "It takes about 8 minutes on two cores, 2 of them to compile in a new clone. For the quick tests alone: go test -short ./..."
	@scripts/install-redis
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	@for module in $(MODULES); do (cd $$module && echo "checks: $$module" && \
		go mod tidy -diff && go vet ./... && go run $(STATICCHECK) ./...) || exit 1; done
	@for module in $(MODULES); do (cd $$module && go run $(GOTESTSUM) --format pkgname-and-test-fails \
		--format-hide-empty-pkg -- -race -parallel 4 -timeout 20m ./...) || exit 1; done

run: ## the dashboard, on an embedded Redis
	go run ./examples/dashboard

bench: ## benchmarks beside their baselines, against a real Redis
	@scripts/install-redis
	go test -run '^$$' -bench . -timeout 10m . ./internal/... ./tests

bench-peers: ## the bus beside what one would take instead, in a table
	@scripts/install-redis
	cd bench && go run .

bench-growth: ## how cost grows, with plots
	@scripts/install-redis
	cd bench && go run . growth

fuzz: ## each fuzz target for FUZZTIME (30s)
	@for found in $$(grep -roE '^func Fuzz[A-Za-z0-9]+' --include='*_test.go' . | sed 's|/[^/]*:func |:|'); do \
		target=$${found#*:}; echo "$$target"; \
		(cd "$${found%%:*}" && go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) .) || exit 1; \
	done

rooms: ## the packages, and what each of them imports
	@scripts/rooms

chaos: ## everything breaks for FOR (5m), with SEED; prints a ledger
	@scripts/install-redis
	cd chaos && go test -race -count=1 -timeout 60m -run TestChaos -v . -for $(FOR) $(if $(SEED),-seed $(SEED))
