# `make run` (the demo, end to end), `make test` (lint, types, tests), `make torture` (faults, load, hostile input),
# `make lowest` (the lowest versions allowed).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_WORKERS ?= 3
SEED ?= 0
MINUTES ?= 15

.PHONY: run test torture lowest lint types format clean

run: $(READY)
	$(BIN)/embedtune run

# Three workers keep two cores busy: tests of clusters and servers mostly wait.
test: lint types
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder

torture: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m torture --seed $(SEED) --minutes $(MINUTES) --record

# The lowest versions that pyproject.toml allows, in a venv of their own; LOWEST=--highest for the newest.
lowest: $(READY)
	$(BIN)/python -m torture.lowest .venv-lowest $(LOWEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first, pinned: any later requirement is then satisfied by it and pulls no other build.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --constraint constraints.txt --editable ".[demo,llm,onnx,openvino,ray,serve,track,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-lowest build dist .mypy_cache .ruff_cache .pytest_cache
