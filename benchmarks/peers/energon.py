"""Megatron-Energon: webdataset tars with its index, crude samples, shuffle buffer of 1000, no workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.energon import (
    Cooker,
    CrudeSample,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

from benchmarks.contract import BATCH, ROWS, Pair, pair_of
from benchmarks.peers import webdataset


def prepare(directory: Path, tokens: Path) -> None:
    webdataset.prepare(directory, tokens)
    names = sorted(path.name for path in directory.glob("*.tar"))
    WebdatasetPreparator.prepare_dataset(directory, names, split_parts_ratio=[("train", 1.0)], workers=2)
    (directory / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")


@stateless
def _cook(sample: CrudeSample) -> dict[str, Any]:
    return {**basic_sample_keys(sample), "rows": np.frombuffer(sample["tok"], np.uint16)}


class _Rows(DefaultTaskEncoder):
    cookers = [Cooker(_cook)]  # noqa: RUF012
    decoder = None

    @stateless
    def batch(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([sample["rows"] for sample in samples]).astype(np.int32))


def epochs(directory: Path) -> Iterator[Iterator[Pair]]:
    dataset = get_train_dataset(
        directory,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        virtual_epoch_length=ROWS // BATCH,
        task_encoder=_Rows(),
    )
    loader = get_savable_loader(dataset)
    while True:
        yield (pair_of(rows) for rows in loader)
