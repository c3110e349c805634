"""One source's own rows, for ever: position 0, 1, 2 ... -> (epoch, chunk, token offset), by arithmetic alone.

An epoch reads each row of the source once, in an order of its own: a keyed permutation orders the chunks; windows of W
successive chunks of that order are shuffled row by row with a second one. So each chunk is needed in one window only
(one read, W chunks of cache), and a row's neighbours come from W random chunks. Memory: none; a seek: microseconds.

    position -> epoch e, row j of the epoch -> window w, row i of the window
             -> q = permute(i, rows of the window, key(seed, name, "window", e, w))
             -> chunk permute(w * W + q // R, chunks, key(seed, name, "chunks", e)), offset (q % R) * U

with R rows of U tokens to a chunk. Tokens of a chunk beyond R * U are not read (none where U divides the chunk).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmscale.corpus.permutation import derive_key, extend_key, invert, permute
from fmscale.errors import ConfigError

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source as the order sees it. What is not here (paths, documents) cannot change the order."""

    name: str
    chunks: int
    chunk_tokens: int
    content_hash: str


class Place(NamedTuple):
    """Where the rows at some positions [N] stand."""

    epoch: I64
    chunk: I64
    start: I64
    """Token offset of the row in its chunk."""


@dataclass(frozen=True, kw_only=True)
class Sequence:
    source: SourceSpec
    seed: int
    row_tokens: int
    """U."""
    window_chunks: int
    """W."""
    first_position: int = 0
    """Position at which this sequence takes over from that of an earlier generation of the corpus."""
    first_epoch: int = 0

    def __post_init__(self) -> None:
        if self.source.chunks < 1:
            raise ConfigError(
                f"source `{self.source.name}` has no chunk to train on",
                expected="at least one chunk",
                found="none: its text is shorter than a chunk",
                do="prepare it from more text, or with a smaller chunk_tokens",
            )
        if self.rows_per_chunk < 1:
            raise ConfigError(
                f"the rows are longer than the chunks of source `{self.source.name}`",
                expected=f"data.seq_len <= {self.source.chunk_tokens}, its chunk_tokens",
                found=f"data.seq_len={self.row_tokens}",
                do=f"set data.seq_len={self.source.chunk_tokens} or less, or prepare the corpus with longer chunks",
            )

    @property
    def rows_per_chunk(self) -> int:
        return self.source.chunk_tokens // self.row_tokens

    @property
    def rows_per_epoch(self) -> int:
        return self.source.chunks * self.rows_per_chunk

    @property
    def tokens_cut_per_epoch(self) -> int:
        """Tokens at the ends of chunks that no row reaches."""
        return self.source.chunks * (self.source.chunk_tokens % self.row_tokens)

    def at(self, positions: I64) -> Place:
        """Place of the row at each position [N] >= first_position."""
        source, window_rows = self.source, self.window_chunks * self.rows_per_chunk
        epoch, row = np.divmod(positions - self.first_position, self.rows_per_epoch)
        epoch += self.first_epoch
        window, row = np.divmod(row, window_rows)
        first_row = window * window_rows
        in_window = np.minimum(window_rows, self.rows_per_epoch - first_row)  # the last window may be a short one
        window_key = extend_key(derive_key(self.seed, source.name, "window"), epoch, window)
        slot, row = np.divmod(first_row + _permute(row, in_window, window_key), self.rows_per_chunk)
        chunk_key = extend_key(derive_key(self.seed, source.name, "chunks"), epoch)
        return Place(epoch, _permute(slot, source.chunks, chunk_key), row * self.row_tokens)

    def positions_in(self, chunk: int, first: int, last: int) -> I64:
        """Positions in [first, last) whose row stands in `chunk`, rising; the inverse of `at`."""
        found = [np.empty(0, np.int64)]
        if first < last and chunk < self.source.chunks:
            epochs = [(position - self.first_position) // self.rows_per_epoch for position in (first, last - 1)]
            for epoch in range(epochs[0], epochs[1] + 1):
                found.append(self.first_position + epoch * self.rows_per_epoch + self._rows_in(chunk, epoch))
        positions = np.sort(np.concatenate(found))
        return positions[(first <= positions) & (positions < last)]

    def _rows_in(self, chunk: int, epoch: int) -> I64:
        """Rows of an epoch (0 is this sequence's first) that stand in `chunk`, [rows_per_chunk]."""
        name, number = self.source.name, np.array([self.first_epoch + epoch])
        chunk_key = extend_key(derive_key(self.seed, name, "chunks"), number)
        slot = int(invert(chunk, self.source.chunks, chunk_key)[0])
        window = slot // self.window_chunks
        first_row = window * self.window_chunks * self.rows_per_chunk
        in_window = min(self.window_chunks * self.rows_per_chunk, self.rows_per_epoch - first_row)
        rows = np.arange(self.rows_per_chunk) + slot * self.rows_per_chunk - first_row
        window_key = extend_key(derive_key(self.seed, name, "window"), number, np.array([window]))
        return first_row + invert(rows, in_window, window_key).astype(np.int64)


def _permute(x: I64, n: int | I64, key: npt.NDArray[np.uint64]) -> I64:
    return permute(x, n, key).astype(np.int64)
