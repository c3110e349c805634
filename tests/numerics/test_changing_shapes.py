"""A global batch that ramps and sequences that grow, step by step: every engine computes what the plain one does.

Ranks have 1 to 4 micro-batches a step, 3 ranks do not divide all of the steps, and each step is followed by an
evaluation, which has a shape of its own.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch

from fmscale.config import Config
from fmscale.topology import Topology
from fmscale.training.engine import build_engine
from tests.numerics.worlds import (
    MICRO_BATCH,
    SEQ_LEN,
    TOLERANCES,
    Job,
    Outcome,
    Shape,
    batch,
    config,
    label,
    learning_rate,
    train,
)

pytestmark = pytest.mark.processes

SHAPES = (Shape(4, 4), Shape(8, 4), Shape(8, 6), Shape(6, 6), Shape(6, 12), Shape(4, 12))
STEPS, SAVED = len(SHAPES), 3


def _run(configs: list[Config]) -> list[tuple[Config, Outcome]]:
    outcomes = train([Job(c, STEPS, save_after=SAVED, shapes=SHAPES) for c in configs])
    return [(c, starts[0]) for c, starts in zip(configs, outcomes, strict=True)]


@functools.cache
def _trained(precision: Any) -> list[tuple[Config, Outcome]]:
    """The reference first, then every engine on 2 ranks."""

    def of(engine: Any, **parallel: int) -> Config:
        return config(engine, precision=precision, tied=precision == "bf16", **parallel)

    narrow = [of("plain"), of("plain", dp=2), *(of("zero", zero=zero, dp=2) for zero in (0, 1, 2, 3))]
    return _run([*narrow, of("pipe", pp=2), of("zero", zero=3, dp=3)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_engine_trains_a_ramp_as_the_plain_one_does(precision: Any) -> None:
    (_, reference), *others = _trained(precision)
    for other_config, other in others:
        _agree(other, reference, 0, precision, label(other_config))


@pytest.mark.slow
def test_so_do_more_ranks_and_stages() -> None:
    (_, reference), *_ = _trained("fp32")
    wide = [config("zero", zero=zero, dp=3) for zero in (0, 1, 2)]
    wide += [config("pipe", pp=2, zero=0), config("pipe", pp=3), *(config("pipe", pp=2, dp=2, zero=z) for z in (0, 1))]
    for other_config, other in _run(wide):
        _agree(other, reference, 0, "fp32", label(other_config))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_saved_on_the_ramp_goes_on_in_any_engine(precision: Any) -> None:
    """In the same one to the bit: nothing that depends on how many micro-batches there were is remembered anywhere."""
    (_, reference), *others = _trained(precision)
    runs, jobs = [(c, o) for c, o in others if c.world_size == 2], []
    for i, (job_config, own) in enumerate(runs):
        _, another = runs[(i + 3) % len(runs)]
        jobs.append(Job(job_config, STEPS - SAVED, SAVED, starts=(own.saved, another.saved), shapes=SHAPES))
    for (same, moved), (job_config, whole) in zip(train(jobs), runs, strict=True):
        what = label(job_config)
        assert same.losses == whole.losses[SAVED:], what
        assert same.norms == whole.norms[SAVED:], what
        assert same.evaluations == whole.evaluations[SAVED:], what
        assert same.ended.differences(whole.ended) == [], what
        _agree(moved, reference, SAVED, precision, f"{what}, from another's state")


def _agree(run: Outcome, reference: Outcome, first: int, precision: str, what: str) -> None:
    """Losses, held-out losses and norms of all steps from `first` on."""
    assert run.ended.steps == STEPS, what
    for series, kind in (("losses", "loss"), ("evaluations", "loss"), ("norms", "norm")):
        ours, theirs = getattr(run, series), getattr(reference, series)[first:]
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCES[precision][kind], err_msg=f"{series} of {what}")


def test_a_row_in_pieces_is_as_many_rows() -> None:
    """To the bit: of a micro-batch an engine sees the sequences alone, and it divides by the targets of all."""
    rows, pieces = config(), 3
    sequences = dataclasses.replace(rows, train=dataclasses.replace(rows.train, micro_batch=MICRO_BATCH * pieces))
    whole = batch(rows, 0, 0, Shape(8, SEQ_LEN // pieces))
    apart = dataclasses.replace(whole, rows=np.arange(len(whole.tokens)))
    assert (whole.pieces, apart.pieces) == (pieces, 1)
    first, second = (build_engine(c, Topology(dp=1), 0, torch.device("cpu")) for c in (rows, sequences))
    assert first.eval_batch(whole) == second.eval_batch(apart)
    assert first.train_batch(whole, learning_rate(0)) == second.train_batch(apart, learning_rate(0))
