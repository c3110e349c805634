"""What the tasks of one preparation share: the plan, and the files in OUTPUT/.work/PLAN by which they pass on results.

Every file is written whole or not at all, so one that is there is done. The directory has the plan's name: a worker of
a killed run of another plan may still be writing, and what it writes is never taken for this plan's. Tokens and
documents go through the files as plain arrays; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.inputs import InputFile, Inputs
from data_pipeline.pipeline import Recipe, auto_chunk_tokens, recipe_record
from data_pipeline.registry import entries, with_located_files
from fmscale import durable
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer

VERSION = 6
"""Raise it when the same recipe and inputs begin to give other bytes: unfinished work of another version is redone."""


@dataclass(frozen=True)
class Plan:
    """All that a task needs to know."""

    recipe: Recipe
    inputs: Inputs
    fingerprint: str
    """Of the tokenizer."""
    record: Mapping[str, Any]
    """What the corpus will say of its recipe (recipe_record), with hashes of the files that steps read."""

    @staticmethod
    def of(recipe: Recipe, inputs: Inputs, fingerprint: str) -> Plan:
        """The plan as of now, which names its files by absolute paths."""
        there = replace(recipe, tokenizer=os.path.abspath(recipe.tokenizer), steps=with_located_files(recipe.steps))
        return Plan(there, inputs, fingerprint, json.loads(json.dumps(recipe_record(there))))

    def check_steps(self) -> None:
        """Raise DataError if a step, or a file that it reads, is not what it was when the plan was made."""
        for entry, (name, parameters, source) in zip(entries(self.recipe.steps), self.record["steps"], strict=True):
            _, now, code = json.loads(json.dumps(entry.record()))
            pinned, found = {**parameters, "its code": source}, {**now, "its code": code}
            for key in pinned:
                if found.get(key) != pinned[key]:
                    raise DataError(
                        f"what step {name} reads changed while the corpus was being prepared",
                        expected=f"{key}: xxh3_128 {pinned[key]}",
                        found=f"{entry.parameters.get(key, entry.target)}: {found.get(key)}",
                        do="put it back and run the command again, which goes on; or leave it: the work starts over",
                    )

    @property
    def id(self) -> str:
        """Equal plans give equal corpora: hash of the recipe's record, the inputs' content and the tokenizer."""
        files = [[file.name, file.hash] for file in self.inputs.files]
        body = [VERSION, self.record, files, self.fingerprint]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @property
    def directory(self) -> str:
        """Name of its unfinished work: scans that kept no dropped document are of no use to a run that shows them."""
        return self.id[:16] + ("-dropped" if self.recipe.keep_dropped else "")

    @property
    def chunk_tokens(self) -> int:
        return self.recipe.chunk_tokens or auto_chunk_tokens(self.inputs.bytes)

    def task_input_bytes(self, task: int) -> int:
        return sum(piece.stop - piece.start for piece in self.inputs.tasks[task])


class Work:
    """OUTPUT/.work/PLAN: the plan, and one file for each thing that is done. No secret is in any of them."""

    def __init__(self, directory: Path, queries: Mapping[int, str] | None = None) -> None:
        """queries: of inputs' URLs (Inputs.queries), which travel with this object from process to process."""
        self.directory = directory
        self.queries = queries or {}
        self.parts = directory / "parts"
        self.dropped = directory / "dropped"
        """Rejected documents, where they are kept."""

    @staticmethod
    def create(parent: Path, plan: Plan) -> Work:
        directory = parent / plan.directory
        for name in ("parts", "dropped"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        recipe = asdict(replace(plan.recipe, inputs=[]))  # its patterns may hold secrets, and are done with
        body = {"id": plan.id, "recipe": recipe, "record": plan.record, "inputs": plan.inputs.to_json()}
        durable.replace(directory / "plan.json", json.dumps({**body, "fingerprint": plan.fingerprint}).encode())
        return Work(directory, plan.inputs.queries)

    def is_here(self) -> bool:
        """Whether this machine has the directory."""
        return (self.directory / "plan.json").exists()

    def plan(self) -> Plan:
        path = self.directory / "plan.json"
        return _plan(path, path.stat().st_mtime_ns)

    def input_file(self, number: int) -> InputFile:
        """With all that it takes to open it."""
        file = self.plan().inputs.files[number]
        return replace(file, path=file.path + self.queries.get(number, ""))

    @property
    def tasks(self) -> range:
        return range(len(self.plan().inputs.tasks))

    def scan_file(self, phase: int, task: int) -> Path:
        """Of a task that is through with a phase: its rows that are left, the next pass's keys, counts."""
        return self.directory / f"scan-{phase}-{task:05d}.npz"

    def keys_file(self, phase: int, task: int, run: int) -> Path:
        """What the pass at the end of the phase wants to know of the task's documents; a large task has several."""
        return self.directory / f"keys-{phase}-{task:05d}-{run:03d}.bin"

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
    return Plan(Recipe(**body["recipe"]), Inputs.from_json(body["inputs"]), body["fingerprint"], body["record"])


def save(path: Path, **arrays: npt.NDArray[Any]) -> None:
    with durable.writing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


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
