"""Stages and curves of the settings: which constant weights a run is mixed by, from which row."""

from __future__ import annotations

import pytest

from fmscale.config import DataConfig, SourceConfig, StageConfig
from fmscale.corpus.mixture import PERIOD, quantise
from fmscale.corpus.stages import CURVE_PIECES, never_held, stages_of
from fmscale.corpus.steps import StepPlan

STEPS = StepPlan.constant(8, 64)
NAMES = ["books", "web"]


def data(*stages: StageConfig, weights: tuple[float, float] = (1.0, 3.0)) -> DataConfig:
    sources = {name: SourceConfig(corpus=name, weight=weight) for name, weight in zip(NAMES, weights, strict=True)}
    return DataConfig(seq_len=64, sources=sources, stages=list(stages))


def test_without_stages_the_sources_own_weights_hold() -> None:
    assert stages_of(data(), NAMES, STEPS) == ((0, (PERIOD // 4, 3 * PERIOD // 4)),)


def test_a_stage_begins_with_the_first_step_at_its_tokens() -> None:
    stages = stages_of(data(StageConfig(from_tokens=513, weights={"web": 1})), NAMES, STEPS)
    assert [stage.start for stage in stages] == [0, 16], "token 513 is in row 8, inside step 2: step 3 is the first"
    assert stages[1].weights == (0, PERIOD)


def test_a_stage_from_the_beginning_replaces_the_sources_weights() -> None:
    stages = stages_of(data(StageConfig(weights={"web": 1, "books": 1}), weights=(0, 0)), NAMES, STEPS)
    assert stages == ((0, (PERIOD // 2, PERIOD // 2)),)


@pytest.mark.parametrize(("curve", "quarter"), [("linear", 0.25), ("cosine", 0.1464)])
def test_a_curve_is_cut_into_pieces_of_constant_weights(curve: str, quarter: float) -> None:
    tokens = 64 * 8 * 64 * 10
    stages = stages_of(
        data(
            StageConfig(weights={"books": 1, "web": 3}, curve=curve),  # type: ignore[arg-type]
            StageConfig(from_tokens=tokens, weights={"books": 3, "web": 1}),
        ),
        NAMES,
        STEPS,
    )
    assert len(stages) == CURVE_PIECES + 1
    assert all(stage.start % 8 == 0 for stage in stages)
    shares = [stage.weights[0] / PERIOD for stage in stages]
    assert shares == sorted(shares)
    assert shares[-1] == 0.75
    at_a_quarter = (shares[CURVE_PIECES // 4 - 1] + shares[CURVE_PIECES // 4]) / 2
    assert at_a_quarter == pytest.approx(0.25 + 0.5 * quarter, abs=0.002)


def test_a_curve_shorter_than_its_pieces_has_one_for_each_step() -> None:
    stages = stages_of(
        data(
            StageConfig(weights={"books": 1}, curve="linear"), StageConfig(from_tokens=5 * 8 * 64, weights={"web": 1})
        ),
        NAMES,
        STEPS,
    )
    assert [stage.start for stage in stages] == [0, 8, 16, 24, 32, 40]


def test_a_curve_from_nothing_passes_through_weights_that_can_be_kept() -> None:
    """At the beginning of a long way from 0 the share is less than 1/65536: it is 0 there, not refused."""
    tokens = 64.0 * 8 * 10_000
    weights = {"books": 1.0, "web": 0.0}
    stages = stages_of(
        data(
            StageConfig(weights=weights, curve="cosine"),
            StageConfig(from_tokens=tokens, weights={"books": 0.999, "web": 0.001}),
        ),
        NAMES,
        STEPS,
    )
    assert stages[0].weights == (PERIOD, 0)
    assert stages[-1].weights == quantise([0.999, 0.001], NAMES)


def test_a_stage_that_never_holds_is_told() -> None:
    planned = data(
        StageConfig(from_tokens=1, weights={"web": 1}),
        StageConfig(from_tokens=500, weights={"books": 1}),
        StageConfig(from_tokens=512, weights={"web": 1}),
        StageConfig(from_tokens=6e9, weights={"books": 1}),
    )
    assert never_held(planned, STEPS, rows=128) == [
        "stage data.stages.0 (from_tokens=1) never holds: data.stages.1 begins with the same step, 2",
        "stage data.stages.1 (from_tokens=500) never holds: data.stages.2 begins with the same step, 2",
        "stage data.stages.3 (from_tokens=6,000,000,000) never holds: the run has 8,192 tokens",
    ]
    held = {stage.start for stage in stages_of(planned, NAMES, STEPS) if stage.start < 128}
    assert held == {0, 8}
    assert never_held(planned, STEPS, rows=8)[2].endswith("(from_tokens=512) never holds: the run has 512 tokens")
    assert never_held(planned, STEPS, rows=10**9) == never_held(planned, STEPS, rows=128)[:2]
    assert never_held(data(), STEPS, rows=8) == []
