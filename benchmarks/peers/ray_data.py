"""Ray Data: read_numpy over files of 4096 rows, files in random order, a local shuffle buffer of 1000 rows, numpy
batches. `epochs_unshuffled`: in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray
import torch

from benchmarks.contract import BATCH, Pair, pair_of, rows_of

ROWS_PER_FILE = 4096


def prepare(directory: Path, tokens: Path) -> None:
    for number, rows in enumerate(np.split(rows_of(tokens), len(rows_of(tokens)) // ROWS_PER_FILE)):
        np.save(directory / f"{number:05d}.npy", rows)


def epochs(directory: Path, buffer: int | None = 1000) -> Iterator[Iterator[Pair]]:
    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return _epochs(directory.resolve(), buffer)


def epochs_unshuffled(directory: Path) -> Iterator[Iterator[Pair]]:
    return epochs(directory, None)


def _epochs(directory: Path, buffer: int | None) -> Iterator[Iterator[Pair]]:
    dataset = ray.data.read_numpy(str(directory), shuffle="files" if buffer else None)
    while True:
        batches = dataset.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=buffer, prefetch_batches=4)
        yield (pair_of(torch.from_numpy(batch["data"].astype(np.int32))) for batch in batches)
