"""webdataset: tars of one member a row, shards in random order, shuffle(1000), decoded by np.frombuffer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from benchmarks.contract import BATCH, Pair, pair_of, rows_of

ROWS_PER_SHARD = 4096


def prepare(directory: Path, tokens: Path) -> None:
    with wds.ShardWriter(f"{directory}/%06d.tar", maxcount=ROWS_PER_SHARD, verbose=0) as writer:
        for number, row in enumerate(rows_of(tokens)):
            writer.write({"__key__": f"{number:09d}", "tok": row.tobytes()})


def _collate(samples: list[dict[str, Any]]) -> torch.Tensor:
    rows = np.stack([np.frombuffer(sample["tok"], np.uint16) for sample in samples])
    return torch.from_numpy(rows.astype(np.int32))


def epochs(directory: Path) -> Iterator[Iterator[Pair]]:
    urls = sorted(str(path) for path in directory.glob("*.tar"))
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000)
    dataset = dataset.batched(BATCH, collation_fn=_collate)
    while True:
        yield (pair_of(rows) for rows in dataset)
