# make setup | quickstart | test | lint | bench. Everything happens in .venv; `PYTHON=... make setup` picks another Python.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-conflicts
LOCKS := -c requirements/cpu.txt -c requirements/dev.txt

.PHONY: setup quickstart test lint bench
.DELETE_ON_ERROR:

setup: .venv/.requirements .venv/.package

.venv/.python:
	@test -n "$(PYTHON)" || { echo "setup needs Python 3.11 or newer with venv (Debian: apt install python3-venv)"; exit 1; }
	@echo "setup 1/4  .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv && touch $@

# torch first and with its dependencies, then the rest; what is in requirements/sglang.txt goes in without its own.
.venv/.requirements: .venv/.python $(wildcard requirements/*.txt)
	@echo "setup 2/4  torch, megatron-core and what they need (a few minutes once)"
	@$(INSTALL) -r requirements/torch.txt $(LOCKS)
	@$(INSTALL) -r requirements/torch.txt -r requirements/cpu.txt -r requirements/dev.txt
	@echo "setup 3/4  sglang, game data, SmolLM2"
	@$(INSTALL) --no-deps -r requirements/sglang.txt
	@touch $@

.venv/.package: .venv/.requirements pyproject.toml setup.py
	@echo "setup 4/4  gigpo-mega"
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: setup
	@$(BIN)/python -m gigpo_mega.quickstart

test: setup lint
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/pyright --warnings
	@$(BIN)/lint-imports

bench: setup
	@for tool in tools/bench_*.py; do $(BIN)/python $$tool || exit 1; done
