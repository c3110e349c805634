"""One task of one phase: read its documents, take the recipe's steps, keep what is left, and its keys for the pass.

    scan(work, task, phase)     a pure function of files: any process may do it, any number of times

Of an input that is damaged none of the records are used; the place and what is wrong with it are written down
(quarantine), and the driver judges how much of that is too much.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipeline import holdout, passes
from data_pipeline.clock import Clock
from data_pipeline.damage import DamagedInput
from data_pipeline.document import Document, through
from data_pipeline.phases import documents, phases, stores
from data_pipeline.plan import Work, as_array, save
from data_pipeline.progress import Done
from data_pipeline.registry import steps_of
from data_pipeline.rule import batches
from data_pipeline.survey import Survey
from data_pipeline.text_store import lines_writer, text_writer
from fmscale import durable

READINGS = 2
"""Of an input whose store or disk fails, before it is given up; damaged bytes are no better the second time."""


@dataclasses.dataclass
class Counts:
    """What became of the records of a task in one phase."""

    records: Counter[int] = dataclasses.field(default_factory=Counter)
    """By file."""
    dropped: Counter[tuple[int, str]] = dataclasses.field(default_factory=Counter)
    """By file and reason."""
    tally: Counter[str] = dataclasses.field(default_factory=Counter)
    """What steps changed in the documents that they kept."""
    hashes: dict[int, str] = dataclasses.field(default_factory=dict)
    """xxh3_128 of files in a store, which only reading tells."""

    def to_json(self) -> dict[str, Any]:
        dropped = [[file, reason, count] for (file, reason), count in sorted(self.dropped.items())]
        tally, hashes = dict(sorted(self.tally.items())), sorted(self.hashes.items())
        return {"records": sorted(self.records.items()), "dropped": dropped, "tally": tally, "hashes": hashes}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Counts:
        dropped = Counter({(file, reason): count for file, reason, count in value["dropped"]})
        return Counts(Counter(dict(value["records"])), dropped, Counter(value["tally"]), dict(value["hashes"]))


def scan(work: Work, task: int, phase: int) -> Done:
    """Save what `phase` leaves of `task`.

    Raises DataError as `read_piece`, but not for an input that is damaged; or if a step, or a list or model that it
    reads, is not the plan's.
    """
    given_up: dict[int, dict[str, str]] = {}
    failures: Counter[int] = Counter()
    if not phase:
        work.quarantine_file(task).unlink(missing_ok=True)
    while True:
        try:
            return _scan(work, task, phase)
        except DamagedInput as error:
            failures[error.place] += 1
            if not error.passing or failures[error.place] == READINGS:
                fields = {"expected": error.expected, "found": error.found, "do": error.do}
                given_up[error.place] = {"what": error.what, **fields}
                durable.replace(work.quarantine_file(task), json.dumps(given_up).encode())


def _scan(work: Work, task: int, phase: int) -> Done:
    plan = work.plan()
    plan.check_steps()
    current = phases(plan.recipe)[phase]
    ends = passes.of(current.ends) if current.ends else holdout.Holdout(plan.recipe)
    keys = _KeyFiles(ends, work, phase, task)
    counts, survey, clock = Counts(), Survey(), Clock()
    rows, files = array("I"), array("I")
    steps = steps_of(current.steps, clock)
    if current.begins and passes.of(current.begins).changes_texts:
        steps.insert(0, passes.of(current.begins).step(work, phase - 1, task))
    with contextlib.ExitStack() as stack:
        texts = stack.enter_context(text_writer(work.text_file(phase, task))) if stores(current) else None
        write_dropped = stack.enter_context(lines_writer(work.dropped_file(phase, task)))

        def show(rejected: Document) -> None:
            survey.add(rejected)
            write_dropped(rejected)

        def reject(document: Document) -> None:
            counts.dropped[document.file, document.dropped] += 1
            with clock.part("store"):
                show(document)

        def read() -> Iterator[Document]:
            for document in clock.measure("read", documents(work, phase, task, show, counts.hashes)):
                counts.records[document.file] += 1
                yield document

        def kept() -> Iterator[Document]:
            for document in through(read(), steps, reject, clock):
                counts.tally.update(document.tally)
                yield document

        for batch in batches(kept()):
            with clock.part(f"keys of {ends.name}"):
                keys.add(batch)
            with clock.part("store"):
                for document in batch:
                    rows.append(document.row)
                    files.append(document.file)
                    if texts:
                        texts.write(document)
    with clock.part(f"keys of {ends.name}"):
        keys.close()
    survey.add_seconds(clock.seconds)
    plan.check_steps()  # what steps have read in between was the same
    save(
        work.scan_file(phase, task),
        counts=as_array(counts.to_json()),
        survey=as_array(survey.to_json()),
        runs=np.array(keys.counts, np.int64),
        rows=np.array(rows, np.uint32),
        files=np.array(files, np.uint32),
    )
    return Done(plan.task_input_bytes(task), counts.records.total())


class _KeyFiles:
    """Keys of the task's documents, in as many files as it takes to hold no more than a pass allows at once."""

    def __init__(self, ends: passes.Pass, work: Work, phase: int, task: int) -> None:
        self._ends, self._work, self._phase, self._task = ends, work, phase, task
        self._keys = ends.keys(work)
        self.counts = [0]
        """Documents in each."""

    def add(self, documents: Sequence[Document]) -> None:
        if self._keys.full:
            self.close()
            self._keys = self._ends.keys(self._work)
            self.counts.append(0)
        self._keys.add(documents)
        self.counts[-1] += len(documents)

    def close(self) -> None:
        self._keys.write(self._work.keys_file(self._phase, self._task, len(self.counts) - 1))
