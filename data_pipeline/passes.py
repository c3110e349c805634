"""Passes over the whole corpus: something about each document, told by its task; then a decision over all of them.

    scan:   keys() is told what the phase's steps left, and writes a file beside the scan's; several of a large task
    parts:  work between tasks that any process may do, any number of times
    left:   bool of every document that was scanned: whether it goes on

Of documents that are the same the first in pinned order stays. So nothing depends on workers or time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.clusters import Labels, clusters, sizes
from data_pipeline.document import Document, named
from data_pipeline.keys import TEXT_KEY, read_edges, write_edges, write_keys
from data_pipeline.line_dedup import LineCounts, RepeatedLines, write_verdicts
from data_pipeline.minhash import signatures
from data_pipeline.plan import Work, load
from data_pipeline.ranges import MAX_NGRAM, between, in_range, least
from data_pipeline.registry import Entry

PARTITION_BYTES = 1 << 34
"""Of input, for each part that a band of keys is cut into, up to MAX_PARTITIONS."""
MAX_PARTITIONS = 64
LINE_PARTITION_BYTES = 1 << 31
"""The same of lines, of which a part holds a byte each in memory."""
MAX_LINE_PARTITIONS = 1024
RUN_DOCUMENTS = 1 << 20
"""Documents whose keys are held at once, and stand in one file: 284 bytes each with MinHash."""
MAX_FUNCTIONS = 10_000
"""Of MinHash: RefinedWeb takes 9,000 (450 bands of 20 rows), FineWeb 112."""
RUN_LINES = 1 << 22
"""Distinct lines that are held at once: about 90 bytes each."""


class Keys(Protocol):
    """What a pass wants to know of documents of one task."""

    @property
    def full(self) -> bool:
        """Whether no more shall be held: the next documents go into another file."""
        ...

    def add(self, documents: Sequence[Document]) -> None: ...

    def write(self, path: Path) -> None: ...


class Pass(Protocol):
    name: str
    reason: str
    """Of the documents that it takes out."""
    changes_texts: bool
    """Whether `step` does something to what is left."""

    def keys(self, work: Work) -> Keys: ...

    def parts(self, work: Work) -> range: ...

    def part(self, work: Work, phase: int, number: int) -> None: ...

    def left(self, work: Work, phase: int) -> tuple[npt.NDArray[np.bool_], dict[int, int]]:
        """(bool [documents scanned, task after task], clusters of the same by size)."""
        ...

    def step(self, work: Work, phase: int, task: int) -> Callable[[Iterable[Document]], Iterator[Document]]:
        """What the next phase does first with the documents of a task, if the pass changes texts."""
        ...


def exact_dedup(work: None) -> Pass:
    """Take out every document whose text (xxh3_128 of it) stood earlier in the input."""
    return SameKey("duplicate", 1, lambda texts: text_keys(texts))


def _functions(given: Mapping[str, Any]) -> tuple[str, str] | None:
    if given["bands"] * given["rows"] <= MAX_FUNCTIONS:
        return None
    found = f"bands: {given['bands']}, rows: {given['rows']}: {given['bands'] * given['rows']:,}"
    return f"bands times rows: up to {MAX_FUNCTIONS:,} hash functions", found


@in_range(_functions, bands=between(1, 1000), rows=between(1, 1000), ngram=between(1, MAX_NGRAM))
def minhash_dedup(work: None, *, bands: int = 14, rows: int = 8, ngram: int = 5) -> Pass:
    """Take out every document that says nearly what an earlier one says: MinHash with LSH (minhash.py).

    bands, rows: pairs of Jaccard similarity s are found with probability 1 - (1 - s^rows)^bands; ngram: words of a
    shingle. The defaults are FineWeb's. Documents that are linked through others are one cluster, of which the first
    stays.
    """
    return SameKey("near_duplicate", bands, lambda texts: signatures(texts, bands=bands, rows=rows, ngram=ngram))


@in_range(min_characters=least(0), min_count=between(2, (1 << 32) - 1))
def line_dedup(work: None, *, min_characters: int = 20, min_count: int = 2) -> Pass:
    """Take out lines that stood earlier in the corpus, and documents of which nothing is left (line_dedup.py).

    min_characters: of a line that counts; min_count: as often a line must stand there before all but its first go.
    """
    return SameLine(min_characters, min_count)


def of(entry: Entry) -> Pass:
    """The pass that an entry of a recipe means."""
    made: Pass = entry.function(None, **entry.parameters)
    return made


def partitions(work: Work) -> int:
    return min(1 + work.plan().inputs.bytes // PARTITION_BYTES, MAX_PARTITIONS)


def line_partitions(work: Work) -> int:
    return min(1 + work.plan().inputs.bytes // LINE_PARTITION_BYTES, MAX_LINE_PARTITIONS)


def text_keys(texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """TEXT_KEY [texts, 1]: xxh3_128 of each."""
    digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
    return np.frombuffer(digests, TEXT_KEY).reshape(-1, 1)


class SameKey:
    """Documents are the same if they have a key in common in some band; clusters of them are one document."""

    name = "documents"
    changes_texts = False

    def __init__(self, reason: str, bands: int, keys_of: Callable[[Sequence[str]], npt.NDArray[Any]]) -> None:
        """keys_of: texts to keys [texts, bands]."""
        self.reason = reason
        self._bands, self._keys_of = bands, keys_of

    def keys(self, work: Work) -> Keys:
        return _BandKeys(self._keys_of, partitions(work))

    def parts(self, work: Work) -> range:
        return range(self._bands * partitions(work))

    def part(self, work: Work, phase: int, number: int) -> None:
        files, offsets = scanned(work, phase)
        band, partition = divmod(number, partitions(work))
        write_edges(work.part_file(phase, number), files, offsets, band, partition)

    def labels(self, work: Work, phase: int) -> Labels:
        """[documents scanned]: the first document of each one's cluster."""
        files, offsets = scanned(work, phase)
        edges = [work.part_file(phase, number) for number in self.parts(work)]
        return clusters(int(offsets[-1]), read_edges(files, offsets, edges))

    def left(self, work: Work, phase: int) -> tuple[npt.NDArray[np.bool_], dict[int, int]]:
        labels = self.labels(work, phase)
        return labels == np.arange(len(labels), dtype=labels.dtype), sizes(labels)

    def step(self, work: Work, phase: int, task: int) -> Callable[[Iterable[Document]], Iterator[Document]]:
        raise AssertionError("it changes no text")


class _BandKeys:
    def __init__(self, keys_of: Callable[[Sequence[str]], npt.NDArray[Any]], parts: int) -> None:
        self._keys_of, self._parts = keys_of, parts
        self._found = [keys_of([])]
        self._count = 0

    @property
    def full(self) -> bool:
        return self._count >= RUN_DOCUMENTS

    def add(self, documents: Sequence[Document]) -> None:
        self._found.append(self._keys_of([document.text for document in documents]))
        self._count += len(documents)

    def write(self, path: Path) -> None:
        write_keys(path, np.concatenate(self._found), self._parts)


class SameLine:
    """Lines are the same if their words are; all but the first of each go."""

    name = "lines"
    reason = "line_dedup/nothing_left"
    changes_texts = True

    def __init__(self, min_characters: int, min_count: int) -> None:
        self._min_characters, self._min_count = min_characters, min_count

    def keys(self, work: Work) -> Keys:
        return _LineKeys(LineCounts(self._min_characters), line_partitions(work))

    def parts(self, work: Work) -> range:
        return range(line_partitions(work))

    def part(self, work: Work, phase: int, number: int) -> None:
        files, _ = scanned(work, phase)
        write_verdicts(work.part_file(phase, number), files, number, min_count=self._min_count)

    def left(self, work: Work, phase: int) -> tuple[npt.NDArray[np.bool_], dict[int, int]]:
        counts = [len(runs(work, phase, task)) for task in work.tasks]
        work.save_array(f"runs-{phase}", np.cumsum([0, *counts], dtype=np.int64))
        return np.ones(int(scanned(work, phase)[1][-1]), bool), {}

    def step(self, work: Work, phase: int, task: int) -> Callable[[Iterable[Document]], Iterator[Document]]:
        verdicts = [work.part_file(phase, number) for number in self.parts(work)]
        made = functools.partial(_without_repeated_lines, work=work, phase=phase, task=task, verdicts=verdicts)
        return named(made, "line_dedup")


def _without_repeated_lines(
    documents: Iterable[Document], *, work: Work, phase: int, task: int, verdicts: Sequence[Path]
) -> Iterator[Document]:
    first, waiting = int(work.map_array(f"runs-{phase}")[task]), iter(documents)
    for run, count in enumerate(runs(work, phase, task).tolist()):
        lines = RepeatedLines(work.keys_file(phase, task, run), verdicts, first + run)
        yield from lines.step(itertools.islice(waiting, count))


class _LineKeys:
    def __init__(self, counts: LineCounts, parts: int) -> None:
        self._counts, self._parts = counts, parts

    @property
    def full(self) -> bool:
        return self._counts.distinct >= RUN_LINES

    def add(self, documents: Sequence[Document]) -> None:
        self._counts.add([document.text for document in documents])

    def write(self, path: Path) -> None:
        self._counts.write(path, self._parts)


def scanned(work: Work, phase: int) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """(files of keys of all tasks, documents scanned before each file's and in all)."""
    counts = [runs(work, phase, task) for task in work.tasks]
    files = [work.keys_file(phase, task, run) for task, own in enumerate(counts) for run in range(len(own))]
    return files, np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64)


def runs(work: Work, phase: int, task: int) -> npt.NDArray[np.int64]:
    """[files of keys of the task]: documents in each."""
    counts: npt.NDArray[np.int64] = load(work.scan_file(phase, task), "runs")[0]
    return counts
