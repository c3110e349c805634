"""Rows fetched from verified chunks: the one function behind every loader, and an account of where its time went.

    rows = read_rows(corpora, places, seq_len, documents=False)     # places [R] -> RowTokens
    rows.spent.read_s, rows.spent.verify_s ...                      # seconds of this call

It knows neither rows of a run nor ranks nor steps: places in, tokens out. So it runs wherever the shards are (in a
rank, in a reader actor on its node) and gives the same bytes everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fmscale.corpus.manifest import token_dtype
from fmscale.corpus.packing import Packed
from fmscale.corpus.shards import Corpus, DamagedChunk

I64 = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.unsignedinteger]
Readable = Corpus | Packed
"""What rows are read from: a token stream in chunks, or whole documents in blocks of packed rows."""


class Places(NamedTuple):
    """Where rows [R] stand: number of the source (in the order's list), chunk, token offset."""

    source: npt.NDArray[np.int32]
    chunk: I64
    start: I64

    def part(self, which: slice | I64) -> Places:
        return Places(self.source[which], self.chunk[which], self.start[which])


@dataclass
class Spent:
    """Seconds by what they went to."""

    read_s: float = 0.0
    """Chunks brought into the mapping at their first use in a process, from the page cache or the disk behind it, and
    tokens copied out of it."""
    verify_s: float = 0.0
    """Hashes of chunks at their first use in a process."""
    decode_s: float = 0.0
    """Document starts, and rows put together from pieces."""
    collate_s: float = 0.0
    """Rows made into the batch's arrays."""
    transfer_s: float = 0.0
    """Copied from a reader's shared memory."""
    queue_s: float = 0.0
    """Nothing was under way: the reader was busy with other requests, dead, or had not been asked yet."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def total(self) -> float:
        return float(sum(astuple(self)))

    def within(self, seconds: float) -> Spent:
        """The share of this that fits into `seconds` of waiting: work done ahead of time made nobody wait. What the
        wait is longer than the work was spent in the queue."""
        total = self.total()
        part = min(1.0, seconds / total) if total else 0.0
        spent = Spent(*(part * value for value in astuple(self)))
        spent.queue_s += max(0.0, seconds - total)
        return spent

    def named(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}{field.name}": getattr(self, field.name) for field in fields(self)}


@dataclass
class RowTokens:
    """Rows [R] as they stand in the corpora, each with the token that follows it."""

    tokens: Tokens
    """[R, U + 1]"""
    starts: npt.NDArray[np.uint8] | None
    """[R, (U + 8) // 8] bits, np.packbits: a document begins at this token. None where nobody asked."""
    lengths: npt.NDArray[np.int32] | None
    """[R] tokens of each row that are there, the rest is padding; None where all are."""
    spent: Spent

    def part(self, which: slice) -> RowTokens:
        starts = None if self.starts is None else self.starts[which]
        lengths = None if self.lengths is None else self.lengths[which]
        return RowTokens(self.tokens[which], starts, lengths, self.spent)

    def document_starts(self) -> npt.NDArray[np.bool_] | None:
        """[R, U + 1]"""
        if self.starts is None:
            return None
        return np.unpackbits(self.starts, axis=1, count=self.tokens.shape[1]).view(np.bool_)

    @staticmethod
    def joined(parts: Sequence[RowTokens]) -> RowTokens:
        """The parts one below the other, copied."""
        starts, lengths = [part.starts for part in parts], [part.lengths for part in parts]
        spent = Spent()
        for part in parts:
            spent += part.spent
        return RowTokens(
            np.concatenate([part.tokens for part in parts]),
            None if starts[0] is None else np.concatenate(_given(starts)),
            None if lengths[0] is None else np.concatenate(_given(lengths)),
            spent,
        )


def read_rows(corpora: Sequence[Readable], places: Places, seq_len: int, documents: bool = False) -> RowTokens:
    """Rows at `places` [R]; chunks are verified at their first use. documents: say where documents begin, too.

    Raises DamagedChunk if a chunk is not as it was written; its `place` is (number of the source, chunk).
    """
    count = len(places.chunk)
    out = np.empty((count, seq_len + 1), token_dtype(corpora[0].vocab_size))
    starts = np.zeros((count, seq_len + 1), np.bool_) if documents else None
    lengths = np.empty(count, np.int32) if any(isinstance(corpus, Packed) for corpus in corpora) else None
    # Asking for a chunk asks the kernel for its file's size: once a call, then.
    held: dict[tuple[int, int], Tokens] = {}
    begun, before, decode_s = time.perf_counter(), _first_uses(corpora), 0.0
    for i, (source, chunk, start) in enumerate(_each(places)):
        corpus = corpora[source]
        try:
            if isinstance(corpus, Packed):
                assert lengths is not None, "packed rows say how long they are"
                lengths[i] = corpus.read_row(chunk, start // seq_len, out[i], None if starts is None else starts[i])
                continue
            tokens = held.get((source, chunk))
            if tokens is None:
                tokens = held[source, chunk] = corpus.tokens(chunk)
            out[i] = tokens[start : start + seq_len + 1]
            if starts is not None:
                docs = corpus.docs(chunk)  # its first use is counted there
                since = time.perf_counter()
                starts[i, _document_starts(docs, start, seq_len + 1)] = True
                decode_s += time.perf_counter() - since
        except DamagedChunk as error:
            error.place = (source, chunk)
            raise
    since = time.perf_counter()
    bits = None if starts is None else np.packbits(starts, axis=1)
    ended = time.perf_counter()
    read_s, verify_s = (after - earlier for after, earlier in zip(_first_uses(corpora), before, strict=True))
    copied = max(0.0, since - begun - decode_s - read_s - verify_s)
    if lengths is not None:  # copying pieces is what putting rows together consists of
        copied, decode_s = 0.0, decode_s + copied
    spent = Spent(read_s=read_s + copied, verify_s=verify_s, decode_s=decode_s + ended - since)
    return RowTokens(out, bits, lengths, spent)


def _each(places: Places) -> Iterable[tuple[int, int, int]]:
    return zip(places.source.tolist(), places.chunk.tolist(), places.start.tolist(), strict=True)


def _first_uses(corpora: Sequence[Readable]) -> tuple[float, float]:
    """Seconds spent on reading and on hashing chunks at their first use, since the corpora were opened."""
    return sum(corpus.read_s for corpus in corpora), sum(corpus.verify_s for corpus in corpora)


def _document_starts(docs: npt.NDArray[np.void], start: int, length: int) -> I64:
    """Offsets in [0, length) of the first tokens of documents, given a chunk's DOC_DTYPE [documents]."""
    first, last = np.searchsorted(docs["start"], (start, start + length))
    some = docs[first:last]
    offsets: I64 = some["start"][some["skipped"] == 0].astype(np.int64) - start
    return offsets


def _given(arrays: Sequence[Any]) -> list[Any]:
    assert all(array is not None for array in arrays), "parts with and without document starts or lengths"
    return list(arrays)
