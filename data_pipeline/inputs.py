"""What a corpus is made of: a pinned list of input files, cut into tasks by bytes.

Patterns become files sorted by name (find.py). A local file is read once for its size and hash, and cut where its kind
allows it: JSONL at line ends, Parquet between row groups, into pieces of about `task_bytes`; neighbouring small pieces
share a task. A file in a store is pinned by what the store says of it and is one piece, as a compressed file is: write
several if they are large. Nothing here knows how many workers there are, so neither does the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import xxhash

from data_pipeline.cut import cut
from data_pipeline.find import Found, find, kind_or_text
from data_pipeline.optional import require
from data_pipeline.store import is_url
from fmscale.errors import DataError


@dataclass(frozen=True)
class InputFile:
    path: str
    """Where to open it: a path, or a URL. Not for eyes: a signed URL is a secret."""
    name: str
    """Relative to the input it was found under; what ids and manifests say, so that a corpus can move."""
    kind: str
    """jsonl | text | warc | parquet | tar | hub"""
    compression: str
    """"" | .gz | .zst"""
    bytes: int
    hash: str
    """xxh3_128 of the bytes on disk, in hex; of a file in a store, of its size and stamp, behind "stamp:"."""
    stamp: str = ""
    """What a store says that changes with the content: an ETag, or a time; "" of a local file."""

    @property
    def is_local(self) -> bool:
        return not self.hash.startswith(STAMPED)


STAMPED = "stamp:"


@dataclass(frozen=True)
class Piece:
    """Bytes [start, stop) of a file, cut where its kind allows; `first_record` is the ordinal of the first record."""

    file: int
    start: int
    stop: int
    first_record: int
    hash: str
    """xxh3_128 of the bytes; "" of a file in a store: it is known when the piece has been read."""


@dataclass(frozen=True)
class Inputs:
    files: tuple[InputFile, ...]
    tasks: tuple[tuple[Piece, ...], ...]
    left_out: dict[str, int]
    """What stands below an input and is not read: files of no known kind by suffix, links to directories, corpora."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def queries(self) -> dict[int, str]:
        """By number of the file, what its URL has behind its path, where it has that: often a signature, a secret."""
        split = ((number, *_split(file.path)) for number, file in enumerate(self.files))
        return {number: query for number, _, query in split if query}

    def to_json(self) -> dict[str, Any]:
        """Without `queries`: this is written to disk."""
        return asdict(replace(self, files=tuple(replace(file, path=_split(file.path)[0]) for file in self.files)))

    @staticmethod
    def from_json(value: dict[str, Any]) -> Inputs:
        return Inputs(
            tuple(InputFile(**file) for file in value["files"]),
            tuple(tuple(Piece(**piece) for piece in task) for task in value["tasks"]),
            dict(value["left_out"]),
        )


NEEDS = {
    "warc": ("a WARC input", ("fastwarc.warc", "resiliparse.parse.encoding")),
    "parquet": ("a Parquet input", ("pyarrow.parquet",)),
}
"""Packages that reading a kind takes, so that they are missed before anything is read."""


def pin(patterns: Sequence[str], task_bytes: int = 0) -> Inputs:
    """The files that `patterns` (files, directories, globs with `**`, URLs, `hf:NAME`) mean now, cut into tasks.

    Order: patterns as given, names sorted below each; a file that two patterns match counts once. `task_bytes` 0: a
    32nd of the whole, at least 1 MiB and at most 512 MiB. Raises DataError: no pattern at all, a pattern that matches
    nothing, a directory without a known kind of file, an unreadable file or directory, a store that does not answer;
    ConfigError: a kind of file or URL whose package is missing, a secret in a URL.
    """
    if not patterns:
        raise DataError(
            "no input is named",
            expected="files, directories or globs",
            found="inputs is empty",
            do="set inputs in the recipe, for example 'inputs=[raw/**/*.jsonl]'",
        )
    found, left_out = find(patterns)
    for kind in {kind_or_text(item.name)[0] for item in found} & NEEDS.keys():
        purpose, modules = NEEDS[kind]
        for module in modules:
            require(module, purpose)
    total = sum(item.bytes for item in found)
    task_bytes = task_bytes or min(max(total // 32, 1 << 20), 1 << 29)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        read = list(pool.map(lambda item: _pin_one(item[0], item[1], task_bytes), enumerate(found)))
    pieces = [piece for _, cut_ in read for piece in cut_]
    return Inputs(tuple(file for file, _ in read), tuple(_group(pieces, task_bytes)), dict(sorted(left_out.items())))


def _pin_one(index: int, found: Found, task_bytes: int) -> tuple[InputFile, list[Piece]]:
    kind, compression = found.kind or kind_or_text(found.name)
    if found.stamp is not None:
        hash_ = STAMPED + xxhash.xxh3_128_hexdigest(f"{found.bytes}\0{found.stamp}".encode())
        file = InputFile(found.path, found.name, kind, compression, found.bytes, hash_, found.stamp)
        return file, [Piece(index, 0, found.bytes, 0, "")]
    size, hash_, pieces = cut(found.path, kind, compression, task_bytes)
    file = InputFile(found.path, found.name, kind, compression, size, hash_)
    return file, [Piece(index, *piece) for piece in pieces]


def _split(path: str) -> tuple[str, str]:
    """(path, what a URL has from ? on)."""
    bare, mark, query = path.partition("?") if is_url(path) else (path, "", "")
    return bare, mark + query


def _group(pieces: Sequence[Piece], task_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """Neighbouring pieces, as many as fit in `task_bytes`, at least one."""
    task: list[Piece] = []
    held = 0
    for piece in pieces:
        size = piece.stop - piece.start
        if task and held + size > task_bytes:
            yield tuple(task)
            task, held = [], 0
        task.append(piece)
        held += size
    if task:
        yield tuple(task)
