"""mosaicml-streaming: MDS with an ndarray column, StreamingDataset(shuffle=True) with its default py1e; raw iteration,
stacked here. `epochs_2_workers` is the same through a torch DataLoader with two workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.contract import BATCH, ROW, Pair, pair_of, rows_of

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):  # its package for CUDA beside torch for CPUs; streaming wants it for images only
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = module = ModuleType(f"torchvision{name}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        module.VisionDataset = module.CIFAR10 = module.to_tensor = object

from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory


def prepare(directory: Path, tokens: Path) -> None:
    with MDSWriter(out=str(directory), columns={"tokens": f"ndarray:uint16:{ROW}"}, size_limit="64mb") as writer:
        for row in rows_of(tokens):
            writer.write({"tokens": row.copy()})


def _dataset(directory: Path) -> StreamingDataset:
    clean_stale_shared_memory()  # of a process that was stopped
    return StreamingDataset(local=str(directory), shuffle=True, batch_size=BATCH)


def _collate(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int32))


def epochs(directory: Path) -> Iterator[Iterator[Pair]]:
    dataset = _dataset(directory)
    while True:
        yield _batches(iter(dataset))


def _batches(samples: Iterator[dict[str, Any]]) -> Iterator[Pair]:
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH:
            yield pair_of(_collate(batch))
            batch = []


def epochs_2_workers(directory: Path) -> Iterator[Iterator[Pair]]:
    loader = torch.utils.data.DataLoader(_dataset(directory), BATCH, num_workers=2, collate_fn=_collate)
    while True:
        yield (pair_of(rows) for rows in loader)
