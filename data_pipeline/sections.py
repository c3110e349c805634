"""A file of sections, each under a hash of its own: what one pass over the corpus leaves on disk for the next.

    section | section | ... | entry of each: begin u8, bytes u8, hash | kind[24] sections[u8] check[u8]

The hash, xxh3_128, is over an entry's two numbers and the section's bytes.

Written front to back with one section in memory; it appears whole or not at all (durable.py). A reader takes the entry
and the bytes of the section it wants and nothing else, and holds no file open: a pass merges as many files as there are
tasks. A section that is not as it was written is an error, whether read at once or in blocks.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale import durable
from fmscale.errors import DataError

_ENTRY = struct.Struct("<QQ16s")
_END = struct.Struct("<24sQQ")


class Writer:
    """Takes the sections of one file, in order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._entries: list[bytes] = []
        self._begin = 0

    def add(self, section: npt.NDArray[Any] | bytes) -> None:
        data = section if isinstance(section, bytes) else np.ascontiguousarray(section).reshape(-1).view(np.uint8).data
        self._file.write(data)
        hashed = _hash(self._begin, len(data))
        hashed.update(data)
        self._entries.append(_ENTRY.pack(self._begin, len(data), hashed.digest()))
        self._begin += len(data)

    def close(self, kind: str) -> None:
        table = b"".join(self._entries)
        self._file.write(table + _end(kind, len(self._entries), self._begin))


@contextmanager
def create(path: Path, kind: str) -> Iterator[Writer]:
    """`with create(path, kind) as file: file.add(...)`: `path` is there when the block ends without an error.

    kind: at most 24 ASCII letters that say what the sections are, with a version; `Sections` asks for the same.
    """
    with durable.writing(path) as file:
        writer = Writer(file)
        yield writer
        writer.close(kind)


@dataclass(frozen=True, slots=True)
class Section:
    """Where one section lies."""

    path: Path
    begin: int
    size: int
    """Bytes."""
    digest: bytes

    def read(self) -> bytes:
        """All of it; `Reader` takes it in pieces. Raises DataError if it is not as it was written."""
        return Reader(self).take(self.size)


class Reader:
    """Takes a section front to back, in pieces of any size."""

    def __init__(self, section: Section) -> None:
        """Raises DataError if the section is empty and was not written so."""
        self._section, self._hash = section, _hash(section.begin, section.size)
        self.left = section.size
        """Bytes still to be taken."""
        if not self.left:
            self._check(b"", 0)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, less at the end. Raises DataError: too few, or, at the end, another hash."""
        section = self._section
        size = min(size, self.left)
        try:
            with section.path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, section.begin + section.size - self.left)
        except OSError as error:
            raise _damaged(section.path, "a readable file", error.strerror or str(error)) from error
        self._hash.update(data)
        self.left -= size
        self._check(data, size)
        return data

    def _check(self, data: bytes, size: int) -> None:
        section = self._section
        if len(data) != size or (not self.left and self._hash.digest() != section.digest):
            where = f"bytes {section.begin} to {section.begin + section.size}"
            raise _damaged(
                section.path,
                f"xxh3_128 {section.digest.hex()} of {where}",
                self._hash.hexdigest() if len(data) == size else f"{len(data)} of {size} bytes",
            )


class Sections:
    """The sections of a file, by number. Holds nothing of it in memory and keeps no file open."""

    def __init__(self, path: Path, kind: str) -> None:
        """Raises DataError: no such file, one that was cut, one of another kind or version."""
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                end = os.pread(file.fileno(), _END.size, max(size - _END.size, 0))
        except OSError as error:
            raise _damaged(path, f"a file of {kind}", error.strerror or str(error)) from error
        self.count, body = 0, 0
        if len(end) == _END.size:
            _, self.count, _ = _END.unpack(end)
            body = size - _END.size - self.count * _ENTRY.size
        if body < 0 or end != _end(kind, self.count, body):
            raise _damaged(path, f"a file of {kind} that ends as it was written", f"{size} bytes that end otherwise")
        self._table = body

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Section:
        """Raises DataError if its entry cannot be read or points out of the file."""
        assert 0 <= number < self.count, f"section {number} of {self.count}"
        try:
            with self.path.open("rb", buffering=0) as file:
                entry = os.pread(file.fileno(), _ENTRY.size, self._table + number * _ENTRY.size)
        except OSError as error:
            raise _damaged(self.path, "a readable file", error.strerror or str(error)) from error
        if len(entry) != _ENTRY.size:
            raise _damaged(self.path, f"the entry of section {number}", f"{len(entry)} of its {_ENTRY.size} bytes")
        begin, size, digest = _ENTRY.unpack(entry)
        if begin + size > self._table:
            raise _damaged(self.path, f"section {number} below byte {self._table}", f"{size} bytes at {begin}")
        return Section(self.path, begin, size, digest)


def _hash(begin: int, size: int) -> xxhash.xxh3_128:
    return xxhash.xxh3_128(struct.pack("<QQ", begin, size))


def _end(kind: str, count: int, body: int) -> bytes:
    """The last bytes of a file; the check is over everything that says where things are."""
    name = kind.encode("ascii").ljust(24, b"\0")
    assert len(name) == 24, f"{kind} is too long"
    return _END.pack(name, count, xxhash.xxh3_64_intdigest(name + struct.pack("<QQ", count, body)))


def _damaged(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"{path} is damaged or missing",
        expected=expected,
        found=found,
        do="remove it: the same command makes it again",
    )
