# Two commands on a fresh machine: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3.11
BIN := .venv/bin

# Let glibc keep what it has been given: training steps allocate and free large buffers, and returning them to the
# system each time costs a third of the speed on a CPU.
export MALLOC_TRIM_THRESHOLD_ = 100000000000
export MALLOC_MMAP_THRESHOLD_ = 100000000000

.PHONY: help install test test-slow lint types docs demo clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: .venv/installed   ## build .venv with everything pinned

.venv/installed: pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "vmmr needs Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

test: install    ## everything but the tests marked slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test-slow: install   ## the tests marked slow (minutes each)
	$(BIN)/python -m pytest -m slow --timeout=1800

lint: install    ## ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install   ## mypy --strict on the package
	$(BIN)/mypy

docs: install    ## the pages as a site in site/, strictly: whatever is broken fails
	$(BIN)/python -m mkdocs build --strict

demo: install    ## render, train, distil, evaluate, report, predict: six minutes on two cores
	$(BIN)/vmmr demo --out demo

clean:           ## forget the environment and what runs left
	rm -rf .venv demo site
