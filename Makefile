# `make help` lists the targets. The only tool besides make that has to be there is Python 3.11 or newer.
SHELL := /bin/sh
PYTHON ?= python3
SEED ?= 0
ARGS ?=
TORCH_INDEX ?=

VENV_PYTHON := .venv/bin/python
RUNTIME := .venv/.runtime-installed
DEVELOPMENT := .venv/.development-installed
REQUIREMENTS := pyproject.toml constraints.txt scripts/install.sh

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-all lint format docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=$(PYTHON) (3.11 or newer), SEED=$(SEED), ARGS= (more arguments of the quickstart),"
	@echo "TORCH_INDEX= (package index that torch comes from, see CONTRIBUTING.md)."

setup: $(DEVELOPMENT) ## create .venv with the package and the development tools

quickstart: $(RUNTIME) ## run every stage on the embedded simulator, with a report at the end
	@sh scripts/install_rendering.sh $(VENV_PYTHON)
	.venv/bin/regrasp quickstart --seed $(SEED) $(ARGS)

test: lint ## everything CI runs: linters, types, tests
	@sh scripts/install_rendering.sh $(VENV_PYTHON)
	@sh scripts/install_isaaclab_tests.sh $(VENV_PYTHON)
	$(VENV_PYTHON) -m pytest -n 2

test-all: lint ## the tests of CI, and those that take long
	@sh scripts/install_rendering.sh $(VENV_PYTHON)
	@sh scripts/install_isaaclab_tests.sh $(VENV_PYTHON)
	@sh scripts/install_browser_tests.sh $(VENV_PYTHON)
	@sh scripts/install_gymnasium_tests.sh $(VENV_PYTHON)
	@sh scripts/install_rlinf_tests.sh $(VENV_PYTHON)
	$(VENV_PYTHON) -m pytest -n 2 -m ""

lint: $(DEVELOPMENT) ## ruff, pyright and the direction of imports, changing nothing
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m pyright
	.venv/bin/lint-imports --no-logo

format: $(DEVELOPMENT) ## let ruff rewrite what it can
	$(VENV_PYTHON) -m ruff check --fix
	$(VENV_PYTHON) -m ruff format

docs: ## build the docs site into site/, in an environment of its own
	@sh scripts/build_docs.sh "$(PYTHON)"

wheel: $(DEVELOPMENT) ## build dist/regrasp-*.whl
	$(VENV_PYTHON) -m build --wheel

clean: ## remove .venv, builds and caches; never a run or its results
	rm -rf .venv .venv-docs build dist site src/regrasp.egg-info .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): $(REQUIREMENTS)
	@sh scripts/install.sh "$(PYTHON)" "." "$(TORCH_INDEX)"
	@touch $@

$(DEVELOPMENT): $(REQUIREMENTS)
	@sh scripts/install.sh "$(PYTHON)" ".[dev]" "$(TORCH_INDEX)"
	@touch $(RUNTIME) $@
