"""The settings' weights, stages and curves -> the stages of a mixture, which are constant pieces.

A stage begins with the first step that begins at its tokens or later, so a batch is mixed by one set of weights. A
curve to the next stage is cut into CURVE_PIECES pieces, each with the weights of its middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fmscale.config import DataConfig, StageConfig
from fmscale.corpus.mixture import PERIOD, Stage, quantise
from fmscale.corpus.steps import StepPlan, row_of

CURVE_PIECES = 64


def stages_of(data: DataConfig, names: Sequence[str], steps: StepPlan) -> tuple[Stage, ...]:
    """Stages over `names`, in their order. Raises ConfigError if a weight above 0 is too small to be kept."""
    own = StageConfig(weights={name: data.sources[name].weight for name in names})
    planned = sorted(data.stages, key=lambda stage: stage.from_tokens)
    pieces: dict[int, tuple[int, ...]] = {}
    if not planned or planned[0].from_tokens > 0:
        planned = [own, *planned]
    edges = [steps.edge(row_of(stage.from_tokens, data.seq_len)) for stage in planned]
    for i, (stage, first) in enumerate(zip(planned, edges, strict=True)):
        weights = [stage.weights.get(name, 0.0) for name in names]
        if stage.curve == "constant":
            pieces[first] = quantise(weights, names)
            continue
        last, towards = edges[i + 1], [planned[i + 1].weights.get(name, 0.0) for name in names]
        for piece in range(CURVE_PIECES):
            done = _progress(stage.curve, (piece + 0.5) / CURVE_PIECES)
            start = steps.edge(first + (last - first) * piece // CURVE_PIECES)
            if start < last:
                mixed = [a + (b - a) * done for a, b in zip(_shares(weights), _shares(towards), strict=True)]
                pieces[start] = quantise(_without_traces(mixed), names)
    rising = sorted(pieces.items())
    return tuple(
        Stage(start, weights)
        for i, (start, weights) in enumerate(rising)
        if i == 0 or weights != rising[i - 1][1]  # what does not change anything is no stage
    )


def never_held(data: DataConfig, steps: StepPlan, rows: int) -> list[str]:
    """Lines about stages that none of the first `rows` rows is mixed by: a slip, or stages of a longer run."""
    edges = [steps.edge(row_of(stage.from_tokens, data.seq_len)) for stage in data.stages]
    lines = []
    for i, (stage, first) in enumerate(zip(data.stages, edges, strict=True)):
        never = f"stage data.stages.{i} (from_tokens={stage.from_tokens:,.0f}) never holds: "
        if first >= rows:
            lines.append(f"{never}the run has {rows * data.seq_len:,} tokens")
        elif first in edges[i + 1 :]:
            lines.append(f"{never}data.stages.{i + 1} begins with the same step, {steps.step_from(first).number:,}")
    return lines


def _progress(curve: str, x: float) -> float:
    """How far a curve has come at x of its way, both in [0, 1]."""
    return x if curve == "linear" else (1 - math.cos(math.pi * x)) / 2


def _shares(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _without_traces(weights: Sequence[float]) -> list[float]:
    """A curve from or to 0 passes through shares that are too small to be kept: those are 0."""
    least = sum(weights) / PERIOD
    return [weight if weight >= least else 0.0 for weight in weights]
