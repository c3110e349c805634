"""A recipe's steps, cut where a pass needs to have seen the whole corpus, and what each phase begins with.

    phase 0:  input  -> steps -> keys of pass 0     texts kept are stored, because steps are run once
    phase 1:  texts that pass 0 left -> steps -> keys of pass 1 ...
    last:     ... -> keys of the last pass, holdout.py's, which every recipe ends with

A phase that changes no text stores nothing: the next one reads what it read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline import passes
from data_pipeline.damage import DamagedInput
from data_pipeline.document import Document, drop
from data_pipeline.pipeline import Recipe, fields
from data_pipeline.plan import Work
from data_pipeline.read import read_piece
from data_pipeline.registry import Entry, entries
from data_pipeline.text_store import read_texts


@dataclass(frozen=True)
class Phase:
    steps: tuple[Entry, ...]
    begins: Entry | None
    """The pass over the corpus before it; None for the first phase."""
    ends: Entry | None
    """The pass that it ends with; None for the last phase, which ends with holdout.py's."""

    @property
    def title(self) -> str:
        """For a progress bar."""
        names = [entry.name.rpartition(":")[2] for entry in (*self.steps, self.ends) if entry]
        names += [] if self.ends else ["hold out"]
        return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]}"


def phases(recipe: Recipe) -> list[Phase]:
    """At least one; steps and passes in the recipe's order."""
    found: list[Phase] = []
    steps: list[Entry] = []
    before: Entry | None = None
    for entry in entries(recipe.steps):
        if entry.is_pass:
            found.append(Phase(tuple(steps), before, entry))
            steps, before = [], entry
        else:
            steps.append(entry)
    return [*found, Phase(tuple(steps), before, None)]


def stores(phase: Phase) -> bool:
    """Whether its texts differ from those it began with, so that they have to be kept."""
    return bool(phase.steps) or (phase.begins is not None and passes.of(phase.begins).changes_texts)


def documents(
    work: Work,
    phase: int,
    task: int,
    show: Callable[[Document], None] = lambda rejected: None,
    hashes: dict[int, str] | None = None,
) -> Iterator[Document]:
    """What the task has at the beginning of `phase`; in phase 0 every record, unreadable ones dropped with a reason.

    show: is given what the pass before took out. hashes: is told those of files in a store, by file. Raises DataError
    as `read_piece`; DamagedInput, whose `place` says which of the task's pieces is meant.
    """
    before = phases(work.plan().recipe)[:phase]
    rows = source(work, phase, task, hashes)
    if not before:
        yield from rows
        return
    alive = np.asarray(work.of_task(f"alive-{phase - 1}", task), bool)
    lately = np.zeros(len(alive), bool)  # taken out by the pass before: what was left when it began, and no longer is
    with np.load(work.scan_file(phase - 1, task), allow_pickle=False) as scanned:
        lately[scanned["rows"]] = True
    lately &= ~alive
    assert before[-1].ends is not None
    reason = passes.of(before[-1].ends).reason
    for document in rows:
        if alive[document.row]:
            yield document
        elif lately[document.row]:
            show(drop(document, reason))


def source(work: Work, phase: int, task: int, hashes: dict[int, str] | None = None) -> Iterator[Document]:
    """What is read at the beginning of `phase`: the texts stored last, or the input where none were; all rows of it."""
    before = phases(work.plan().recipe)[:phase]
    stored = max((number for number, earlier in enumerate(before) if stores(earlier)), default=None)
    return (
        _input(work, task, {} if hashes is None else hashes)
        if stored is None
        else read_texts(work.text_file(stored, task))
    )


def _input(work: Work, task: int, hashes: dict[int, str]) -> Iterator[Document]:
    plan, row = work.plan(), 0
    quarantined = work.quarantined(task)
    for place, piece in enumerate(plan.inputs.tasks[task]):
        if place in quarantined:
            continue
        file, recipe = work.input_file(piece.file), plan.recipe

        def note(digest: str, number: int = piece.file, local: bool = file.is_local) -> None:
            if not local:
                hashes[number] = digest

        try:
            for document in read_piece(file, piece, fields(recipe), recipe.max_bad_run, note):
                yield dataclasses.replace(document, row=row)
                row += 1
        except DamagedInput as error:
            error.place = place
            raise
