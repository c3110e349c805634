"""A file of small records in blocks, each under a hash of its own: opened in the time of its head, whatever its size.

    magic[16] version[u4] block_bytes[u4] body_bytes[u8]  |  xxh3_128 of each block  |  the body, block after block
    |---------------------- head, under the sha256 that a manifest keeps ----------------------|

A block is read and hashed when something in it is first asked for. What is handed out is that copy, so a file that is
cut or overwritten afterwards is an error at most. Memory holds a bounded number of blocks. A head has 16 bytes for each
block: 0.08 % of a body in blocks of 20 KB.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale import durable
from fmscale.errors import DataError

_HEADER = struct.Struct("<16sIIQ")
_HASH_BYTES = 16
RESTORE = "restore the corpus from a copy, or prepare it again"
_KEPT = 256
"""Blocks in memory, of each open file. Read again, one costs some 10 us where the file is in the page cache."""


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """What a manifest says of such a file."""

    file: str
    bytes: int
    head_bytes: int
    sha256: str
    """Of the head."""


class Blocks:
    """The body of such a file, read-only. Safe for several threads; holds a file descriptor."""

    def __init__(self, path: Path, file: BlockFile, magic: bytes, version: int, remedy: str = RESTORE) -> None:
        """Read and check the head. remedy: what is to be done about damage.

        Raises DataError: no such file, another size or head, an unknown version.
        """
        self.path, self._remedy = path, remedy
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise self.damaged(f"{file.bytes} bytes", "no such file") from None
        except OSError as error:  # nothing says that its bytes are damaged
            raise DataError(
                f"{path} cannot be read",
                expected="a readable file",
                found=error.strerror or str(error),
                do="mend its permissions, the mount, or the limit of open files; then run the command again",
            ) from error
        size = os.fstat(self._file.fileno()).st_size
        head = os.pread(self._file.fileno(), file.head_bytes, 0) if size == file.bytes else b""
        if (found := hashlib.sha256(head).hexdigest() if head else "") != file.sha256:
            hashed = f", sha256 {found[:16]}... of the first {file.head_bytes}" if found else ""
            raise self.damaged(f"{file.bytes} bytes, sha256 {file.sha256[:16]}...", f"{size} bytes{hashed}")
        given, number, self.block_bytes, self.body_bytes = _HEADER.unpack_from(head)
        if (given, number) != (magic, version):
            name = magic.rstrip(b"\0").decode()
            raise DataError(
                f"{path} is of a format that this version cannot read",
                expected=f"{name} version {version}",
                found=f"{given.rstrip(bytes(1)).decode(errors='replace')} version {number}",
                do="use the fmscale that wrote it, or prepare the corpus again",
            )
        self._hashes = head[_HEADER.size :]
        self._begin = file.head_bytes
        self._kept: dict[int, bytes] = {}
        assert self._begin + self.body_bytes == size, f"{path} was written with another head than body"

    def __len__(self) -> int:
        return len(self._hashes) // _HASH_BYTES

    def at(self, offset: int) -> tuple[bytes, int]:
        """The block that holds byte `offset` of the body, and where in it that byte is.

        Raises DataError if the block is not as it was written.
        """
        number, inside = divmod(offset, self.block_bytes)
        block = self._kept.get(number)
        if block is None:
            block = self.read(number)
            if len(self._kept) >= _KEPT:
                self._kept = {}
            self._kept[number] = block
        return block, inside

    def read(self, number: int) -> bytes:
        """A block, from the file. Raises DataError if it is not as it was written."""
        begin = number * self.block_bytes
        assert 0 <= begin < self.body_bytes, f"block {number} of {len(self)}"
        size = min(self.block_bytes, self.body_bytes - begin)
        try:
            block = os.pread(self._file.fileno(), size, self._begin + begin)
        except OSError as error:
            raise self.damaged(f"{size} bytes at {self._begin + begin}", str(error.strerror)) from error
        expected = self._hashes[number * _HASH_BYTES : (number + 1) * _HASH_BYTES]
        if (found := xxhash.xxh3_128_digest(block)) != expected:
            where = f"bytes {self._begin + begin} to {self._begin + begin + size}"
            raise self.damaged(
                f"xxh3_128 {expected.hex()} of {where}",
                found.hex() if len(block) == size else f"{len(block)} bytes there",
            )
        return block

    def damaged(self, expected: str, found: str) -> DataError:
        return DataError(f"{self.path} is damaged or missing", expected=expected, found=found, do=self._remedy)


def write_blocks(
    path: Path, sections: Sequence[npt.NDArray[Any]], block_bytes: int, magic: bytes, version: int
) -> BlockFile:
    """Write the bytes of `sections`, one after another, as the body of the file `path`, durably."""
    body_bytes = sum(section.nbytes for section in sections)
    head_bytes = _HEADER.size + -(-body_bytes // block_bytes) * _HASH_BYTES
    head = bytearray(_HEADER.pack(magic, version, block_bytes, body_bytes))
    with durable.writing(path) as file:
        file.seek(head_bytes)
        for block in _cut(sections, block_bytes):
            head += xxhash.xxh3_128_digest(block)
            file.write(block)
        file.seek(0)
        file.write(head)
    assert len(head) == head_bytes, f"{len(head)} bytes of head"
    return BlockFile(
        file=path.name, bytes=head_bytes + body_bytes, head_bytes=head_bytes, sha256=hashlib.sha256(head).hexdigest()
    )


def _cut(sections: Sequence[npt.NDArray[Any]], block_bytes: int) -> Iterator[bytes | memoryview]:
    """The sections' bytes in blocks, which run across their ends; not copied but there."""
    begun = b""
    for section in sections:
        data = np.ascontiguousarray(section).view(np.uint8).data
        if begun:
            missing = block_bytes - len(begun)
            begun, data = begun + bytes(data[:missing]), data[missing:]
            if len(begun) < block_bytes:
                continue
            yield begun
        whole = len(data) - len(data) % block_bytes
        yield from (data[at : at + block_bytes] for at in range(0, whole, block_bytes))
        begun = bytes(data[whole:])
    if begun:
        yield begun
