"""Sorted runs on disk, merged: every key of the corpus once, with all that the tasks say about it, in bounded memory.

A run is a section (sections.py) of records that begin with the field `key`, sorted, each key once. So a key that stands
in half of the corpus's documents is one record for each task, never more, and all records of a key come out together.

Memory: about 100 bytes for each of the `records` that are held, and 2 KB for each run, whatever the runs' sizes. A
round reads every run as far as its share of the memory goes, and hands out all keys up to the smallest at which a run
stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.sections import Reader, Section

RECORDS = 1 << 21
"""Held by a merge unless it is told otherwise: about 200 MB."""


def partition_starts(dtype: np.dtype[Any], partitions: int) -> npt.NDArray[Any]:
    """[partitions - 1]: the first key of each partition but partition 0; equal shares of all keys.

    dtype: `<u8`, or `S16` for 128 bits, big-endian.
    """
    starts = [(number << 64) // partitions for number in range(1, partitions)]
    if dtype.kind == "S":
        return np.array([start.to_bytes(8, "big") for start in starts], dtype)
    return np.array(starts, dtype)


def merge(
    runs: Sequence[Section], dtype: np.dtype[Any], records: int = RECORDS
) -> Iterator[tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]]:
    """(records [n], the run of each [n]), sorted by key and in order of the runs; equal keys are never in two blocks.

    Raises DataError if a run is not as it was written; what has been handed out by then must not be used.
    """
    share = max(records // max(len(runs), 1), 1)
    heads = [_Head(number, section, dtype) for number, section in enumerate(runs)]
    while heads:
        for head in heads:
            head.fill(share)
        # Each key stands in a run once: up to the smallest last key of a run that goes on, every run has shown its own.
        limit = min((head.held["key"][-1] for head in heads if head.goes_on), default=None)
        parts = [head.take(limit) for head in heads]
        owners = np.repeat([head.number for head in heads], [len(part) for part in parts])
        joined = np.concatenate(parts)
        order = np.argsort(joined["key"], kind="stable")
        if len(joined):
            yield joined[order], owners[order]
        heads = [head for head in heads if head.goes_on or len(head.held)]


def groups(keys: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """bool[n]: the first of each run of equal `keys`, which are sorted."""
    new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return new


class _Head:
    """What has been read of a run and not yet handed out."""

    def __init__(self, number: int, section: Section, dtype: np.dtype[Any]) -> None:
        self.number, self._dtype = number, dtype
        self._reader = Reader(section)
        self.held: npt.NDArray[np.void] = np.empty(0, dtype)

    @property
    def goes_on(self) -> bool:
        """Whether the run has more than is held."""
        return self._reader.left > 0

    def fill(self, share: int) -> None:
        if self.goes_on and len(self.held) < share:
            data = self._reader.take((share - len(self.held)) * self._dtype.itemsize)
            self.held = np.concatenate([self.held, np.frombuffer(data, self._dtype)])

    def take(self, limit: Any) -> npt.NDArray[np.void]:
        """What is held up to the key `limit`, all if that is None."""
        end = len(self.held) if limit is None else int(np.searchsorted(self.held["key"], limit, side="right"))
        taken, self.held = self.held[:end], self.held[end:]
        return taken
