"""Proof by twin: a run that lost a rank, compared with one that did not, started from the same checkpoint.

killer = RankKiller(config, step); killer.start()     # kill -9 of a rank of a real run, once it has made that step
twin = fork(config, commit, "demo-twin")              # the same run as it stood at that checkpoint
compare(run_dir, twin.run_dir, last=60)               # equal to the last bit, or FmscaleError
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fmscale import durable
from fmscale.config import Config, from_yaml, to_yaml
from fmscale.corpus.ledger import FILE_NAME
from fmscale.errors import FmscaleError
from fmscale.observe import pids
from fmscale.observe.metrics import last_step, series
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import Commit

SAME = ("rows", "batch_hash", "lr", "loss", "grad_norm")
"""What two series must agree on, each number to its last bit."""
BATCHES = SAME[:3]
"""What they must agree on where kernels are not deterministic: GPUs without `train.deterministic`."""


class RankKiller(threading.Thread):
    """Sends SIGKILL to the highest rank of a run on this machine once the run has made `step`; then it is done."""

    def __init__(self, config: Config, step: int) -> None:
        super().__init__(name="rank-killer", daemon=True)
        self._config, self._step = config, step
        self._over = threading.Event()
        self.killed_at: int | None = None
        """Step after which the rank died; None: it did not."""

    def run(self) -> None:
        run_dir, rank = self._config.run_dir, self._config.world_size - 1
        while not self._over.wait(0.05):
            if (step := last_step(run_dir)) < self._step:
                continue
            for entry in pids.read(run_dir):
                if (entry["role"], entry["rank"]) == ("rank", rank) and pids.is_here(entry) and pids.alive(entry):
                    os.kill(entry["pid"], signal.SIGKILL)
                    print(
                        f"{time.strftime('%H:%M:%S', time.gmtime())} kill -9 {entry['pid']} (rank {rank})", flush=True
                    )
                    self.killed_at = step
                    return

    def stop(self) -> None:
        self._over.set()
        self.join()


def fork_point(config: Config, last: int) -> Commit:
    """The newest checkpoint that the run has made at least `last` steps after. Raises FmscaleError without one."""
    commits = CheckpointStore(config.run_dir / "checkpoints").candidates(lambda text: None)
    commit = next((commit for commit in commits if commit.step <= config.train.steps - last), None)
    if commit is None:
        raise FmscaleError(
            "no checkpoint is left that a twin could start from",
            expected=f"one of step {config.train.steps - last} or before",
            found="only newer ones, or none",
            do="keep more of them (checkpoint.keep); the demo: `make demo FRESH=1`",
        )
    return commit


def fork(config: Config, commit: Commit, name: str) -> Config:
    """A run directory `name` beside that of `config`, as the run stood at `commit`; the settings to train it with.

    Replaces one that is there: a fork is a copy, and cheap to make again.
    """
    settings = from_yaml((config.run_dir / "config.yaml").read_text())
    twin = replace(settings, run=replace(settings.run, name=name))
    source, target = config.run_dir, twin.run_dir
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source / "lease", target / "lease", ignore=shutil.ignore_patterns("lock"))
    shutil.copytree(source / "checkpoints" / commit.name, target / "checkpoints" / commit.name)
    shutil.copy2(source / FILE_NAME, target / FILE_NAME)
    durable.replace(target / "config.yaml", to_yaml(twin).encode())
    return twin


def compare(run_dir: Path, twin_dir: Path, last: int, keys: Sequence[str] = SAME) -> Sequence[int]:
    """The last `last` steps, which both runs have made alike. Raises FmscaleError for the first that differs."""
    ours, theirs = series(run_dir)[-last:], series(twin_dir)[-last:]
    steps = [line["step"] for line in ours]
    if steps != [line["step"] for line in theirs] or len(steps) != last:
        raise FmscaleError(
            "a killed run and its undisturbed twin did not make the same steps",
            expected=f"the same {last} last steps",
            found=f"{_span(ours)} in {run_dir}, {_span(theirs)} in {twin_dir}",
            do="look at both runs' events.jsonl; `make demo FRESH=1` starts over",
        )
    for one, other in zip(ours, theirs, strict=True):
        for key in keys:
            if one[key] != other[key]:
                raise FmscaleError(
                    f"a killed run and its undisturbed twin differ at step {one['step']}",
                    expected=f"{key} {other[key]} (in {twin_dir})",
                    found=f"{one[key]} (in {run_dir})",
                    do="please report it with both runs' metrics.jsonl and snapshot.json",
                )
    return steps


def _span(lines: list[dict[str, object]]) -> str:
    return f"steps {lines[0]['step']} to {lines[-1]['step']}" if lines else "none"
