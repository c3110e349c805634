"""How long a run of 10^10 rows takes to its first batch, anywhere in it: `make bench-seek` runs it; 3 minutes.

Builds three corpora of 10^10 rows of 2,048 tokens in all, and three tiny ones. Their manifests, inputs and indices are
as large as those of such corpora are; all their shards are links to one real shard of 128 chunks, so that what is read
is verified as always, but its 256 MB stay in the page cache. A run of three sources and four stages, one of them a
curve, is then started in fresh processes, at different rows. `--keep FOLDER` builds there and leaves it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROWS, U, BATCH = 10**10, 2048, 256
CHUNK_TOKENS, SHARD_CHUNKS = 1 << 20, 128
SHARDS = {"web": 91_560, "books": 45_780, "code": 15_260}
"""In all 152,600 shards, 19.5 M chunks, 10^10 rows."""
INPUTS = 100_000
PLACES = (0.0, 0.5, 0.99)
"""Of the run."""
FRESH = 3
"""Processes for each figure; the median is shown."""
SEEKS = 20


# ------------------------------------------------------------------------------- the corpora


def build(root: Path) -> None:
    """real/: one shard. big/NAME and tiny/NAME: corpora of many links to it, and of one."""
    from tests.corpora import make_corpus

    make_corpus(root / "real", chunks=SHARD_CHUNKS, heldout=1, chunk_tokens=CHUNK_TOKENS)
    for name, shards in SHARDS.items():
        repeat(root / "real", root / "big" / name, shards, INPUTS)
        repeat(root / "real", root / "tiny" / name, 1, 1)


def repeat(real: Path, directory: Path, count: int, inputs: int) -> None:
    """A corpus of `count` training shards that are all the one of `real`."""
    import numpy as np

    from fmscale.corpus.blocks import Blocks
    from fmscale.corpus.index import CHUNK_DTYPE, MAGIC, SHARD_DTYPE, VERSION, content_hash, shard_name, write_index
    from fmscale.corpus.inputs import write_inputs
    from fmscale.corpus.manifest import MARKER, TOKENIZER_FILE, Manifest

    directory.mkdir(parents=True)
    manifest = Manifest.load(real)
    train, heldout = manifest.splits["train"], manifest.splits["heldout"]
    block = Blocks(real / manifest.index.file, manifest.index, MAGIC, VERSION).read(0)
    one = np.frombuffer(block, CHUNK_DTYPE, train.chunks + heldout.chunks)
    chunks = count * train.chunks
    records = np.empty(chunks + heldout.chunks, CHUNK_DTYPE)
    records[:chunks].reshape(count, train.chunks)[:] = one[: train.chunks]
    records[:chunks].reshape(count, train.chunks)["shard"] = np.arange(count)[:, np.newaxis]
    records[chunks:] = one[train.chunks :]
    records["shard"][chunks:] = count
    shards = np.empty(count + 1, SHARD_DTYPE)
    shards["bytes"], shards["end"] = train.bytes, np.arange(1, count + 2) * train.chunks
    shards[-1] = heldout.bytes, heldout.chunks
    for number in range(count):
        (directory / shard_name("train", number)).symlink_to(real / shard_name("train", 0))
    for name in (shard_name("heldout", 0), TOKENIZER_FILE):
        (directory / name).symlink_to(real / name)
    large = replace(train, chunks=chunks, shards=count, bytes=count * train.bytes, tokens=count * train.tokens)
    parts = (records[first : first + (1 << 16)] for first in range(0, len(records), 1 << 16))
    written = replace(
        manifest,
        content_hash=content_hash(parts),
        index=write_index(directory, records, shards),
        inputs=write_inputs(directory, [{"path": f"raw/part-{i:06d}.jsonl.zst", "bytes": i} for i in range(inputs)]),
        splits={"train": large, "heldout": replace(heldout, first_chunk=chunks, first_shard=count)},
    )
    (directory / MARKER).write_bytes(written.render())


# --------------------------------------------------------------------------- a fresh process


def probe(root: Path, size: str, row: int, begun: float, seeks: int) -> dict[str, Any]:
    """Start the run at `row` and read a batch, then `seeks` others. begun: time.time() when this process was started.

    Of each phase [seconds, seconds of the processor]: they differ by what the disk, and other processes, took.
    """
    marks = [(begun, 0.0), (time.time(), time.process_time())]
    import numpy as np

    from fmscale.config import Config, DataConfig, RunConfig, SourceConfig, StageConfig, TrainConfig
    from fmscale.corpus.loader import LocalLoader, RowReader
    from fmscale.corpus.sources import begin_ledger, open_run_data, resolve

    marks.append((time.time(), time.process_time()))
    tokens = float(ROWS * U)
    weights = {"web": 0.6, "books": 0.3, "code": 0.1}
    stages = [
        StageConfig(from_tokens=0.0, weights=weights),
        StageConfig(from_tokens=0.25 * tokens, weights={**weights, "code": 0.3}, curve="cosine"),
        StageConfig(from_tokens=0.5 * tokens, weights={**weights, "books": 0.6}),
        StageConfig(from_tokens=0.8 * tokens, weights={"web": 0.2, "books": 0.3, "code": 0.5}),
    ]
    sources = {name: SourceConfig(corpus=str(root / size / name), weight=weights[name]) for name in SHARDS}
    config = Config(
        run=RunConfig(name=f"{os.getpid()}", root=str(root / "runs")),
        data=DataConfig(sources=sources, stages=stages, seq_len=U, prefetch_batches=1),
        train=TrainConfig(global_batch=BATCH, micro_batch=BATCH),
    )
    config = resolve(config)
    begin_ledger(config)
    data = open_run_data(config)
    marks.append((time.time(), time.process_time()))
    loader = LocalLoader(config, data, 0)
    next(loader.batches(row))
    marks.append((time.time(), time.process_time()))
    loader.close()
    spans = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(marks)]
    state = {"rows": row, "ledger": data.ledger.to_json(), "order_fingerprint": data.order.fingerprint()}
    found: dict[str, Any] = {
        "all": [sum(column) for column in zip(*spans, strict=True)],
        "imports": [sum(column) for column in zip(*spans[:2], strict=True)],
        "opening": spans[2],
        "batch": spans[3],
        **memory(),
        "state_bytes": len(json.dumps(state)),
    }
    reader, rng = RowReader(data), np.random.default_rng(row)
    places = rng.integers(0, ROWS // BATCH, seeks) * BATCH
    batches = [np.arange(first, first + BATCH) for first in places]
    found["locate"] = [timed(lambda rows=rows: data.order.locate(rows)) for rows in batches]
    found["new"] = [timed(lambda rows=rows: reader.read(rows)) for rows in batches]
    found["again"] = [timed(lambda rows=rows: reader.read(rows)) for rows in batches[-1:] * seeks]
    found["after_seeks"] = memory()
    return found


def memory() -> dict[str, int]:
    """Most memory of this process so far, and what of it now is its own: neither mapped shards nor programs. In MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[key].split()[0]) >> 10 for name, key in (("peak_mb", "VmHWM"), ("own_mb", "RssAnon"))}


def timed(work: Callable[[], Any]) -> list[float]:
    """[seconds, seconds of the processor] of a call."""
    started = time.perf_counter(), time.process_time()
    work()
    return [time.perf_counter() - started[0], time.process_time() - started[1]]


# --------------------------------------------------------------------------------- the table


def fresh(root: Path, size: str, row: int, seeks: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.seek", "--probe", size, str(row), str(seeks), "--keep", str(root)]
    answer = subprocess.run([*command, "--begun", repr(time.time())], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def forget(root: Path) -> None:
    """Have the system drop the files' pages, so that the next reading is one of the disk."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(root: Path) -> Iterator[str]:
    runs: dict[tuple[str, float, bool], list[dict[str, Any]]] = {}
    for _ in range(FRESH):
        for size in ("tiny", "big"):
            for place in PLACES:
                for cold in (False, True) if size == "big" else (False,):
                    if cold:
                        forget(root)
                    row = int(place * ROWS) // BATCH * BATCH
                    runs.setdefault((size, place, cold), []).append(fresh(root, size, row))

    def of(key: tuple[str, float, bool], what: str, column: int = 0) -> float:
        return float(median(run[what][column] if isinstance(run[what], list) else run[what] for run in runs[key]))

    columns = ("all", "imports", "opening", "batch")
    yield "to the first batch of a fresh process, in ms (of these, of the processor)"
    yield f"{'':<38}" + "".join(f"{name:>16}" for name in columns)
    for key in runs:
        name = f"{key[0]}, at {key[1]:.0%}, {'from disk' if key[2] else 'page cache'}"
        cells = (f"{1e3 * of(key, each):.0f} ({1e3 * of(key, each, 1):.0f})" for each in columns)
        yield f"{name:<38}" + "".join(f"{cell:>16}" for cell in cells)
    yield "bar: < 1000 in all, independent of size and place"
    yield ""
    warm = [("big", place, False) for place in PLACES]
    for what, name in (("peak_mb", "most memory"), ("own_mb", "memory of its own, no mapped files")):
        extra = max(of(key, what) - of(("tiny", *key[1:]), what) for key in warm)
        yield f"{f'{name}, beyond that of tiny':<58}{extra:>8.0f} MB    bar: < 64"
    yield f"{'data state in a checkpoint':<58}{of(warm[1], 'state_bytes'):>8.0f} bytes bar: < 4096"
    yield ""
    yield "256 x 2048 at a random row, in a process that is warm, median in ms (of the processor); most"
    for size in ("tiny", "big"):
        found = fresh(root, size, 0, SEEKS)
        for what, name in (
            ("locate", "where the rows stand"),
            ("new", "read, each chunk for the first time: hashed"),
            ("again", "read again"),
        ):
            wall, processor = ([1e3 * each[column] for each in found[what]] for column in (0, 1))
            yield f"{f'{size}: {name}':<58}{median(wall):>8.1f} ({median(processor):.1f}); {max(wall):.1f}"
        yield f"{f'{size}: memory of its own after {SEEKS} seeks':<58}{found['after_seeks']['own_mb']:>8} MB"
    yield "bar: < 50"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder of the corpora, built if it is not there; left as it is")
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        size, row, seeks = arguments.probe
        print(json.dumps(probe(arguments.keep, size, int(row), arguments.begun, int(seeks))))
        return
    from benchmarks.machine import machine_line

    print(machine_line(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.keep or Path(folder)
        if not (root / "tiny" / "code").exists():
            print(f"# corpora built in {timed(lambda: build(root))[0]:.0f} s", flush=True)
        for text in measure(root):
            print(text, flush=True)


if __name__ == "__main__":
    main()
