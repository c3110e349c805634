"""What checking costs a reader: `python -m benchmarks.verify_cost` from the root of the project.

First what a run has: a reader actor, asked for an epoch in requests of 4 MB. Its processor time, and how much of that
went to checking chunks at their first use. Then the bare RowReader on one core, in processor time: as it is, and with
every chunk taken for verified beforehand, so that nothing is hashed; the fastest of alternating repetitions. Apart from
the difference stands what it costs to ask for the size of a shard's file every LOOK_AGAIN_S, and for the time at each
use of a chunk, once a batch. The page cache is warm, and as reading leaves it: filled by read-ahead (a file just
written lies in single pages, which take longer to map).
"""

from __future__ import annotations

import math
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.machine import machine_line
from fmscale.config import Config
from fmscale.corpus.generation import LOOK_AGAIN_S
from fmscale.corpus.index import region_hash
from fmscale.corpus.loader import RowReader
from fmscale.corpus.rows import Places
from fmscale.corpus.sources import open_run_data
from fmscale.observe import pids
from launcher.ray_cluster import cluster, private_environment
from tests.corpora import make_corpus, run_config

CHUNKS, CHUNK_TOKENS, ROWS, SEQ_LEN = 64, 1 << 20, 256, 2048
REPEAT = 25
READERS = 9


def batches_of_an_epoch() -> list[npt.NDArray[np.int64]]:
    return [np.arange(first, first + ROWS) for first in range(0, CHUNKS * CHUNK_TOKENS // SEQ_LEN, ROWS)]


def epoch_seconds(config: Config, hashing: bool) -> float:
    """Seconds to read each row of the corpus once; a fresh mapping each time, as in a process that begins."""
    data = open_run_data(config)
    if not hashing:
        for generation in data.train["web"]._generations:
            for shard in generation.shards:
                generation._map(shard.first).known.verified["tokens"][:] = b"\1" * shard.chunks
    reader = RowReader(data)
    batches = batches_of_an_epoch()
    data.order.locate(batches[0])  # has tables to make at its first call
    started = time.process_time()  # all of it is work of this thread; so other programs do not count
    for rows in batches:
        reader.read(rows)
    return time.process_time() - started


def read_ahead(root: Path) -> None:
    """Have the page cache as reading leaves it."""
    for shard in root.glob("*/*.tar"):
        with shard.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(1 << 20):
                pass


def reader_seconds(config: Config) -> tuple[float, float]:
    """(processor time, part of it that checking took) of a new reader actor in its first epoch."""
    import ray

    from fmscale.corpus.readers import REQUEST_BYTES, start_readers

    order = open_run_data(config).order
    (reader,) = start_readers(config, config.run_dir, register=pids.register)
    ask = REQUEST_BYTES // (2 * (SEQ_LEN + 1))
    total = CHUNKS * CHUNK_TOKENS // SEQ_LEN
    nothing = Places(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    ray.get(reader.read.remote("train", nothing))  # it opens the corpora
    process = psutil.Process(next(e["pid"] for e in pids.read(config.run_dir) if e["role"] == "reader"))
    before, verified = sum(process.cpu_times()[:2]), 0.0
    for first in range(0, total, ask):
        at = order.locate(np.arange(first, min(first + ask, total)))
        verified += ray.get(reader.read.remote("train", Places(at.source, at.chunk, at.start))).spent.verify_s
    spent = sum(process.cpu_times()[:2]) - before
    ray.kill(reader)
    return spent, verified


def seconds(work: Callable[[], Any], calls: int) -> float:
    """Of one call: the mean over `calls`, the fastest of 20 such means."""
    means = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        means.append((time.perf_counter() - started) / calls)
    return min(means)


def show(name: str, value: str) -> None:
    print(f"{name:<62}{value:>22}", flush=True)


def main() -> None:
    print(f"{machine_line()}; numpy {np.__version__}", flush=True)
    with private_environment(), tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(root / "web", chunks=CHUNKS, heldout=1, chunk_tokens=CHUNK_TOKENS)
        config = run_config(root, {"web": 1.0}, seq_len=SEQ_LEN, global_batch=ROWS, micro_batch=ROWS, window_chunks=64)
        read_ahead(root)
        with cluster(min_cpus=1):
            readers = [reader_seconds(config) for _ in range(READERS)]
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(REPEAT):
            for hashing in times:
                times[hashing].append(epoch_seconds(config, hashing))
        order = open_run_data(config).order
        asks = sum(len(np.unique(order.locate(rows).chunk)) for rows in batches_of_an_epoch())
        with (root / "web" / "train-00000.tar").open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tokens = CHUNKS * CHUNK_TOKENS
    rates, shares = [tokens / spent / 1e6 for spent, _ in readers], [verified / spent for spent, verified in readers]
    show("reader actor, first epoch", f"{statistics.median(rates):.1f} M tokens/CPU s")
    show(f"checking, share of the reader's time (median of {READERS})", f"{statistics.median(shares):.2%}")
    show("  of each", " ".join(f"{share:.2%}" for share in sorted(shares)))
    checked, trusting = min(times[True]), min(times[False])
    looks = math.ceil(checked / LOOK_AGAIN_S)  # all chunks stand in one shard
    looking = looks * seconds(view.size, 1000) + asks * seconds(time.monotonic, 1000)
    member = np.random.default_rng(0).bytes(2 * CHUNK_TOKENS)
    what = f"RowReader, one epoch in batches of {ROWS} x {SEQ_LEN}"
    show(what, f"{tokens / checked / 1e6:.1f} M tokens/s")
    show(f"{what}, not hashed", f"{tokens / trusting / 1e6:.1f} M tokens/s")
    show("xxh3_128 of 2 MiB", f"{len(member) / seconds(lambda: region_hash(member), 1) / 1e9:.1f} GB/s")
    show("hashing, share of reader time", f"{(checked - trusting) / checked:.2%}")
    show("looks at sizes, share of reader time", f"{looking / checked:.2%}")
    show("checking in all, share of reader time", f"{(checked - trusting + looking) / checked:.2%}")


if __name__ == "__main__":
    main()
