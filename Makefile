# make setup | quickstart | test | check | lint | docs | bench | test-loggers | test-adapters. Everything happens in .venv, or
# beside it; `PYTHON=... make setup` picks another Python.
# make setup-gpu puts the CUDA packages into .venv instead, setup-te adds Transformer Engine; test-cuda-set tries those
# packages on a machine without a GPU, in .venv-cuda.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-conflicts
LOCKS := -c requirements/cpu.txt -c requirements/dev.txt
CPU_SET := $(patsubst %,requirements/%.txt,torch cpu sglang)
GPU_PYTHON ?= python3.12
GPU := $(wildcard .venv/.gpu)
HASHED := --no-deps --require-hashes -r

.PHONY: setup setup-gpu setup-te quickstart test test-cuda-set check checked lint style types test-loggers test-adapters docs bench
.DELETE_ON_ERROR:

setup: .venv/.package .venv/.dev

.venv/.python:
	@test -n "$(PYTHON)" || { echo "setup needs Python 3.11 or newer with venv (Debian: apt install python3-venv)"; exit 1; }
	@echo "setup 1/3  .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv && touch $@

# torch first and with its dependencies, then the rest; what is in requirements/sglang.txt goes in without its own.
.venv/.requirements: .venv/.python $(if $(GPU),requirements/gpu.lock,$(CPU_SET))
ifdef GPU
	@echo "setup 2/3  the CUDA packages (5 GB, some minutes once)"
	@$(INSTALL) $(HASHED) requirements/gpu.lock
else
	@echo "setup 2/3  torch, megatron-core, sglang and what they need (a few minutes once)"
	@$(INSTALL) -r requirements/torch.txt $(LOCKS)
	@$(INSTALL) -r requirements/torch.txt -r requirements/cpu.txt
	@$(INSTALL) --no-deps -r requirements/sglang.txt
endif
	@touch $@

.venv/.package: .venv/.requirements pyproject.toml setup.py
	@echo "setup 3/3  gigpo-mega"
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# A run needs none of it, so the quickstart does not wait for it.
.venv/.dev: .venv/.package requirements/dev.txt
ifndef GPU
	@echo "setup      tools and libraries of make test"
	@$(INSTALL) -r requirements/torch.txt -r requirements/cpu.txt -r requirements/dev.txt
endif
	@touch $@

.venv/.gpu:
	@test ! -e .venv || { echo "setup-gpu needs an empty .venv, and this one has the CPU packages: rm -r .venv"; exit 1; }
	@$(GPU_PYTHON) -m tools.check_setup --gpu
	@echo "setup 1/3  .venv with $(GPU_PYTHON)"
	@$(GPU_PYTHON) -m venv .venv && touch .venv/.python $@

# A second make, as what `setup` does depends on .venv/.gpu.
setup-gpu: .venv/.gpu
	@$(MAKE) --no-print-directory setup

# Transformer Engine's torch half is built against the installed torch, with nvcc, in some minutes.
setup-te: setup-gpu
	@$(INSTALL) $(HASHED) requirements/gpu-extras.lock
	@$(INSTALL) --no-deps --no-build-isolation transformer-engine==2.20.2 transformer-engine-torch==2.20.2

quickstart: .venv/.package
	@$(BIN)/python -m gigpo_mega.quickstart

test: setup lint .venv/.docs test-loggers test-adapters
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Before a commit, at once: types beside the rest of the lint and the unit tests that the change can reach.
check: setup
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target types checked

checked: style
	@$(BIN)/python -m pytest -m unit --changed -p no:xdist || test $$? -eq 5  # 5: nothing has changed

test-cuda-set:
	@$(GPU_PYTHON) -m tools.cuda_set

lint: style types

style: setup
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/python tools/check_claims.py

types: setup
	@$(BIN)/pyright --warnings

# W&B and MLflow, and the adapters' libraries, beside .venv, not in it: other packages would import them.
.venv-%/.package: .venv/.package .venv/.dev requirements/%.txt
	@$(BIN)/python -m venv .venv-$*
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-$*/.path
	@cp .venv-$*/.path "$$(echo .venv-$*/lib/python*/site-packages)/set.pth"
	@.venv-$*/bin/python -m pip install -qq --disable-pip-version-check --no-warn-conflicts $(BARE) -r requirements/$*.txt $(LOCKS)
	@touch $@

.venv-adapters/.package: BARE := --no-deps

.venv-adapters/.jericho: .venv-adapters/.package
	@.venv-adapters/bin/python -m pip install -qq --disable-pip-version-check --no-deps jericho==3.3.1 \
		|| echo "test-adapters: without a C compiler there is no jericho, and TextWorld's tests are skipped"
	@touch $@

test-loggers: .venv-loggers/.package
	@.venv-loggers/bin/python -m pytest -p no:xdist tests/telemetry/test_loggers.py

test-adapters: .venv-adapters/.jericho
	@.venv-adapters/bin/python -m pytest -p no:xdist $(patsubst %,tests/envs/test_%.py,adapter_scienceworld adapter_skyrl_gym adapter_textworld adapters_page openenv_server)

.venv/.docs: .venv/.package requirements/docs.txt
	@$(INSTALL) -r requirements/docs.txt $(LOCKS)
	@touch $@

docs: .venv/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

bench: setup
	@for tool in tools/bench_*.py; do $(BIN)/python $$tool || exit 1; done
