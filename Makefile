# `make setup` builds .venv from nothing; every other target calls it by itself.
PYTHON ?= python3.11
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo "$(PYTHON) -m uv")

.PHONY: help setup demo test test-docker checks lint types imports pytest docs site bench constraints clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.installed  ## .venv with the `smn` command in it

.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found: install Python 3.11 or say PYTHON=..." >&2; exit 2; }
	@$(UV) --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet uv
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[service,otel,training,dev]'
	@touch $@

demo: setup  ## train on digits, say what two masks do, open the console: about two minutes
	$(BIN)/smn demo

# All parts, even when one fails; the checks run beside the tests, in the time that these leave of the cores.
test: setup  ## lint, types, import rules and all tests
	$(MAKE) --jobs=2 --keep-going --no-print-directory checks pytest

checks: setup
	nice -n 19 $(MAKE) --keep-going --no-print-directory lint types imports

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

# A process a core, each with one thread; then what starts Ray, one cluster after the other, with the machine to itself.
JOBS ?= 2
RAY_TESTS := tests/service/on_ray tests/training/several/test_on_ray.py

pytest: setup
	failed=0; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile --durations=25 --durations-min=5 $(RAY_TESTS:%=--ignore=%) || failed=1; \
	for tests in $(RAY_TESTS); do OMP_NUM_THREADS=1 $(BIN)/pytest $$tests || failed=1; done; \
	exit $$failed

test-docker: setup  ## image and Compose file on a Docker engine of its own: root, docker.io, debootstrap; 40 GB for a while
	OMP_NUM_THREADS=1 $(BIN)/pytest -s -m docker tests/docker

docs: setup  ## renew what pages and files say of the settings
	$(BIN)/python -m service.describe

site: setup  ## the pages as a site with a search, in build/site; a link that does not arrive ends it
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs/site . build/site

bench: setup  ## every benchmark in its quick form, peers too
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[bench]'
	$(BIN)/smn bench --quick

# After a change of pyproject.toml alone: make constraints UPGRADE=
UPGRADE ?= --upgrade

constraints: setup  ## renew the exact pins of constraints.txt, with the hash of every file
	$(UV) pip compile --quiet $(UPGRADE) --all-extras --python-version 3.11 --no-header --no-annotate \
	  --generate-hashes --no-emit-index-url --output-file constraints.txt pyproject.toml

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
