"""One batch of rows as arrays, and the hash that says exactly what was trained.

The batch hash is a hash per row of (row number, tokens, labels, positions), summed modulo 2^128: it does not depend on
which rank held which row; a row handed out twice, or not at all, or with another row's tokens, changes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale.topology import PADDING

IGNORE = -100
"""Label of a position without a target; the number that torch's cross-entropy ignores."""
PAD = 0
"""Token of padding rows. Its value reaches no loss and no hash."""

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows of one rank, or of one micro-batch. B rows (padding included) of T tokens."""

    rows: I64
    """[B] row numbers, PADDING (-1) where there is none."""
    tokens: I32
    """[B, T]"""
    labels: I32
    """[B, T] the token that follows, IGNORE (-100) where there is no target."""
    positions: I32
    """[B, T]"""
    targets: int
    """Labels other than IGNORE in the GLOBAL batch: what the loss is divided by on every rank."""

    def micro_batches(self, micro_batch: int) -> list[Batch]:
        """Views of `micro_batch` rows each; B is a multiple of it. `targets` stays that of the global batch."""
        assert len(self.rows) % micro_batch == 0, f"{len(self.rows)} rows are no whole micro-batches of {micro_batch}"
        parts = [slice(i, i + micro_batch) for i in range(0, len(self.rows), micro_batch)]
        return [Batch(self.rows[p], self.tokens[p], self.labels[p], self.positions[p], self.targets) for p in parts]


def batch_of(rows: I64, row_tokens: npt.NDArray[np.unsignedinteger], targets: int) -> Batch:
    """The causal batch of `rows` [B], of which R are no padding; row_tokens [R, T + 1], in the order of these rows."""
    real = rows != PADDING
    assert real.sum() == len(row_tokens), f"tokens of {len(row_tokens)} rows for {real.sum()}"
    shape = (len(rows), row_tokens.shape[1] - 1)
    tokens, labels = np.full(shape, PAD, np.int32), np.full(shape, IGNORE, np.int32)
    where = slice(None) if real.all() else real
    tokens[where], labels[where] = row_tokens[:, :-1], row_tokens[:, 1:]
    positions = np.empty(shape, np.int32)
    positions[:] = np.arange(shape[1], dtype=np.int32)
    return Batch(rows, tokens, labels, positions, targets)


def row_hashes(batch: Batch) -> list[int]:
    """xxh3_128 of each row that is no padding: row number (int64), tokens, labels, positions (int32), little-endian."""
    rows, width = len(batch.rows), 4 * batch.tokens.shape[1]
    record = np.empty((rows, 8 + 3 * width), np.uint8)
    record[:, :8] = batch.rows.astype("<i8").view(np.uint8).reshape(rows, 8)
    for i, array in enumerate((batch.tokens, batch.labels, batch.positions)):
        start = 8 + i * width
        record[:, start : start + width] = np.ascontiguousarray(array, "<i4").view(np.uint8)
    return [xxhash.xxh3_128_intdigest(record[i]) for i in np.flatnonzero(batch.rows != PADDING)]


def batch_hash(batch: Batch) -> int:
    """Sum of `row_hashes` modulo 2^128. A rank's share; `combine` those of all data-parallel ranks."""
    return combine(row_hashes(batch))


def combine(hashes: Iterable[int]) -> int:
    """The hash of batches put together."""
    return sum(hashes) % (1 << 128)


def hash_hex(value: int) -> str:
    """32 hex digits, as metrics.jsonl and `fmscale order` show it."""
    return f"{value:032x}"
