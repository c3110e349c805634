# `make demo`: raw text to a trained model.   `make test`: the tests of two cores and no GPU.   `make help`: the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Ray gives each rank one slot; `timeout` makes a hang an error of its own.
PYTEST := $(BIN)/python -m pytest

.PHONY: help install demo test test-full bench-loader lint format clean
.DEFAULT_GOAL := help

help:
	@sed -n '1s/^# //p' Makefile
	@echo "make install     the virtual environment in $(VENV), from constraints.txt"
	@echo "make demo        raw text of this machine -> tokenizer -> shards -> training -> summary (FRESH=1: start over)"
	@echo "make test        lint, types, import layers, tests (about 6 minutes on 2 cores)"
	@echo "make test-full   the slow ones too"
	@echo "make bench-loader   order and loaders on this machine (results of ours: benchmarks/results/)"

install: $(STAMP)

# DS_BUILD_OPS=0: DeepSpeed's native ops are not needed, see docs/engines.md.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"error: fmscale needs Python 3.11 to 3.13, found {v[0]}.{v[1]}; run: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 2 GB, a minute or two)"
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/fmscale demo $(if $(FRESH),--fresh)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -m "not slow" --durations=15

test-full: lint
	$(PYTEST) --durations=30

bench-loader: $(STAMP)
	$(BIN)/python -m benchmarks.loader

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
