"""The blocks of one generation's packing plan: read when they are asked for, verified at each reading.

The files are read, not mapped: one that is cut while it is mapped kills its readers. Opening reads the head of the
index, whose records are verified as those of a corpus are (`blocks.py`); a block costs a read and a hash of some tens
of KB, once while it is among the _BLOCKS that are kept.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale.corpus.blocks import Blocks
from fmscale.corpus.packing_plan import (
    BLOCK_DTYPE,
    INDEX_FILE,
    INDEX_MAGIC,
    INDEX_VERSION,
    PIECE_DTYPE,
    PLAN_FILE,
    PackingPlan,
    damaged,
    remedy,
    unreadable,
)

_BLOCKS = 256
"""Blocks that are kept in memory, each generation its own: more than windows have as a rule."""

Block = tuple[npt.NDArray[np.uint32], npt.NDArray[np.void]]
"""(the number of each row's first piece and, last, that of pieces [R + 1]; PIECE_DTYPE [pieces])."""


class PackedGeneration:
    """The blocks of one plan, numbered from 0. Safe for several threads."""

    def __init__(self, directory: Path, plan: PackingPlan) -> None:
        """Raises DataError: a file that is missing or of another size, an index that is not as it was written."""
        self.directory, self.plan = directory, plan
        self._index = Blocks(directory / INDEX_FILE, plan.index, INDEX_MAGIC, INDEX_VERSION, remedy(directory))
        if (body := self._index.body_bytes) != plan.blocks * BLOCK_DTYPE.itemsize:
            raise self._index.damaged(f"{plan.blocks} records", f"{body} bytes")
        self._plan = _open(directory / PLAN_FILE, plan.plan_bytes)
        self._kept: dict[int, Block] = {}

    def block(self, number: int) -> Block:
        """Raises DataError if the block, or its record in the index, is not as it was written."""
        block = self._kept.get(number)
        if block is None:
            block = self._read(number)
            if len(self._kept) >= _BLOCKS:
                self._kept = {}
            self._kept[number] = block
        return block

    def verify(self) -> None:
        """Hash every block. Raises DataError at the first that is not as it was written."""
        for number in range(self.plan.blocks):
            self._read(number)

    def blocks_of(self, chunk: int, chunk_tokens: int) -> list[int]:
        """Blocks that read any token of a chunk of this generation (its number in the corpus), rising.

        Rows are filled within groups of chunks and stand in the order of their first pieces, so a row with a piece of
        `chunk` begins at most a group and the document that runs into it before: two bisections, then a look at the
        blocks in between. Raises DataError for a damaged block among those.
        """
        numbers = range(self.plan.blocks)
        earliest = chunk - self.plan.group_chunks - 1  # a group has one chunk more at most, and its document < U <= C
        low = bisect_left(numbers, earliest, key=self._first_chunk) - 1  # a block's later rows may begin later
        high = bisect_right(numbers, chunk, key=self._first_chunk)
        return [number for number in numbers[max(0, low) : high] if self._reads(number, chunk, chunk_tokens)]

    def _first_chunk(self, number: int) -> int:
        return int(self._read(number)[1]["chunk"][0])

    def _reads(self, number: int, chunk: int, chunk_tokens: int) -> bool:
        pieces = self._read(number)[1]
        first = pieces["chunk"].astype(np.int64)
        # A chunk holds C + 1 tokens: what is longer goes on in the next one, C further tokens in each.
        beyond = pieces["start"].astype(np.int64) + pieces["length"] - 2
        last = first + np.maximum(beyond, 0) // chunk_tokens
        return bool(((first <= chunk) & (chunk <= last)).any())

    def _read(self, number: int) -> Block:
        assert 0 <= number < self.plan.blocks, f"block {number} of {self.plan.blocks}"
        records, inside = self._index.at(number * BLOCK_DTYPE.itemsize)
        record = np.frombuffer(records, BLOCK_DTYPE, 1, inside)[0]
        start, count, rows = int(record["start"]), int(record["pieces"]), self.plan.rows_per_block
        size = 4 * (rows + 1) + count * PIECE_DTYPE.itemsize
        raw = os.pread(self._plan.fileno(), size, start)
        expected, found = record["hash"].tobytes(), xxhash.xxh3_128_digest(raw)
        if found != expected:
            what = f"xxh3_128 {expected.hex()} of bytes {start} to {start + size}, block {number}"
            raise damaged(self.directory / PLAN_FILE, what, found.hex())
        return np.frombuffer(raw, "<u4", rows + 1), np.frombuffer(raw, PIECE_DTYPE, count, 4 * (rows + 1))


def _open(path: Path, size: int) -> FileIO:
    """The file, open for reading. Raises DataError unless it can be read and has `size` bytes."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from error
    if (found := os.fstat(file.fileno()).st_size) != size:
        file.close()
        raise damaged(path, f"{size} bytes", f"{found} bytes")
    return file
