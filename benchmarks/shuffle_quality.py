"""Does a window shuffle train as well as a full one? `make bench-shuffle`; about 45 minutes on two quiet cores.

The demo's model and steps, one rank and one thread a run, two runs at a time, on as much of the demo's text as these
steps read once: so all runs of a seed train the same rows, and differ in their order alone. (Of a corpus that is not
read to its end a window shuffle sees fewer documents, each whole; a full one sees parts of all.) A scale model of a
large run: chunks are so small (4,096 tokens) that the default window of 256 of them is a third of the corpus. For each
seed (initial weights and order): rows shuffled over the whole corpus (full), in windows of 256 chunks (window), and for
as many seeds as `--narrow-seeds` says of 64 (narrow). Rows are 2,048 tokens, 2 a step, so that a row holds about a
document, as rows of a large run do (a document of this text has some 3,400 tokens, one of a web crawl 1,000).
`--seq-len 256`, the demo's own, is the hard test: documents of 14 rows, one a chunk, so that a window holds
some 280 documents where one of a large run holds 10^5, and each of them 14 times.
Compared is the loss on all held-out text after the last step, seed by seed. A run that was cut off goes on, a finished
one counts.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.machine import machine_line, precision_settings
from fmscale.config import DataConfig
from fmscale.corpus.manifest import Manifest
from fmscale.observe.metrics import eval_series
from launcher.demo import CONFIG, Paths, Stages, make_demo_corpus
from launcher.ray_cluster import private_environment

MEGABYTES = 10
"""Of text, of which the training part is about 700 steps."""
STEP_TOKENS = 16 * 256
"""configs/demo.yaml"""
T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, two-sided 95 %, by degrees of freedom."""


def train(out: Path, corpus: Path, name: str, window: int, seed: int, steps: int, seq_len: int) -> float:
    """Held-out loss after the last step."""
    settings = {
        "data.seq_len": seq_len,
        "train.global_batch": STEP_TOKENS // seq_len,
        "train.micro_batch": min(8, STEP_TOKENS // seq_len),
        "run.root": out,
        "run.name": f"{name}-{seed}",
        "data.sources.python.corpus": corpus,
        "data.window_chunks": window,
        "data.seed": seed,
        "train.seed": seed,
        "train.steps": steps,
        "schedule.warmup_steps": min(40, steps // 2),
        "engine": "plain",
        "parallel.dp": 1,
        "launch.backend": "torchrun",
        "checkpoint.every_steps": steps,
        "eval.every_steps": steps,
        "eval.rows": 0,
        "logging.wandb.mode": "disabled",
        "logging.console_every_steps": steps,
    }
    command = [sys.executable, "-m", "launcher.cli", "train", str(CONFIG), *(f"{k}={v}" for k, v in settings.items())]
    command += precision_settings()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    last = eval_series(out / f"{name}-{seed}")[-1]
    assert last["step"] == steps, f"{name}-{seed} ended at step {last['step']} of {steps}"
    print(f"{name:<8} seed {seed}   held-out loss {last['heldout_loss']:.4f}", flush=True)
    return float(last["heldout_loss"])


def compare(name: str, losses: Sequence[float], full: Sequence[float]) -> None:
    """Paired differences over seeds, with the 95 % interval of their mean."""
    differences = [a - b for a, b in zip(losses, full, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(n)
    reach = T_95[n - 1] * error
    each = " ".join(f"{d:+.4f}" for d in differences)
    interval = f"95 % {mean - reach:+.4f} to {mean + reach:+.4f}"
    print(f"{name} - full: {each}   mean {mean:+.4f}, standard error {error:.4f}, {interval}")
    spread = statistics.stdev(full)
    verdict = "within the noise of" if mean - reach <= 0 else "WORSE than"
    print(f"{name}: {verdict} full shuffle, whose losses have a standard deviation of {spread:.4f} over seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-shuffle"))
    parser.add_argument("--steps", type=int, default=0, help="0: one epoch, about 700")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--from-seed", type=int, default=0, help="the first one, where another run has those before")
    parser.add_argument("--window", type=int, default=DataConfig().window_chunks, help="chunks")
    parser.add_argument("--narrow", type=int, default=64, help="chunks")
    parser.add_argument("--narrow-seeds", type=int, default=5)
    parser.add_argument("--seq-len", type=int, default=2048, help="256: the demo's, a fourteenth of a document")
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    print(machine_line())
    paths = Paths(data=options.out / "demo-data", run=options.out / "none")
    with private_environment():
        stages = Stages(paths.data / "stages.json")
        make_demo_corpus(paths, stages, MEGABYTES, chunk_tokens=4096, heldout_chunk_tokens=4096)
    split = Manifest.load(paths.corpus).split("train")
    steps = options.steps or split.tokens // STEP_TOKENS
    windows = {"full": split.chunks, "window": options.window, "narrow": options.narrow}
    epochs = steps * STEP_TOKENS / split.tokens
    print(f"\n{split.chunks} chunks of {split.chunk_tokens:,} tokens, windows of {windows} chunks")
    print(f"{steps} steps of {STEP_TOKENS:,} tokens are {epochs:.2f} epochs", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    seeds = range(options.from_seed, options.seeds)
    jobs = [(name, seed) for seed in seeds for name in ("window", "full")]
    jobs += [("narrow", seed) for seed in seeds[: options.narrow_seeds]]

    def held_out(job: tuple[str, int]) -> float:
        name, seed = job
        return train(options.out, paths.corpus, name, windows[name], seed, steps, options.seq_len)

    with ThreadPoolExecutor(options.at_once) as pool:
        losses = pool.map(held_out, jobs)
        found = dict(zip(jobs, losses, strict=True))
    print()
    for name, count in (("window", options.seeds), ("narrow", options.narrow_seeds)):
        if len(own := seeds[:count]) > 1:
            compare(name, [found[name, s] for s in own], [found["full", s] for s in own])


if __name__ == "__main__":
    main()
