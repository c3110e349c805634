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

VERSION = 4
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
        self.parts = directory / "parts"
        self.dropped = directory / "dropped"
        """Rejected documents, where they are kept."""

    @staticmethod
    def create(parent: Path, plan: Plan) -> Work:
        directory = parent / plan.id[:16]
        for name in ("parts", "dropped"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        body = {"id": plan.id, "recipe": asdict(plan.recipe), "inputs": plan.inputs.to_json()}
        durable.replace(directory / "plan.json", json.dumps({**body, "fingerprint": plan.fingerprint}).encode())
        return Work(directory)

    def plan(self) -> Plan:
        path = self.directory / "plan.json"
        return _plan(path, path.stat().st_mtime_ns)

    @property
    def tasks(self) -> range:
        return range(len(self.plan().inputs.tasks))

    def scan_file(self, phase: int, task: int) -> Path:
        """Of a task that is through with a phase: its rows that are left, the next pass's keys, counts."""
        return self.directory / f"scan-{phase}-{task:05d}.npz"

    def keys_file(self, phase: int, task: int) -> Path:
        """What the pass at the end of the phase wants to know of the task's documents."""
        return self.directory / f"keys-{phase}-{task:05d}.bin"

    def part_file(self, phase: int, number: int) -> Path:
        """Of a part of that pass."""
        return self.directory / f"part-{phase}-{number:05d}.bin"

    def text_file(self, phase: int, task: int) -> Path:
        """The texts that the phase's steps left."""
        return self.directory / f"texts-{phase}-{task:05d}.zst"

    def dropped_file(self, phase: int, task: int) -> Path | None:
        """What the phase rejected, where that is kept."""
        return self.dropped / f"{phase}-{task:05d}.jsonl.zst" if self.plan().recipe.keep_dropped else None

    def joined_file(self, phase: int) -> Path:
        """Of a pass that is done: counts. What is left after it stands in the array `alive-PHASE`."""
        return self.directory / f"joined-{phase}.json"

    def write_file(self, task: int) -> Path:
        """Of a task that is tokenised."""
        return self.directory / f"write-{task:05d}.npz"

    def quarantine_file(self, task: int) -> Path:
        """Pieces of a task's input that are damaged, and how."""
        return self.directory / f"quarantine-{task:05d}.json"

    def quarantined(self, task: int) -> dict[int, dict[str, Any]]:
        """By place in the task's pieces: what is wrong with them, as an error's fields."""
        path = self.quarantine_file(task)
        return {int(place): error for place, error in json.loads(path.read_bytes()).items()} if path.exists() else {}

    def of_task(self, name: str, task: int) -> npt.NDArray[Any]:
        """The task's rows of an array over all records."""
        begin, end = self.map_array("offsets")[task : task + 2]
        return np.asarray(self.map_array(name)[begin:end])

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
