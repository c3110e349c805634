"""What packing costs and leaves: `python -m benchmarks.packing` from the root of the project.

Corpora of random documents with log-normal lengths (sigma 1.2) in chunks of 2^20, by four tasks. For rows and group
sizes: padding, cut documents, chunks that a block touches, speed of building; then the speed of reading. Speeds are
per second of CPU time of one core, so that a busy machine does not change them much.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.pack import GROUP_ROWS, pack
from fmscale.corpus.packing import Packed
from fmscale.corpus.packing_plan import PIECE_DTYPE, PLAN_FILE, plan_directory
from fmscale.corpus.shards import Corpus
from tests.corpora import document_corpus

TOKENS = 64_000_000


def make(path: Path, mean: int) -> Corpus:
    lengths = np.random.default_rng(7).lognormal(np.log(mean) - 1.2**2 / 2, 1.2, TOKENS // mean)
    tasks = np.array_split(np.maximum(1, lengths).astype(np.int64), 4)
    document_corpus(path, [task.tolist() for task in tasks], chunk_tokens=1 << 20)
    return Corpus.open(path)


def build(corpus: Corpus, row_tokens: int, group_rows: int) -> tuple[Packed, float]:
    """(plan, CPU seconds)"""
    shutil.rmtree(plan_directory(corpus, row_tokens), ignore_errors=True)
    started = time.process_time()
    return pack(corpus, row_tokens, group_rows=group_rows), time.process_time() - started


def chunks_touched(packed: Packed) -> float:
    """By a block, on average. The blocks' pieces follow their row bounds in plan.bin."""
    plan_file = plan_directory(packed.corpus, packed.row_tokens) / PLAN_FILE
    raw, at, touched = plan_file.read_bytes(), 0, []
    for _ in range(packed.blocks):
        bounds = np.frombuffer(raw, "<u4", packed.rows_per_block + 1, at)
        pieces = np.frombuffer(raw, PIECE_DTYPE, int(bounds[-1]), at + bounds.nbytes)
        touched.append(len(np.unique(pieces["chunk"])))
        at += bounds.nbytes + pieces.nbytes
    return float(np.mean(touched))


def reading(packed: Packed, rows: Sequence[tuple[int, int]], starts: bool) -> float:
    """M tokens per CPU second."""
    out, where = np.empty(packed.row_tokens + 1, np.uint16), np.empty(packed.row_tokens + 1, bool)
    started = time.process_time()
    tokens = sum(packed.read_row(block, row, out, where if starts else None) for block, row in rows)
    return tokens / (time.process_time() - started) / 1e6


def main() -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}, numpy {np.__version__}")
    print("mean tokens     U  group rows  padding  documents cut  by slicing  chunks/block  M docs/s  M tokens/s  plan")
    for mean in (100, 800, 5000):
        with tempfile.TemporaryDirectory() as directory:
            corpus = make(Path(directory) / "c", mean)
            for row_tokens in (2048, 8192):
                for group_rows in (512, GROUP_ROWS, 8192):
                    packed, seconds = build(corpus, row_tokens, group_rows)
                    (plan,) = packed.plans
                    cut = (plan.cut_long + plan.cut_at_ends) / plan.documents
                    padding = plan.padding_tokens / (plan.blocks * plan.block_tokens)
                    print(
                        f"{mean:11,}{row_tokens:6}{group_rows:12}{padding:9.3%}{cut:15.3%}"
                        f"{plan.cut_by_slicing / plan.documents:12.3%}{chunks_touched(packed):14.1f}"
                        f"{plan.documents / seconds / 1e6:10.2f}{plan.tokens / seconds / 1e6:12.0f}"
                        f"{plan.plan_bytes / plan.tokens / 2:6.1%}",
                        flush=True,
                    )
            packed, _ = build(corpus, 2048, GROUP_ROWS)
            rng = np.random.default_rng(0)
            in_order = [(block, row) for block in range(packed.blocks) for row in range(packed.rows_per_block)]
            shuffled = [in_order[i] for i in rng.permutation(len(in_order))]
            reading(packed, in_order, False)
            for name, rows in (("in order", in_order), ("shuffled", shuffled)):
                rates = [max(reading(packed, rows, starts) for _ in range(5)) for starts in (False, True)]
                print(f"read_row, U 2048, {name}: {rates[0]:.0f} M tokens/s, with starts {rates[1]:.0f}", flush=True)


if __name__ == "__main__":
    main()
