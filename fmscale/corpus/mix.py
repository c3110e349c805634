"""What a run will read, before anything is trained: tokens and epochs of each source, stage by stage.

    plan = reading_plan(config, data)      # arithmetic on the order: a run of 15 T tokens costs no more than the demo
    require_epochs(config, plan)           # a source's max_epochs, in tokens

Everything is counted from the order itself, edits of the ledger among it: what is shown is what will be read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fmscale.config import Config
from fmscale.corpus.mixture import PERIOD
from fmscale.corpus.order import Order
from fmscale.corpus.sources import RunData
from fmscale.corpus.steps import row_of
from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SourceReading:
    name: str
    epoch_tokens: int
    """Of one pass over the source, as it is at the end of the ledger."""
    tokens: int
    """That the run reads of it, repeats included."""
    epochs: float
    max_epochs: float
    """0: no limit."""

    @property
    def tokens_beyond(self) -> int:
        """Tokens that stand beyond max_epochs. By epochs, not by tokens read: behind what a skip left out, and after an
        epoch that a new generation cut short, repeats begin earlier."""
        if not self.max_epochs:
            return 0
        return max(0, math.ceil(round((self.epochs - self.max_epochs) * self.epoch_tokens, 3)))


@dataclass(frozen=True, kw_only=True)
class StageReading:
    """A stretch of the run between two planned or edited changes of weights."""

    first_step: int
    first_token: int
    tokens: dict[str, int]
    """By source, that are read in this stage."""
    weights: dict[str, float]
    """Share by source at its beginning; sums to 1."""
    last_weights: dict[str, float]
    """At its end; others than `weights` if the stage has a curve."""


@dataclass(frozen=True, kw_only=True)
class ReadingPlan:
    steps: int
    tokens: int
    sources: list[SourceReading]
    stages: list[StageReading]
    deviation_rows: float
    """No source is ever further than this from its share, in rows."""
    schedule: list[tuple[str, int, int]]
    """(what, first step, value) of each change of the global batch and of the sequence length."""
    edits: list[tuple[str, int]]
    """(kind, first step) of each entry of the ledger."""


def reading_plan(config: Config, data: RunData) -> ReadingPlan:
    order, steps = data.order, config.train.steps
    rows, unit = order.steps.rows_after(steps), order.row_tokens
    shares, epochs = order.shares(rows).tolist(), order.epochs(rows)
    sources = [
        SourceReading(
            name=source.name,
            epoch_tokens=order.rows_per_epoch(s) * unit,
            tokens=shares[s] * unit,
            epochs=epochs[s],
            max_epochs=config.data.sources[source.name].max_epochs if source.name in config.data.sources else 0.0,
        )
        for s, source in enumerate(order.sources)
    ]
    edges = _edges(config, order, rows)
    return ReadingPlan(
        steps=steps,
        tokens=rows * unit,
        sources=sources,
        stages=[_stage(order, first, last) for first, last in zip(edges, [*edges[1:], rows], strict=True)],
        deviation_rows=max(mixture.deviation_bound for _, mixture in order.mixtures(rows)),
        schedule=[change for change in order.steps.describe() if change[1] <= steps],
        edits=[(entry.kind, order.steps.step_with(entry.from_row).number) for entry in order.ledger.entries],
    )


def weights_at(order: Order, row: int) -> dict[str, float]:
    """Share of each source in the batch that begins at `row`; sums to 1."""
    origin, mixture = [pair for pair in order.mixtures(row + 1) if pair[0] <= row][-1]
    weights = [stage.weights for stage in mixture.stages if stage.start <= row - origin][-1]
    shares = [weight / PERIOD for weight in weights] + [0.0] * (len(order.sources) - len(weights))
    return {source.name: share for source, share in zip(order.sources, shares, strict=True)}


def require_epochs(config: Config, plan: ReadingPlan) -> list[str]:
    """Lines about sources that are read more often than their max_epochs and may be.

    Raises ConfigError for one that may not, with the tokens that are missing.
    """
    notes = []
    for source in plan.sources:
        if not source.tokens_beyond:
            continue
        settings = config.data.sources[source.name]
        if settings.beyond_max_epochs == "refuse":
            raise ConfigError(
                f"source `{source.name}` would be read more often than its max_epochs",
                expected=f"at most {source.max_epochs:g} epochs of {source.epoch_tokens:,} tokens",
                found=f"{source.epochs:.2f} epochs ({source.tokens:,} tokens are read) in {plan.steps:,} steps, "
                f"{source.tokens_beyond:,} tokens too many",
                do="lower train.steps or its weight (of an existing run: `fmscale order edit RUN weights|stages`), or "
                f"set data.sources.{source.name}.max_epochs or beyond_max_epochs=repeat (`fmscale data mix` shows all)",
            )
        notes.append(
            f"source {source.name} is read {source.epochs:.2f} times: {source.tokens_beyond:,} tokens beyond its "
            f"max_epochs={source.max_epochs:g} are repeats"
        )
    return notes


def _edges(config: Config, order: Order, rows: int) -> list[int]:
    """Rows below `rows` at which a stage of the settings or of the ledger begins; a curve's pieces are none."""
    edges = {0} | {order.steps.edge(row_of(stage.from_tokens, order.row_tokens)) for stage in config.data.stages}
    for entry in order.ledger.entries:
        if entry.kind in ("weights", "source"):
            edges.add(entry.from_row)
        elif entry.kind == "stages":
            edges |= {stage["from_row"] for stage in entry.payload["stages"]}
    mixtures = order.mixtures(rows)
    ends = [*(origin for origin, _ in mixtures[1:]), rows]  # an edit ends the stages that were planned before it
    in_force = {
        origin + stage.start
        for (origin, mixture), end in zip(mixtures, ends, strict=True)
        for stage in mixture.stages
        if origin + stage.start < end
    }
    return sorted(edge for edge in edges if edge == 0 or edge in in_force)


def _stage(order: Order, first: int, last: int) -> StageReading:
    tokens = (order.shares(last) - order.shares(first)) * order.row_tokens
    return StageReading(
        first_step=order.steps.step_with(first).number,
        first_token=first * order.row_tokens,
        tokens={source.name: int(count) for source, count in zip(order.sources, tokens, strict=True)},
        weights=weights_at(order, first),
        last_weights=weights_at(order, last - 1),
    )
