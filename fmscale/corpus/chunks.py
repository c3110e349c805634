"""A token stream and the documents it is from, cut into chunks of C + 1 tokens: pure functions, nothing on disk.

    stream   t0 t1 ... t(2C) ...      chunk 0 = t0 ... tC      chunk 1 = tC ... t2C      the rest from t2C on

Two neighbours share one token, so that every input token has its label in its own chunk and is an input exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

DOC_DTYPE = np.dtype(
    [
        ("start", "<u4"),  # position of the document's first token in this chunk
        ("length", "<u4"),  # its tokens in this chunk, its EOS included if it is here
        ("skipped", "<u8"),  # its tokens before this chunk
        ("id", "<u8", (2,)),  # document_id of its name
        ("file", "<u4"),  # number in the manifest's inputs
        ("record", "<u8"),  # ordinal in that file
    ]
)
"""One document's part of a chunk. The records of a chunk tile it: starts are the running sums of lengths, from 0 to
C + 1; so the chunk's last token, the next one's first, is counted in both."""


class Stream(NamedTuple):
    """Tokens and the documents they are from, in one order; a chunk if it has C + 1 tokens."""

    tokens: npt.NDArray[Any]
    """uint16 or uint32 [tokens]"""
    docs: npt.NDArray[np.void]
    """DOC_DTYPE [documents]; lengths sum to the number of tokens"""


def document_id(name: str) -> tuple[int, int]:
    """The 128 bits that stand for a document's name in DOC_DTYPE: xxh3_128, high half first."""
    value: int = xxhash.xxh3_128_intdigest(name.encode("utf-8", "surrogatepass"))
    return value >> 64, value & (1 << 64) - 1


def make_docs(
    lengths: npt.ArrayLike, ids: Sequence[tuple[int, int]], file: npt.ArrayLike, records: npt.ArrayLike
) -> npt.NDArray[np.void]:
    """DOC_DTYPE[n] of whole documents that follow one another: `lengths` [n] in tokens, EOS included."""
    docs = np.zeros(len(ids), DOC_DTYPE)
    docs["length"], docs["file"], docs["record"] = lengths, file, records
    docs["id"] = np.array(ids, np.uint64).reshape(-1, 2)
    return _with_starts(docs)


def join(streams: Sequence[Stream], dtype: npt.DTypeLike) -> Stream:
    """The streams one after another."""
    tokens = np.concatenate([np.empty(0, dtype), *(s.tokens for s in streams)]).astype(dtype, copy=False)
    docs = np.concatenate([np.empty(0, DOC_DTYPE), *(s.docs for s in streams)])
    return Stream(tokens, _with_starts(docs))


def cut_chunks(stream: Stream, chunk_tokens: int) -> tuple[list[Stream], Stream]:
    """Cut into chunks of chunk_tokens + 1 tokens, the last of one being the first of the next, and the rest.

    Chunk k is tokens [k C, k C + C + 1); the rest begins at the last chunk's last token (which has been a label so
    far, never an input), so that cutting the rest later loses and repeats no input. It holds at least one token,
    unless the stream is empty. Documents of one stream must together have fewer than 2^63 tokens.
    """
    total = len(stream.tokens)
    ends = np.cumsum(stream.docs["length"], dtype=np.int64)
    assert (ends[-1] if len(ends) else 0) == total, f"documents cover {ends[-1:]} of {total} tokens"
    chunks = max(0, total - 1) // chunk_tokens
    cuts = [(k * chunk_tokens, (k + 1) * chunk_tokens + 1) for k in range(chunks)]
    cuts.append((chunks * chunk_tokens, total))
    pieces = [Stream(stream.tokens[a:b], _docs_between(stream.docs, ends, a, b)) for a, b in cuts]
    return pieces[:-1], pieces[-1]


class Cutter:
    """Cuts a stream that arrives in pieces, holding less than a chunk between calls."""

    def __init__(self, chunk_tokens: int, dtype: npt.DTypeLike) -> None:
        assert chunk_tokens.bit_count() == 1, f"{chunk_tokens} is no power of two"
        self.chunk_tokens = chunk_tokens
        self._dtype = np.dtype(dtype)
        self.tail = join([], self._dtype)
        """What filled no chunk yet."""

    def add(self, piece: Stream) -> list[Stream]:
        """Append `piece`; the chunks that it completes."""
        chunks, self.tail = cut_chunks(join([self.tail, piece], self._dtype), self.chunk_tokens)
        return chunks


def _with_starts(docs: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    docs["start"] = (np.cumsum(docs["length"], dtype=np.int64) - docs["length"]).astype(np.uint32)
    return docs


def _docs_between(
    docs: npt.NDArray[np.void], ends: npt.NDArray[np.int64], begin: int, end: int
) -> npt.NDArray[np.void]:
    """The documents of tokens [begin, end), cut to them."""
    if begin == end:
        return docs[:0].copy()
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(ends, end, side="left"))
    piece = docs[first : last + 1].copy()
    starts = ends[first : last + 1] - piece["length"]
    lost = np.maximum(begin - starts, 0)
    piece["skipped"] += lost.astype(np.uint64)
    piece["length"] = np.minimum(ends[first : last + 1], end) - starts - lost
    piece["start"] = starts + lost - begin
    return piece
