# `make demo`: raw text to a trained model.   `make test`: the tests of two cores and no GPU.   `make help`: the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  ?= .venv-bench
PEERS_STAMP := $(PEERS)/.installed
PEERS_DATA_STAMP := $(PEERS)-data/.installed
# Ray gives each rank one slot; `timeout` makes a hang an error of its own.
PYTEST := $(BIN)/python -m pytest
# What mostly computes, as many files at a time as there are cores. Then what starts runs, kills them and measures them:
# two files at a time, since half of it is waiting, the longest first.
COMPUTING := -n logical --maxprocesses 4 --dist loadfile tests/unit tests/numerics
RUNNING   := -n 2 --dist loadfile --no-loadscope-reorder tests/faults/test_soak.py tests/slurm \
	$(filter-out tests/unit tests/numerics tests/golden tests/slurm,$(patsubst %/__init__.py,%,$(wildcard tests/*/__init__.py)))

.PHONY: help install demo test test-full lint format clean bench-loader bench-seek bench-reader-kills bench-shuffle bench-real bench-checkpoint bench-reshard bench-recovery bench-ray-cost bench-data soak-kill
.DEFAULT_GOAL := help

help:
	@sed -n '1s/^# //p' Makefile
	@echo "make install     the virtual environment in $(VENV), from constraints.txt"
	@echo "make demo        raw text of this machine -> tokenizer -> shards -> training -> summary (FRESH=1: start over)"
	@echo "make test        lint, types, import layers, tests (some 25 minutes on 2 cores)"
	@echo "make test-full   the slow ones too"
	@echo "make bench-loader        order, checking, our loaders beside seven others (10 to 20 minutes; the others in $(PEERS))"
	@echo "make bench-seek          from nothing to a batch anywhere in 10^10 rows, corpora of that size (3 minutes; 2 GB of disk)"
	@echo "make bench-reader-kills  readers killed while a rank reads (14 minutes)"
	@echo "make bench-shuffle       training with window shuffle and with full shuffle (40 minutes)"
	@echo "make bench-real          step time with real data and with synthetic tokens (6 minutes)"
	@echo "make bench-checkpoint    what a checkpoint costs training, ours and DeepSpeed's (8 minutes)"
	@echo "make bench-reshard       resuming at another topology, beside DeepSpeed's conversion (8 minutes; 10 GB of disk)"
	@echo "make bench-recovery      from kill -9 of a rank to its next step; hangs (15 minutes)"
	@echo "make bench-ray-cost      step time on Ray and under torchrun (15 minutes)"
	@echo "make bench-data          cleaning, de-duplicating and tokenising beside datatrove (30 minutes; 3 GB of disk; Debian's apt)"
	@echo "make soak-kill           a hundred random kills of one run, and not a bit changed (25 minutes)"
	@echo "                         (what these said on our machine: benchmarks/results/)"

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
	$(PYTEST) -m "not slow" $(COMPUTING) --durations=15
	$(PYTEST) -m "not slow" $(RUNNING) --durations=15

test-full: lint
	$(PYTEST) $(COMPUTING) --durations=15
	$(PYTEST) $(RUNNING) --durations=30

# torch first: what comes after it finds it there and brings no other.
$(PEERS_STAMP): benchmarks/peers/requirements.txt
	@test -d $(PEERS) || $(PYTHON) -m venv $(PEERS)
	@echo "installing the peers into $(PEERS) (about 2 GB)"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $<)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# An environment of its own: it wants older libraries than the other peers.
$(PEERS_DATA_STAMP): benchmarks/peers/data-requirements.txt
	@test -d $(PEERS)-data || $(PYTHON) -m venv $(PEERS)-data
	@echo "installing datatrove into $(PEERS)-data (about 1 GB)"
	@$(PEERS)-data/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-loader: $(STAMP) $(PEERS_STAMP)
	$(BIN)/python -m benchmarks.order
	$(BIN)/python -m benchmarks.verify_cost
	$(BIN)/python -m benchmarks.loader --peers $(PEERS)/bin/python

bench-seek: $(STAMP)
	$(BIN)/python -m benchmarks.seek

bench-reader-kills: $(STAMP)
	$(BIN)/python -m benchmarks.reader_kills

bench-shuffle: $(STAMP)
	$(BIN)/python -m benchmarks.shuffle_quality

bench-real: $(STAMP)
	$(BIN)/python -m benchmarks.real_vs_synthetic

bench-checkpoint: $(STAMP)
	$(BIN)/python -m benchmarks.checkpoint

bench-reshard: $(STAMP)
	$(BIN)/python -m benchmarks.reshard

bench-recovery: $(STAMP)
	$(BIN)/python -m benchmarks.recovery

bench-ray-cost: $(STAMP)
	$(BIN)/python -m benchmarks.ray_cost

bench-data: $(STAMP) $(PEERS_DATA_STAMP)
	$(BIN)/python -m benchmarks.data --peers $(PEERS)-data/bin/python

soak-kill: $(STAMP)
	$(BIN)/python -m benchmarks.soak_kill

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(PEERS) $(PEERS)-data runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
