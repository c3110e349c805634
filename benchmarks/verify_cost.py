"""What checking costs a reader: `python -m benchmarks.verify_cost` from the root of the project.

Reads an epoch of a corpus of random tokens through RowReader, on one core and from the page cache: as it is, and with
every chunk taken for verified beforehand, so that nothing is hashed. Apart from the difference stands what it costs to
ask for the size of a shard's file every LOOK_AGAIN_S, and for the time at each use of a chunk, once a batch. Prints one
line per figure, the fastest of alternating repetitions, with the machine in the first line.
"""

from __future__ import annotations

import math
import mmap
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmscale.config import Config
from fmscale.corpus.generation import LOOK_AGAIN_S
from fmscale.corpus.index import region_hash
from fmscale.corpus.loader import RowReader
from fmscale.corpus.sources import open_run_data
from tests.corpora import make_corpus, run_config

CHUNKS, CHUNK_TOKENS, ROWS, SEQ_LEN = 64, 1 << 20, 256, 2048
REPEAT = 25


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
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    machine = f"{platform.processor() or platform.machine()}, one core of {os.cpu_count()}"
    print(f"{machine}, load {load}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_corpus(root / "web", chunks=CHUNKS, heldout=1, chunk_tokens=CHUNK_TOKENS)
        config = run_config(root, {"web": 1.0}, seq_len=SEQ_LEN, global_batch=ROWS, micro_batch=ROWS, window_chunks=64)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(REPEAT):
            for hashing in times:
                times[hashing].append(epoch_seconds(config, hashing))
        order = open_run_data(config).order
        asks = sum(len(np.unique(order.locate(rows).chunk)) for rows in batches_of_an_epoch())
        with (root / "web" / "train-00000.tar").open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tokens = CHUNKS * CHUNK_TOKENS
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
