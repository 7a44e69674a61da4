# Commands a newcomer types. Each is one line that could be typed by hand; .venv is made on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# More of them than cores, for tests also wait; the longer tests that EXTENDED=1 brings wait less.
JOBS ?= $(if $(EXTENDED),3,4)
# Bytecode is kept whatever the shell says: the tests and the sandbox start hundreds of interpreters.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup demo test test-medium test-ci test-slow torture-ledger torture-settlement simulate fuzz takeover check check-types check-rest bench openapi lock format clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv and install the locked dependencies

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Jiaozi needs Python >= 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing the locked dependencies into .venv (half a minute) ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup  ## The main job end to end: issue, pay, settle across a border, reconcile, verify
	$(BIN)/jiaozi demo

PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# With EXTENDED=1, as CI runs it: also what is too long for a newcomer, and campaigns in a middle size.
MIDDLE_SIZE := JIAOZI_KILLS=2 JIAOZI_EVERY=1 JIAOZI_TORTURE_SECONDS=8 JIAOZI_ROUNDS=6 JIAOZI_HYPOTHESIS_EXAMPLES=200 \
  JIAOZI_MACHINE_EXAMPLES=20 JIAOZI_TAMPERINGS=60

test: setup  ## The tests, campaigns in short (real PostgreSQL, real processes); EXTENDED=1 more of them, as in CI
	$(if $(EXTENDED),$(MIDDLE_SIZE)) $(PYTEST) $(if $(EXTENDED),-m "not medium and not slow")

test-medium: setup  ## What is too long for CI; ONLY=... some of it
	$(PYTEST) -m medium $(ONLY)

test-ci: setup  ## What is too long for `make test`, the campaigns larger
	JIAOZI_KILLS=8 JIAOZI_EVERY=1 JIAOZI_EXAMPLES=4 JIAOZI_TORTURE_SECONDS=40 JIAOZI_ROUNDS=30 JIAOZI_HYPOTHESIS_EXAMPLES=400 \
	  JIAOZI_MACHINE_EXAMPLES=60 JIAOZI_TAMPERINGS=400 $(PYTEST) -m "extended or medium or campaign"

test-slow: setup  ## The long campaigns, by hand
	$(BIN)/python -m pytest -m slow -p no:xdist

torture-ledger: setup  ## Kill a ledger under full load for SECONDS=600; SEED=7 repeats a run
	$(BIN)/python -m tests.faults.campaign --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

torture-settlement: setup  ## Hurt a settlement scheme of real processes at every step; ROUNDS=20 SEED=7 SECONDS=600 ISLANDS=3
	$(BIN)/jiaozi-settlement torture --rounds $(or $(ROUNDS),20) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  --islands $(or $(ISLANDS),2)

simulate: setup  ## The settlement engine under every fault and random ones, in memory; SCHEDULES=100000 SEED=7
	$(BIN)/jiaozi-settlement simulate --schedules $(or $(SCHEDULES),100000) $(if $(SEED),--seed $(SEED))

fuzz: setup  ## Every operation against its OpenAPI document; EXAMPLES=100 requests of each kind, SEED=7 other ones
	JIAOZI_EVERY=1 JIAOZI_EXAMPLES=$(or $(EXAMPLES),100) JIAOZI_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -s -p no:xdist --timeout 0 \
	  tests/api/test_ledger_schemathesis.py tests/api/test_wallet_schemathesis.py tests/api/test_settlement_schemathesis.py

takeover: setup  ## Measure how fast a standby takes over (TIMES=5 of each kind)
	JIAOZI_TAKEOVERS=$(or $(TIMES),5) $(BIN)/python -m pytest -s -m slow -p no:xdist tests/faults/test_standby.py

check: setup  ## Lint, format, types, import contracts, OpenAPI up to date
	@$(MAKE) --no-print-directory -j2 --output-sync=target check-types check-rest

check-types: setup
	$(BIN)/mypy

check-rest: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m sandbox.openapi --check
	$(BIN)/python -m sandbox.async_client --check

bench: setup  ## Benchmarks (half an hour and more); ONLY=B1 one row, QUICK=1 smaller, RUNS=3 medians
	$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(RUNS),--runs $(RUNS))

openapi: setup  ## Write openapi/*.yaml and the asynchronous client from the code
	$(BIN)/python -m sandbox.openapi
	$(BIN)/python -m sandbox.async_client

lock:  ## Refresh requirements.lock (needs pip-tools in .venv)
	$(BIN)/pip-compile --quiet --extra dev --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate -o requirements.lock pyproject.toml

format: setup  ## Sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
