"""Files that a step's parameters name (a word list, a model): pinned by hash, as a recipe's inputs are.

    @reads_files("words")
    def no_names(documents, *, words=""): ...      # a recipe's `words: lists/names.txt`

A corpus remembers the hash of such a file and not its path: a list that was edited makes another corpus, one that was
moved does not. Tasks compare with the hash that the plan has (plan.py), before they use a file and afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from fmscale.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
_BLOCK_BYTES = 1 << 23


def reads_files(*parameters: str) -> Callable[[F], F]:
    """Marks a step of which these parameters are paths or lists of paths; an empty one names no file."""

    def mark(function: F) -> F:
        function.files = parameters  # type: ignore[attr-defined]
        return function

    return mark


def file_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(function, "files", ())
    return names


def check_files(step: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
    """Raise ConfigError for a file that is not there, cannot be read or is a directory."""
    for key in file_parameters(function):
        if not isinstance(parameters[key], str | list | tuple):
            raise ConfigError(
                f"a parameter of step {step} names no file",
                expected=f"{key}: the path of a file, or a list of such",
                found=f"{key}: {parameters[key]} ({type(parameters[key]).__name__})",
                do="correct the recipe; quote a name that looks like a number",
            )
        for path in _paths(parameters[key]):
            try:
                with Path(path).open("rb") as file:
                    file.read(1)
            except (OSError, TypeError) as error:
                raise ConfigError(
                    f"a file that step {step} reads cannot be read",
                    expected=f"{key}: a file on storage that all workers see",
                    found=f"{path} (seen from {os.getcwd()}): {getattr(error, 'strerror', 'no path')}",
                    do="correct the path, or make the file",
                ) from error


def by_hash(function: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the xxh3_128 of the bytes of each file, in hex, in place of its path."""
    hashes = {key: [_hash(path, *stamp(path)) for path in _paths(parameters[key])] for key in file_parameters(function)}
    return {**parameters, **hashes}


def located(function: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with absolute paths: workers may have a working directory of their own."""
    found = dict(parameters)
    for key in file_parameters(function):
        value = found.get(key)
        if value:
            found[key] = os.path.abspath(value) if isinstance(value, str) else [os.path.abspath(p) for p in value if p]
    return found


def once_per_file(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load(paths, ...)`, whose last four results stay in this process as long as the files do not change."""
    kept = lru_cache(maxsize=4)(lambda paths, stamps, *rest: load(paths, *rest))

    def loaded(paths: Sequence[str], *rest: Any) -> Any:
        return kept(tuple(paths), tuple(stamp(path) for path in paths), *rest)

    return loaded


def lines_of(path: str) -> Iterator[str]:
    """The entries of a list: a line each, without white space around it; `#` begins a comment. Raises ConfigError."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    "a list is no UTF-8",
                    expected="one entry a line, in UTF-8",
                    found=f"{path}, line {number}: {line[:40]!r}",
                    do="convert it: iconv -f latin1 -t utf-8",
                ) from error
            if entry := entry.partition("#")[0].strip():
                yield entry


def _paths(value: str | Sequence[str]) -> list[str]:
    return [path for path in ([value] if isinstance(value, str) else value) if path]


def stamp(path: str) -> tuple[int, ...]:
    """What changes whenever the file does; mtime alone can be set back, as copying tools do."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=256)
def _hash(path: str, *stamp: int) -> str:
    """One read per process and version of the file."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
