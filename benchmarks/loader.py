"""Loaders side by side, on the same rows and cores: `make bench-loader`; about 15 minutes, 3 GB below runs/.

Each contender is a process of its own (`contender.py`), in the project's environment or the peers'
(benchmarks/peers/requirements.txt). All take turns, there and back, `--repeat` times; a figure is the median of these.
First the loaders in one process on one core, then those that hand over rows through other processes, on all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contract import CHUNK_TOKENS, CHUNKS
from benchmarks.machine import machine_line
from fmscale.corpus.shards import Corpus
from fmscale.errors import DataError
from tests.corpora import make_corpus


class Contender(NamedTuple):
    label: str
    name: str
    """Module below benchmarks, and its function."""

    @property
    def is_peer(self) -> bool:
        return self.name.startswith("peers.")

    @property
    def directory(self) -> str:
        return self.name.partition(":")[0].rpartition(".")[2]


IN_PROCESS = (
    Contender("fmscale LocalLoader", "ours:epochs"),
    Contender("memmap, random rows (no format)", "ceiling:epochs"),
    Contender("memmap, uint16 left as it is", "ceiling:epochs_uint16"),
    Contender("litdata TokensLoader, raw", "peers.litdata:epochs"),
    Contender("litdata StreamingDataLoader", "peers.litdata:epochs_dataloader"),
    Contender("HF datasets Arrow, mapped", "peers.huggingface:epochs"),
    Contender("HF datasets Parquet, streamed", "peers.huggingface:epochs_streaming"),
    Contender("webdataset", "peers.webdataset:epochs"),
    Contender("Grain ArrayRecord", "peers.grain:epochs"),
    Contender("Grain ArrayRecord, 2 threads", "peers.grain:epochs_threads"),
    Contender("mosaicml-streaming MDS", "peers.mosaic:epochs"),
    Contender("Megatron-Energon", "peers.energon:epochs"),
)
THROUGH_PROCESSES = (
    Contender("fmscale RayLoader, 1 reader", "ours:epochs_1_reader"),
    Contender("fmscale RayLoader, 2 readers", "ours:epochs_2_readers"),
    Contender("bare Ray actor, 2 MB a call", "ceiling:epochs_actor"),
    Contender("Ray Data read_numpy, shuffled", "peers.ray_data:epochs"),
    Contender("Ray Data read_numpy, in order", "peers.ray_data:epochs_unshuffled"),
    Contender("litdata, 2 workers", "peers.litdata:epochs_2_workers"),
    Contender("mosaicml-streaming, 2 workers", "peers.mosaic:epochs_2_workers"),
)


def make_tokens(out: Path) -> None:
    """100 M random tokens: our corpus in out/ours, and the same in out/tokens.npy for all others."""
    if (out / "tokens.npy").exists() and readable(out / "ours"):
        return
    shutil.rmtree(out / "ours", ignore_errors=True)
    make_corpus(out / "ours", chunks=CHUNKS, heldout=1, chunk_tokens=CHUNK_TOKENS, pieces=50_000)
    corpus = Corpus.open(out / "ours")
    chunks = [corpus.tokens(chunk)[:CHUNK_TOKENS] for chunk in range(CHUNKS)]
    np.save(out / "tokens.tmp.npy", np.concatenate([*chunks, corpus.tokens(CHUNKS - 1)[CHUNK_TOKENS:]]))
    os.replace(out / "tokens.tmp.npy", out / "tokens.npy")


def readable(corpus: Path) -> bool:
    """Whether there is a corpus of this version."""
    try:
        return Corpus.open(corpus).chunks == CHUNKS
    except DataError:
        return False


def run(contender: Contender, out: Path, python: str, *arguments: str) -> dict[str, Any] | str:
    """What the contender's process said, or the last line of its error."""
    directory = out / contender.directory
    command = [python, "-W", "ignore", "-m", "benchmarks.contender", contender.name, str(directory), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return "no end within 600 s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and (lines or "--prepare" in arguments):
        return dict(json.loads(lines[-1])) if lines else {}
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def prepare(contenders: Sequence[Contender], out: Path, python: str) -> None:
    for contender in {contender.directory: contender for contender in contenders if contender.is_peer}.values():
        done = out / f"{contender.directory}.prepared"
        if not done.exists():
            print(f"preparing {contender.directory}", file=sys.stderr, flush=True)
            answer = run(contender, out, python, "--prepare")
            if isinstance(answer, str):
                print(f"# {contender.directory}: cannot be prepared: {answer}")
            else:
                done.touch()


def compare(title: str, contenders: Sequence[Contender], options: argparse.Namespace, core: int) -> None:
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    failures = {}
    for repetition in range(options.repeat):
        for contender in contenders[:: -1 if repetition % 2 else 1]:
            python = options.peers if contender.is_peer else sys.executable
            limits = ("--seconds", str(options.seconds), "--core", str(core))
            answer = run(contender, options.out, python, *limits)
            if isinstance(answer, str):
                failures[contender.label] = answer
            else:
                results[contender.label].append(answer)
    print(f"\n{title}")
    own = "per CPU s" if core >= 0 else ""  # elsewhere most of the work is not in the process that is measured
    print(f"{'':<34}{'first epoch':>22}{'later epochs':>24}   {'ours is':>8}   {'first batch':>11}   exact{own:>12}")
    ours = median(results[contenders[0].label], "steady")
    for label in (contender.label for contender in contenders):
        if not results[label]:
            print(f"{label:<34}failed: {failures.get(label, 'not run')}")
            continue
        steady, exact = median(results[label], "steady"), {result["exact"] for result in results[label]} - {None}
        first = median(results[label], "first_batch_s")
        print(
            f"{label:<34}{spread(results[label], 'first_epoch'):>22}{spread(results[label], 'steady'):>24}   "
            f"{ours / steady if steady else float('nan'):>6.2f} x   {first:>9.2f} s   "
            f"{'yes' if exact == {True} else 'NO' if exact else '-':>5}"
            + (f"{median(results[label], 'per_cpu_s'):>12.1f}" if own else ""),
            flush=True,
        )


def median(results: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median([float(result[key]) for result in results] or [float("nan")])


def spread(results: Sequence[dict[str, Any]], key: str) -> str:
    values = [float(result[key]) for result in results]
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def versions(python: str) -> str:
    pins = Path("benchmarks/peers/requirements.txt").read_text().splitlines()
    names = [pin.partition("==")[0].partition("[")[0] for pin in pins if "==" in pin] + ["numpy"]
    code = f"from importlib.metadata import version\nprint(*(f'{{n}} {{version(n)}}' for n in {names!r}), sep=', ')"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-loader"))
    parser.add_argument("--peers", default=".venv-bench/bin/python", help="Python of the peers' environment")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each process")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="labels that contain this, and ours")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    make_tokens(options.out)
    chosen = [
        [c for i, c in enumerate(group) if i == 0 or options.only.lower() in c.label.lower()]
        for group in (IN_PROCESS, THROUGH_PROCESSES)
    ]
    print(machine_line())
    print(f"# peers: {versions(options.peers)}")
    print(
        f"# ours: numpy {np.__version__}; {CHUNKS * CHUNK_TOKENS / 1e6:.1f} M tokens, rows of 2048 + 1, batches of 256"
    )
    print(f"# M tokens/s at the consumer: median (least-most) of {options.repeat}; {options.seconds:g} s a process")
    print("# per CPU s: M tokens per second of processor time, what others on the machine hardly change")
    print("# exact: each finished epoch had each row once; -: no epoch was finished in that time")
    prepare([*chosen[0], *chosen[1]], options.out, options.peers)
    core = max(os.sched_getaffinity(0))
    compare(f"in one process, on core {core} alone", chosen[0], options, core)
    compare(f"through other processes, {len(os.sched_getaffinity(0))} cores", chosen[1], options, -1)


if __name__ == "__main__":
    main()
