"""What a corpus is made of: a pinned list of input files, cut into tasks by bytes.

Patterns become files sorted by name; each file is read once for its size and hash; JSONL files are cut at line ends
into pieces of about `task_bytes`, and neighbouring small pieces share a task. Nothing here knows how many workers
there are, so neither does the corpus. Compressed files are one piece each: write several if they are large.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from fmscale.errors import DataError

JSONL_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
COMPRESSIONS = (".gz", ".zst")


class DamagedInput(DataError):
    """An input file, or a piece of one, that cannot be read as what it is: it is given up, not the preparation."""

    place = -1
    """Of the piece in its task."""


LINK = "symbolic link to a directory"
MAX_RECORD_BYTES = 1 << 26
"""A longer line is no record but a file of another kind. As parsed JSON it may take 25 times as much memory."""
PIECE_BYTES = 1 << 25
"""About what a reader holds in memory at once; a task reads its pieces one after another."""
_BLOCK_BYTES = 1 << 23


@dataclass(frozen=True)
class InputFile:
    path: str
    """Where to open it."""
    name: str
    """Relative to the input it was found under; what ids and manifests say, so that a corpus can move."""
    kind: str
    """jsonl | text"""
    compression: str
    """"" | .gz | .zst"""
    bytes: int
    hash: str
    """xxh3_128 of the bytes on disk, in hex."""


@dataclass(frozen=True)
class Piece:
    """Bytes [start, stop) of a file, at line ends; `first_record` is the ordinal of the first line."""

    file: int
    start: int
    stop: int
    first_record: int
    hash: str


@dataclass(frozen=True)
class Inputs:
    files: tuple[InputFile, ...]
    tasks: tuple[tuple[Piece, ...], ...]
    left_out: dict[str, int]
    """What stands below an input directory and is not read: files of no known kind by suffix, links to directories."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Inputs:
        return Inputs(
            tuple(InputFile(**file) for file in value["files"]),
            tuple(tuple(Piece(**piece) for piece in task) for task in value["tasks"]),
            dict(value["left_out"]),
        )


def pin(patterns: Sequence[str], task_bytes: int = 0) -> Inputs:
    """The files that `patterns` (files, directories, globs with `**`) mean now, hashed and cut into tasks.

    Order: patterns as given, names sorted below each; a file that two patterns match counts once. `task_bytes` 0: a
    32nd of the whole, at least 1 MiB and at most 512 MiB. Raises DataError: no pattern at all, a pattern that matches
    nothing, a directory without a known kind of file, an unreadable file or directory, a line longer than a record
    may be.
    """
    found, left_out = _find(patterns)
    total = sum(_size(path) for path, _ in found)
    task_bytes = task_bytes or min(max(total // 32, 1 << 20), 1 << 29)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        read = list(pool.map(lambda item: _hash_and_cut(item[0], item[1][0], item[1][1], task_bytes), enumerate(found)))
    pieces = [piece for _, cut in read for piece in cut]
    return Inputs(tuple(file for file, _ in read), tuple(_group(pieces, task_bytes)), dict(sorted(left_out.items())))


def kind_of(name: str) -> tuple[str, str] | None:
    """(kind, compression) by suffix, None where the suffix says nothing."""
    name = name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    stem = name.removesuffix(compression)
    if stem.endswith(JSONL_SUFFIXES):
        return "jsonl", compression
    return ("text", compression) if stem.endswith(TEXT_SUFFIXES) else None


def _find(patterns: Sequence[str]) -> tuple[list[tuple[str, str]], Counter[str]]:
    """[(absolute path, name)] in order, and the suffixes of what was left out."""
    if not patterns:
        raise DataError(
            "no input is named",
            expected="files, directories or globs",
            found="inputs is empty",
            do="set inputs in the recipe, for example 'inputs=[raw/**/*.jsonl]'",
        )
    names: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for pattern in patterns:
        if os.path.isdir(pattern):
            matches = _directory(pattern, left_out)
        elif os.path.isfile(pattern):
            matches = [(pattern, os.path.basename(pattern))]
        else:
            matches = _glob(pattern)
        for path, name in sorted(matches, key=lambda match: match[1]):
            names.setdefault(os.path.abspath(path), name.replace(os.sep, "/"))
    return list(names.items()), left_out


def _directory(root: str, left_out: Counter[str]) -> list[tuple[str, str]]:
    """Every file of a known kind below `root`; hidden files and directories are no input."""
    known: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    for folder, folders, files in os.walk(root, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Not followed: a link may lead back up, or to files that are listed already. Name its target as an input.
        if links := sum(os.path.islink(os.path.join(folder, name)) for name in folders):
            others[LINK] += links
        for file in files:
            if file.startswith("."):
                continue
            if kind_of(file):
                known.append((os.path.join(folder, file), os.path.relpath(os.path.join(folder, file), root)))
            else:
                others[Path(file).suffix or "no suffix"] += 1
    if not known:
        raise DataError(
            "an input directory holds no text",
            expected=f"files that end in {' '.join(JSONL_SUFFIXES + TEXT_SUFFIXES)}, plain or .gz or .zst",
            found=f"{root} with {', '.join(f'{count} {kind}' for kind, count in sorted(others.items())) or 'nothing'}",
            do="name the files by a glob, for example 'inputs=[raw/**/*.log]': each then is one plain-text document",
        )
    left_out.update(others)
    return known


def _glob(pattern: str) -> list[tuple[str, str]]:
    fixed = pattern[: min((i for i, c in enumerate(pattern) if c in "*?["), default=len(pattern))]
    root = os.path.dirname(fixed) or "."
    paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    if not paths:
        raise DataError(
            "an input matches no file",
            expected="a file, a directory or a glob such as raw/**/*.jsonl.gz",
            found=f"{pattern} (seen from {os.getcwd()})",
            do="check the path; quote a glob, so that the shell leaves it alone",
        )
    return [(path, os.path.relpath(path, root)) for path in paths]


def _hash_and_cut(index: int, path: str, name: str, task_bytes: int) -> tuple[InputFile, list[Piece]]:
    """One pass over the bytes: the file's hash and, where it can be cut, its pieces."""
    kind, compression = kind_of(name) or ("text", next((s for s in COMPRESSIONS if name.endswith(s)), ""))
    whole = xxhash.xxh3_128()
    pieces: list[Piece] = []
    start = records = 0
    try:
        with open(path, "rb") as file:
            if kind == "jsonl" and not compression:
                while block := read_lines(file, min(task_bytes, PIECE_BYTES), name):
                    whole.update(block)
                    pieces.append(Piece(index, start, start + len(block), records, xxhash.xxh3_128_hexdigest(block)))
                    start += len(block)
                    records += block.count(b"\n")
            else:
                while block := file.read(_BLOCK_BYTES):
                    whole.update(block)
                    start += len(block)
                pieces.append(Piece(index, 0, start, 0, whole.hexdigest()))
    except OSError as error:
        raise _unreadable("file", path, error) from error
    return InputFile(path, name, kind, compression, start, whole.hexdigest()), pieces


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise _unreadable("file", path, error) from error


def _cannot_list(error: OSError) -> None:
    raise _unreadable("directory", str(error.filename), error) from error


def _unreadable(kind: str, path: str, error: OSError) -> DataError:
    return DataError(
        f"an input {kind} cannot be read",
        expected=f"a readable {kind}",
        found=f"{path}: {error.strerror}",
        do="mend its permissions (or the link that it is), or leave it out of inputs",
    )


def read_lines(file: BinaryIO, size: int, name: str) -> bytes:
    """About `size` bytes from here on, up to a line's end. Raises DataError on a line that is no record."""
    block = file.read(size)
    if block and not block.endswith(b"\n"):
        rest = file.readline(MAX_RECORD_BYTES)
        if len(rest) == MAX_RECORD_BYTES:
            raise too_long(name, file.tell() - len(rest))
        block += rest
    return block


def too_long(name: str, at: int) -> DataError:
    return DataError(
        "a line is too long to be a record",
        expected=f"JSON lines of at most {MAX_RECORD_BYTES >> 20} MiB",
        found=f"{name}, near byte {at}",
        do="is it JSONL at all? One document a line; plain text ends in .txt",
    )


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
