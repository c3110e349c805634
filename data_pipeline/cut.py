"""A local file, read once: its size, its hash, and the pieces it is cut into, each with a hash of its own.

JSONL is cut at line ends, Parquet before row groups; any other file is one piece. A line that is too long to be a
record gets a piece of its own, so that its reader finds it without holding it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import xxhash

from data_pipeline.find import unreadable
from data_pipeline.limits import BLOCK_BYTES, MAX_RECORD_BYTES, PIECE_BYTES
from data_pipeline.readers.parquet import row_group_starts

Cut = tuple[int, int, int, str]
"""(start, stop, ordinal of the first record, xxh3_128 of the bytes)"""


def cut(path: str, kind: str, compression: str, task_bytes: int) -> tuple[int, str, list[Cut]]:
    """(bytes, xxh3_128 of all of them, pieces) of the file. Raises DataError if it cannot be read."""
    whole = xxhash.xxh3_128()
    pieces: list[Cut] = []
    start = 0
    try:
        with open(path, "rb") as file:
            if kind == "jsonl" and not compression:
                parts = _lines(file, min(task_bytes, PIECE_BYTES))
            elif kind == "parquet":
                parts = _row_groups(file, task_bytes)
            else:
                parts = iter([(0, _blocks(file, None))])
            for first_record, blocks in parts:
                stop, digest = start, xxhash.xxh3_128()
                for block in blocks:
                    whole.update(block)
                    digest.update(block)
                    stop += len(block)
                pieces.append((start, stop, first_record, digest.hexdigest()))
                start = stop
    except OSError as error:
        raise unreadable("file", path, error) from error
    return start, whole.hexdigest(), pieces


def _blocks(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The next `size` bytes, or all that there are."""
    while block := file.read(BLOCK_BYTES if size is None else min(size, BLOCK_BYTES)):
        size = None if size is None else size - len(block)
        yield block


def _lines(file: BinaryIO, size: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """(ordinal of its first line, bytes) of pieces of about `size` bytes, up to a line's end."""
    records = 0
    while block := file.read(size):
        rest = b"" if block.endswith(b"\n") else file.readline(MAX_RECORD_BYTES)
        if len(rest) < MAX_RECORD_BYTES or rest.endswith(b"\n"):
            yield records, iter([block, rest])
            records += block.count(b"\n") + rest.count(b"\n")
            continue
        whole_lines = block.rfind(b"\n") + 1
        if whole_lines:
            yield records, iter([block[:whole_lines]])
            records += block.count(b"\n")
        yield records, _to_end_of_line(file, block[whole_lines:] + rest)
        records += 1


def _to_end_of_line(file: BinaryIO, held: bytes) -> Iterator[bytes]:
    yield held
    while block := file.read(BLOCK_BYTES):
        if end := block.find(b"\n") + 1:
            file.seek(end - len(block), os.SEEK_CUR)
            yield block[:end]
            return
        yield block


def _row_groups(file: BinaryIO, task_bytes: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """(ordinal of its first row, bytes) of pieces: neighbouring row groups, as many as fit in `task_bytes`."""
    starts = row_group_starts(file)
    ends = [start for start, _ in starts[1:]] + [os.fstat(file.fileno()).st_size]
    cuts = starts[:1]
    for here, end in zip(starts[1:], ends[1:], strict=True):
        if end - cuts[-1][0] > task_bytes:
            cuts.append(here)
    for (start, row), stop in zip(cuts, [start for start, _ in cuts[1:]] + [None], strict=True):
        yield row, _blocks(file, None if stop is None else stop - start)
