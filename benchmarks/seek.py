"""Any position of 10^10 rows: `make bench-loader` runs it; a minute.

Three sources with stages and a curve, 19.5 million chunks. A fresh process each time: from before its imports to the
places of its first batch, and without the imports; then seeks to random rows in the same process. The index of so many
chunks (80 bytes each) is written once and opened too, which is no part of the order: see `--no-index`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH, SEQ_LEN, ROWS = 256, 2048, 10**10
CHUNK_TOKENS = 1 << 20
SHARES = {"books": 0.2, "code": 0.3, "web": 0.5}
BOOTSTRAP = "import time; begun = time.perf_counter(); from benchmarks.seek import child; child({position}, begun)"


def child(position: float, begun: float) -> None:
    """In the fresh process: print what it took as JSON."""
    import psutil

    import fmscale.corpus.order  # noqa: F401  # Order, and all that it needs

    memory, imported = psutil.Process().memory_info().rss, time.perf_counter()
    order = synthetic_order()
    first = int(position * ROWS) // BATCH * BATCH
    order.locate(np.arange(first, first + BATCH))
    located = time.perf_counter()
    warm, rng = [], np.random.default_rng(0)
    for row in rng.integers(0, ROWS - BATCH, 200).tolist():
        started = time.perf_counter()
        order.locate(np.arange(row, row + BATCH))
        warm.append(time.perf_counter() - started)
    state = {"rows": first, "order": order.fingerprint(), "ledger": order.ledger.to_json()}
    result = {
        "with_imports_s": located - begun,
        "cold_s": located - imported,
        "warm_s": statistics.median(warm),
        "warm_max_s": max(warm),
        "memory": psutil.Process().memory_info().rss - memory,
        "state": len(json.dumps(state)),
    }
    print(json.dumps(result))


def synthetic_order() -> Any:
    """10^10 rows are one pass over three sources whose weights change in stages and along a curve."""
    from fmscale.config import Config, DataConfig, SourceConfig, StageConfig, TrainConfig
    from fmscale.corpus.order import Order
    from fmscale.corpus.sequence import SourceSpec
    from fmscale.corpus.stages import stages_of
    from fmscale.corpus.steps import step_plan

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


def in_a_fresh_process(position: float) -> dict[str, float]:
    command = [sys.executable, "-c", BOOTSTRAP.format(position=position)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def opened_index(directory: Path) -> tuple[float, int]:
    """Seconds to open the index of all chunks of the three sources, in the page cache, and its bytes."""
    from fmscale.corpus.index import CHUNK_DTYPE, read_index, write_index

    files = []
    for name, share in SHARES.items():
        (directory / name).mkdir()
        files.append((directory / name, write_index(directory / name, np.zeros(chunks_of(share), CHUNK_DTYPE))))
    started = time.perf_counter()
    for path, file in files:
        read_index(path, file)
    return time.perf_counter() - started, sum(file.bytes for _, file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-index", action="store_true", help="do not write and open the index (1.6 GB below --out)")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    print(f"\nseek among 10^10 rows, three sources with stages; medians of {options.repeat} processes")
    print(f"{'':<10}{'cold':>10}{'with imports':>14}{'warm':>10}{'slowest of 200':>16}{'memory':>12}{'state':>10}")
    for position in (0.0, 0.5, 0.99):
        runs = [in_a_fresh_process(position) for _ in range(options.repeat)]
        one = {key: statistics.median([run[key] for run in runs]) for key in runs[0]}
        print(
            f"{position:<10.0%}{one['cold_s'] * 1e3:>7.1f} ms{one['with_imports_s'] * 1e3:>11.0f} ms"
            f"{one['warm_s'] * 1e3:>7.2f} ms{one['warm_max_s'] * 1e3:>13.2f} ms{one['memory'] / 2**20:>8.1f} MiB"
            f"{one['state']:>8.0f} B",
            flush=True,
        )
    if not options.no_index:
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            seconds, size = opened_index(Path(folder))
        print(f"{'index':<10}{seconds:>8.2f} s to open and hash {size / 2**30:.2f} GiB, once per process that reads")


if __name__ == "__main__":
    main()
