# Needs nothing but Python 3.11 or newer: everything else goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
DEV := .venv/.installed-dev
# One number from which every fault of a chaos run follows: the same seed, the same faults.
SEED ?= $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
# Drawn once, not anew at every use.
SEED := $(SEED)

# Tests start hundreds of processes: each would compile whatever it imports, for longer than it then runs.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help .venv demo test lint types chaos bench clean

help: ## list the targets
	@grep -E '^[.a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

.venv: $(DEV) ## the environment for development

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e .
	@touch $@

$(DEV): setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e ".[dev]"
	@touch $(INSTALLED) $@

demo: $(INSTALLED) ## pull the plug on a worker under load, and count (ARGS="--json")
	$(BIN)/entitycelery demo $(ARGS)

test: $(DEV) ## all tests (PYTEST_ARGS="-k name")
	$(BIN)/python -m tests $(PYTEST_ARGS)

lint: $(DEV) ## style, format and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV) ## mypy on the library and the command line, pyright on what users write
	$(BIN)/mypy --strict entitycelery cli
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing

chaos: $(DEV) ## only the tests that kill, freeze and cut, the long ones too (SEED=7)
	@echo "make chaos SEED=$(SEED)"
	ENTITY_CHAOS_SEED=$(SEED) $(BIN)/python -m pytest tests -m "chaos or chaos_long" $(PYTEST_ARGS)

bench: $(DEV) ## the figures in the docs (ARGS="--quick")
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment and whatever tools left behind
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
