"""Token streams to a corpus on disk: cut chunks, write them as parts, publish the parts as shards.

    Cutter.add(tokens, docs)                    -> full chunks; what is left over is its `tail`
    write_parts(dir, split, task, chunks)       -> tars of up to 128 chunks; needs nothing global, so any task can
    publish(dir, parts, ...)                    -> parts become train-00000.tar ..., index.bin, manifest.json last

A task cuts its own stream; the tails of all tasks, joined in task order, are cut once more as the task "tails". Bytes
depend on tokens, task names and chunk size alone: same input, same bytes.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale.corpus.index import CHUNK_DTYPE, content_hash, region_hash, write_index
from fmscale.corpus.manifest import (
    MARKER,
    SPLITS,
    Manifest,
    Shard,
    Split,
    publish_exclusively,
    sync_directory,
    token_dtype,
    write_durably,
)
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer

SHARD_CHUNKS = 128
TOKENIZER_FILE = "tokenizer.model"

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

_TAR_BLOCK = 512


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
        assert chunk_tokens > 0 and chunk_tokens & (chunk_tokens - 1) == 0, f"{chunk_tokens} is no power of two"
        self.chunk_tokens = chunk_tokens
        self._dtype = np.dtype(dtype)
        self.tail = join([], self._dtype)
        """What filled no chunk yet."""

    def add(self, piece: Stream) -> list[Stream]:
        """Append `piece`; the chunks that it completes."""
        chunks, self.tail = cut_chunks(join([self.tail, piece], self._dtype), self.chunk_tokens)
        return chunks


@dataclass(frozen=True)
class Part:
    """A finished tar of one task, with the index records of its chunks (their `shard` is 0 until published)."""

    path: Path
    split: str
    records: npt.NDArray[np.void]
    begun: int
    """Documents that begin in it."""

    def to_json(self) -> str:
        """One line; the path is left to `from_json`."""
        fields = {"file": self.path.name, "split": self.split, "begun": self.begun}
        return json.dumps({**fields, "records": self.records.tobytes().hex()})

    @staticmethod
    def from_json(text: str, directory: Path) -> Part:
        fields = json.loads(text)
        records = np.frombuffer(bytes.fromhex(fields["records"]), CHUNK_DTYPE)
        return Part(directory / fields["file"], fields["split"], records, fields["begun"])


def write_parts(directory: Path, split: str, task: str, chunks: Iterable[Stream]) -> list[Part]:
    """Write `chunks` as part tars `SPLIT-TASK.000.tar` ..., each with up to SHARD_CHUNKS chunks, fsynced.

    Member i of the task has the key `SPLIT-TASK-00000i`: unique as `task` is unique among the tasks of a split (five
    digits, or "tails"). Chunks are consumed one by one; a part appears under its name only when it is whole, and
    writing it again gives the same bytes. No chunks: no parts.
    """
    raise NotImplementedError


def publish(
    directory: Path,
    parts: Sequence[Part],
    *,
    tokenizer: Tokenizer,
    chunk_tokens: Mapping[str, int],
    left_over: Mapping[str, int],
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    parent: Manifest | None = None,
) -> Manifest:
    """Make `parts` (in the order that the corpus shall have) a corpus at `directory`; manifest.json comes last.

    Parts are hard-linked to their final names and stay where they are, so that a publish killed at any point is simply
    done again; remove them afterwards. They must be on the file system of `directory`.
    chunk_tokens, left_over: per split, both splits named. parent: manifest of the generation before, when `directory`
    is a further generation (BASE/gen-0001). recipe, counts, inputs: plain JSON values.
    Raises DataError: a manifest is there already, no chunk at all, or a generation that does not fit its parent.
    """
    raise NotImplementedError


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
