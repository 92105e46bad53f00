# `make` prints the commands. The two that matter: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := torch train serve deploy dev
export PYTHONPATH := code

.PHONY: help setup demo test unit lint types check build push smoke lock bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Built once, and again only when the lock changes: the stamp carries the lock's checksum.
STAMP := $(VENV)/.lock-$(shell cksum < requirements/dev.txt | cut -d' ' -f1)
$(STAMP): requirements/dev.txt
	@requirements/setup.sh $(VENV) $(PYTHON)
	@rm -f $(VENV)/.lock-* && touch $@

setup: $(STAMP) ## only make the environment: .venv

# One thread: images this small gain little from more, and lose much where other programs use the cores.
demo: $(STAMP) ## the main job on this machine: sample images -> tuned -> trained -> served -> predicted
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python deploy.py demo

test: $(STAMP) ## every test
	@$(BIN)/python -m pytest

unit: $(STAMP) ## the fast tests only
	@$(BIN)/python -m pytest tests/unit

lint: $(STAMP) ## ruff and the import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

check: lint types test ## everything CI checks

build: ## build both images (needs Docker; docker/ci-engine.sh brings one to a bare Debian machine)
	@./build_and_push.sh build

push: ## build both images and push them to ECR, or to REGISTRY
	@./build_and_push.sh push

smoke: $(STAMP) build ## run both images as SageMaker does: train, serve, predict, bad image, SIGTERM, failure
	@$(BIN)/python -m pytest tests/container/test_train_image.py tests/container/test_serve_image.py -v --log-cli-level=INFO --log-cli-format='  %(message)s'

lock: ## solve requirements/*.in again into hashed locks (needs uv: pip install uv)
	@uv pip compile -q $(LOCK_FLAGS) requirements/dev.in -o requirements/dev.txt
	@for name in $(filter-out dev,$(LOCKS)); do \
	  uv pip compile -q $(LOCK_FLAGS) -c requirements/dev.txt requirements/$$name.in -o requirements/$$name.txt; done
	@grep -E '^[a-z]' requirements/dev.txt | grep -vE "^($$(sed -nE 's/^([a-z-]+)[=<].*/\1/p' requirements/cu12.in | paste -sd '|'))==" \
	  | sed 's/ \\$$//' > requirements/cu12.constraints
	@for name in torch train serve; do \
	  uv pip compile -q $(LOCK_FLAGS) -c requirements/cu12.constraints --override requirements/cu12.in requirements/$$name.in \
	    -o requirements/$$name-cu12.txt; done; rm requirements/cu12.constraints
LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate $(LOCK_ARGS)

bench: $(STAMP) ## measure every claim again and rewrite benchmarks/results
	@for script in benchmarks/bench_*.py; do PYTHONPATH=code:. $(BIN)/python $$script; done

clean: ## remove the environment and what the tools cached (runs/ stays)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
