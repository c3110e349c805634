"""Real training over the plan of tests/three_sources.py: the global batches do not know who trains them.

31 steps with everything that changes over a run: on 1, 2 and 3 ranks, in a pipeline, and through one run that goes on
with other ranks, micro-batches, engines and stages in the middle of the ramp. Kills of real processes: the slow test.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmscale.config import Config, EvalConfig, to_yaml
from fmscale.corpus.replay import replay
from fmscale.corpus.rows import Spent
from fmscale.corpus.sources import open_run_data
from fmscale.observe import pids
from fmscale.observe.events import read_lines
from fmscale.observe.metrics import eval_series, series
from fmscale.observe.terms import newest_term
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
    config = replace(config, train=replace(config.train, steps=steps), eval=EvalConfig(every_steps=9, rows=9))
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
        require_waiting_accounted_for(line)


def require_waiting_accounted_for(line: dict[str, Any]) -> None:
    parts = Spent(**{key[len("data_wait_") :]: line[key] for key in line if re.fullmatch(r"data_wait_\w+_s", key)})
    assert min(astuple(parts)) >= 0
    assert parts.total() == pytest.approx(line["data_wait_s"], abs=1e-3)
    assert line["data_wait_s"] < line["step_time_s"]


WAYS: list[list[dict[str, Any]]] = [
    [{"name": "one", "micro_batch": 4}],
    [
        {"name": "two", "engine": "zero", "zero": 1, "dp": 2, "micro_batch": 3},
        {"name": "pipe", "engine": "pipe", "zero": 0, "pp": 2, "micro_batch": 2},
    ],
    [{"name": "three", "engine": "zero", "zero": 2, "dp": 3, "micro_batch": 3}],
]
"""By number of ranks."""


def test_training_on_1_2_3_ranks_and_in_a_pipeline_is_what_order_says(root: Path) -> None:
    losses, heldout = {}, {}
    for ways in WAYS:
        configs = [run_of(root, **way) for way in ways]
        go(*configs)
        for config in configs:
            lines = series(config.run_dir)
            require_the_undisturbed_run(config, lines)
            losses[config.run.name] = [line["loss"] for line in lines]
            heldout[config.run.name] = [line["heldout_loss"] for line in eval_series(config.run_dir)]
    assert {(line["global_batch"], line["seq_len"]) for line in lines} >= {(6, 8), (10, 16), (16, 32)}
    assert len(heldout["one"]) == 4
    for name in losses:
        assert losses[name] == pytest.approx(losses["one"], rel=TOLERANCE), name
        assert heldout[name] == pytest.approx(heldout["one"], rel=TOLERANCE), name


LEGS: list[list[tuple[int, dict[str, Any]]]] = [
    [(4, {"engine": "plain", "micro_batch": 2})],
    [(9, {"engine": "zero", "zero": 1, "dp": 3, "micro_batch": 3})],
    [
        (14, {"engine": "pipe", "zero": 0, "pp": 2, "micro_batch": 2, "prefetch_batches": 1}),
        (22, {"engine": "zero", "zero": 3, "dp": 2, "micro_batch": 5}),
    ],
    [(STEPS, {"engine": "plain", "micro_batch": 4})],
]
"""Up to which step, in which way; by number of ranks. The batch grows within the second and within the fourth leg."""


def test_a_run_resumed_in_other_ways_in_the_middle_of_the_ramp_goes_on_with_the_same_batches(root: Path) -> None:
    """With packed rows and attention within documents, which the other runs do not have."""

    def of(steps: int, **way: Any) -> Config:
        return run_of(root, "relay", steps=steps, packing="best_fit", attention="document", **way)

    for legs in LEGS:
        go(*(of(steps, **way) for steps, way in legs))
    config = of(STEPS)
    assert len(Lease(config.run_dir).terms()) == sum(map(len, LEGS))
    require_the_undisturbed_run(config, series(config.run_dir))


def kill_all_processes(run: Run) -> None:
    """SIGKILL to all that the run wrote down, the supervisor first."""
    run.kill("supervisor")
    for entry in pids.read(run.directory):
        if pids.alive(entry):
            with contextlib.suppress(ProcessLookupError):  # its parent's death may have been quicker
                os.kill(entry["pid"], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20_kills_and_resizes_lose_no_row_and_repeat_none(root: Path, tmp_path: Path) -> None:
    """`fmscale train` dies at 20 random steps (a rank, the supervisor, or all of it; on Ray a reader before that), and
    starts again each time with other ranks, stages, engine, micro-batch and readers, every third time on Ray."""
    rng, kills, last = random.Random(3), 20, 320
    config = three_sources(root, last, name="killed")
    config = replace(config, checkpoint=replace(config.checkpoint, every_steps=4))
    run = Run(tmp_path, "killed", None, base=to_yaml(config))
    for number in range(kills):
        backend = "ray" if number % 3 == 2 else "torchrun"
        engine, ranks = rng.choice([("plain", [1]), ("zero", [1, 2, 3]), ("pipe", [1, 2])])
        dp, zero = rng.choice(ranks), rng.randint(0, 1 if engine == "pipe" else 3)
        run.settings = [
            f"launch.backend={backend}",
            "launch.device=cpu",
            "launch.max_restarts=0",
            "logging.wandb.mode=disabled",
            f"engine={engine}",
            f"parallel.dp={dp}",
            f"parallel.pp={2 if engine == 'pipe' else 1}",
            f"parallel.zero={zero}",
            f"train.micro_batch={rng.randint(1, 5)}",
            f"data.readers_per_node={rng.randint(1, 3)}",
            f"data.prefetch_batches={rng.randint(1, 6)}",
        ]
        victim, steps = rng.choice(["rank", "supervisor", "all"]), rng.randint(4, 14)
        before = newest_term(run.directory)
        run.start()
        if backend == "ray":
            run.wait_for_steps(1, after_term=before)
            os.kill(rng.choice(run.pids("reader")), signal.SIGKILL)
        run.wait_for_steps(steps, after_term=before)
        if victim == "all":
            kill_all_processes(run)
        else:
            run.kill(victim, rng.randrange(dp) if victim == "rank" else None)
        code = run.finish()
        assert code == (7 if victim == "rank" else -signal.SIGKILL), run.output()
        print(f"{victim} killed after step {run.steps()[-1]['step']} with {' '.join(run.settings)}", flush=True)
    run.train(f"train.steps={last}")
    lines = list(read_lines(run.directory / "metrics.jsonl"))
    config = replace(config, run=replace(config.run, root=str(tmp_path)))
    require_the_undisturbed_run(config, run.steps())
    assert len(Lease(run.directory).terms()) == kills + 1
    assert len(lines) > last, "no step was done again: nothing was interrupted"
    hashes = {line["step"]: line["batch_hash"] for line in run.steps()}
    assert all(line["batch_hash"] == hashes[line["step"]] for line in lines), "an abandoned step trained other rows"
    assert run.leftovers() == []


def test_waiting_is_accounted_for_to_the_millisecond_on_ray(reference_run: Run) -> None:
    for line in reference_run.steps():
        require_waiting_accounted_for(line)
