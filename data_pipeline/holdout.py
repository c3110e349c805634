"""The last pass: what is for training, what is held out, and what training text would give away of the latter.

It knows of each document the hash of its text, on which side it is (by hash of its id or group: pipeline.py), and the
n-grams of its words if it is held out. join() takes exact duplicates out and collects the n-grams; tokenise.py looks up
those of training text; survivors() says which held-out documents are left then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import same_ids
from data_pipeline.clusters import sizes
from data_pipeline.document import Document
from data_pipeline.keys import write_keys
from data_pipeline.ngrams import U64, ngrams
from data_pipeline.overlap import unique_in_place, which_in
from data_pipeline.passes import Keys, SameKey, partitions, runs, text_keys
from data_pipeline.pipeline import Recipe, is_heldout
from data_pipeline.plan import Work, load, save
from fmscale import durable
from fmscale.errors import ConfigError, DataError

DROPPED, TRAIN, HELDOUT, DUPLICATE = range(4)
"""What becomes of a record, uint8 [all records] in the array `kinds`. DROPPED: by a step or a pass before this one."""
RUN_GRAMS = 1 << 22
"""N-grams of held-out text that a task holds at once, and one document more: 12 bytes each, and again to write."""
MAX_GRAMS = 1 << 25
"""N-grams of held-out text that are compared: each worker holds them, in some 24 bytes each with their filter."""


class Holdout(SameKey):
    """The last pass: documents of the same text are the same, and sides are kept apart."""

    name = "holdout"

    def __init__(self, recipe: Recipe) -> None:
        super().__init__("duplicate", 1, text_keys)
        self._recipe = recipe

    def keys(self, work: Work) -> Keys:
        return _Sides(self._recipe, super().keys(work), partitions(work))

    def part(self, work: Work, phase: int, number: int) -> None:
        same_ids.part(work, phase, number)
        super().part(work, phase, number)  # last: its file says that the part is done


class _Sides:
    """passes.Keys; beside them ids, and for each document whether it is held out, and the n-grams of those that are."""

    def __init__(self, recipe: Recipe, texts: Keys, parts: int) -> None:
        self._recipe, self._texts, self._parts = recipe, texts, parts
        self._ids = [same_ids.id_keys([])]
        self._heldout: list[bool] = []
        self._grams, self._gram_rows = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
        self._gram_count = 0

    @property
    def full(self) -> bool:
        return self._texts.full or self._gram_count >= RUN_GRAMS

    def add(self, documents: Sequence[Document]) -> None:
        self._texts.add(documents)
        self._ids.append(same_ids.id_keys(documents))
        heldout = [is_heldout(self._recipe, document) for document in documents]
        self._heldout += heldout
        held = [document for document, out in zip(documents, heldout, strict=True) if out]
        if held and self._recipe.decontaminate_ngram:
            rows = np.array([document.row for document in held], np.uint32)
            for some in ngrams([document.text for document in held], self._recipe.decontaminate_ngram):
                self._grams.append(some.hashes)
                self._gram_count += len(some.hashes)
                self._gram_rows.append(rows[some.owners()])

    def write(self, path: Path) -> None:
        grams, rows = np.concatenate(self._grams), np.concatenate(self._gram_rows)
        save(sides_file(path), heldout=np.array(self._heldout, bool), grams=grams, gram_rows=rows)
        write_keys(same_ids.beside(path), np.concatenate(self._ids), self._parts)
        self._texts.write(path)


def sides_file(keys: Path) -> Path:
    """Beside a task's keys."""
    return keys.with_suffix(".npz")


def _sides(work: Work, phase: int, task: int, *names: str) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """These arrays of a task, file after file."""
    for run in range(len(runs(work, phase, task))):
        yield load(sides_file(work.keys_file(phase, task, run)), *names)


def join(work: Work, phase: int) -> None:
    """Decide what becomes of each record; counts of duplicates go into the joined file."""
    recipe, offsets = work.plan().recipe, work.map_array("offsets")
    ends = Holdout(recipe)
    labels = ends.labels(work, phase)
    first = labels == np.arange(len(labels), dtype=labels.dtype)
    kinds = np.zeros(int(offsets[-1]), np.uint8)
    given_away = np.zeros(len(kinds), bool)
    in_training = np.zeros(len(labels), bool)  # of a cluster, by its first document
    again, begin = Counter[int](), 0
    for task in work.tasks:
        rows, files = load(work.scan_file(phase, task), "rows", "files")
        heldout = np.concatenate([each for (each,) in _sides(work, phase, task, "heldout")])
        own = slice(begin, begin + len(rows))
        kind = np.where(heldout, HELDOUT, TRAIN).astype(np.uint8)
        if recipe.dedup == "exact":
            kind[~first[own]] = DUPLICATE
            again.update(files[~first[own]].tolist())
        kinds[int(offsets[task]) + rows.astype(np.int64)] = kind
        in_training[labels[own][kind == TRAIN]] = True
        begin += len(rows)
    begin = 0
    for task in work.tasks:  # without exact de-duplication a text may stand on both sides: it is training text then
        (rows,) = load(work.scan_file(phase, task), "rows")
        places = int(offsets[task]) + rows.astype(np.int64)
        given_away[places] = (kinds[places] == HELDOUT) & in_training[labels[begin : begin + len(rows)]]
        begin += len(rows)
    found = sizes(labels) if recipe.dedup == "exact" else {}
    del labels, first, in_training  # before ids take as much
    same = same_ids.count(work, phase, ends.parts(work), (kinds == TRAIN) | (kinds == HELDOUT))
    work.save_array("given_away", given_away)
    work.save_array("kinds", kinds)
    work.save_array("grams", _heldout_grams(work, phase, kinds))
    dropped = [[file, "duplicate", count] for file, count in sorted(again.items())]
    told = {"dropped": dropped, "clusters": found, "same_ids": sorted(same.items())}
    durable.replace(work.joined_file(phase), json.dumps(told).encode())


def check_size(recipe: Recipe, input_bytes: int) -> None:
    """Raise ConfigError if more will be held out than can be compared: before anything is read, by the input's bytes.

    A word and its space are taken for six bytes, and twice the limit for too much; join() counts.
    """
    expected = recipe.heldout_fraction * input_bytes / 6
    if recipe.decontaminate_ngram and expected > 2 * MAX_GRAMS:
        raise ConfigError(**_too_many(recipe, int(expected)))


def _too_many(recipe: Recipe, count: int) -> dict[str, str]:
    """The fields of an error."""
    return {
        "what": "more is held out than can be compared with the training text",
        "expected": f"at most {MAX_GRAMS:,} n-grams of held-out text, which every worker keeps in memory",
        "found": f"about {count:,} (heldout_fraction {recipe.heldout_fraction:g})",
        "do": f"set heldout_fraction to {recipe.heldout_fraction * MAX_GRAMS / count / 1.5:.1g}; 100 MB are plenty",
    }


def _heldout_grams(work: Work, phase: int, kinds: npt.NDArray[np.uint8]) -> U64:
    """Sorted and unique n-grams of the held-out documents. One task at a time, so that their owners never add up."""
    kept = [np.empty(0, np.uint64)]
    offsets = work.map_array("offsets")
    for task in work.tasks:
        for grams, owners in _sides(work, phase, task, "grams", "gram_rows"):
            kept.append(grams[kinds[offsets[task] + owners] == HELDOUT])
    joined = np.concatenate(kept)
    kept.clear()
    if len(joined) > 2 * MAX_GRAMS:
        raise DataError(**_too_many(work.plan().recipe, len(joined)))
    return unique_in_place(joined)


def survivors(
    work: Work, phase: int, task: int, met: U64, dropped: Counter[tuple[int, str]]
) -> tuple[npt.NDArray[np.bool_], dict[int, str]]:
    """(bool [held-out documents of the task]: those that training text does not give away; rows and reasons of others).

    The others are counted in `dropped` by file and reason. met: the n-grams that training text has, sorted.
    """
    rows = np.flatnonzero(work.of_task("kinds", task) == HELDOUT)
    scanned, files = load(work.scan_file(phase, task), "rows", "files")
    same = work.of_task("given_away", task)[rows].astype(bool)
    overlap, short = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    if work.plan().recipe.decontaminate_ngram:
        short = ~same
        for grams, gram_rows in _sides(work, phase, task, "grams", "gram_rows"):
            overlap |= np.isin(rows, gram_rows[which_in(grams, met)]) & ~same
            short &= ~np.isin(rows, gram_rows)
    file_of: Any = files[np.searchsorted(scanned, rows)]
    reasons: dict[int, str] = {}
    for reason, gone in (("heldout_duplicate", same), ("heldout_overlap", overlap), ("heldout_too_short", short)):
        reasons.update(dict.fromkeys(rows[gone].tolist(), reason))
        for file in file_of[gone].tolist():
            dropped[file, reason] += 1
    return ~(same | overlap | short), reasons
