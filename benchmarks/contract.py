"""What every loader of the comparison does: the same rows, shuffled, as integer tensors that a trainer takes.

A contender is a module with `prepare(directory, tokens)`, which writes its files once, and one function or several that
yield endless epochs, each an iterator of pairs (inputs, labels): torch integer tensors [256, 2048]. Row i is tokens
[2048 i, 2048 i + 2049) of one array; an epoch hands out each of its 49,152 rows once. What such a function does before
it returns is not on the clock (Ray being started), what it does when the first pair is asked for is.
"""

from __future__ import annotations

import atexit
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEQ_LEN = 2048
ROW = SEQ_LEN + 1
BATCH = 256
CHUNK_TOKENS, CHUNKS = 1 << 20, 96
"""100.7 M tokens."""
ROWS = CHUNKS * CHUNK_TOKENS // SEQ_LEN

Pair = tuple[torch.Tensor, torch.Tensor]


def rows_of(tokens: Path) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The rows [ROWS, ROW] of a file of tokens: overlapping views of a mapping."""
    return np.lib.stride_tricks.sliding_window_view(np.load(tokens, mmap_mode="r"), ROW)[::SEQ_LEN]


def row_of(tokens: np.ndarray[Any, Any], number: int) -> np.ndarray[Any, Any]:
    return tokens[number * SEQ_LEN : number * SEQ_LEN + ROW]


def pair_of(rows: torch.Tensor) -> Pair:
    """Inputs and labels [B, SEQ_LEN] of rows [B, ROW]: views."""
    return rows[:, :-1], rows[:, 1:]


def checksum_of(inputs: torch.Tensor, labels: torch.Tensor) -> int:
    """Of the first and last token of each row; adds up over an epoch, whatever its order."""
    return int(inputs[:, 0].long().sum()) + 3 * int(labels[:, -1].long().sum())


def expected_checksum(tokens: Path) -> int:
    rows = rows_of(tokens)
    return int(rows[:, 0].sum(dtype=np.int64)) + 3 * int(rows[:, -1].sum(dtype=np.int64))


def start_ray() -> None:
    """A local cluster until this process ends."""
    from launcher.ray_cluster import cluster

    stack = contextlib.ExitStack()
    stack.enter_context(cluster(min_cpus=1))
    atexit.register(stack.close)
