"""datasets: Arrow files, memory-mapped, all rows shuffled, numpy batches (`epochs`); or Parquet, streamed, with a
shuffle buffer of 1000 (`epochs_streaming`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, disable_progress_bars, load_dataset, load_from_disk

from benchmarks.contract import BATCH, ROW, Pair, pair_of, rows_of

disable_progress_bars()


def prepare(directory: Path, tokens: Path) -> None:
    features = Features({"tokens": List(Value("uint16"), length=ROW)})
    rows = rows_of(tokens)

    def each() -> Iterator[dict[str, np.ndarray]]:
        for row in rows:
            yield {"tokens": row}

    dataset = Dataset.from_generator(each, features=features, cache_dir=str(directory / "cache"))
    dataset.save_to_disk(str(directory / "arrow"))
    for shard in range(8):
        dataset.shard(8, shard, contiguous=True).to_parquet(str(directory / "parquet" / f"{shard}.parquet"))


def epochs(directory: Path) -> Iterator[Iterator[Pair]]:
    dataset = load_from_disk(str(directory / "arrow")).with_format("numpy")
    epoch = 0
    while True:
        batches = dataset.shuffle(seed=epoch).iter(BATCH)
        yield (pair_of(torch.from_numpy(batch["tokens"].astype(np.int32))) for batch in batches)
        epoch += 1


def epochs_streaming(directory: Path) -> Iterator[Iterator[Pair]]:
    files = sorted(str(path) for path in (directory / "parquet").glob("*.parquet"))
    dataset = load_dataset("parquet", data_files=files, split="train", streaming=True)
    dataset = dataset.shuffle(seed=1, buffer_size=1000).with_format("numpy")
    epoch = 0
    while True:
        dataset.set_epoch(epoch)
        batches = dataset.iter(BATCH)
        yield (pair_of(torch.from_numpy(np.asarray(batch["tokens"]).astype(np.int32))) for batch in batches)
        epoch += 1
