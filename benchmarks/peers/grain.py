"""Grain: ArrayRecord, MapDataset.shuffle over all rows. On one core without threads (as Grain's own documentation
advises for data in memory)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
import torch
from array_record.python import array_record_module

from benchmarks.contract import BATCH, Pair, pair_of, rows_of


def prepare(directory: Path, tokens: Path) -> None:
    writer = array_record_module.ArrayRecordWriter(f"{directory}/rows.array_record", "group_size:1,uncompressed")
    for row in rows_of(tokens):
        writer.write(row.tobytes())
    writer.close()


def _collate(rows: list[bytes]) -> np.ndarray:
    return np.stack([np.frombuffer(row, np.uint16) for row in rows]).astype(np.int32)


def epochs(directory: Path, threads: int = 0) -> Iterator[Iterator[Pair]]:
    source = grain.sources.ArrayRecordDataSource([f"{directory}/rows.array_record"])
    epoch = 0
    while True:
        dataset = grain.MapDataset.source(source).shuffle(seed=epoch).batch(BATCH, batch_fn=_collate)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        yield (pair_of(torch.from_numpy(rows)) for rows in dataset.to_iter_dataset(options))
        epoch += 1


def epochs_threads(directory: Path) -> Iterator[Iterator[Pair]]:
    return epochs(directory, 2)
