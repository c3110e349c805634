"""From kill -9 of a rank to the next finished step: `make bench-recovery`; about 15 minutes.

The demo's model on the demo's text, two ranks of ZeRO-1 over gloo, killed from outside by SIGKILL at random moments.
The clock starts with the kill and stops when rank 0 has appended the first line of the new term to metrics.jsonl, which
is after that step's update. Arms: with a warm spare; without one (launch.spares=0, the ranks' cluster lives); the whole
driver killed, so that Ray starts anew; under torchrun, with the next ranks ready and without. Beside each: how long
until the death was noticed (the line in events.jsonl). Then a rank that is stopped (SIGSTOP) under launch.hang_s=5.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from benchmarks.demo_corpus import demo_corpus
from benchmarks.machine import machine_line, precision_settings
from fmscale.observe import pids
from fmscale.observe.events import read_events, read_lines
from launcher.demo import CONFIG
from launcher.standby import AFTER_S

HANG_S = 5.0


class Training:
    """A run of the demo's model that never ends by itself."""

    def __init__(self, out: Path, corpus: Path, name: str, *settings: str) -> None:
        self.run_dir = out / name
        place = [f"run.root={out}", f"run.name={name}", f"data.sources.python.corpus={corpus}", "train.steps=1000000"]
        place += ["checkpoint.every_steps=25", "eval.every_steps=0", "launch.max_restarts=1000"]
        place += precision_settings()
        command = [sys.executable, "-m", "launcher.cli", "train", str(CONFIG), *place, *settings]
        log = (out / f"{name}.log").open("w")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def term(self) -> int:
        """Of the newest step; 0 before the first."""
        lines = read_lines(self.run_dir / "metrics.jsonl") if self.run_dir.exists() else []
        return int(lines[-1]["term"]) if lines else 0

    def step_s(self) -> float:
        """What the newest step took: part of every recovery, and the machine's matter."""
        return float(read_lines(self.run_dir / "metrics.jsonl")[-1]["step_time_s"])

    def wait(self, term: int) -> float:
        """Until a step of a later term than `term` is done; the time."""
        while True:
            assert self.process.poll() is None, f"the run ended: {self.run_dir}"
            if self.term() > term:
                return time.time()
            time.sleep(0.01)

    def pid(self, role: str, rank: int) -> int:
        found = [e["pid"] for e in pids.read(self.run_dir) if (e["role"], e["rank"]) == (role, rank) and pids.alive(e)]
        return int(found[-1])

    def noticed(self, since: float) -> float:
        """When the first hang, death or incident after `since` was written down."""
        kinds = ("hang", "noticed", "incident")
        times = [datetime.fromisoformat(e["time"]).timestamp() for e in read_events(self.run_dir) if e["kind"] in kinds]
        return next(at for at in times if at >= since - 0.001)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for entry in pids.read(self.run_dir):
            if pids.alive(entry):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(entry["pid"], signal.SIGKILL)


@contextlib.contextmanager
def training(out: Path, corpus: Path, name: str, *settings: str) -> Iterator[Training]:
    run = Training(out, corpus, name, *settings)
    try:
        run.wait(0)
        yield run
    finally:
        run.stop()


def arm(
    title: str, run: Training, role: str, times: int, rest_s: float, draw: random.Random, number: int = signal.SIGKILL
) -> None:
    """Kill `times` times, at random moments at least `rest_s` apart, and print what it cost."""
    recovered, noticed, steps = [], [], []
    for _ in range(times):
        time.sleep(rest_s + draw.uniform(0.0, 2.0))
        term, rank = run.term(), draw.randrange(2) if role == "rank" else 0
        victim = run.pid(role, rank)
        at = time.time()
        os.kill(victim, number)
        recovered.append(run.wait(term) - at)
        noticed.append(run.noticed(at) - at)
        steps.append(run.step_s())
    median, longest = statistics.median(recovered), max(recovered)
    print(f"{title:<40} next step after {median:6.2f} s (median of {times}; {min(recovered):.2f} to {longest:.2f})")
    told, step = statistics.median(noticed), statistics.median(steps)
    print(f"{'':<40} noticed after {told:.2f} s (longest {max(noticed):.2f}); that step itself took {step:.2f} s")
    print("    each: " + " ".join(f"{seconds:.2f}" for seconds in sorted(recovered)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-recovery"))
    parser.add_argument("--times", type=int, default=20, help="kills with a warm spare")
    parser.add_argument("--cold", type=int, default=5, help="kills in each other arm")
    parser.add_argument("--only", choices=["ray", "torchrun", "hangs"], help="these arms alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine_line(), flush=True)
    corpus = demo_corpus(options.out, 4)
    out, draw = options.out, random.Random(options.seed)
    stamp = time.strftime("%H%M%S")
    print()
    if options.only in (None, "ray"):
        with training(out, corpus, f"warm-{stamp}") as run:
            arm("rank killed, a spare is warm", run, "rank", options.times, 9.0, draw)
            arm("driver killed, Ray starts anew", run, "driver", options.cold, 3.0, draw)
        with training(out, corpus, f"cold-{stamp}", "launch.spares=0") as run:
            arm("rank killed, no spare", run, "rank", options.cold, 3.0, draw)
    if options.only in (None, "torchrun"):
        torchrun = "launch.backend=torchrun"
        with training(out, corpus, f"torchrun-{stamp}", torchrun) as run:
            arm("under torchrun, the next ranks are ready", run, "rank", options.cold, AFTER_S + 20.0, draw)
            ahead = [event["ahead_s"] for event in read_events(run.run_dir) if event["kind"] == "start"][1:]
            print("    started ahead: " + " ".join(f"{seconds:.0f}" for seconds in ahead) + " s", flush=True)
        with training(out, corpus, f"torchrun-cold-{stamp}", torchrun, "launch.spares=0") as run:
            arm("under torchrun, launch.spares=0", run, "rank", options.cold, 3.0, draw)
    if options.only in (None, "hangs"):
        # Saved often: twice the same hang at the same step ends a run, as it should.
        with training(out, corpus, f"hang-{stamp}", f"launch.hang_s={HANG_S}", "checkpoint.every_steps=3") as run:
            arm(f"rank stopped, launch.hang_s={HANG_S:g}", run, "rank", options.cold, 12.0, draw, signal.SIGSTOP)


if __name__ == "__main__":
    main()
