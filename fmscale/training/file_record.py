"""What a file of a checkpoint must be, block by block, so that a part of it is checked without reading the rest.

Each block has its own xxh3_128 (they find damage, not malice); a file of one block is a file with one hash. There is no
hash of a whole file beside them: who needs one thing to compare compares all of them.

Blocks of data files are 1 MiB. To check a range of L bytes takes L and one block more, on average: few even for the
2 MB that a rank of 512 reads of a matrix of 940 MB. A hash takes 35 bytes of JSON, 3e-5 of what it covers. Whatever
their size was, the record says it.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

HASH_BLOCK_BYTES = 1 << 20
"""Also Lustre's default stripe."""

_AHEAD = 32
"""Pieces that are asked for before they are read. By itself the kernel reads a fraction of a MiB ahead: asked for 32,
disks gave two to three times as much."""

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    file: str
    """Name within its directory."""
    bytes: int
    block_bytes: int
    """All blocks are so long but the last."""
    blocks: tuple[str, ...]
    """xxh3_128 of each in hex; an empty file has one block."""

    def __post_init__(self) -> None:
        if self.bytes < 0 or self.block_bytes < 1 or len(self.blocks) != max(1, -(-self.bytes // self.block_bytes)):
            blocks = f"{len(self.blocks)} blocks of {self.block_bytes} bytes"
            raise ValueError(f"{self.file} of {self.bytes} bytes cannot have {blocks}")

    @staticmethod
    def from_json(fields: dict[str, Any]) -> FileRecord:
        """Raises ValueError, TypeError or KeyError for anything else than `to_json` made."""
        if "hash" in fields:
            return FileRecord.of_one_block(**fields)
        return FileRecord(**{**fields, "blocks": tuple(fields["blocks"])})

    @staticmethod
    def of_one_block(file: str, bytes: int, hash: str) -> FileRecord:
        return FileRecord(file=file, bytes=bytes, block_bytes=max(1, bytes), blocks=(hash,))

    def to_json(self) -> dict[str, Any]:
        if len(self.blocks) == 1:
            return {"file": self.file, "bytes": self.bytes, "hash": self.blocks[0]}
        return {
            "file": self.file,
            "bytes": self.bytes,
            "block_bytes": self.block_bytes,
            "blocks": list(self.blocks),
        }

    def blocks_of(self, start: int, stop: int) -> range:
        """Numbers of the blocks that hold bytes [start, stop)."""
        return range(start // self.block_bytes, -(-stop // self.block_bytes) if start < stop else 0)

    def wrong(self, found: Sequence[str]) -> tuple[str, str] | None:
        """In words what was found and what was expected, where not all blocks have the hashes `found`."""
        pairs = enumerate(itertools.zip_longest(self.blocks, found, fillvalue=""))
        numbers = [number for number, (expected, hash) in pairs if expected != hash]
        if not numbers:
            return None
        if numbers[0] >= len(self.blocks):
            return "more bytes", f"{self.bytes:,} bytes"
        others = f"; {len(numbers) - 1:,} more of its blocks are wrong" if numbers[1:] else ""
        return self.differ(numbers[0], found[numbers[0]] if numbers[0] < len(found) else "of nothing", others)

    def differ(self, block: int, found: str, others: str = "") -> tuple[str, str]:
        """In words what was found in `block` and what was expected there."""
        start = block * self.block_bytes
        place = f"bytes {start:,} to {min(self.bytes, start + self.block_bytes):,}"
        if len(self.blocks) > 1:
            place += f", block {block:,} of {len(self.blocks):,}"
        return f"xxh3_128 {found}{others}", f"xxh3_128 {self.blocks[block]} of {place}"


class BlockHasher:
    """Hashes of the blocks of bytes that pass by in order, however they are cut."""

    def __init__(self, block_bytes: int) -> None:
        self.bytes = 0
        self._block_bytes = block_bytes
        self._done: list[str] = []
        self._hasher, self._room = xxhash.xxh3_128(), block_bytes

    def update(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        self.bytes += len(rest)
        while len(rest):
            if not self._room:
                self._done.append(self._hasher.hexdigest())
                self._hasher, self._room = xxhash.xxh3_128(), self._block_bytes
            part = rest[: self._room]
            self._hasher.update(part)
            self._room -= len(part)
            rest = rest[len(part) :]

    def hashes(self) -> tuple[str, ...]:
        return (*self._done, self._hasher.hexdigest())


class FileCheck(BlockHasher):
    """Whether the bytes that pass by in order are those of a file."""

    def __init__(self, record: FileRecord) -> None:
        super().__init__(record.block_bytes)
        self.record = record

    def holds(self) -> bool:
        return self.bytes == self.record.bytes and self.hashes() == self.record.blocks


def record_of(path: Path) -> FileRecord:
    """Of a small file, as it is: one block."""
    content = path.read_bytes()
    return FileRecord.of_one_block(path.name, len(content), xxhash.xxh3_128_hexdigest(content))


def hash_file(path: Path, record: FileRecord, advance: Callable[[int], None] | None = None) -> tuple[str, ...]:
    """The hashes that the blocks of `record` have in the file at `path`. advance: is told bytes as they are read."""
    with open(path, "rb", buffering=0) as file:
        return tuple(hash_blocks(file, record, range(len(record.blocks)), advance))


def hash_blocks(
    file: io.FileIO, record: FileRecord, blocks: Iterable[int], advance: Callable[[int], None] | None = None
) -> Iterator[str]:
    """xxh3_128 in hex of each of `blocks`; no byte of any other is asked for. What is cut off counts as empty."""
    pieces = [piece for block in blocks for piece in _pieces(record, block)]
    buffer = memoryview(bytearray(_PIECE_BYTES))
    hasher = xxhash.xxh3_128()
    for start, stop, _ in pieces[:_AHEAD]:
        _will_need(file, start, stop)
    for number, (start, stop, last) in enumerate(pieces):
        if number + _AHEAD < len(pieces):
            _will_need(file, *pieces[number + _AHEAD][:2])
        file.seek(start)
        while start < stop and (got := file.readinto(buffer[: stop - start])):
            hasher.update(buffer[:got])
            start += got
            if advance is not None:
                advance(got)
        if last:
            yield hasher.hexdigest()
            hasher = xxhash.xxh3_128()


def _pieces(record: FileRecord, block: int) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, whether it is the last) of what is read of a block at once."""
    start = block * record.block_bytes
    stop = min(record.bytes, start + record.block_bytes)
    for at in range(start, max(stop, start + 1), _PIECE_BYTES):
        yield at, min(stop, at + _PIECE_BYTES), at + _PIECE_BYTES >= stop


def _will_need(file: io.FileIO, start: int, stop: int) -> None:
    if hasattr(os, "posix_fadvise") and start < stop:  # not on macOS; a length of 0 would be the rest of the file
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)
