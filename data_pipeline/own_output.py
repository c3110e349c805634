"""Corpora of ours among the inputs: an output that its own recipe would read, and what an earlier recipe has written.

What `data prepare` writes looks like input (inputs.jsonl, dropped/*.jsonl.zst, tars): read back, dropped documents
would come in again, and the inputs would be others whenever the command is run.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

from data_pipeline import hub, store
from fmscale.corpus.manifest import FORMAT, MARKER
from fmscale.errors import ConfigError

FILES = (
    *("inputs.jsonl", "inputs.csv", "manifest.json", "tokenizer.model", "index.bin", "report.json", "report.html"),
    *("times.json", "train-00000.tar", "heldout-00000.tar", "dropped/0-00000.jsonl.zst"),
)
"""Names below an output as they are written, one of each kind."""


def check_apart(inputs: Sequence[str], output: str) -> None:
    """Raise ConfigError if `output` lies in an input directory, or is one, or a glob would match what stands in it."""
    place = os.path.realpath(output)
    for pattern in inputs:
        if _would_read(pattern, place):
            raise ConfigError(
                "the output lies among the inputs, and would be read as input the next time",
                expected="output outside of every input directory, and matched by no glob",
                found=f"output={output} and the input {pattern}",
                do="set output to a directory beside the inputs, or narrow that input",
            )


def holds_corpus(directory: str) -> bool:
    """Whether a corpus of ours stands there: by its manifest, which need not be of this version."""
    try:
        with open(os.path.join(directory, MARKER), "rb") as file:
            value = json.loads(file.read(1 << 24))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def _would_read(pattern: str, output: str) -> bool:
    if pattern.startswith(hub.SCHEME) and not pattern.startswith(hub.SCHEME + "//"):
        return False
    pattern = pattern.removeprefix("file://")
    if store.is_url(pattern):
        return False
    if os.path.isdir(pattern):
        return Path(output).is_relative_to(os.path.realpath(pattern))
    if not glob.has_magic(pattern):
        return False
    root = glob_root(pattern)
    parts = (*Path(os.path.realpath(root)).parts, *Path(os.path.relpath(pattern, root)).parts)
    return any(_matches(parts, Path(output, name).parts) for name in FILES)


def glob_root(pattern: str) -> str:
    """The directory in front of the first part of a glob that is none."""
    fixed = pattern[: min((i for i, c in enumerate(pattern) if c in "*?["), default=len(pattern))]
    return os.path.dirname(fixed) or "."


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Whether glob.glob, recursive, would find `path`: `**` is any number of directories, and none that is hidden."""
    if not pattern or not path:
        return not pattern and not path
    hidden = path[0].startswith(".")
    if pattern[0] == "**":
        if len(pattern) == 1:  # then it stands for files too
            return not any(name.startswith(".") for name in path)
        return _matches(pattern[1:], path) or (not hidden and _matches(pattern, path[1:]))
    if hidden and not pattern[0].startswith("."):
        return False
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])
