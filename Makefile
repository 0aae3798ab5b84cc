# What a user types. Each command sets up what it needs, once; nothing is installed by hand.

.DEFAULT_GOAL := help
.PHONY: help run demo token test lint types tests coverage faults fuzz mutants package resources deploy destroy docs e2e bench simulate audit lock usage-of-token FORCE

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
# As `python -m gateway`; but Python itself, as it starts, has no traceback for Ctrl-C.
GATEWAY := $(BIN)/python -S -c 'import _signal; _signal.signal(_signal.SIGINT, _signal.SIG_DFL); \
	import site, runpy; site.main(); runpy.run_module("gateway", run_name="__main__", alter_sys=True)'
STAGE ?= dev
WITH ?= cloudformation
SECONDS ?= 60
quoted = '$(subst ','\'',$(1))'

help: ## Say what each command does
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

run: $(READY) ## Serve Herald on http://127.0.0.1:8000 (HOST and PORT change that)
	@exec $(GATEWAY) run

demo: $(READY) ## Connect real clients, post one message, show who received it
	@exec $(GATEWAY) demo

# USER counts on the command line alone: shells set it to the login name.
token: $(if $(findstring command,$(origin USER)),$(if $(strip $(USER)),,usage-of-token),usage-of-token) $(READY) ## Print a token: make token USER=alice SCOPE="messages:send"
	@exec $(GATEWAY) token $(call quoted,$(USER)) $(if $(findstring command,$(origin SCOPE))$(SCOPE),$(call quoted,$(SCOPE)))

usage-of-token:
	@echo 'USER is missing. Usage: make token USER=alice [SCOPE="messages:send"]' >&2; exit 2

test: lint types tests ## Lint, types and every test that needs only Python

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --cache-dir .herald/imports
	$(BIN)/codespell

types: $(READY)
	$(BIN)/mypy

# Four processes, also on two cores: tests wait for a fifth of their time. With bytecode, an
# execution environment that starts doesn't compile Herald anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 4 --dist worksteal

tests: $(READY)
	$(PYTEST)

coverage: $(READY) ## Which lines and branches the tests reach, in every process (at least 95 %; TESTS: of some alone)
	$(PYTEST) $(TESTS) --cov

faults: $(READY) ## Spoil Herald's calls to AWS, and kill it between any two (FAULTS=all: in each way, twenty minutes)
	FAULTS="$(FAULTS)" $(BIN)/pytest -n auto --maxprocesses 4 tests/faults

fuzz: $(VENV)/fuzz/.ready ## Try what nobody thought of on the parsers of messages and tokens: make fuzz SECONDS=60
	@for parser in messages tokens; do mkdir -p .herald/fuzz/$$parser && \
		PYTHONPATH=. $(VENV)/fuzz/bin/python -m tests.fuzz.$$parser -max_total_time=$(SECONDS) -rss_limit_mb=1024 \
		-max_len=4096 -verbosity=0 -print_final_stats=1 -artifact_prefix=.herald/fuzz/$$parser/ \
		.herald/fuzz/$$parser tests/fuzz/corpus/$$parser || exit 1; done

mutants: $(VENV)/mutants/.ready ## Change a line of seven modules in 2,000 ways, and see which their tests don't notice (half an hour; MUTANTS="chalicelib.store.rate_limits*": some)
	$(VENV)/mutants/bin/mutmut run --max-children 2 $(MUTANTS)
	@$(VENV)/mutants/bin/mutmut results | sed '/: not checked$$/d'

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

docs: $(VENV)/docs/.ready ## Build a site of docs/ in .herald/site, and check its links and that it needs no internet
	@rm -rf .herald/site
	@$(VENV)/docs/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs .herald/site
	@$(VENV)/docs/bin/python docs/check_site.py .herald/site
	@echo "file://$(CURDIR)/.herald/site/index.html"

audit: $(VENV)/audit/.ready ## Look each installed package up among the known vulnerabilities (needs the internet)
	@$(BIN)/python -m pip freeze | $(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r /dev/stdin

bench: $(READY) $(VENV)/bench/.ready bench/peers/node/node_modules ## Measure Herald beside its peers (needs Node, npm, and nginx and wrk: it installs these; QUICK=1: only see that it can be measured)
	@bench/install-tools.sh
	@QUICK="$(QUICK)" exec $(BIN)/python -m bench

simulate: $(READY) $(VENV)/bench/.ready ## Simulate a million connections, and draw docs/scale.md's plots (a minute)
	@$(BIN)/python -m bench.simulate
	@$(VENV)/bench/bin/python -m bench.plots

bench/peers/node/node_modules: bench/peers/node/package-lock.json
	npm ci --no-audit --no-fund --prefix bench/peers/node
	@touch $@

# The virtual environments: .venv of requirements-dev.txt, and .venv/NAME of requirements/NAME.txt.
# tools/set_up.py makes them, one at a time: the first with PYTHON, and the others with the first
# one's Python. These go with the first when it is made anew.
INNER := $(patsubst %,$(VENV)/%/.ready,audit bench docs e2e fuzz mutants)
LOCKED := requirements-dev $(basename $(wildcard requirements/*.in))  # the first constrains others

$(READY): requirements-dev.txt requirements-dev.in requirements.txt $(if $(WITH_THIS_PYTHON),FORCE) $(if $(realpath $(BIN)/python),,FORCE)
	@python=$(call quoted,$(PYTHON)); "$$python" -c '' 2>/dev/null || { \
		echo "There is no Python that runs as '$$python', and Herald needs Python 3.11 or later." >&2; \
		echo "Install one, or name one that is installed: make PYTHON=python3.12 run" >&2; exit 1; }; \
	exec "$$python" -I -S tools/set_up.py $(WITH_THIS_PYTHON) $(@D) $(filter-out FORCE,$^)

$(INNER): $(VENV)/%/.ready: requirements/%.txt requirements/%.in $(READY)
	@exec $(BIN)/python -I -S tools/set_up.py $(@D) $^

# pip asks for a hash of `coverage[toml]`, and not only of `coverage`: hence the extras.
lock: $(BIN)/uv ## Compile each requirements file with hashes, after a change (UPGRADE=1: and take what is newer)
	@for name in $(LOCKED); do echo "$$name.in > $$name.txt" >&2; $(BIN)/uv pip compile --quiet --system-certs --universal \
		--python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --custom-compile-command 'make lock # --universal --python-version 3.11' \
		$(if $(UPGRADE),--upgrade) --output-file "$$name.txt" "$$name.in" || exit 1; done

# Where pip has an index of its own, the set-up is without uv.
$(BIN)/uv: $(if $(wildcard $(BIN)/uv),,$(READY))
	@[ -x $@ ] || $(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt

FORCE:
