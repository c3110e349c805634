"""How fast the order's arithmetic is: `make bench-loader` runs it; seconds. Each line is the best of five."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.machine import machine_line
from benchmarks.seek import synthetic_order
from fmscale.corpus.permutation import permute


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
