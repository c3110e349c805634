"""litdata: optimize + TokensLoader, StreamingDataset(shuffle=True); raw iteration, stacked here, in this process.

`batches_dataloader` is the same through litdata's StreamingDataLoader(num_workers=0).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

from benchmarks.contract import BATCH, ROW, Pair, pair_of, row_of, rows_of


def _row(tokens: str, number: int) -> torch.Tensor:
    return torch.from_numpy(row_of(np.load(tokens, mmap_mode="r"), number).copy())


def prepare(directory: Path, tokens: Path) -> None:
    count = len(rows_of(tokens))
    optimize(
        partial(_row, str(tokens)),
        list(range(count)),
        str(directory),
        num_workers=2,
        chunk_bytes="64MB",
        item_loader=TokensLoader(block_size=ROW),
    )


def _dataset(directory: Path) -> StreamingDataset:
    return StreamingDataset(str(directory), item_loader=TokensLoader(block_size=ROW), shuffle=True, seed=1)


def epochs(directory: Path) -> Iterator[Iterator[Pair]]:
    dataset = _dataset(directory)
    while True:
        yield _stacked(iter(dataset))


def _stacked(rows: Iterator[torch.Tensor]) -> Iterator[Pair]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield pair_of(torch.stack(batch).to(torch.int32))
            batch = []


def epochs_dataloader(directory: Path, workers: int = 0) -> Iterator[Iterator[Pair]]:
    loader = StreamingDataLoader(_dataset(directory), batch_size=BATCH, num_workers=workers)
    while True:
        yield (pair_of(batch.to(torch.int32)) for batch in loader)


def epochs_2_workers(directory: Path) -> Iterator[Iterator[Pair]]:
    return epochs_dataloader(directory, 2)
