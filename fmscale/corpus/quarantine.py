"""A damaged chunk, what is read in its place, and which rows of the run are lost by it.

The substitute is drawn from a permutation keyed by (seed, source, chunk): a function of what was quarantined before and
nothing else, so replays and restarts find the same one. It stands in the ledger, and the order does the rest.

What is damaged is a chunk of a corpus; what the order reads is that chunk or, of packed rows, the blocks that take any
token from it, six or more as a rule. All of these are quarantined at once, and a budget counts in what the order reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmscale.config import DataConfig
from fmscale.corpus.ledger import Ledger
from fmscale.corpus.order import Order
from fmscale.corpus.packing import Packed
from fmscale.corpus.permutation import derive_key, permute
from fmscale.corpus.rows import Readable
from fmscale.errors import DataError


@dataclass(frozen=True)
class Lost:
    """What a quarantined chunk of the order costs."""

    source: str
    chunk: int
    substitute: int
    from_row: int
    rows: tuple[int, ...]
    """Rows of the run, up to its last step, whose text stood in the chunk: they read the substitute's in its place."""
    tokens: int
    """Of these rows."""
    unit: str = "chunk"
    """What the numbers are of: "block" where rows are packed."""

    def __str__(self) -> str:
        """One line for people."""
        some = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        rows = "1 row" if len(self.rows) == 1 else f"{len(self.rows):,} rows"
        cost = f"{rows} ({some}) of {self.tokens:,} tokens" if self.rows else "no row before the run's last step"
        return (
            f"source {self.source}: {self.unit} {self.chunk} is quarantined from row {self.from_row:,} on, {self.unit} "
            f"{self.substitute} is read in its place; lost: {cost}"
        )


def unit_of(data: DataConfig) -> str:
    """What the order's chunks are, in a word."""
    return "block" if data.packing == "best_fit" else "chunk"


def spoilt_by(corpus: Readable, chunk: int) -> list[int]:
    """Chunks of the order that cannot be read where a chunk of the corpus is damaged, rising: itself, or the blocks of
    packed rows that take any token from it (none, if its rows fill no block). Raises DataError for a damaged plan."""
    return corpus.blocks_of(chunk) if isinstance(corpus, Packed) else [chunk]


def quarantined(order: Order, source: int, spoilt: Sequence[int], from_row: int) -> Ledger:
    """The ledger with an entry for each of `spoilt` that is not quarantined by then: from `from_row` on, a substitute
    is read in its place.

    from_row: the first row of a step that was not trained yet. Raises DataError if no chunk is left to read.
    """
    ledger = order.ledger
    for payload in quarantines(order, source, spoilt, from_row):
        ledger = ledger.append("quarantine", payload, from_row=from_row, rows_consumed=from_row, steps=order.steps)
    return ledger


def quarantines(order: Order, source: int, spoilt: Sequence[int], from_row: int) -> list[dict[str, Any]]:
    """Payloads of these entries. None reads what another one gives up."""
    known, name = order.as_of(from_row).substitutes(source), order.sources[source].name
    new = [chunk for chunk in spoilt if chunk not in known]
    substitutes = [_substitute_of(order, source, chunk, spoilt, from_row) for chunk in new]
    return [
        {"source": name, "chunk": chunk, "substitute": substitute}
        for chunk, substitute in zip(new, substitutes, strict=True)
    ]


def _substitute_of(order: Order, source: int, chunk: int, spoilt: Sequence[int], from_row: int) -> int:
    """The chunk to read in place of `chunk` from `from_row` on: the first of a keyed order of all chunks that the
    source has there, that is quarantined nowhere in the ledger and not among `spoilt`."""
    spec = order.as_of(from_row).sources[source]
    unfit = order.substitutes(source).keys() | set(spoilt)
    key = derive_key(order.seed, spec.name, "substitute", chunk)
    for number in range(spec.chunks):
        candidate = int(permute(number, spec.chunks, key)[0])
        if candidate not in unfit:
            return candidate
    raise DataError(
        f"no chunk of source `{spec.name}` is left to read in place of chunk {chunk}",
        expected="at least one chunk (of packed rows: block) that is not quarantined",
        found=f"{len(unfit)} of {spec.chunks} chunks damaged",
        do="restore the shards from a copy, or take the source out with `fmscale order edit RUN weights`",
    )


def allowed_by(budget: float, chunks: int) -> int:
    """How many of `chunks` a budget allows: 29 of 100 by 0.29, whose product is a little less."""
    return math.floor(round(budget * chunks, 6))


def budget_for(bad: int, chunks: int) -> float:
    """A budget, of four decimals, that allows `bad` of `chunks`."""
    return min(1.0, math.ceil(1e4 * bad / chunks) / 1e4)


def require_budget(order: Order, data: DataConfig, source: int, spoilt: Sequence[int]) -> None:
    """Raise DataError if more of a source is quarantined than `data.bad_chunk_budget` allows.

    One damaged chunk of the corpus always is: as many as `spoilt`, what the chunk at hand spoils.
    """
    spec, bad, unit = order.sources[source], len(order.substitutes(source)), unit_of(data)
    allowed = max(len(spoilt), allowed_by(data.bad_chunk_budget, spec.chunks))
    if bad > allowed:
        raise DataError(
            f"more {unit}s of source `{spec.name}` are damaged than the run may replace",
            expected=f"{allowed} of {spec.chunks} {unit}s at most (data.bad_chunk_budget={data.bad_chunk_budget:g})",
            found=f"{bad} quarantined",
            do="restore the shards (`fmscale data verify CORPUS --repair-report FILE` lists all damage), or allow "
            f"more: data.bad_chunk_budget={budget_for(bad, spec.chunks):g} is enough for these {bad}",
        )


def loss_of(order: Order, payload: dict[str, Any], from_row: int, steps: int, unit: str) -> Lost:
    """What a quarantine of the order's ledger costs a run of `steps` steps. unit: of `unit_of`.

    A row whose text was lost before, and that read this chunk in its place, is the earlier quarantine's loss.
    """
    source = [spec.name for spec in order.sources].index(payload["source"])
    rows = order.readers_of(source, payload["chunk"], from_row, order.steps.rows_after(steps)).tolist()
    return Lost(
        source=payload["source"],
        chunk=payload["chunk"],
        substitute=payload["substitute"],
        from_row=from_row,
        rows=tuple(rows),
        tokens=len(rows) * order.row_tokens,
        unit=unit,
    )
