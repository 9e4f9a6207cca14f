# Two commands do all the set-up: `make run` starts the product, `make test` checks it. `make help` lists the rest.

PYTHON ?= python3
CONFIG ?= config.example.toml
PYTEST_ARGS ?=
CALLS ?= 100000
JOBS ?= 1
SEED ?=
FUZZ_SECONDS ?= 600
TARGETS ?=
MIX ?= evening
COMPARE ?=
SOAK ?=
VENV := .venv
BIN := $(VENV)/bin

# A stamp holds the installed state: the environment is touched only when what it was made from has changed.
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development

.DEFAULT_GOAL := help
.PHONY: help run demo test mix load load-compare soak faults crashes damage fuzz linear transparency torture loops compiled plain test-compiled lint format types needs requirements clean audit

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

$(VENV)/bin/python:
	@PYTHON="$(PYTHON)" sh tools/make-venv.sh $(VENV)

$(RUNTIME): requirements.txt pyproject.toml | $(VENV)/bin/python
	@sh tools/install.sh $(VENV) requirements.txt
	@touch $@

$(DEVELOPMENT): requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	@sh tools/install.sh $(VENV) requirements-dev.txt
	@touch $(RUNTIME) $@

run: $(RUNTIME)  ## start a node on config.example.toml (CONFIG=... for another file)
	@exec $(BIN)/sipproxy up -c $(CONFIG)

demo: $(RUNTIME)  ## a narrated run: simulated routers, trunk and PSAP around a real node
	@exec $(BIN)/sipproxy demo

test: $(DEVELOPMENT) needs lint types  ## lint, types and all tests (PYTEST_ARGS="tests/sip -x" for some)
	$(if $(PYTEST_ARGS),$(BIN)/python -m pytest $(PYTEST_ARGS),sh tools/run-tests.sh $(BIN)/python)

mix: $(DEVELOPMENT)  ## 100,000 random calls on the virtual network, with losses and kills (CALLS=, JOBS=, SEED=)
	nice $(BIN)/python -m tests.sim.mix --calls $(CALLS) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

load: $(DEVELOPMENT)  ## a mix of traffic against a node of its own, every call reconciled (MIX="busy-hour --plot busy.svg")
	$(BIN)/python -m loadtest mix $(MIX)

load-compare: $(DEVELOPMENT) needs  ## the same calls against a node and Kamailio, in turn (COMPARE="--rate 500 --children 1")
	$(BIN)/python -m loadtest compare $(COMPARE)

soak: $(DEVELOPMENT)  ## two hours of calls with a trouble every two minutes, and slopes (SOAK="--seconds 36000")
	nice $(BIN)/python -m loadtest soak $(SOAK)

faults: $(DEVELOPMENT)  ## the store in each kind of trouble under live calls at two nodes (FAULTS="--only stopped" for one)
	nice $(BIN)/python -m loadtest faults $(FAULTS)

crashes: $(DEVELOPMENT)  ## the process dies at every step of journal, publisher and consumer, each time that it passes it
	CDR_CRASH_TIMES=1000 nice $(BIN)/python -m pytest --timeout 7200 tests/cdr/test_cdr_crash_steps.py

damage: $(DEVELOPMENT)  ## journals of some hundred calls cut at every byte, with every bit flipped
	CDR_DAMAGE_CALLS=300 nice $(BIN)/python -m pytest --timeout 7200 tests/cdr/test_cdr_journal_damage.py

transparency: $(DEVELOPMENT)  ## 2,000 calls of messages as odd as they are valid, through a real node both ways
	SIPPROXY_ODD_CALLS=2000 nice $(BIN)/python -m pytest --timeout 7200 tests/integration/test_wire_transparency.py

linear: $(DEVELOPMENT)  ## CPU time of every entry point while its input doubles
	$(BIN)/python -m tests.fuzz.linear

torture: $(DEVELOPMENT)  ## all message corpora against a real node, over UDP and TCP, four times
	nice $(BIN)/python -m tests.torture

fuzz: $(DEVELOPMENT)  ## every entry point, guided by coverage (FUZZ_SECONDS=600 each, TARGETS="message uri" for some)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target build/fuzzing atheris
	PYTHONPATH=build/fuzzing FUZZ_SECONDS=$(FUZZ_SECONDS) nice $(BIN)/python -m tests.fuzz $(TARGETS)

loops: $(DEVELOPMENT)  ## the tests of records on both event loops, asyncio's own and uvloop
	CDR_BOTH_LOOPS=1 nice $(BIN)/python -m pytest tests/cdr

needs:
	@sh tools/apt-needs.sh

lint: $(DEVELOPMENT)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEVELOPMENT)  ## let ruff write its format
	$(BIN)/ruff format .

types: $(DEVELOPMENT)  ## mypy, strict
	$(BIN)/mypy

compiled: $(DEVELOPMENT)  ## compile what a call passes through with mypyc, for more calls a second; needs a C compiler
	$(BIN)/python tools/compile_core.py

plain: | $(VENV)/bin/python  ## take compiled modules away again
	$(BIN)/python tools/compile_core.py --remove

test-compiled: compiled  ## the tests of what is compiled, and of nodes that run on it, on compiled modules
	$(BIN)/python -m pytest tests/sip tests/torture tests/engine tests/policy tests/sim tests/cdr tests/store \
		tests/net tests/integration/test_disk.py tests/integration/test_store_stopped.py tests/test_randomness.py tests/test_caches.py \
		tests/test_shell.py tests/test_compiled.py

audit:  ## compare the pinned requirements with published advisories (asks the package index)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target build/audit pip-audit
	PYTHONPATH=build/audit $(PYTHON) -m pip_audit --requirement requirements.txt --require-hashes --disable-pip --strict

requirements:  ## compile requirements*.txt (hashed) from pyproject.toml
	@PYTHON="$(PYTHON)" sh tools/compile-requirements.sh

clean:  ## remove what the targets above made; data/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
