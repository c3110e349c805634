"""What the tasks of one preparation share: the plan, and the files in OUTPUT/.work/PLAN by which they pass on results.

Every file is written whole or not at all, so one that is there is done. The directory has the plan's name: a worker of
a killed run of another plan may still be writing, and what it writes is never taken for this plan's. Tokens and
documents go through the files as plain arrays; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.inputs import Inputs
from data_pipeline.pipeline import Recipe, auto_chunk_tokens, recipe_record
from fmscale import durable
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer

VERSION = 2
"""Raise it when the same recipe and inputs begin to give other bytes: unfinished work of another version is redone."""


@dataclass(frozen=True)
class Plan:
    """All that a task needs to know."""

    recipe: Recipe
    inputs: Inputs
    fingerprint: str
    """Of the tokenizer."""

    @property
    def id(self) -> str:
        """Equal plans give equal corpora: hash of the recipe's record, the inputs' content and the tokenizer."""
        files = [[file.name, file.hash] for file in self.inputs.files]
        body = [VERSION, recipe_record(self.recipe), files, self.fingerprint]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @property
    def chunk_tokens(self) -> int:
        return self.recipe.chunk_tokens or auto_chunk_tokens(self.inputs.bytes)

    def task_input_bytes(self, task: int) -> int:
        return sum(piece.stop - piece.start for piece in self.inputs.tasks[task])


class Work:
    """OUTPUT/.work/PLAN: the plan, and one file for each thing that is done."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.join_file = directory / "join.json"
        self.parts = directory / "parts"

    @staticmethod
    def create(parent: Path, plan: Plan) -> Work:
        directory = parent / plan.id[:16]
        (directory / "parts").mkdir(parents=True, exist_ok=True)
        body = {"id": plan.id, "recipe": asdict(plan.recipe), "inputs": plan.inputs.to_json()}
        durable.replace(directory / "plan.json", json.dumps({**body, "fingerprint": plan.fingerprint}).encode())
        return Work(directory)

    def plan(self) -> Plan:
        path = self.directory / "plan.json"
        return _plan(path, path.stat().st_mtime_ns)

    def scan_file(self, task: int) -> Path:
        return self.directory / f"scan-{task:05d}.npz"

    def write_file(self, task: int) -> Path:
        return self.directory / f"write-{task:05d}.npz"

    def save_array(self, name: str, array: npt.NDArray[Any]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        durable.replace(self.directory / f"{name}.npy", buffer.getvalue())

    def map_array(self, name: str) -> npt.NDArray[Any]:
        """The array, read as far as it is used."""
        mapped: npt.NDArray[Any] = np.load(self.directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return mapped


@cache
def _plan(path: Path, stamp: int) -> Plan:
    """One parse per process and version of the file."""
    body = json.loads(path.read_bytes())
    return Plan(Recipe(**body["recipe"]), Inputs.from_json(body["inputs"]), body["fingerprint"])


def save(path: Path, **arrays: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    durable.replace(path, buffer.getvalue())


def load(path: Path, *names: str) -> tuple[npt.NDArray[Any], ...]:
    with np.load(path, allow_pickle=False) as file:
        return tuple(file[name] for name in names)


def as_array(value: Any) -> npt.NDArray[np.uint8]:
    """A JSON value as bytes, to stand beside arrays."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_array(array: npt.NDArray[np.uint8]) -> Any:
    return json.loads(array.tobytes())


@cache
def tokenizer_of(path: str, fingerprint: str) -> Tokenizer:
    """One per worker process. Raises DataError if the file is not the one that the plan was made with."""
    tokenizer = Tokenizer.load(path)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(
            "the tokenizer changed while the corpus was being prepared",
            expected=f"fingerprint {fingerprint[:16]}...",
            found=f"{path}: {tokenizer.fingerprint[:16]}...",
            do="run the command again: it starts over with the new tokenizer",
        )
    return tokenizer
