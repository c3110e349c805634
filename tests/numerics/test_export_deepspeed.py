"""What `fmscale checkpoint export-deepspeed` writes, DeepSpeed loads: then its steps are ours, to the bit.

The oracle is DeepSpeed's own `load_checkpoint` with `load_universal`, read out through DeepSpeed's own accessors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmscale.topology import Topology
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_export import export_deepspeed
from fmscale.training.lease import Lease
from tests.numerics.worlds import batch, config, learning_rate
from tests.ranks import run_ranks

pytestmark = pytest.mark.processes

BEFORE, AFTER = 3, 3
"""Steps before the export, and after it."""

NAMES = {"master": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


def _train_and_save(rank: int, world: int, run_dirs: dict[str, Path]) -> None:
    import torch

    from fmscale.training.engine import build_engine

    for precision, run_dir in run_dirs.items():
        settings = config("zero", dp=world, zero=2, precision=precision)
        engine = build_engine(settings, Topology(dp=world), rank, torch.device("cpu"))
        for step in range(BEFORE):
            engine.train_batch(batch(settings, step, rank), learning_rate(step))
        store = CheckpointStore(run_dir / "checkpoints")
        store.write_rank(BEFORE, 1, rank, engine.fragments())
        if rank == 0:
            state = {"optimizer_steps": engine.optimizer_steps}
            commit = store.commit(BEFORE, 1, world, 8 * BEFORE, None, state)
            export_deepspeed(store.open(commit), run_dir / "exported")
        torch.distributed.barrier()
        engine.close()


def _go_on(rank: int, world: int, run_dir: Path, precision: Any, zero: int, from_export: bool) -> Any:
    """(losses and norms, (param, kind) -> whole tensor after the load and after the last step): from the export by
    DeepSpeed's loader, or from the checkpoint by ours."""
    import torch
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from fmscale.training import deepspeed_start
    from fmscale.training.engine_zero import ZeroEngine

    settings, plain_settings = config("zero", dp=world, zero=zero, precision=precision), deepspeed_start.settings
    deepspeed_start.settings = lambda *a: plain_settings(*a) | {"checkpoint": {"load_universal": from_export}}
    try:
        engine = ZeroEngine(settings, Topology(dp=world), rank, torch.device("cpu"))
    finally:
        deepspeed_start.settings = plain_settings
    inner = engine._ds.optimizer.optimizer
    store = CheckpointStore(run_dir / "checkpoints")
    (commit,) = store.candidates()
    reader = store.open(commit)
    if from_export:
        path, client = engine._ds.load_checkpoint(str(run_dir / "exported"))
        assert path is not None
        assert client["fmscale"]["checkpoint"] == f"step-{BEFORE:08d}.t0001"
        assert engine._ds.global_steps == BEFORE
        if zero == 3:  # its loader gives all groups one tensor to count steps in; docs/checkpoint.md
            assert len({id(state["step"]) for state in inner.state.values()}) == 1 < len(inner.state), (
                "it has been mended"
            )
            for state in inner.state.values():
                state["step"] = state["step"].clone()
    else:
        engine.load_fragments(reader.read)
        engine.optimizer_steps = BEFORE
    assert {int(state["step"]) for state in inner.state.values()} == {BEFORE}

    def held() -> dict[tuple[str, str], Any]:
        result = {}
        for name, parameter in engine._ds.module.named_parameters():
            for kind, theirs in NAMES.items():
                master = kind == "master"
                get = safe_get_full_fp32_param if master else safe_get_full_optimizer_state
                result[name, kind] = (get(parameter) if master else get(parameter, theirs)).numpy().copy()
        return result

    saved = {
        (name, kind): reader.whole(name, kind).view(shape).numpy()
        for name, shape in reader.params.items()
        for kind in NAMES
    }
    loaded, outputs = held() if from_export else saved, []
    for step in range(BEFORE, BEFORE + AFTER):
        output = engine.train_batch(batch(settings, step, rank), learning_rate(step))
        outputs.append((output.loss, output.grad_norm))
    ended = held()
    engine.close()
    return outputs, loaded, ended


def _both_ways(rank: int, world: int, run_dirs: dict[str, Path], stages: list[int]) -> list[Any]:
    return [
        (label, [_go_on(rank, world, run_dir, label[0], label[1], from_export) for from_export in (True, False)])
        for precision, run_dir in run_dirs.items()
        for label in [(precision, zero) for zero in stages]
    ]


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("export")
    made = {precision: root / precision for precision in ("fp32", "bf16")}
    for run_dir in made.values():
        Lease(run_dir).open_term(None)
    run_ranks(_train_and_save, 2, made, timeout_s=90)
    return made


@pytest.mark.parametrize("world", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_deepspeed_loads_the_export_and_goes_on_to_the_bit(run_dirs: dict[str, Path], world: int) -> None:
    """Written by 2 ranks under ZeRO 2; loaded by 1, 2 and 3 under ZeRO 1, 2 and 3."""
    for rank, results in enumerate(run_ranks(_both_ways, world, run_dirs, [1, 2, 3], timeout_s=200)):
        for label, ((outputs, loaded, ended), (own_outputs, own_loaded, own_ended)) in results:
            assert outputs == own_outputs, (rank, label)
            for theirs, ours in ((loaded, own_loaded), (ended, own_ended)):
                assert theirs.keys() == ours.keys()
                for key, array in theirs.items():
                    assert np.array_equal(array.view(np.int32), ours[key].view(np.int32)), (rank, label, key)
            assert any(not np.array_equal(ended[key], loaded[key]) for key in ended)
