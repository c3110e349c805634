"""fmscale's loaders as contenders: window shuffle over 64 of 96 chunks, each chunk hashed at its first use.

`epochs`: LocalLoader, as a rank without Ray uses it: one thread reads ahead. `epochs_1_reader`, `epochs_2_readers`:
RayLoader, as a rank of a run uses it, fed by reader actors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from benchmarks.contract import BATCH, ROWS, SEQ_LEN, Pair, start_ray
from fmscale.config import Config, DataConfig, RunConfig, SourceConfig, TrainConfig
from fmscale.corpus.batch import Batch
from fmscale.corpus.loader import LocalLoader
from fmscale.corpus.sources import open_run_data


def config_of(directory: Path, readers: int = 1) -> Config:
    """Of a run that trains BATCH rows a step on the corpus in `directory`; its run directory is never written."""
    return Config(
        run=RunConfig(name="run", root=str(directory.parent / "none")),
        data=DataConfig(
            seq_len=SEQ_LEN, sources={"web": SourceConfig(corpus=str(directory.resolve()))}, readers_per_node=readers
        ),
        train=TrainConfig(global_batch=BATCH, micro_batch=BATCH),
    )


def pairs(batches: Iterator[Batch]) -> Iterator[Pair]:
    """What a trainer is handed, as views like the other contenders' (it copies micro-batch by micro-batch). Positions
    are there too, and not counted."""
    for batch in batches:
        yield torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels)


def epochs(directory: Path) -> Iterator[Iterator[Pair]]:
    config = config_of(directory)
    batches = LocalLoader(config, open_run_data(config), 0).batches(0)
    while True:
        yield pairs(islice(batches, ROWS // BATCH))


def epochs_1_reader(directory: Path, readers: int = 1) -> Iterator[Iterator[Pair]]:
    start_ray()
    return _epochs_on_ray(config_of(directory, readers))


def epochs_2_readers(directory: Path) -> Iterator[Iterator[Pair]]:
    return epochs_1_reader(directory, 2)


def _epochs_on_ray(config: Config) -> Iterator[Iterator[Pair]]:
    from fmscale.corpus.readers import RayLoader, start_readers  # imports Ray, whose token start_ray has set

    batches = RayLoader(start_readers(config, config.run_dir), config, open_run_data(config), 0).batches(0)
    while True:
        yield pairs(islice(batches, ROWS // BATCH))
