"""Documents that have the id of an earlier one: both stay, but an id that stands twice names neither, so it is told.

It goes as with texts (keys.py): hashes of ids sorted by task, merged by partition, joined in one process. Ids are those
of the input; where a record has none, the hash of its text stands for it, and says nothing of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.clusters import clusters
from data_pipeline.document import TEXT_ID, Document
from data_pipeline.keys import TEXT_KEY, read_edges, write_edges
from data_pipeline.passes import scanned
from data_pipeline.plan import Work, load

_NO_KEY = bytes(16)


def id_keys(documents: Sequence[Document]) -> npt.NDArray[np.bytes_]:
    """TEXT_KEY [documents, 1]: xxh3_128 of each one's id; zero where that was made of the text."""
    digests = b"".join(
        _NO_KEY
        if document.id.startswith(TEXT_ID)
        else xxhash.xxh3_128_digest(document.id.encode("utf-8", "surrogatepass"))
        for document in documents
    )
    return np.frombuffer(digests, TEXT_KEY).reshape(-1, 1)


def beside(path: Path) -> Path:
    """The file of ids beside one of texts: a task's keys, or a part's edges."""
    return path.with_suffix(".ids")


def part(work: Work, phase: int, partition: int) -> None:
    """Edges between documents of different tasks that have the same id."""
    files, offsets = scanned(work, phase)
    write_edges(beside(work.part_file(phase, partition)), [beside(path) for path in files], offsets, 0, partition)


def count(work: Work, phase: int, parts: range, stays: npt.NDArray[np.bool_]) -> Counter[int]:
    """By file: documents whose id an earlier one has. stays: bool [all records], those that are looked at.

    5 bytes a document in memory (9 from 2^32 documents on).
    """
    files, offsets = scanned(work, phase)
    edges = [beside(work.part_file(phase, number)) for number in parts]
    labels = clusters(int(offsets[-1]), read_edges([beside(path) for path in files], offsets, edges))
    met = np.zeros(len(labels), bool)
    again = Counter[int]()
    records, begin = work.map_array("offsets"), 0
    for task in work.tasks:
        rows, of_file = load(work.scan_file(phase, task), "rows", "files")
        looked_at = stays[int(records[task]) + rows.astype(np.int64)]
        own = labels[begin : begin + len(rows)][looked_at]
        first = np.zeros(len(own), bool)
        first[np.unique(own, return_index=True)[1]] = True
        again.update(of_file[looked_at][~first | met[own]].tolist())
        met[own] = True
        begin += len(rows)
    return again
