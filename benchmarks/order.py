"""How fast rows are found, read and handed over: `python -m benchmarks.loader` from the root of the project.

Prints one line per measurement, best of several repetitions, with the machine in the first line. All in one process
but for the last lines, where one Ray reader actor feeds this one. Reads a corpus of random tokens in the page cache.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.config import Config
from fmscale.corpus.batch import Batch, batch_hash
from fmscale.corpus.loader import LocalLoader, RowReader
from fmscale.corpus.order import Order
from fmscale.corpus.permutation import permute
from fmscale.corpus.sequence import SourceSpec
from fmscale.corpus.sources import open_run_data
from launcher.ray_cluster import cluster
from tests.corpora import make_corpus, run_config


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


def arithmetic() -> None:
    x = np.arange(1 << 20, dtype=np.uint64)
    for n in (1 << 20, 10**12, (1 << 20) + 1):
        line(f"permute, n = {n}", len(x), "indices", best(lambda n=n: permute(x, n, 7)))
    specs = tuple(SourceSpec(name=f"s{i}", chunks=7_000_000, chunk_tokens=1 << 20, content_hash="") for i in range(3))
    for count in (1, 3):
        order = Order(specs[:count], (0.6, 0.3, 0.1)[:count], 0, 2048, 1024, 64)
        order.locate([0])
        for first in (0, 10**12):
            rows = np.arange(first, first + (1 << 18))
            seconds = best(lambda rows=rows, order=order: order.locate(rows))
            line(f"locate, {count} sources, rows from {first}", len(rows), "rows", seconds)
        seconds = best(lambda order=order: order.locate([10**12]), 50)
        print(f"{f'seek to row 10^12, {count} sources':<58}{seconds * 1e6:10.0f} us", flush=True)


def stream(batches: Iterator[Batch], steps: int) -> None:
    for _ in islice(batches, steps):
        pass


def reading(config: Config) -> None:
    data, size = open_run_data(config), config.train.global_batch
    for chunk in range(data.train["web"].chunks):
        data.train["web"].tokens(chunk)
    reader = RowReader(data.train, data.order, config.data.seq_len)
    tokens, what = size * config.data.seq_len, f"{size} x {config.data.seq_len}"
    line(f"RowReader.read, batches of {what}", tokens, "tokens", best(lambda: reader.read(np.arange(size)), 50))
    batch = reader.read(np.arange(size))
    line(f"batch_hash, batches of {what}", tokens, "tokens", best(lambda: batch_hash(batch), 50))
    steps = max(16, (64 << 20) // tokens)
    loader = LocalLoader(config, data, 0)
    batches = loader.batches(0)
    line(f"LocalLoader, batches of {what}", tokens * steps, "tokens", best(partial(stream, batches, steps), 3))
    loader.close()


def ray_reading(configs: list[Config], run_dir: Path) -> None:
    with cluster(min_cpus=1):
        from fmscale.corpus.readers import RayLoader, start_readers

        for config in configs:
            tokens = config.train.global_batch * config.data.seq_len
            steps = max(64, (64 << 20) // tokens)
            batches = RayLoader(start_readers(config, run_dir), config, open_run_data(config), 0).batches(0)
            stream(batches, steps)  # every chunk verified, the actor up
            what = f"{config.train.global_batch} x {config.data.seq_len}"
            line(
                f"RayLoader, 1 reader, batches of {what}",
                tokens * steps,
                "tokens",
                best(partial(stream, batches, steps), 3),
            )


def main() -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}, numpy {np.__version__}")
    arithmetic()
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder) / "web", chunks=64, heldout=1, chunk_tokens=1 << 20)
        configs = [
            run_config(Path(folder), {"web": 1.0}, seq_len=seq_len, global_batch=rows, window_chunks=64)
            for rows, seq_len in ((16, 512), (32, 1024), (256, 2048))
        ]
        for config in configs:
            reading(config)
        ray_reading(configs, Path(folder))


if __name__ == "__main__":
    main()
