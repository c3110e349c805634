"""A hundred random kills of one run: `make soak-kill`; about 25 minutes, and longer beside other work.

Ranks (some of them in the middle of a save), readers, the driver, the supervisor and everything at once get SIGKILL,
at seeded random steps. The command is started again where nobody is left to do it. Afterwards the series of losses,
gradient norms and batch hashes is compared with that of an undisturbed run, number for number, and each row must have
been trained once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.machine import machine_line
from fmscale.observe.events import read_events
from tests.faults.soak import Kill, soak
from tests.runs import ON_RAY, Run, assert_same_curve
from tests.word_corpora import corpus, texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="0: 25 a kill")
    options = parser.parse_args()
    print(f"{machine_line()}\nseed {options.seed}", flush=True)
    steps = options.steps or 25 * options.kills
    settings = [*ON_RAY, f"train.steps={steps}", "checkpoint.every_steps=10", "eval.every_steps=100"]
    shared = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus(root / "words", texts(400), texts(40, first=1000), chunk_tokens=1024)
        reference, run = (Run(root, name, root / "words", settings) for name in ("reference", "killed"))
        reference.train(timeout_s=1800)
        kills = soak(run, options.kills, steps, options.seed, lambda kill: print(kill, flush=True))
        assert_same_curve(run, reference)
        rows = [line["rows"] for line in run.steps()]
        assert rows == [8 * step for step in range(1, steps + 1)], "a row was lost or trained twice"
        assert run.leftovers() == [], run.leftovers()
        counts = [event["kind"] for event in read_events(run.directory)]
    print()
    by_victim: dict[str, list[Kill]] = defaultdict(list)
    for kill in kills:
        by_victim[kill.victim].append(kill)
    for victim, some in by_victim.items():
        median = statistics.median(kill.seconds for kill in some)
        print(f"{victim:<16} {len(some):>3} kills, next step after {median:.2f} s (median)")
    print(f"terms {counts.count('term')}, starts {counts.count('start')}, checkpoints {counts.count('checkpoint')}")
    print(f"left in /dev/shm: {', '.join(set(os.listdir('/dev/shm')) - shared) or 'nothing'}")
    print(f"{steps} steps: losses, gradient norms and batch hashes are those of the undisturbed run; each row once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
