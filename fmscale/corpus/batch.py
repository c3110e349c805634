"""One batch of rows as arrays, and the hash that says exactly what was trained.

A row is U tokens, fixed for a run. A step may train at a shorter sequence length L: each row is then cut into U / L
sequences, which stand next to one another. Rows are what is counted, shared out over ranks and hashed; sequences are
what a model sees.

The batch hash is a hash per row of (row number, tokens, labels, positions), summed modulo 2^128: it does not depend on
which rank held which row; a row handed out twice, or not at all, or with another row's tokens, changes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale.topology import PADDING

IGNORE = -100
"""Label of a position without a target; the number that torch's cross-entropy ignores."""
PAD = 0
"""Token of padding. Its value reaches no loss; of a row that is nothing but padding, no hash."""

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows of one rank, or of one micro-batch: R rows, padding included, in S sequences of L tokens."""

    rows: I64
    """[R] row numbers, PADDING (-1) where there is none."""
    tokens: I32
    """[S, L]"""
    labels: I32
    """[S, L] the token that follows, IGNORE (-100) where there is no target."""
    positions: I32
    """[S, L] from 0 in every sequence; in every document, where attention is bounded by documents."""
    targets: int
    """Labels other than IGNORE in the GLOBAL batch: what the loss is divided by on every rank. In a share that has not
    been put together with the other ranks' yet: those of the share."""

    @property
    def pieces(self) -> int:
        """Sequences that each row is cut into: S / R."""
        return len(self.tokens) // max(len(self.rows), 1)

    def micro_batches(self, micro_batch: int) -> list[Batch]:
        """Views of `micro_batch` rows each, of which R is a multiple. `targets` stays that of the global batch."""
        rows, pieces = len(self.rows), self.pieces
        assert rows % micro_batch == 0, f"{rows} rows are no whole micro-batches of {micro_batch}"
        parts = []
        for first in range(0, rows, micro_batch):
            mine, cut = slice(first, first + micro_batch), slice(first * pieces, (first + micro_batch) * pieces)
            parts.append(Batch(self.rows[mine], self.tokens[cut], self.labels[cut], self.positions[cut], self.targets))
        return parts


def batch_of(
    rows: I64,
    row_tokens: npt.NDArray[np.unsignedinteger],
    targets: int | None = None,
    *,
    seq_len: int | None = None,
    starts: npt.NDArray[np.bool_] | None = None,
    lengths: npt.NDArray[np.integer] | None = None,
    documents: bool = False,
) -> Batch:
    """The causal batch of `rows` [R], of which N are no padding.

    row_tokens: [N, U + 1], in the order of these rows; the last is the label of the one before it.
    targets: of the global batch; None: those of these rows.
    seq_len: L, of which U is a multiple; None: U.
    starts: [N, U + 1] where a document begins; asked for with `documents`, of no effect otherwise.
    lengths: [N] how many of a row's U + 1 tokens are there, 0 to U + 1; None: all. The rest is padding.
    documents: positions count from 0 in each document, and no label lies in another document than its token.

    Where nothing is padded, cut or masked, tokens and labels are views of one array, and so not contiguous; positions
    that count from 0 in every sequence are one array for all batches of a shape. So all three are read-only.
    """
    real = rows != PADDING
    assert real.sum() == len(row_tokens), f"tokens of {len(row_tokens)} rows for {real.sum()}"
    assert starts is not None or not documents, "documents are bounded by their starts, which are missing"
    width = row_tokens.shape[1] - 1
    seq_len = seq_len or width
    assert width % seq_len == 0, f"rows of {width} tokens are no whole sequences of {seq_len}"
    pieces, found, whole = width // seq_len, len(row_tokens) * width, len(row_tokens) == len(rows)
    if whole and lengths is None and not documents and pieces == 1:
        wide = row_tokens.astype(np.int32)  # memory is written once, which is what a batch costs
        return _batch(rows, wide[:, :-1], wide[:, 1:], _positions(len(rows), seq_len), found, targets)
    tokens, labels = np.empty((2, len(rows), width), np.int32)
    tokens[~real], labels[~real] = PAD, IGNORE
    where = slice(None) if whole else real
    tokens[where], labels[where] = row_tokens[:, :-1], row_tokens[:, 1:]
    if lengths is not None:
        for row, length in zip(np.flatnonzero(real), lengths.tolist(), strict=True):
            tokens[row, length:], labels[row, max(length - 1, 0) :] = PAD, IGNORE
        found = int((lengths - 1).clip(0, width).sum())
    if documents and starts is not None:
        begins, ends = np.zeros((2, len(rows), width), np.bool_)
        begins[where], ends[where] = starts[:, :-1], starts[:, 1:]
        positions = _restarted(begins.reshape(-1, seq_len))
        labels[ends] = IGNORE
        found = int(np.count_nonzero(labels != IGNORE))
    else:
        positions = _positions(len(rows) * pieces, seq_len)
    return _batch(rows, tokens.reshape(-1, seq_len), labels.reshape(-1, seq_len), positions, found, targets)


def _batch(rows: I64, tokens: I32, labels: I32, positions: I32, found: int, targets: int | None) -> Batch:
    for array in (tokens, labels, positions):
        array.flags.writeable = False
    return Batch(rows, tokens, labels, positions, found if targets is None else targets)


@lru_cache(maxsize=4)
def _positions(sequences: int, seq_len: int) -> I32:
    """[S, L] from 0 in every sequence."""
    return np.tile(np.arange(seq_len, dtype=np.int32), (sequences, 1))


def _restarted(begins: npt.NDArray[np.bool_]) -> I32:
    """Positions [S, L] from 0 wherever one of begins [S, L] is, and at the first token of each sequence."""
    shape, begins = begins.shape, begins.reshape(-1)
    begins[:: shape[1]] = True
    firsts = np.flatnonzero(begins).astype(np.int32)
    positions = np.arange(begins.size, dtype=np.int32)
    positions -= np.repeat(firsts, np.diff(firsts, append=begins.size))
    return positions.reshape(shape)


def row_hashes(batch: Batch) -> list[int]:
    """xxh3_128 of each row that is no padding: row number (int64), tokens, labels, positions (int32), little-endian.

    tokens, labels and positions: of all of the row's sequences, one after the other.
    """
    count, width = len(batch.rows), batch.pieces * batch.tokens.shape[1]
    record = np.empty((count, 2 + 3 * width), "<i4")
    record[:, :2] = batch.rows.astype("<i8").view("<i4").reshape(count, 2)
    for i, array in enumerate((batch.tokens, batch.labels, batch.positions)):
        record[:, 2 + i * width : 2 + (i + 1) * width] = array.reshape(count, width)
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
