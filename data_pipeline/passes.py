"""Passes over the whole corpus: keys of each document in its task, then a decision over all of them.

    scan:   keys() of what the phase's steps left, saved beside its rows
    parts:  if a pass has any, each is work that any process may do, any number of times
    left:   bool of every row that came in: whether it goes on

Of documents that say the same the first in pinned order stays. So nothing depends on workers or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.dedup import TEXT_HASH_DTYPE, first_of_each
from data_pipeline.document import Document
from data_pipeline.plan import Work, load
from data_pipeline.registry import Entry

Arrays = dict[str, npt.NDArray[Any]]


class Keys(Protocol):
    """What a pass wants to know of the documents of one task."""

    def add(self, documents: Sequence[Document]) -> None: ...

    def arrays(self) -> Arrays: ...


class Pass(Protocol):
    reason: str
    """Of the documents that it takes out."""

    def keys(self, work: Work, phase: int, task: int) -> Keys: ...

    def parts(self, work: Work) -> range:
        """Work between the scans and the decision."""
        ...

    def part(self, work: Work, phase: int, number: int) -> None: ...

    def left(self, work: Work, phase: int, rows: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
        """bool [all of `rows`, task after task]: what goes on. rows: of each task, what its scan left."""
        ...


class TextHashes:
    """xxh3_128 of each text."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, documents: Sequence[Document]) -> None:
        for document in documents:
            self._digests += xxhash.xxh3_128_digest(document.text.encode())

    def arrays(self) -> Arrays:
        hashes = np.empty(len(self._digests) // 16, TEXT_HASH_DTYPE)
        hashes["high"], hashes["low"] = np.frombuffer(bytes(self._digests), ">u8").reshape(-1, 2).T
        return {"text": hashes}


class ExactDedup:
    """Of documents with the same text (xxh3_128) the first in pinned order stays."""

    reason = "duplicate"

    def keys(self, work: Work, phase: int, task: int) -> Keys:
        return TextHashes()

    def parts(self, work: Work) -> range:
        return range(0)

    def part(self, work: Work, phase: int, number: int) -> None:
        raise AssertionError("it has no parts")

    def left(self, work: Work, phase: int, rows: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
        hashes = np.concatenate([load(work.scan_file(phase, task), "text")[0] for task in work.tasks])
        return first_of_each(hashes, np.ones(len(hashes), bool))


def exact_dedup(work: None) -> Pass:
    """Take out every document whose text stood earlier in the input."""
    return ExactDedup()


def of(entry: Entry) -> Pass:
    """The pass that an entry of a recipe means."""
    made: Pass = entry.function(None, **entry.parameters)
    return made
