"""Documents with a key in common, over the whole corpus: from the keys of each task to edges between documents.

    write_keys(file, keys, partitions)                       # for each task: keys [documents, bands]
    write_edges(file, keys_files, offsets, band, partition)  # for each band and partition: any process, in any order
    label = clusters(documents, read_edges(keys_files, offsets, edge_files))      # clusters.py; one process

Keys are 64 bits (bands of minhash.py) or 128 (one band: hashes of whole texts). Each step is a function of the files
that it names and writes one file, whole or not at all. Tasks and partitions do not decide who is a duplicate of whom.

On disk: 12 bytes a document and band (20 with 128 bits), 8 for a document with another one before it in its task, 16 a
band for one with another in an earlier task. In memory: a task's keys twice and 60 bytes a document; 130 bytes for
each of a merge's `records`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.clusters import clusters
from data_pipeline.merge import RECORDS, groups, merge, partition_starts
from data_pipeline.sections import Reader, Sections, create
from fmscale.errors import DataError

KEYS_KIND, EDGES_KIND = "fmscale-keys-1", "fmscale-edges-1"
TEXT_KEY = np.dtype("S16")
"""A 128-bit key: xxh3_128_digest of a text."""
_HEAD = np.dtype([("documents", "<u8"), ("bands", "<u4"), ("partitions", "<u4"), ("key_bytes", "<u4")])
"""The first section of a task's file."""
_BLOCK_BYTES = 1 << 24


def write_keys(path: Path, keys: npt.NDArray[Any], partitions: int) -> None:
    """A task's keys, sorted: one section for each band and partition, and one of edges between its own documents.

    keys: uint64 or TEXT_KEY [documents, bands]; a document has no part in a band where its key is zero.
    """
    assert keys.dtype in (np.dtype(np.uint64), TEXT_KEY), f"keys of {keys.dtype}"
    dtype = _record(keys.itemsize)
    starts = partition_starts(keys.dtype, partitions)
    own_edges: list[npt.NDArray[np.uint32]] = []
    with create(path, KEYS_KIND) as file:
        file.add(np.array((len(keys), keys.shape[1], partitions, keys.itemsize), _HEAD))
        for band in keys.T:
            rows = np.flatnonzero(band != np.zeros(1, keys.dtype))
            rows = rows[np.argsort(band[rows], kind="stable")]
            first = groups(band[rows])
            firsts = np.flatnonzero(first)
            leads = rows[firsts][np.cumsum(first) - 1]
            own_edges.append(np.stack([leads, rows], 1)[~first].astype(np.uint32))
            records = np.empty(len(firsts), dtype)
            records["key"], records["row"] = band[rows[firsts]], rows[firsts]
            for part in np.split(records, np.searchsorted(records["key"], starts)):
                file.add(part)
        label = clusters(len(keys), own_edges)
        others = np.flatnonzero(label != np.arange(len(keys))).astype(np.uint32)
        file.add(np.stack([label[others], others], 1).astype("<u4"))


def write_edges(
    path: Path,
    keys_files: Sequence[Path],
    offsets: npt.ArrayLike,
    band: int,
    partition: int,
    *,
    records: int = RECORDS,
) -> int:
    """Edges between documents of different tasks that share a key of this band and partition; returns their number.

    keys_files: of all tasks, in pinned order; offsets: how many documents of the corpus stand before each, and in all.
    An edge goes from the first document that has the key. records: held in memory (merge.py).
    Raises DataError if a file is not as it was written, or not of these documents.
    """
    files, head = _open(keys_files, offsets)
    section = 1 + band * int(head["partitions"]) + partition
    begins = np.asarray(offsets, np.uint64)
    written = 0
    with create(path, EDGES_KIND) as file:
        for block, task in merge([keys[section] for keys in files], _record(int(head["key_bytes"])), records):
            documents = begins[task] + block["row"]
            first = groups(block["key"])
            leads = documents[np.flatnonzero(first)[np.cumsum(first) - 1]]
            edges = np.stack([leads, documents], 1)[~first]
            if len(edges):
                file.add(edges.astype("<u8"))
                written += len(edges)
    return written


def read_edges(
    keys_files: Sequence[Path], offsets: npt.ArrayLike, edge_files: Sequence[Path]
) -> Iterator[npt.NDArray[np.uint64]]:
    """All edges in blocks [m, 2] of documents, by their numbers in the corpus: inside tasks, then between them.

    Raises DataError if a file is not as it was written, or not of these documents.
    """
    files, _ = _open(keys_files, offsets)
    for keys, begin in zip(files, np.asarray(offsets, np.uint64)[:-1], strict=True):
        yield np.frombuffer(keys[len(keys) - 1].read(), "<u4").reshape(-1, 2) + begin
    for path in edge_files:
        edges = Sections(path, EDGES_KIND)
        for number in range(len(edges)):
            reader = Reader(edges[number])
            while reader.left:
                yield np.frombuffer(reader.take(_BLOCK_BYTES), "<u8").reshape(-1, 2)


def _open(keys_files: Sequence[Path], offsets: npt.ArrayLike) -> tuple[list[Sections], np.void]:
    """The files, and the head that all have but for the number of documents."""
    files = [Sections(path, KEYS_KIND) for path in keys_files]
    heads = np.concatenate([np.frombuffer(file[0].read(), _HEAD) for file in files])
    expected = heads.copy()
    expected[:] = heads[0]
    expected["documents"] = np.diff(offsets)
    if (wrong := np.flatnonzero(heads != expected)).size:
        number = int(wrong[0])
        raise DataError(
            f"{files[number].path} is of another preparation",
            expected=_words(expected[number]),
            found=_words(heads[number]),
            do="remove it: the same command makes it again",
        )
    return files, heads[0]


def _words(head: np.void) -> str:
    documents, bands, partitions, key_bytes = head.tolist()
    return f"{documents} documents, {bands} bands of {8 * key_bytes} bits in {partitions} partitions"


def _record(key_bytes: int) -> np.dtype[Any]:
    return np.dtype([("key", "<u8" if key_bytes == 8 else TEXT_KEY), ("row", "<u4")])
