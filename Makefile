# `make` prints the commands. The two that matter: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := torch train serve serve-cpu deploy dev
export PYTHONPATH := code

.PHONY: help setup demo test unit endure cover lint format types check build push smoke lock lock-check bench gpu-check gpu-carry sdk-v2 sdk-v3 docs clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Built once, and again only when the lock changes: the stamp carries the lock's checksum.
STAMP := $(VENV)/.lock-$(shell cksum < requirements/dev.txt | cut -d' ' -f1)
$(STAMP): requirements/dev.txt
	@requirements/setup.sh $(VENV) $(PYTHON)
	@rm -f $(VENV)/.lock-* && touch $@

setup: $(STAMP) ## only make the environment: .venv

# One thread: images this small gain little from more, and lose much where other programs use the cores.
demo: $(STAMP) ## the main job on this machine: sample images -> tuned -> trained -> served -> predicted
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python deploy.py demo

# Two tests at a time: most wait for programs that they start. The slow files come first, and are not put in another order.
PYTEST := $(BIN)/python -m pytest --numprocesses $${TEST_PROCESSES:-2} --no-loadscope-reorder

test: $(STAMP) ## every test; COVER=1 also counts the lines they reach, and fails below the floor in pyproject.toml
	@$(PYTEST) $(if $(COVER),--cov) $(TESTS)

unit: $(STAMP) ## the fast tests only
	@$(PYTEST) tests/unit

endure: $(STAMP) ## kill trainings and searches, and fill their disk, INTERRUPTIONS (20) times each at random moments
	@INTERRUPTIONS=$${INTERRUPTIONS:-20} $(BIN)/python -m pytest -s tests/integration/test_interruptions.py

cover: ## make test COVER=1
	@$(MAKE) --no-print-directory test COVER=1

lint: $(STAMP) ## ruff, and which room may know which
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache

format: $(STAMP) ## put the code in shape: ruff's formatter, and what its rules can mend
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

check: lint types test ## everything CI checks

build: ## build the images (needs Docker; docker/ci-engine.sh brings one to a bare Debian machine)
	@./build_and_push.sh build

push: ## build the images and push them to ECR, or to REGISTRY
	@./build_and_push.sh push

smoke: $(STAMP) build ## run the images as SageMaker does: train, serve, predict, bad image, SIGTERM, failure
	@$(BIN)/python -m pytest tests/container/test_train_image.py tests/container/test_serve_image.py -v --log-cli-level=INFO --log-cli-format='  %(message)s'

# AWS's SDK as others have it: what it brings does not fit beside smdebug and moto.
SDK_V2 := sagemaker<3
SDK_V3 := sagemaker>=3.27
sdk-v2: ## build/sdk-v2: an environment with version 2 of the SageMaker SDK, for its examples and their tests
	@$(PYTHON) -m venv build/sdk-v2 && build/sdk-v2/bin/pip install --quiet '$(SDK_V2)'

sdk-v3: ## build/sdk-v3: one with version 3 whole, for ModelTrainer
	@$(PYTHON) -m venv build/sdk-v3 && build/sdk-v3/bin/pip install --quiet '$(SDK_V3)'

REQUIREMENTS := requirements
lock: ## solve requirements/*.in into hashed locks; what is pinned stays, as long as it fits (needs uv)
	@cd $(REQUIREMENTS) && uv pip compile -q $(LOCK_FLAGS) --no-strip-extras dev.in -o dev.txt
	@cd $(REQUIREMENTS) && for name in $(filter-out dev,$(LOCKS)); do \
	  uv pip compile -q $(LOCK_FLAGS) -c dev.txt $$name.in -o $$name.txt; done
	@cd $(REQUIREMENTS) && grep -E '^[a-z]' dev.txt \
	  | grep -vE "^($$(sed -nE 's/^([a-z-]+)[=<].*/\1/p' cu12.in | paste -sd '|'))==" | sed 's/ \\$$//' > cu12.constraints
	@cd $(REQUIREMENTS) && for name in torch train serve; do \
	  uv pip compile -q $(LOCK_FLAGS) -c cu12.constraints --override cu12.in $$name.in -o $$name-cu12.txt; done; \
	  rm cu12.constraints

lock-check: ## tell whether the locks are what requirements/*.in ask for (needs uv)
	@copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; cp requirements/*.in requirements/*.txt "$$copy"; \
	  $(MAKE) --no-print-directory lock REQUIREMENTS="$$copy"; \
	  for lock in requirements/*.txt; do cmp -s "$$lock" "$$copy/$${lock##*/}" || { \
	    echo "error: $$lock is not what requirements/*.in ask for" >&2; echo "hint: make lock" >&2; exit 1; }; done

LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate $(LOCK_ARGS)

bench: $(STAMP) ## measure every claim again and rewrite benchmarks/results
	@for script in benchmarks/bench_*.py; do PYTHONPATH=code:. $(BIN)/python $$script; done

gpu-check: $(STAMP) ## prove on this machine's GPU what is said of one, in 14 minutes; GPU_CHECK=--fake tries the script
	@$(BIN)/python benchmarks/gpu/gpu_check.py $(GPU_CHECK)

gpu-carry: ## the folder a GPU machine without a network needs beside this repository (GPU_CARRY=--help)
	@$(PYTHON) benchmarks/gpu/carry.py $(GPU_CARRY)

docs: $(STAMP) ## write again what stands in documents and in the code: tables of rules, results and statuses, deploy.example.toml
	@$(BIN)/python -m image_classifier.debugging.rules.table docs/debugger.md
	@$(BIN)/python benchmarks/readme_table.py
	@WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/unit/test_endpoint_statuses.py
	@mkdir -p build && $(BIN)/python deploy.py config --example > build/example.toml && mv build/example.toml deploy.example.toml

clean: ## remove the environment and what the tools cached (runs/ stays)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build/lib build/bdist.* code/*.egg-info
