"""Every engine on every topology computes what the plain engine on one rank computes, and state moves between all.

Batches have unequal numbers of targets per rank, and 8 rows, which 3 ranks do not divide: one rank of 3 then trains a
micro-batch of padding alone. Clipping is at work (at 0.5; norms are about 1), and the learning rate changes at every
step.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmscale.config import Config
from tests.numerics.worlds import Job, Outcome, batch, config, label, learning_rate, train
from tests.ranks import run_ranks

pytestmark = pytest.mark.processes

STEPS, SAVED = 5, 3
FP32_LOSS, FP32_NORM = 1e-5, 1e-4
"""Relative. Measured over these 5 steps: 2e-7 and 2e-5."""
BF16_LOSS, BF16_NORM = 1e-3, 5e-2
"""Relative. Measured: 2e-4 and 2e-2; after Adam's first steps the sign of a gradient that rounds to about 0 decides."""

CASES: list[Any] = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]


def _topologies(precision: Any, tied: bool) -> list[Config]:
    """The reference first, then every engine on 2 ranks; in fp32 every number of ranks from 1 to 4 too."""

    def of(engine: Any, **parallel: int) -> Config:
        return config(engine, precision=precision, tied=tied, **parallel)

    narrow = [of("plain"), of("plain", dp=2), *(of("zero", zero=zero, dp=2) for zero in (0, 1, 2, 3))]
    narrow += [of("pipe", pp=2, zero=zero) for zero in (0, 1)]
    if (precision, tied) == ("fp32", False):
        return [
            *narrow,
            *(of("zero", zero=zero, dp=1) for zero in (0, 1, 2, 3)),
            of("pipe", pp=1, zero=1),
            of("plain", dp=3),
            *(of("zero", zero=zero, dp=3) for zero in (0, 1, 2, 3)),
            of("pipe", pp=3, zero=1),
            of("plain", dp=4),
            *(of("zero", zero=zero, dp=4) for zero in (0, 1, 2, 3)),
            *(of("pipe", pp=2, dp=2, zero=zero) for zero in (0, 1)),
        ]
    if (precision, tied) == ("bf16", True):
        return [*narrow, of("pipe", pp=2, dp=2, zero=1)]
    return [of("plain"), of("zero", zero=1, dp=2), *narrow[-2:], of("pipe", pp=2, dp=2, zero=1)]


@functools.cache
def _uninterrupted(precision: Any, tied: bool) -> list[tuple[Config, Outcome]]:
    configs = _topologies(precision, tied)
    outcomes = train([Job(c, STEPS, save_after=SAVED, evaluate_from=STEPS - 1) for c in configs])
    return [(c, starts[0]) for c, starts in zip(configs, outcomes, strict=True)]


@pytest.mark.parametrize(("precision", "tied"), CASES)
def test_losses_are_the_plain_engines(precision: Any, tied: bool) -> None:
    """Losses, held-out loss and norms of 5 steps, initial weights to the bit, AdamW's moments after them."""
    loss_tolerance, norm_tolerance = (FP32_LOSS, FP32_NORM) if precision == "fp32" else (BF16_LOSS, BF16_NORM)
    (_, reference), *others = _uninterrupted(precision, tied)
    assert min(reference.norms) > 0.5, "clipping is not at work, so this test does not see it"
    for other_config, other in others:
        what = label(other_config)
        assert other.loaded.differences(reference.loaded) == [], f"initial weights of {what}"
        _assert_close(other, reference, what, loss_tolerance, norm_tolerance)


def _assert_close(outcome: Outcome, reference: Outcome, what: str, loss: float, norm: float) -> None:
    np.testing.assert_allclose(outcome.losses, reference.losses, rtol=loss, err_msg=f"loss of {what}")
    np.testing.assert_allclose(
        outcome.evaluations, reference.evaluations, rtol=loss, err_msg=f"held-out loss of {what}"
    )
    np.testing.assert_allclose(outcome.norms, reference.norms, rtol=norm, err_msg=f"norm of {what}")
    assert outcome.ended.shapes == reference.ended.shapes, what
    assert outcome.ended.steps == reference.ended.steps, what
    for param, kind in reference.ended.arrays:
        if kind != "master":  # Adam forgives a gradient of the wrong size, its moments do not
            ours, theirs = outcome.ended.arrays[param, kind], reference.ended.arrays[param, kind]
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert error < 10 * norm, f"{kind} of {param} of {what} is off by {error:.1e}"


@pytest.mark.parametrize(("precision", "tied"), [("fp32", False), ("bf16", True)])
def test_the_same_topology_goes_on_to_the_bit(precision: Any, tied: bool) -> None:
    """A new engine that loads fragments and the number of steps is the old one: nothing else is remembered anywhere.

    The resumed run evaluates after every step, the uninterrupted one does not: evaluation leaves no trace either.
    """
    runs = [(c, o) for c, o in _uninterrupted(precision, tied) if c.world_size in (2, 3)]
    jobs = [Job(c, STEPS - SAVED, first_step=SAVED, starts=(o.saved,)) for c, o in runs]
    for (resumed,), (job_config, whole) in zip(train(jobs), runs, strict=True):
        what = label(job_config)
        assert resumed.loaded.differences(whole.saved) == [], f"loaded state of {what}"
        assert resumed.losses == whole.losses[SAVED:], what
        assert resumed.norms == whole.norms[SAVED:], what
        assert resumed.evaluations[-1:] == whole.evaluations, what
        assert resumed.ended.differences(whole.ended) == [], f"final state of {what}"
        assert resumed.outside == {}, what


@pytest.mark.parametrize(("precision", "tied"), [("fp32", False), ("bf16", True)])
def test_state_moves_between_engines_and_topologies(precision: Any, tied: bool) -> None:
    """The state that each engine wrote on 2 ranks, read by each engine on 1, 2 and 4: the same to the bit, and its
    next loss that of the plain engine on one rank."""
    runs = _uninterrupted(precision, tied)
    sources = [(label(c), o.saved) for c, o in runs if c.world_size == 2]
    targets = [c for c, _ in runs if c.world_size in (1, 2, 4)]
    starts = tuple(state for _, state in sources)
    outcomes = train([Job(c, 1, first_step=SAVED, starts=starts) for c in targets])
    assert label(targets[0]).startswith("plain dp=1")
    for target, from_each in zip(targets, outcomes, strict=True):
        for (source, state), outcome, reference in zip(sources, from_each, outcomes[0], strict=True):
            what = f"{label(target)} from {source}"
            assert outcome.loaded.differences(state) == [], what
            # The same tolerance in bf16: one step from the same weights.
            np.testing.assert_allclose(outcome.losses, reference.losses, rtol=FP32_LOSS, err_msg=f"loss of {what}")


@pytest.mark.parametrize("engine", ["zero", "pipe"])
def test_one_process_needs_no_process_group_and_standard_output_stays_clean(engine: str, tmp_path: Path) -> None:
    printed = tmp_path / "stdout"
    assert run_ranks(_train_alone, 1, engine, str(printed)) == [(True, False)]
    assert printed.read_text() == ""


def _train_alone(rank: int, world: int, engine: Any, printed: str) -> tuple[bool, bool]:
    """Whether there was a process group while the engine lived, and after it."""
    import torch
    import torch.distributed as dist

    from fmscale.topology import Topology
    from fmscale.training.engine import build_engine

    dist.destroy_process_group()
    os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY), 1)
    alone = config(engine)
    built = build_engine(alone, Topology(dp=1), 0, torch.device("cpu"))
    built.train_batch(batch(alone, 0, 0), learning_rate(0))
    built.eval_batch(batch(alone, 1, 0))
    during = dist.is_initialized()
    built.close()
    return during, dist.is_initialized()
