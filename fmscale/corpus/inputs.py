"""The raw files that a corpus was made of, in their pinned order: `inputs.jsonl`, one record a line.

A record has `path`, `bytes` and `hash`; `file` of a document record counts in this list. Readers of tokens do not need
it, so it is no part of the manifest, which only keeps its hash: with 10^5 inputs it is 14 MB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmscale import durable
from fmscale.corpus.manifest import InputsFile, Manifest
from fmscale.errors import DataError

FILE = "inputs.jsonl"


def write_inputs(directory: Path, inputs: Sequence[Mapping[str, Any]]) -> InputsFile:
    """Write inputs.jsonl, each record with sorted keys and no spaces, and say what it is."""
    lines = (json.dumps(dict(each), sort_keys=True, separators=(",", ":"), allow_nan=False) for each in inputs)
    data = "".join(f"{line}\n" for line in lines).encode()
    durable.replace(directory / FILE, data)
    return InputsFile(file=FILE, count=len(inputs), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_inputs(directory: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The inputs of a generation. Raises DataError if the file is not byte for byte what the manifest says."""
    path, said = directory / manifest.inputs.file, manifest.inputs
    data = path.read_bytes() if path.is_file() else None
    found = "no such file" if data is None else f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
    expected = f"{said.bytes} bytes, sha256 {said.sha256}"
    if data is None or found != expected:
        raise DataError(
            f"{path} is damaged or missing",
            expected=expected,
            found=found,
            do="restore it from a copy, or prepare the corpus again; training does without it",
        )
    records: list[dict[str, Any]] = json.loads(b"[" + b",".join(data.splitlines()) + b"]")  # at once: 3 times as fast
    return records
