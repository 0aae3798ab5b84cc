# What a user types. Each command sets up what it needs, once; nothing is installed by hand.

.DEFAULT_GOAL := help
.PHONY: help run demo token test lint types tests coverage faults fuzz mutants package resources deploy destroy docs e2e bench simulate audit

# The newest Python that Herald supports; make PYTHON=... run takes another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not sys.version_info >= (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
PIP_AUDIT := 2.10.1
STAGE ?= dev
WITH ?= cloudformation
SECONDS ?= 60
SCOPE ?= ws:connect messages:send messages:broadcast

help: ## Say what each command does
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

run: $(READY) ## Serve Herald on http://127.0.0.1:8000 (HOST and PORT change that)
	@exec $(BIN)/python -m gateway run

demo: $(READY) ## Connect real clients, post one message, show who received it
	@exec $(BIN)/python -m gateway demo

token: $(READY) ## Print a token: make token USER=alice SCOPE="messages:send"
	@exec $(BIN)/python -m gateway token "$(USER)" "$(SCOPE)"

test: lint types tests ## Lint, types and every test that needs only Python

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

tests: $(READY)
	$(BIN)/pytest -n auto --maxprocesses 4

coverage: $(READY) ## Which lines and branches the tests reach, in every process (at least 95 %; TESTS: of some alone)
	$(BIN)/pytest -n auto --maxprocesses 4 $(TESTS) --cov

faults: $(READY) ## Spoil Herald's calls to AWS, and kill it between any two (FAULTS=all: in each way, twenty minutes)
	FAULTS="$(FAULTS)" $(BIN)/pytest -n auto --maxprocesses 4 tests/faults

fuzz: $(VENV)/fuzz/.ready ## Try what nobody thought of on the parsers of messages and tokens: make fuzz SECONDS=60
	@for parser in messages tokens; do mkdir -p .herald/fuzz/$$parser && \
		PYTHONPATH=. $(VENV)/fuzz/bin/python -m tests.fuzz.$$parser -max_total_time=$(SECONDS) -rss_limit_mb=1024 \
		-max_len=4096 -verbosity=0 -print_final_stats=1 -artifact_prefix=.herald/fuzz/$$parser/ \
		.herald/fuzz/$$parser tests/fuzz/corpus/$$parser || exit 1; done

$(VENV)/fuzz/.ready: $(READY) tests/fuzz/requirements.txt
	@rm -rf $(VENV)/fuzz
	@$(PYTHON) -m venv $(VENV)/fuzz
	@$(VENV)/fuzz/bin/python -m pip install --quiet --disable-pip-version-check -r tests/fuzz/requirements.txt >&2
	@touch $@

mutants: $(VENV)/mutants/.ready ## Change a line of five modules in 2,000 ways, and see which their tests don't notice (half an hour; MUTANTS="chalicelib.limits*": some)
	$(VENV)/mutants/bin/mutmut run --max-children 2 $(MUTANTS)
	@$(VENV)/mutants/bin/mutmut results | sed '/: not checked$$/d'

$(VENV)/mutants/.ready: $(READY) tests/mutants.txt
	@rm -rf $(VENV)/mutants
	@$(PYTHON) -m venv $(VENV)/mutants
	@$(VENV)/mutants/bin/python -m pip install --quiet --disable-pip-version-check -r tests/mutants.txt >&2
	@touch $@

package: $(READY) ## Write the CloudFormation template and the code of a stage: make package STAGE=dev
	@exec $(BIN)/python -m infra package "$(STAGE)"

resources: $(READY) ## Make what `chalice deploy` needs and can't make: make resources STAGE=dev
	@PARAMETERS="$(PARAMETERS)" exec $(BIN)/python -m infra resources "$(STAGE)"

deploy: $(READY) ## Deploy a stage to AWS: make deploy STAGE=dev PARAMETERS="AlarmTopic=arn:..." (WITH=chalice: by chalice deploy)
	@PARAMETERS="$(PARAMETERS)" exec $(BIN)/python -m infra deploy "$(STAGE)" --with "$(WITH)"

destroy: $(READY) ## Delete a stage, its tables too: make destroy STAGE=dev CONFIRM=dev
	@CONFIRM="$(CONFIRM)" exec $(BIN)/python -m infra destroy "$(STAGE)"

e2e: $(READY) tests/e2e/node_modules $(VENV)/e2e/.ready ## Deploy into an emulated AWS, and drive that and the local gateway with real clients (needs Node 20+ and npm; it installs Chromium)
	@tests/e2e/install-browser.sh
	$(BIN)/pytest tests/e2e

tests/e2e/node_modules: tests/e2e/package-lock.json
	npm ci --no-audit --no-fund --prefix tests/e2e
	@touch $@

$(VENV)/e2e/.ready: $(READY) tests/e2e/requirements.txt
	@rm -rf $(VENV)/e2e
	@$(PYTHON) -m venv $(VENV)/e2e
	@$(VENV)/e2e/bin/python -m pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt >&2
	@touch $@

docs: $(VENV)/docs/.ready ## Make a site of docs/, in .herald/site, and check its links
	@$(VENV)/docs/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs .herald/site
	@echo "file://$(CURDIR)/.herald/site/index.html"

$(VENV)/docs/.ready: $(READY) docs/requirements.txt
	@rm -rf $(VENV)/docs
	@$(PYTHON) -m venv $(VENV)/docs
	@$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt >&2
	@touch $@

audit: $(READY) ## Look each installed package up among the known vulnerabilities (needs the internet)
	@$(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==$(PIP_AUDIT) >&2
	@$(BIN)/python -m pip freeze | $(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r /dev/stdin

bench: $(READY) bench/.venv/.ready bench/peers/node/node_modules ## Measure Herald beside its peers (needs Node, npm, and nginx and wrk: it installs these; QUICK=1: only see that it can be measured)
	@bench/install-tools.sh
	@QUICK="$(QUICK)" exec $(BIN)/python -m bench

simulate: $(READY) bench/.venv/.ready ## Simulate a million connections, and draw docs/scale.md's plots (a minute)
	@$(BIN)/python -m bench.simulate
	@bench/.venv/bin/python -m bench.plots

bench/.venv/.ready: bench/requirements.txt
	@rm -rf bench/.venv
	@$(PYTHON) -m venv bench/.venv
	@bench/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $< >&2
	@touch $@

bench/peers/node/node_modules: bench/peers/node/package-lock.json
	npm ci --no-audit --no-fund --prefix bench/peers/node
	@touch $@

# Also what says that the virtual environment is complete: a broken-off installation is done again.
$(READY): requirements.txt requirements-dev.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "Herald needs Python 3.11 or later, and found none." >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON), once." >&2
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt >&2
	@touch $@
