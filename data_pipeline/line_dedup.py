"""Lines that stand in the corpus again and again (menus, notices, licences): all but the first of each are removed.

    lines = LineCounts(); lines.add(texts) ...; lines.write(file, partitions)     # for each task
    write_verdicts(file, lines_files, partition)          # for each partition: any process, in any order
    step = RepeatedLines(lines_file, verdict_files, task).step       # each task again: the lines go

A line is known by its words (ngrams.py): case, punctuation and white space do not count, digits do (to CCNet, Wenzek et
al. 2020, all digits are one, which makes repetitions of the rows of a table). "First" is meant over the
whole corpus in pinned order, whatever tasks and partitions are. Raffel et al. 2020 (C4, section 2.2) keep one of each
span of three sentences, Dubey et al. 2024 (Llama 3, section 3.1.1) remove lines found more than 6 times: `min_count` 7.

On disk: 12 bytes a distinct line of a task, and 1. In memory: 90 bytes a distinct line while a task is counted, 10 for
each that is repeated while it is cleaned; in between a merge's `records`, and 1 byte a record of the partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.document import Document, change, drop
from data_pipeline.merge import RECORDS, groups, merge, partition_starts
from data_pipeline.ngrams import I64, U64, code_points, mix, word_hashes
from data_pipeline.rule import batches
from data_pipeline.sections import Sections, create
from fmscale.errors import DataError

LINES_KIND, VERDICTS_KIND = "fmscale-lines-1", "fmscale-line-verdicts-1"
RECORD = np.dtype([("key", "<u8"), ("count", "<u4")])
KEEP, KEEP_FIRST, REMOVE = range(3)
"""What becomes of a task's lines that are the same: all stay, one does (the corpus's first), none does."""
_PLACE = np.uint64(0x9E3779B97F4A7C15)
_COUNTED_AT_ONCE = 1 << 22
_CHARACTERS = 1 << 20
"""Of a text taken apart at a time: a million lines as Python strings are 60 MB."""


def line_keys(texts: Sequence[str], min_characters: int) -> Iterator[tuple[U64, I64]]:
    """(key [m], number among "\\n".join(texts).split("\\n") [m]) of the lines that count, some at a time.

    A line counts if it has a word and, from its first word to its end, at least `min_characters`.
    """
    line, at = 0, 0  # lines and characters before the slice
    open_sum, open_words, open_start = np.uint64(0), 0, 0  # of the line that the slice begins in
    for words, starts, piece in word_hashes("\n".join(texts)):
        breaks = np.flatnonzero(code_points(piece) == 10)
        bounds = np.concatenate([[0], np.searchsorted(starts, breaks), [len(words)]])
        counts = np.diff(bounds)
        places = np.arange(len(words)) - np.repeat(bounds[:-1], counts)  # of a word in its line
        places[: counts[0]] += open_words
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(words + places.astype(np.uint64) * _PLACE))])
        totals = sums[bounds[1:]] - sums[bounds[:-1]]
        firsts = np.append(starts, 0)[bounds[:-1]] + at
        if open_words:
            totals[:1] += open_sum
            counts[0] += open_words
            firsts[0] = open_start
        counted = np.flatnonzero((counts[:-1] > 0) & (breaks + at - firsts[:-1] >= min_characters))
        if len(counted):
            yield mix(totals[counted]), counted + line
        open_sum, open_words, open_start = totals[-1], int(counts[-1]), int(firsts[-1])
        line, at = line + len(breaks), at + len(piece)
    if open_words and at - open_start >= min_characters:
        yield mix(np.array([open_sum])), np.array([line])


class LineCounts:
    """A task's lines that count, and how often each stands there."""

    def __init__(self, min_characters: int = 20) -> None:
        self._min_characters = min_characters
        self._held = np.empty(0, RECORD)
        self._waiting: list[U64] = []
        self._many = 0

    @property
    def distinct(self) -> int:
        """Distinct lines, of those that have been counted."""
        return len(self._held)

    def add(self, texts: Sequence[str]) -> None:
        """The next texts of the task."""
        for keys, _ in line_keys(texts, self._min_characters):
            self._waiting.append(keys)
            self._many += len(keys)
            if self._many >= _COUNTED_AT_ONCE:
                self._held, self._waiting, self._many = _counted(self._held, self._waiting), [], 0

    def write(self, path: Path, partitions: int) -> None:
        """The distinct lines, sorted: one section for each partition."""
        held = _counted(self._held, self._waiting)
        with create(path, LINES_KIND) as file:
            file.add(np.array([partitions, self._min_characters], "<u8"))
            for part in np.split(held, np.searchsorted(held["key"], partition_starts(np.dtype("<u8"), partitions))):
                file.add(part)


def write_verdicts(
    path: Path, lines_files: Sequence[Path], partition: int, *, min_count: int = 2, records: int = RECORDS
) -> None:
    """What becomes of the lines of this partition: a section for each task, a byte for each of its records.

    lines_files: of all tasks, in pinned order. min_count: as often a line stands in the corpus before all but its first
    go. Raises DataError if a file is not as it was written, or not of this preparation.
    """
    files = _open(lines_files)
    verdicts: list[list[npt.NDArray[np.uint8]]] = [[] for _ in files]
    for block, task in merge([lines[1 + partition] for lines in files], RECORD, records):
        first = groups(block["key"])
        begins = np.flatnonzero(first)
        often = np.add.reduceat(block["count"], begins, dtype=np.uint64) >= min_count
        verdict = np.where(first, np.where(block["count"] > 1, KEEP_FIRST, KEEP), REMOVE).astype(np.uint8)
        verdict[~np.repeat(often, np.diff(begins, append=len(block)))] = KEEP
        by_task = np.argsort(task, kind="stable")  # a task's records are in the order of its section
        bounds = np.searchsorted(task[by_task], np.arange(len(files) + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            verdicts[number].append(verdict[by_task[bounds[number] : bounds[number + 1]]])
    with create(path, VERDICTS_KIND) as file:
        for parts in verdicts:
            file.add(np.concatenate([np.empty(0, np.uint8), *parts]))


class RepeatedLines:
    """Takes the repeated lines out of one task's texts, which come once and in the order in which they were counted."""

    def __init__(self, lines_file: Path, verdict_files: Sequence[Path], task: int) -> None:
        """verdict_files: of all partitions, in order; task: the place of `lines_file` among all of them.

        Raises DataError if a file is not as it was written, or not of this preparation.
        """
        (lines,) = _open([lines_file])
        head = np.frombuffer(lines[0].read(), "<u8")
        self._min_characters = int(head[1])
        keys, verdicts = [np.empty(0, np.uint64)], [np.empty(0, np.uint8)]
        for partition, path in enumerate(verdict_files):
            records = np.frombuffer(lines[1 + partition].read(), RECORD)
            verdict = np.frombuffer(Sections(path, VERDICTS_KIND)[task].read(), np.uint8)
            if len(verdict) != len(records):
                raise _foreign(path, f"{len(records)} verdicts on task {task}", f"{len(verdict)}")
            keys.append(records["key"][verdict != KEEP])
            verdicts.append(verdict[verdict != KEEP])
        self._keys, self._verdicts = np.concatenate(keys), np.concatenate(verdicts)
        self._met = np.zeros(len(self._keys), bool)

    def step(self, documents: Iterable[Document]) -> Iterator[Document]:
        """A step of the pipeline: tallies the lines and characters that go; an empty document goes with them."""
        for batch in batches(documents):
            texts = [document.text for document in batch]
            for document, (text, lines) in zip(batch, self.strip(texts), strict=True):
                if not lines:
                    yield document
                    continue
                gone = {"line_dedup/lines": lines, "line_dedup/characters": len(document.text) - len(text)}
                changed = change(document, text, **gone)
                yield changed if text.strip() else drop(changed, "line_dedup/nothing_left", lines)

    def strip(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """Each text without its repeated lines, and how many those are."""
        gone = [np.empty(0, np.int64)]
        for keys, numbers in line_keys(texts, self._min_characters):
            gone.append(numbers[self._repeated(keys)])
        numbers = np.concatenate(gone)
        begins = np.cumsum([0, *(text.count("\n") + 1 for text in texts)])
        cuts = np.searchsorted(numbers, begins)
        return [
            (_without(text, numbers[a:b] - begin) if a < b else text, b - a)
            for text, begin, a, b in zip(texts, begins.tolist(), cuts.tolist(), cuts[1:].tolist(), strict=False)
        ]

    def _repeated(self, keys: U64) -> npt.NDArray[np.bool_]:
        """bool[m]: which of these lines, the next of the task, go."""
        gone = np.zeros(len(keys), bool)
        if not len(self._keys):
            return gone
        place = np.searchsorted(self._keys, keys)
        place[place == len(self._keys)] = 0
        rows = np.flatnonzero(self._keys[place] == keys)
        gone[rows] = True
        which, first = np.unique(place[rows], return_index=True)
        stays = (self._verdicts[which] == KEEP_FIRST) & ~self._met[which]
        gone[rows[first[stays]]] = False
        self._met[which] = True
        return gone


def _counted(held: npt.NDArray[np.void], more: Sequence[U64]) -> npt.NDArray[np.void]:
    """RECORD of each distinct key, sorted, from such records and further keys."""
    keys, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *more]), return_counts=True)
    fresh = np.empty(len(keys), RECORD)
    fresh["key"], fresh["count"] = keys, counts
    both = np.concatenate([held, fresh])
    both = both[np.argsort(both["key"], kind="stable")]
    begins = np.flatnonzero(groups(both["key"]))
    result: npt.NDArray[np.void] = both[begins]
    if len(begins):
        result["count"] = np.add.reduceat(both["count"], begins)
    return result


def _without(text: str, numbers: I64) -> str:
    """`text` without the lines of these numbers, which are sorted."""
    parts: list[str] = []
    begin = line = 0
    while begin <= len(text):
        end = text.find("\n", begin + _CHARACTERS)
        end = len(text) if end < 0 else end
        lines = text[begin:end].split("\n")
        stays = np.ones(len(lines), bool)
        stays[numbers[slice(*np.searchsorted(numbers, [line, line + len(lines)]))] - line] = False
        if stays.any():
            parts.append("\n".join(compress(lines, stays.tolist())))
        begin, line = end + 1, line + len(lines)
    return "\n".join(parts)


def _open(lines_files: Sequence[Path]) -> list[Sections]:
    """The files, which all were written with the same parameters."""
    files = [Sections(path, LINES_KIND) for path in lines_files]
    heads = [np.frombuffer(file[0].read(), "<u8").tolist() for file in files]
    for file, head in zip(files, heads, strict=True):
        if head != heads[0]:
            words = "{} partitions, lines of {} characters or more"
            raise _foreign(file.path, words.format(*heads[0]), words.format(*head))
    return files


def _foreign(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"{path} is of another preparation",
        expected=expected,
        found=found,
        do="remove it: the same command makes it again",
    )
