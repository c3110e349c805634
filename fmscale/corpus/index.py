"""Where each chunk lies, what its bytes hash to, and the list of shards: `index.bin`, read a block at a time.

The body of a `blocks.py` file: a record of CHUNK_DTYPE for each chunk, training first, then held-out; behind them one
of SHARD_DTYPE for each shard, in the same order. All little-endian.

A chunk's two tar members are one region of its shard, so one mapping slice or one range request gets them:

    start            docs_data        tokens_start      tokens_data            end
      | header | npy header | records | pad | header | npy header | tokens | pad |
      |------------- docs_hash ------------|------------- tokens_hash ----------|

80 bytes for each 2 MB of tokens: 19.5 million chunks (10^10 rows of 2,048) have an index of 1.6 GB, of which opening
reads the head, 1.2 MB, and each first use of a chunk 20 KB.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale.corpus.blocks import BlockFile, Blocks, write_blocks
from fmscale.corpus.manifest import Manifest, Split

MAGIC = b"fmscale-index\0\0\0"
VERSION = 2
FILE = "index.bin"
BLOCK_RECORDS = 256
"""Of 19.5 million chunks, opening then reads 1.2 MB, and a seek to rows in 192 random ones 4 MB."""
CHECKED_AT_ONCE = 256
"""Shards up to which all that can be looked at without reading chunks is, when a corpus is opened."""

CHUNK_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # number in the list of shards, all splits counted
        ("documents", "<u4"),  # records of its docs.npy
        ("start", "<u8"),  # offset in the tar of the docs member's header
        ("tokens_start", "<u8"),  # of the tokens member's header, where the docs member's padding ends
        ("end", "<u8"),  # where the tokens member's padding ends
        ("docs_data", "<u8"),  # of the first document record
        ("tokens_data", "<u8"),  # of the first token
        ("docs_hash", "V16"),  # xxh3_128 of [start, tokens_start)
        ("tokens_hash", "V16"),  # xxh3_128 of [tokens_start, end)
    ]
)
SHARD_DTYPE = np.dtype(
    [
        ("bytes", "<u8"),  # of the file
        ("end", "<u8"),  # chunks of its split up to and with its last one
    ]
)
_CHUNK = struct.Struct("<IIQQQQQ16s16s")
_SHARD = struct.Struct("<QQ")
assert (_CHUNK.size, _SHARD.size) == (CHUNK_DTYPE.itemsize, SHARD_DTYPE.itemsize), "no record lies across blocks"


class ChunkRecord(NamedTuple):
    """A record of CHUNK_DTYPE; its fields are explained there."""

    shard: int
    documents: int
    start: int
    tokens_start: int
    end: int
    docs_data: int
    tokens_data: int
    docs_hash: bytes
    tokens_hash: bytes


@dataclass(frozen=True, kw_only=True)
class Shard:
    file: str
    """Name inside the corpus directory."""
    bytes: int
    split: str
    first: int
    """Number in its split of its first chunk."""
    chunks: int

    @property
    def end(self) -> int:
        """Number in its split of the chunk after its last."""
        return self.first + self.chunks


class Index:
    """index.bin of one generation."""

    def __init__(self, blocks: Blocks, manifest: Manifest) -> None:
        self._blocks = blocks
        self._splits = manifest.splits
        self._chunks = sum(split.chunks for split in manifest.splits.values())

    def split(self, name: str) -> SplitIndex:
        return SplitIndex(self._blocks, name, self._splits[name], self._chunks)

    def content_hash(self) -> str:
        """As `content_hash` of all records. Reads every block; raises DataError if one is not as it was written."""
        return content_hash(self._records())

    def _records(self) -> Iterator[npt.NDArray[np.void]]:
        left = self._chunks
        for number in range(len(self._blocks)):
            block = self._blocks.read(number)
            own = min(left, len(block) // CHUNK_DTYPE.itemsize)
            yield np.frombuffer(block, CHUNK_DTYPE, own)
            left -= own


class SplitIndex:
    """The chunks and shards of one split in the index, each numbered from 0. Looking one up may raise DataError."""

    def __init__(self, blocks: Blocks, name: str, split: Split, all_chunks: int) -> None:
        self._blocks = blocks
        self._first_chunk = split.first_chunk
        self._first_shard = split.first_shard
        self.chunks = split.chunks
        self.shards: Sequence[Shard] = _Shards(blocks, name, split, all_chunks * _CHUNK.size)

    def chunk(self, number: int) -> ChunkRecord:
        assert 0 <= number < self.chunks, f"chunk {number} of {self.chunks}"
        block, inside = self._blocks.at((self._first_chunk + number) * _CHUNK.size)
        return ChunkRecord._make(_CHUNK.unpack_from(block, inside))

    def shard_of(self, chunk: int) -> int:
        """Number of the shard that holds a chunk."""
        return self.chunk(chunk).shard - self._first_shard


class _Shards(Sequence[Shard]):
    def __init__(self, blocks: Blocks, name: str, split: Split, table: int) -> None:
        """table: where in the body the list of all shards begins."""
        self._blocks, self._name, self._count = blocks, name, split.shards
        self._begin = table + split.first_shard * _SHARD.size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(f"shard {number} of {self._count}")
        size, end = self._record(number)
        first = self._record(number - 1)[1] if number else 0
        return Shard(file=shard_name(self._name, number), bytes=size, split=self._name, first=first, chunks=end - first)

    def _record(self, number: int) -> tuple[int, int]:
        block, inside = self._blocks.at(self._begin + number * _SHARD.size)
        size, end = _SHARD.unpack_from(block, inside)
        return size, end


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.tar"


def region_hash(data: Any) -> bytes:
    """The 16 bytes (big-endian, as xxHash writes them) that the index keeps of a region."""
    digest: bytes = xxhash.xxh3_128_digest(data)
    return digest


def content_hash(parts: Iterable[npt.NDArray[np.void]]) -> str:
    """sha256 over docs_hash and tokens_hash of each chunk in order: the identity of a corpus' content.

    parts: its records (CHUNK_DTYPE), in as many arrays as one likes.
    """
    digest = hashlib.sha256()
    at = CHUNK_DTYPE.fields["docs_hash"][1]  # type: ignore[index]  # both hashes end the record
    for records in parts:
        digest.update(records.view(np.uint8).reshape(len(records), CHUNK_DTYPE.itemsize)[:, at:].tobytes())
    return digest.hexdigest()


def write_index(directory: Path, records: npt.NDArray[np.void], shards: npt.NDArray[np.void]) -> BlockFile:
    """Write index.bin for `records` (CHUNK_DTYPE[chunks]) and `shards` (SHARD_DTYPE[shards]) and say what it is."""
    assert (records.dtype, shards.dtype) == (CHUNK_DTYPE, SHARD_DTYPE), f"{records.dtype}, {shards.dtype}"
    block_bytes = BLOCK_RECORDS * CHUNK_DTYPE.itemsize
    return write_blocks(directory / FILE, (records, shards), block_bytes, MAGIC, VERSION)


def read_index(directory: Path, manifest: Manifest, *, whole: bool = False) -> Index:
    """Open the index of a generation. Raises DataError if its size or head is not what the manifest says.

    Its blocks are checked when something in them is first asked for. Of an index of few shards, or if `whole` is asked
    for, all are checked now, and that its chunks are those, in the order, that the manifest's content_hash says.
    """
    blocks = Blocks(directory / manifest.index.file, manifest.index, MAGIC, VERSION)
    chunks, shards = (sum(getattr(split, what) for split in manifest.splits.values()) for what in ("chunks", "shards"))
    said = chunks * CHUNK_DTYPE.itemsize + shards * SHARD_DTYPE.itemsize
    if blocks.body_bytes != said:
        raise blocks.damaged(f"{chunks} chunks in {shards} shards, {said} bytes", f"{blocks.body_bytes} bytes")
    index = Index(blocks, manifest)
    if (whole or shards <= CHECKED_AT_ONCE) and (found := index.content_hash()) != manifest.content_hash:
        said_hash = f"chunks with content_hash {manifest.content_hash[:16]}..."
        raise blocks.damaged(said_hash, f"{found[:16]}...: other ones, or reordered")
    return index
