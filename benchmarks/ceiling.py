"""What the machine gives: rows of a memory-mapped file in random order, and the same from a bare Ray actor.

No format, no checks, no state. `epochs`: gathered and widened to int32 as everybody else's. `epochs_uint16`: gathered
only, tokens of two bytes, which no embedding takes. `epochs_actor`: gathered in an actor that returns 2 MB a call, with
four calls under way; copied and widened here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.contract import BATCH, ROW, ROWS, SEQ_LEN, Pair, pair_of, start_ray

AHEAD = 4
ROWS_A_CALL = BATCH * 2
"""2 MB."""


class Rows:
    def __init__(self, tokens: Path) -> None:
        self._tokens = np.load(tokens, mmap_mode="r")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), ROW), np.uint16)
        for i, start in enumerate((rows * SEQ_LEN).tolist()):
            out[i] = self._tokens[start : start + ROW]
        return out


def _orders() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.permutation(ROWS)


def epochs_uint16(directory: Path) -> Iterator[Iterator[Pair]]:
    rows = Rows(directory.parent / "tokens.npy")
    for order in _orders():
        yield (pair_of(torch.from_numpy(rows.gather(part))) for part in np.split(order, ROWS // BATCH))


def epochs(directory: Path) -> Iterator[Iterator[Pair]]:
    rows = Rows(directory.parent / "tokens.npy")
    for order in _orders():
        parts = np.split(order, ROWS // BATCH)
        yield (pair_of(torch.from_numpy(rows.gather(part).astype(np.int32))) for part in parts)


def epochs_actor(directory: Path) -> Iterator[Iterator[Pair]]:
    start_ray()
    return _epochs_on_ray((directory.parent / "tokens.npy").resolve())


def _epochs_on_ray(tokens: Path) -> Iterator[Iterator[Pair]]:
    import ray

    actor = ray.remote(Rows).options(num_cpus=0).remote(tokens)
    for order in _orders():
        yield _from_actor(actor, order)


def _from_actor(actor: object, order: np.ndarray) -> Iterator[Pair]:
    import ray

    asked: deque[object] = deque()
    for part in np.split(order, ROWS // ROWS_A_CALL):
        asked.append(actor.gather.remote(part))
        if len(asked) > AHEAD:
            yield from _answer(ray.get(asked.popleft()))
    while asked:
        yield from _answer(ray.get(asked.popleft()))


def _answer(rows: np.ndarray) -> Iterator[Pair]:
    for half in np.split(rows, ROWS_A_CALL // BATCH):
        yield pair_of(torch.from_numpy(half.astype(np.int32)))
