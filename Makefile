# Everything that a developer or CI runs. `make build` and `make run` need Go, Python 3
# and make; `make test` installs what else it needs into .tools/ (see tools/install.sh).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The project's own tools come first; Go is found also where it is only in its usual place.
export PATH := $(CURDIR)/.tools/bin:$(PATH):/usr/local/go/bin

BUF := .tools/node/node_modules/.bin/buf
# How long one package's tests may take, under the race detector on two cores.
TEST_TIMEOUT ?= 10m
# How long `make fuzz-short` runs each fuzz target. A count, since a target that is stopped
# by the clock may be reported as failed when the machine is busy.
FUZZ_TIME ?= 5000x
# Arguments of `make run` and `make chaos`: make run ARGS="--slots 8".
ARGS ?=
# The chaos suite, with the workers' interpreter first on PATH.
CHAOS := PATH="$(CURDIR)/.tools/python/bin:$$PATH" go run .

.PHONY: build
build: ## the whole binary, bin/treadle
	go build -o bin/treadle ./cmd/treadle

.PHONY: build-elsewhere
build-elsewhere: ## check that it builds for the systems it is not tested on
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/treadle
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 go build -o /dev/null ./cmd/treadle

.PHONY: run
run: build ## build, then run everything in one process
	exec bin/treadle up $(ARGS)

.PHONY: test
test: lint generate-check build build-elsewhere test-go test-simulation test-python test-typescript test-e2e test-security-quick test-deploy test-chaos chaos-selftest fuzz-short ## everything that CI runs
	@echo "make test: ok"

# The folder of `make test-quick`: make test-quick DIR=server.
DIR ?=

.PHONY: test-quick
test-quick: ## the tests of one folder, without the race detector: make test-quick DIR=server
	@tools/test-quick.sh "$(DIR)"

.PHONY: test-go
test-go: ## Go tests, under the race detector, in random order
	tools/install.sh cc redis gotools python
	PATH="$(CURDIR)/.tools/python/bin:$$PATH" gotestsum --format pkgname -- \
		-race -shuffle=on -timeout $(TEST_TIMEOUT) ./...
	gotestsum --format pkgname -- -race -tags chaos -timeout $(TEST_TIMEOUT) -run 'Lag|ExploreFinds' ./dispatcher
	cd chaos && gotestsum --format pkgname -- -race -shuffle=on -timeout $(TEST_TIMEOUT) ./...

# How many steps of the engines `make test-simulation` makes, and `make test-long`.
SIM_STEPS ?= 1000000
SIM_STEPS_LONG ?= 1000000000
# How many states of each small world they visit.
EXPLORE_STATES ?= 8000
EXPLORE_STATES_LONG ?= 1000000

.PHONY: test-simulation
test-simulation: ## the engines on simulated time, a million steps (20 s), and every state of small worlds within a bound (40 s)
	go test -count=1 -timeout $(TEST_TIMEOUT) -run '^TestSimulation$$' ./dispatcher -steps=$(SIM_STEPS)
	go test -count=1 -timeout $(TEST_TIMEOUT) -run '^TestExplore$$' ./dispatcher -explore-states=$(EXPLORE_STATES)

.PHONY: test-python
test-python: build ## the Python client: format, lint, types, tests
	tools/install.sh python node
	tools/test-python.sh

.PHONY: test-typescript
test-typescript: build ## the TypeScript client: types, tests against bin/treadle
	tools/install.sh python typescript
	cd clients/typescript && PATH="$(CURDIR)/.tools/python/bin:$$PATH" TREADLE_BIN="$(CURDIR)/bin/treadle" npm test

.PHONY: test-e2e
test-e2e: build ## the binary as its users see it: every mode, kills, restarts
	tools/install.sh redis python typescript openapi
	PATH="$(CURDIR)/.tools/python/bin:$$PATH" TREADLE_BIN="$(CURDIR)/bin/treadle" python -m pytest e2e

# Attacks whose verdict does not hang on how fast a loaded machine frees memory.
QUICK_ATTACKS := ^Test(PublicMethods|HealthNames|Wire|EmptyItems|ReportsThatAreNotUTF8|HandlersThatFail|HellosThatAreNotUTF8|ResultsOver|OffersThat|TimeoutsThat|QuotasUnder|EveryCall)

.PHONY: test-security-quick
test-security-quick: build ## those of the attacks that tell at once, one after another
	tools/install.sh redis
	TREADLE_SECURITY=short TREADLE_BIN="$(CURDIR)/bin/treadle" go test -count=1 -parallel 1 -timeout 20m -run '$(QUICK_ATTACKS)' ./security

.PHONY: test-security
test-security: build ## a hostile peer of our own against real processes (5 minutes)
	tools/install.sh redis
	TREADLE_SECURITY=short TREADLE_BIN="$(CURDIR)/bin/treadle" go test -count=1 -parallel 8 -timeout 20m ./security

.PHONY: test-long
test-long: build chaos-needs ## the same with all cases, more streams and longer floods, and seeded bugs found by scenarios; not part of `make test`
	tools/install.sh redis
	TREADLE_SECURITY=short TREADLE_BIN="$(CURDIR)/bin/treadle" go test -count=1 -parallel 8 -timeout 20m ./security
	TREADLE_SECURITY=long TREADLE_BIN="$(CURDIR)/bin/treadle" go test -count=1 -parallel 8 -timeout 90m ./security
	cd chaos && $(CHAOS) selftest -scenario
	go test -count=1 -timeout 24h -run '^TestExplore$$' ./dispatcher -explore-states=$(EXPLORE_STATES_LONG) -explore-delays=2
	go test -count=1 -timeout 24h -run '^TestSimulation$$' ./dispatcher -steps=$(SIM_STEPS_LONG)

.PHONY: test-deploy
test-deploy: ## deploy/: Dockerfile, compose file and manifests; what they start is started
	tools/install.sh python redis
	cd tools/deploy && go vet ./... && PATH="$(CURDIR)/.tools/python/bin:$$PATH" go test -count=1 ./...

.PHONY: chaos-needs
chaos-needs: # servers, Python, and for root the packet filter that partitions are made with
	tools/install.sh redis python
	@if [[ $$(id -u) == 0 ]]; then tools/install.sh nft || echo "chaos: no nft: partitions are made by proxies"; fi

.PHONY: test-chaos
test-chaos: chaos-needs ## real processes that are killed, frozen and cut off: the short mix (2 minutes)
	cd chaos && $(CHAOS) mix

.PHONY: chaos
chaos: chaos-needs ## every fault of docs/faults.md; make chaos ARGS="-stores all -soak" is the whole
	cd chaos && $(CHAOS) all $(ARGS)

.PHONY: chaos-selftest
chaos-selftest: chaos-needs ## the tests' test: each seeded bug is found within a minute
	cd chaos && $(CHAOS) selftest $(ARGS)

.PHONY: fuzz-short
fuzz-short: ## every fuzz target, FUZZ_TIME long
	tools/fuzz.sh $(FUZZ_TIME)

.PHONY: lint
lint: lint-proto lint-go ## all linters

.PHONY: lint-proto
lint-proto: ## the contract: form, rules, compatibility with the released one
	tools/install.sh node
	$(BUF) format --diff --exit-code
	$(BUF) lint
	tools/breaking-check.sh

.PHONY: lint-go
lint-go: ## gofmt, vet, golangci-lint
	tools/install.sh lint
	@unformatted="$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l)"; \
	if [[ -n $$unformatted ]]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	golangci-lint run --allow-serial-runners ./...
	cd chaos && go vet ./... && golangci-lint run --allow-serial-runners ./...

.PHONY: generate
generate: ## write all generated code anew
	tools/generate.sh

.PHONY: generate-check
generate-check: ## fail when generated code is not what the generators write
	tools/generate-check.sh

.PHONY: release
release: ## declare the contract as it stands released: later changes must be compatible
	tools/install.sh node
	$(BUF) build --exclude-source-info --output proto/released.binpb

.PHONY: clean
clean: ## remove what was built; .tools stays
	rm -rf bin clients/typescript/dist clients/typescript/node_modules

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 26
