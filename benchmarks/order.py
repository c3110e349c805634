"""How fast the order's arithmetic is: `make bench-loader` runs it; seconds. Each line is the best of five."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machine import machine_line
from fmscale.config import Config, DataConfig, SourceConfig, StageConfig, TrainConfig
from fmscale.corpus.order import Order
from fmscale.corpus.permutation import permute
from fmscale.corpus.sequence import SourceSpec
from fmscale.corpus.stages import stages_of
from fmscale.corpus.steps import step_plan

BATCH, SEQ_LEN, ROWS = 256, 2048, 10**10
CHUNK_TOKENS = 1 << 20
SHARES = {"books": 0.2, "code": 0.3, "web": 0.5}


def best(work: Callable[[], Any], repeat: int = 5) -> float:
    """Seconds of the fastest of `repeat` calls."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def line(name: str, amount: float, unit: str, seconds: float) -> None:
    print(f"{name:<58}{amount / seconds / 1e6:10.2f} M {unit}/s", flush=True)


def synthetic_order() -> Order:
    """10^10 rows are one pass over three sources whose weights change in stages and along a curve."""
    tokens = ROWS * SEQ_LEN
    later = {"books": 0.4, "code": 0.4, "web": 0.2}
    stages = [
        StageConfig(from_tokens=0.3 * tokens, weights={"books": 0.1, "code": 0.5, "web": 0.4}),
        StageConfig(from_tokens=0.6 * tokens, weights=later, curve="cosine"),
        StageConfig(from_tokens=0.9 * tokens, weights={"code": 1.0, "web": 1.0}),
    ]
    sources = {name: SourceConfig(corpus=name, weight=share) for name, share in SHARES.items()}
    data = DataConfig(seq_len=SEQ_LEN, sources=sources, stages=stages)
    steps = step_plan(Config(data=data, train=TrainConfig(global_batch=BATCH)))
    specs = tuple(
        SourceSpec(name=name, chunks=chunks_of(share), chunk_tokens=CHUNK_TOKENS, content_hash="")
        for name, share in SHARES.items()
    )
    return Order(specs, stages_of(data, list(SHARES), steps), 0, SEQ_LEN, steps, data.window_chunks)


def chunks_of(share: float) -> int:
    return int(share * ROWS * SEQ_LEN) // CHUNK_TOKENS


def main() -> None:
    print(machine_line())
    x = np.arange(1 << 20, dtype=np.uint64)
    for n in (1 << 20, 1 << 40, 10**12, (1 << 20) + 1):
        kind = "a power of two" if n.bit_count() == 1 else "none"
        line(f"permute, n = {n} ({kind})", len(x), "indices", best(lambda n=n: permute(x, n, 7)))
    order = synthetic_order()
    order.locate([0])
    for first in (0, 5 * 10**9, 99 * 10**8):
        rows = np.arange(first, first + (1 << 18))
        seconds = best(lambda rows=rows: order.locate(rows))
        line(f"locate, 3 sources with stages, rows from {first}", len(rows), "rows", seconds)


if __name__ == "__main__":
    main()
