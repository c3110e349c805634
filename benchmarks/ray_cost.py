"""What Ray costs a training run: `make bench-ray-cost`; about 15 minutes on two quiet cores.

The demo's model, two ranks, the same steps by turns under torchrun and on Ray, each turn a run of its own; which of the
two goes first alternates. Compared are the median step times of each pair, after the first steps. Beside it the
processor time of Ray's own processes (control process, raylet, agents, and our driver) while the ranks train: it does
not grow with the ranks' work, so on a node of 16 cores it is an eighth of what it is of 2.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.demo_corpus import demo_corpus
from benchmarks.machine import machine_line, precision_settings
from benchmarks.real_vs_synthetic import ratio_interval
from fmscale.observe import pids
from fmscale.observe.metrics import series
from launcher.demo import CONFIG

BAR = 0.05
SKIPPED = 5
"""First steps of a run, in which memory is still being had."""


def train(out: Path, corpus: Path, backend: str, name: str, steps: int) -> tuple[float, float]:
    """(median step time in seconds, processor time of what is not a rank over wall time, while the ranks train)"""
    settings = [f"run.root={out}", f"run.name={name}", f"data.sources.python.corpus={corpus}", f"train.steps={steps}"]
    settings += ["checkpoint.every_steps=0", "eval.every_steps=0", "launch.spares=0", f"launch.backend={backend}"]
    command = [sys.executable, "-m", "launcher.cli", "train", str(CONFIG), *settings, *precision_settings()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run_dir, spent, began = out / name, {}, 0.0
    first: dict[int, float] = {}
    while process.poll() is None:
        time.sleep(0.5)
        done = len(series(run_dir)) if run_dir.exists() else 0
        if not SKIPPED <= done < steps - 1:  # what starts and what takes leave is no training
            continue
        ranks = {entry["pid"] for entry in pids.read(run_dir) if entry["role"] == "rank"}
        began = began or time.monotonic()
        for child in psutil.Process().children(recursive=True):
            try:
                times = child.cpu_times()
            except psutil.Error:
                continue
            if child.pid not in ranks:
                first.setdefault(child.pid, times.user + times.system)
                spent[child.pid] = (times.user + times.system, time.monotonic())
    assert process.returncode == 0, f"{run_dir} ended with {process.returncode}"
    seconds = [line["step_time_s"] for line in series(run_dir)][SKIPPED:]
    wall = max((at for _, at in spent.values()), default=began) - began
    assert wall > 1.0, f"{run_dir} was seen training for {wall:.1f} s: give more steps"
    return statistics.median(seconds), sum(used - first[pid] for pid, (used, _) in spent.items()) / wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-ray-cost"))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=80)
    options = parser.parse_args()
    print(machine_line(), flush=True)
    corpus = demo_corpus(options.out, 4)
    stamp = time.strftime("%H%M%S")
    found: dict[str, list[tuple[float, float]]] = {"torchrun": [], "ray": []}
    for pair in range(options.pairs):
        for backend in sorted(found, reverse=pair % 2 == 1):
            found[backend].append(train(options.out, corpus, backend, f"{backend}-{stamp}-{pair}", options.steps))
        step_ms = {backend: times[-1][0] * 1e3 for backend, times in found.items()}
        print(f"pair {pair}: torchrun {step_ms['torchrun']:.1f} ms a step, Ray {step_ms['ray']:.1f} ms", flush=True)
    ratios = np.array([ray[0] / torchrun[0] for ray, torchrun in zip(found["ray"], found["torchrun"], strict=True)])
    median, low, high = ratio_interval(ratios)
    print(f"\nstep time on Ray {median - 1:+.1%} of torchrun's (95 % {low - 1:+.1%} to {high - 1:+.1%}; bar +5 %)")
    for backend, times in found.items():
        share = statistics.median(used for _, used in times)
        print(f"{backend:<9} what is no rank uses {share:.1%} of a core ({share / 16:.2%} of a node of 16)")
    return 0 if median <= 1 + BAR else 1


if __name__ == "__main__":
    sys.exit(main())
