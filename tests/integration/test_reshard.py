"""F43: whoever wrote a checkpoint, whoever reads it: the same state to the bit, the same batches, the same losses.

The first test goes through files with every kind of writer and reader; the second through whole runs. In memory, with
every engine, precision and tied embeddings: tests/numerics/test_engines.py. In the middle of a ramp: test_elastic.py.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from fmscale.config import Config
from fmscale.corpus.replay import replay
from fmscale.topology import Topology
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_diff import diff
from fmscale.training.checkpoint_reader import CheckpointReader
from fmscale.training.fragment_file import Range
from fmscale.training.lease import Lease
from tests.integration.test_train import TOLERANCE, config_of, go, hashes, losses
from tests.numerics.worlds import batch, config, label, learning_rate
from tests.ranks import run_ranks

pytestmark = pytest.mark.processes

STEPS = 2
LAYOUTS: dict[int, list[Config]] = {
    1: [config("plain"), config("zero", zero=2)],
    2: [
        config("plain", dp=2),
        *(config("zero", dp=2, zero=zero) for zero in range(4)),
        config("pipe", pp=2, zero=0),
    ],
    4: [config("zero", dp=4, zero=3), config("pipe", dp=2, pp=2, zero=1)],
}
"""By number of ranks."""


def store_in(root: Path, name: str) -> CheckpointStore:
    return CheckpointStore(root / name / "checkpoints")


def reader_of(root: Path, name: str) -> CheckpointReader:
    (commit,) = store_in(root, name).candidates()
    return store_in(root, name).open(commit)


def _move(rank: int, world: int, layouts: list[Config], root: Path, source: str) -> list[int]:
    """In each layout: read the checkpoint `source` (train one, if that is ""), write it again. Elements asked for."""
    import torch

    from fmscale.training.engine import build_engine

    asked = []
    for layout in layouts:
        topology = Topology(dp=layout.parallel.dp, pp=layout.parallel.pp)
        engine = build_engine(layout, topology, rank, torch.device("cpu"))
        count = 0
        if source:
            reader = reader_of(root, source)
            wanted = list(engine.wanted())
            reader.verify(wanted)
            requests: list[Range] = []

            def read(*request: Any, of: CheckpointReader = reader, told: list[Range] = requests) -> torch.Tensor:
                told.append(request)
                return of.read(*request)

            engine.load_fragments(read)
            assert requests == wanted, "an engine reads what it has said that it would"
            count = sum(numel for *_, numel in wanted)
            engine.optimizer_steps = reader.state["optimizer_steps"]
        else:
            for step in range(STEPS):
                engine.train_batch(batch(layout, step, topology.data_rank(rank)), learning_rate(step))
        asked.append(count)
        store = store_in(root, f"{source}>{label(layout)}")
        store.write_rank(STEPS, 1, rank, engine.fragments())
        if rank == 0:
            store.commit(STEPS, 1, world, 8 * STEPS, None, {"optimizer_steps": engine.optimizer_steps})
        engine.close()
    return asked


def move(root: Path, world: int, layouts: list[Config], source: str) -> list[list[int]]:
    """Elements that each rank asked for, by layout."""
    for layout in layouts:
        Lease(root / f"{source}>{label(layout)}").open_term(None)
    by_rank = run_ranks(_move, world, layouts, root, source, timeout_s=90)
    return [list(counts) for counts in zip(*by_rank, strict=True)]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "writer",
    [LAYOUTS[2][5], pytest.param(LAYOUTS[2][3], marks=SLOW), pytest.param(LAYOUTS[1][0], marks=SLOW)],
    ids=label,
)
def test_every_reader_gets_to_the_bit_what_any_writer_wrote(tmp_path: Path, writer: Config) -> None:
    """And no ZeRO rank asks for more than its part of the state."""
    move(tmp_path, writer.world_size, [writer], "")
    source = f">{label(writer)}"
    written = reader_of(tmp_path, source)
    total = written.bytes // 4
    for world, layouts in LAYOUTS.items():
        for layout, asked in zip(layouts, move(tmp_path, world, layouts, source), strict=True):
            again = reader_of(tmp_path, f"{source}>{label(layout)}")
            again.verify()
            found = diff(written, again)
            assert found.equal, (label(layout), found)
            parts = layout.parallel.dp if layout.engine == "zero" and layout.parallel.zero else 1
            if layout.engine == "zero" and parts > 1:
                assert sum(asked) == total, label(layout)
                assert max(asked) <= total / parts * 1.02 + 64, label(layout)
            else:
                assert max(asked) <= total, label(layout)


WAYS: dict[str, list[str]] = {
    "one": ["engine=plain"],
    "two": ["engine=zero", "parallel.dp=2", "parallel.zero=1"],
    "two-3": ["engine=zero", "parallel.dp=2", "parallel.zero=3"],
    "pipe": ["engine=pipe", "parallel.pp=2", "parallel.zero=0"],
    "four": ["engine=zero", "parallel.dp=4", "parallel.zero=2"],
}
QUICK = [("two", "one"), ("one", "two-3")]
MOVES = [("two", "four"), ("pipe", "one"), ("one", "pipe"), ("two", "two-3")]
FIRST, LAST = 4, 8


def world_of(config: Config) -> int:
    return config.world_size


def go_all(configs: list[Config]) -> None:
    for _, same in itertools.groupby(sorted(configs, key=world_of), key=world_of):
        go(*same)


@pytest.mark.parametrize("moves", [QUICK, pytest.param(MOVES, marks=SLOW)], ids=["2-1-2", "2-4, pipeline, stage"])
def test_runs_go_on_with_other_ranks_engines_and_stages(
    tmp_path: Path, words: Path, moves: list[tuple[str, str]]
) -> None:
    """2 -> 1, 1 -> 2, 2 -> 4 ranks, pipeline 2 -> 1 and back, ZeRO 1 -> 3: batches exactly, losses within tolerance."""

    def of(place: str, way: str) -> Config:
        return config_of(tmp_path / place, words, "run", f"train.steps={LAST}", "eval.every_steps=0", *WAYS[way])

    undisturbed = {source: of(f"from-{source}", source) for source in sorted({"one"} | {source for source, _ in moves})}
    go_all(list(undisturbed.values()))
    computed = [record["batch_hash"] for record in replay(undisturbed["one"], 1, LAST, dp=1)]
    moved = []
    for source, target in moves:
        shutil.copytree(tmp_path / f"from-{source}", tmp_path / f"{source}-{target}")
        moved.append(of(f"{source}-{target}", target))
        keep_until(moved[-1].run_dir, FIRST)
    go_all(moved)
    for run in moved:
        assert len(Lease(run.run_dir).terms()) == 2
        assert hashes(run) == computed, run.run_dir
        assert losses(run) == pytest.approx(losses(undisturbed["one"]), rel=TOLERANCE), run.run_dir


def keep_until(run_dir: Path, step: int) -> None:
    """As a kill just after the checkpoint of `step` would have left the run directory."""
    for directory in (run_dir / "checkpoints").iterdir():
        if directory.name > f"step-{step:08d}.t0001":
            shutil.rmtree(directory)
    assert (run_dir / "checkpoints" / f"step-{step:08d}.t0001" / "COMMIT.json").exists()
