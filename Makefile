# The commands. Each one sets up the environment that it needs, once; nothing is installed by hand.

.DEFAULT_GOAL := help
.PHONY: help run demo token test lint types tests coverage faults fuzz mutants package resources deploy destroy docs e2e bench simulate audit sbom lock usage-of-token FORCE

# PYTHON names the Python to use: make PYTHON=python3.12 run. By default it is the newest one found.
ifeq ($(origin PYTHON),undefined)
PYTHON = $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
else
WITH_THIS_PYTHON := --with-this-python
endif
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
# Like `python -m gateway`, but Ctrl-C prints no traceback while Python itself starts.
GATEWAY := $(BIN)/python -S -c 'import _signal; _signal.signal(_signal.SIGINT, _signal.SIG_DFL); \
	import site, runpy; site.main(); runpy.run_module("gateway", run_name="__main__", alter_sys=True)'
STAGE ?= dev
WITH ?= cloudformation
SECONDS ?= 60
quoted = '$(subst ','\'',$(1))'

help: ## List the commands
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

run: $(READY) ## Serve Herald on http://127.0.0.1:8000 (HOST and PORT change that)
	@exec $(GATEWAY) run

demo: $(READY) ## Connect real clients, post one message and show which clients receive it
	@exec $(GATEWAY) demo

# USER must be on the command line: shells set the variable to the login name.
token: $(if $(findstring command,$(origin USER)),$(if $(strip $(USER)),,usage-of-token),usage-of-token) $(READY) ## Print a token: make token USER=alice SCOPE="messages:send"
	@exec $(GATEWAY) token $(call quoted,$(USER)) $(if $(findstring command,$(origin SCOPE))$(SCOPE),$(call quoted,$(SCOPE)))

usage-of-token:
	@echo 'USER is missing. Usage: make token USER=alice [SCOPE="messages:send"]' >&2; exit 2

test: lint types tests ## Run the linters, the type checker and every test that needs only Python

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --cache-dir .herald/imports
	$(BIN)/codespell

types: $(READY)
	$(BIN)/mypy

# Four processes, even on two cores, since tests wait for a fifth of their time. Bytecode is written,
# so that execution environments don't compile Herald at each start.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 4 --dist worksteal

tests: $(READY)
	$(PYTEST)

coverage: $(READY) ## Measure which lines and branches the tests reach, in every process; fail under 95 % (TESTS: only some tests)
	$(PYTEST) $(TESTS) --cov

faults: $(READY) ## Test with failing AWS calls, a kill between any two calls, and AWS's limits (FAULTS=all: every kind of failure, twenty minutes)
	FAULTS="$(FAULTS)" $(BIN)/pytest -n auto --maxprocesses 4 tests/faults
	$(BIN)/pytest -n 0 tests/neighbours

fuzz: $(VENV)/fuzz/.ready ## Fuzz the parsers of messages and tokens, and simulate deliveries with new seeds: make fuzz SECONDS=60
	@$(BIN)/python -m tests.fuzz.simulations $(SECONDS)
	@for parser in messages tokens; do mkdir -p .herald/fuzz/$$parser && \
		PYTHONPATH=. $(VENV)/fuzz/bin/python -m tests.fuzz.$$parser -max_total_time=$(SECONDS) -rss_limit_mb=1024 \
		-max_len=4096 -verbosity=0 -print_final_stats=1 -artifact_prefix=.herald/fuzz/$$parser/ \
		.herald/fuzz/$$parser tests/fuzz/corpus/$$parser || exit 1; done

mutants: $(VENV)/mutants/.ready ## Mutation tests: list the code changes that no test notices (over an hour; MUTANTS="chalicelib.store.rate_limits*": one module)
	$(VENV)/mutants/bin/mutmut run --max-children 2 $(MUTANTS)
	@$(VENV)/mutants/bin/mutmut results | sed '/: not checked$$/d'

package: $(READY) ## Write a stage's CloudFormation template and code: make package STAGE=dev
	@exec $(BIN)/python -m infra package "$(STAGE)"

resources: $(READY) ## Create the resources that `chalice deploy` needs and can't create: make resources STAGE=dev
	@PARAMETERS="$(PARAMETERS)" exec $(BIN)/python -m infra resources "$(STAGE)"

deploy: $(READY) ## Deploy a stage to AWS: make deploy STAGE=dev PARAMETERS="AlarmTopic=arn:..." (WITH=chalice: with chalice deploy)
	@PARAMETERS="$(PARAMETERS)" exec $(BIN)/python -m infra deploy "$(STAGE)" --with "$(WITH)"

destroy: $(READY) ## Delete a stage and its tables: make destroy STAGE=dev CONFIRM=dev
	@CONFIRM="$(CONFIRM)" exec $(BIN)/python -m infra destroy "$(STAGE)"

e2e: $(READY) tests/e2e/node_modules $(VENV)/e2e/.ready ## Test a deployment to an emulated AWS and the local gateway with real clients (needs Node 20+ and npm; installs Chromium)
	@tests/e2e/install-browser.sh
	$(BIN)/pytest tests/e2e

tests/e2e/node_modules: tests/e2e/package-lock.json
	npm ci --no-audit --no-fund --prefix tests/e2e
	@touch $@

docs: $(VENV)/docs/.ready ## Build a site of docs/ in .herald/site; check its links, and that it works offline
	@rm -rf .herald/site
	@$(VENV)/docs/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs .herald/site
	@$(VENV)/docs/bin/python docs/check_site.py .herald/site
	@echo "file://$(CURDIR)/.herald/site/index.html"

audit: $(READY) $(VENV)/audit/.ready ## Look for known vulnerabilities of every locked package (needs the internet; says so where it can't be reached)
	@exec $(BIN)/python tools/audit.py $(VENV)/audit/bin/pip-audit $(LOCKED:%=%.txt)

sbom: $(READY) $(VENV)/sbom/.ready ## Write what travels to Lambda, with versions and hashes, as CycloneDX: make sbom STAGE=prod
	@exec $(BIN)/python -m infra sbom "$(STAGE)"

bench: $(READY) $(VENV)/bench/.ready bench/peers/node/node_modules ## Measure Herald and its peers (needs Node and npm; installs nginx and wrk; QUICK=1: only check that the benchmarks run)
	@bench/install-tools.sh
	@QUICK="$(QUICK)" exec $(BIN)/python -m bench

simulate: $(READY) $(VENV)/bench/.ready ## Simulate a million connections, and draw the plots of docs/scale.md (a minute)
	@$(BIN)/python -m bench.simulate
	@$(VENV)/bench/bin/python -m bench.plots

bench/peers/node/node_modules: bench/peers/node/package-lock.json
	npm ci --no-audit --no-fund --prefix bench/peers/node
	@touch $@

# The virtual environments: .venv from requirements-dev.txt, and .venv/NAME from requirements/NAME.txt.
# tools/set_up.py creates them, one at a time: .venv with PYTHON, and the others with .venv's Python.
# A new .venv replaces all of them, since they are inside it.
INNER := $(patsubst %,$(VENV)/%/.ready,audit bench docs e2e fuzz mutants sbom)
LOCKED := requirements-dev $(basename $(wildcard requirements/*.in))  # the first one constrains the others

$(READY): requirements-dev.txt requirements-dev.in requirements.txt $(if $(WITH_THIS_PYTHON),FORCE) $(if $(realpath $(BIN)/python),,FORCE)
	@python=$(call quoted,$(PYTHON)); "$$python" -c '' 2>/dev/null || { \
		echo "'$$python' is not a working Python, and Herald needs Python 3.11 or later." >&2; \
		echo "Install one, or name one that is installed: make PYTHON=python3.12 run" >&2; exit 1; }; \
	exec "$$python" -I -S tools/set_up.py $(WITH_THIS_PYTHON) $(@D) $(filter-out FORCE,$^)

$(INNER): $(VENV)/%/.ready: requirements/%.txt requirements/%.in $(READY)
	@exec $(BIN)/python -I -S tools/set_up.py $(@D) $^

# Extras are kept, since pip needs an entry for `coverage[toml]`, not only for `coverage`.
lock: $(BIN)/uv ## Compile the requirements files with hashes, after a change of an input (UPGRADE=1: to newer versions)
	@for name in $(LOCKED); do echo "$$name.in > $$name.txt" >&2; $(BIN)/uv pip compile --quiet --system-certs --universal \
		--python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --custom-compile-command 'make lock # --universal --python-version 3.11' \
		$(if $(UPGRADE),--upgrade) --output-file "$$name.txt" "$$name.in" || exit 1; done

# The set-up installs no uv if pip has another index configured.
$(BIN)/uv: $(if $(wildcard $(BIN)/uv),,$(READY))
	@[ -x $@ ] || $(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt

FORCE:
