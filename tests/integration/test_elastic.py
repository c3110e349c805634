"""Real training over the plan of tests/three_sources.py: the global batches do not know who trains them.

31 steps with everything that changes over a run, on 1, 2 and 3 ranks, two pipeline stages, and through one run that goes on
with other ranks, micro-batches, engines and stages in the middle of the ramp. Kills of real processes: the slow test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmscale.config import Config
from fmscale.corpus.replay import replay
from fmscale.corpus.sources import open_run_data
from fmscale.observe.events import read_lines
from fmscale.observe.metrics import series
from fmscale.training.lease import Lease
from tests.integration.test_train import go
from tests.runs import Run
from tests.three_sources import ROW, publish, three_sources

pytestmark = pytest.mark.processes

STEPS = 31
TOLERANCE = 1e-5
"""Relative, of fp32 losses between engines and numbers of ranks; see docs/engines.md."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("three"))


def run_of(root: Path, name: str, engine: str = "plain", steps: int = STEPS, **changes: Any) -> Config:
    """changes: as `three_sources` takes them, and the fields of `parallel`."""
    parallel = {field: changes.pop(field) for field in ("pp", "zero") if field in changes}
    config = three_sources(root, STEPS, name=name, engine=engine, **changes)
    config = replace(config, parallel=replace(config.parallel, **parallel))
    config = replace(config, train=replace(config.train, steps=steps))
    config = replace(config, launch=replace(config.launch, backend="torchrun", device="cpu"))
    return replace(config, logging=replace(config.logging, wandb=replace(config.logging.wandb, mode="disabled")))


def require_the_undisturbed_run(config: Config, lines: Sequence[dict[str, Any]]) -> None:
    """Each step once, with the rows, the contents and the counters that the corpora say: no row lost, none twice."""
    data, last = open_run_data(config), config.train.steps
    order = data.order
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    assert [line["batch_hash"] for line in lines] == [each["batch_hash"] for each in replay(config, 1, last, dp=3)]
    at = order.locate(np.arange(order.steps.rows_after(last)))
    for line in lines:
        step = order.steps.step(line["step"])
        rows = step.first_row + step.rows
        assert (line["rows"], line["tokens"]) == (rows, rows * ROW)
        assert (line["global_batch"], line["seq_len"]) == (step.rows, step.seq_len)
        for s, source in enumerate(order.sources):
            own = int(np.count_nonzero(at.source[:rows] == s))
            assert line["source_tokens"][source.name] == own * ROW
            assert line["source_epochs"][source.name] == own / order.rows_per_epoch(s)
        parts = [line[f"data_wait_{part}_s"] for part in ("read", "verify", "decode", "collate", "transfer", "queue")]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(line["data_wait_s"], abs=1e-3)


WAYS: list[dict[str, Any]] = [
    {"name": "one"},
    {"name": "two", "engine": "zero", "zero": 1, "dp": 2, "micro_batch": 2},
    {"name": "three", "dp": 3, "micro_batch": 3, "engine": "zero", "zero": 2},
    {"name": "pipe", "engine": "pipe", "pp": 2, "zero": 0, "micro_batch": 2},
]


def test_training_on_1_2_3_ranks_and_in_a_pipeline_is_what_order_says(root: Path) -> None:
    losses = {}
    for way in WAYS:
        config = run_of(root, **way)
        go(config)
        lines = series(config.run_dir)
        require_the_undisturbed_run(config, lines)
        losses[way["name"]] = [line["loss"] for line in lines]
    assert {(line["global_batch"], line["seq_len"]) for line in lines} >= {(6, 8), (10, 16), (16, 32)}
    for name, found in losses.items():
        assert found == pytest.approx(losses["one"], rel=TOLERANCE), name


def test_packed_rows_within_documents_are_trained_as_order_says(root: Path) -> None:
    config = run_of(root, "packed", "zero", dp=2, packing="best_fit", attention="document", micro_batch=2)
    go(config)
    require_the_undisturbed_run(config, series(config.run_dir))


LEGS: list[tuple[int, dict[str, Any]]] = [
    (4, {"engine": "plain"}),
    (9, {"engine": "zero", "zero": 1, "dp": 3, "micro_batch": 3}),
    (14, {"engine": "pipe", "pp": 2, "zero": 0, "micro_batch": 2, "prefetch_batches": 1}),
    (19, {"engine": "zero", "zero": 3, "dp": 2, "micro_batch": 1}),
    (23, {"engine": "pipe", "pp": 2, "zero": 1, "dp": 2, "micro_batch": 5}),
    (STEPS, {"engine": "plain", "dp": 1, "micro_batch": 4}),
]
"""Up to which step, in which way. The batch ramps within the second and at the end of the fourth leg."""


def test_a_run_resumed_in_other_ways_in_the_middle_of_the_ramp_goes_on_with_the_same_batches(root: Path) -> None:
    for steps, way in LEGS:
        go(run_of(root, "relay", steps=steps, **way))
    config = run_of(root, "relay")
    assert len(Lease(config.run_dir).terms()) == len(LEGS)
    require_the_undisturbed_run(config, series(config.run_dir))
