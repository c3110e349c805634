"""A damaged chunk, what is read in its place, and which rows of the run are lost by it.

The substitute is drawn from a permutation keyed by (seed, source, chunk): a function of what was quarantined before and
nothing else, so replays and restarts find the same one. It stands in the ledger, and the order does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fmscale.config import DataConfig
from fmscale.corpus.ledger import Ledger
from fmscale.corpus.order import Order
from fmscale.corpus.permutation import derive_key, permute
from fmscale.errors import DataError


@dataclass(frozen=True)
class Lost:
    """What a quarantined chunk costs."""

    source: str
    chunk: int
    substitute: int
    from_row: int
    rows: tuple[int, ...]
    """Rows of the run, up to its last step, whose text stood in the chunk: they read the substitute's in its place."""
    tokens: int
    """Of these rows."""

    def __str__(self) -> str:
        """One line for people."""
        some = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        rows = "1 row" if len(self.rows) == 1 else f"{len(self.rows):,} rows"
        cost = f"{rows} ({some}) of {self.tokens:,} tokens" if self.rows else "no row before the run's last step"
        return (
            f"source {self.source}: chunk {self.chunk} is quarantined from row {self.from_row:,} on, chunk "
            f"{self.substitute} is read in its place; lost: {cost}"
        )


def quarantined(order: Order, source: int, chunk: int, from_row: int) -> Ledger:
    """The ledger with one more entry: from `from_row` on, a substitute is read in place of `chunk`.

    from_row: the first row of a step that was not trained yet, from which `chunk` is not quarantined yet. Raises
    DataError if no chunk is left to read.
    """
    payload = {
        "source": order.sources[source].name,
        "chunk": chunk,
        "substitute": substitute_of(order, source, chunk, from_row),
    }
    return order.ledger.append("quarantine", payload, from_row=from_row, rows_consumed=from_row, steps=order.steps)


def substitute_of(order: Order, source: int, chunk: int, from_row: int) -> int:
    """The chunk to read in place of `chunk` from `from_row` on: the first of a keyed order of all chunks that the
    source has there, that is quarantined nowhere in the ledger."""
    spec, known = order.as_of(from_row).sources[source], order.substitutes(source)
    key = derive_key(order.seed, spec.name, "substitute", chunk)
    for number in range(spec.chunks):
        candidate = int(permute(number, spec.chunks, key)[0])
        if candidate != chunk and candidate not in known:
            return candidate
    raise DataError(
        f"no chunk of source `{spec.name}` is left to read in place of chunk {chunk}",
        expected="at least one chunk that is not quarantined",
        found=f"{len(known.keys() | {chunk})} of {spec.chunks} chunks damaged",
        do="restore the shards from a copy, or take the source out with `fmscale order edit RUN weights`",
    )


def require_budget(order: Order, data: DataConfig) -> None:
    """Raise DataError if more of a source is quarantined than `data.bad_chunk_budget` allows; one chunk always is."""
    for source, spec in enumerate(order.sources):
        bad, allowed = len(order.substitutes(source)), max(1, int(data.bad_chunk_budget * spec.chunks))
        if bad > allowed:
            raise DataError(
                f"more chunks of source `{spec.name}` are damaged than the run may replace",
                expected=f"{allowed} of {spec.chunks} chunks at most (data.bad_chunk_budget={data.bad_chunk_budget:g})",
                found=f"{bad} quarantined",
                do="restore the shards (`fmscale data verify CORPUS --repair-report FILE`), or raise the budget",
            )


def loss_of(order: Order, payload: dict[str, Any], from_row: int, steps: int) -> Lost:
    """What a quarantine of the order's ledger costs a run of `steps` steps.

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
    )
