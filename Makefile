# PYTHON makes the environment (3.11 or newer); after that everything runs in .venv.
# ARGS goes to the command: make run ARGS="dpo.args.beta=0.3", make test ARGS="-k store".
PYTHON ?= python3
ARGS ?=

export DO_NOT_TRACK := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help run up down test lint bench setup core server dev python

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: core ## set up, then the whole road with a small model, to a GGUF (ARGS: config overrides)
	@.venv/bin/python -m flows.sft_then_dpo $(ARGS)

up: server ## set up, then Prefect, MLflow and a worker in the background, for this machine only
	@.venv/bin/python -m deploy.services up

down: ## end what `make up` started; the data stays
	@test ! -x .venv/bin/python || .venv/bin/python -m deploy.services down

test: dev ## set up, then run the tests (ARGS: pytest's arguments)
	@.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

bench: dev ## set up, then measure the pipeline itself: a sweep, a cached run, a plan, 200 kills (about 35 minutes)
	@.venv/bin/python -m tests.bench

lint: dev ## set up, then ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

setup: core ## only set up: the environment in .venv
	@echo "Ready: .venv"

core: python
	@$(PYTHON) deploy/install.py

server: python
	@$(PYTHON) deploy/install.py --server

dev: python
	@$(PYTHON) deploy/install.py --dev

python:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "There is no '$(PYTHON)' here: install Python 3.11 or newer, or name one, as in: make run PYTHON=python3.12" >&2; exit 2; }
