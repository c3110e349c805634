"""Real runs for tests: `fmscale train` as a user starts it, watched and killed from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fmscale.observe import pids
from fmscale.observe.metrics import series

TINY = """
model: {d_model: 32, n_layers: 2, n_heads: 2, n_kv_heads: 1}
data: {seq_len: 64}
train: {steps: 16, global_batch: 8, micro_batch: 2}
schedule: {warmup_steps: 2}
checkpoint: {every_steps: 4}
eval: {every_steps: 6, rows: 16}
launch: {backend: torchrun, device: cpu, spares: 0}
logging: {wandb: {mode: disabled}}
"""

PATIENCE_S = 600.0
"""How long a run is waited for before a test gives up. Far more than it takes on two idle cores: a machine may have
other work; where it is the point of a test that something is quick, it measures that."""

ON_RAY = ["launch.backend=ray", "engine=zero", "parallel.dp=2", "launch.spares=1"]
ON_RAY += ["train.steps=160", "checkpoint.every_steps=25", "eval.every_steps=10"]
"""A run long enough to be killed in the middle of, whose readers are asked again at each evaluation."""


@dataclass
class Run:
    """One run directory below `root`, trained on `corpus`; `settings` are key=value arguments over `base`."""

    root: Path
    name: str
    corpus: Path | None
    """None: `base` names the sources."""
    settings: list[str] = field(default_factory=list)
    base: str = TINY
    """YAML."""
    process: subprocess.Popen[str] | None = None

    @property
    def directory(self) -> Path:
        return self.root / self.name

    def arguments(self, *more: str) -> list[str]:
        config = self.root / "tiny.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(self.base)
        place = [f"run.root={self.root}", f"run.name={self.name}"]
        place += [f"data.sources.words.corpus={self.corpus}"] if self.corpus else []
        return [str(config), *place, *self.settings, *more]

    def start(self, *more: str, env: dict[str, str] | None = None) -> None:
        """Start `fmscale train` in the background; its output goes to ROOT/NAME.log."""
        log = open(self.root / f"{self.name}.log", "a")  # noqa: SIM115 - the child's
        command = [sys.executable, "-m", "launcher.cli", "train", *self.arguments(*more)]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env={**os.environ, **(env or {})})

    def finish(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for it; its exit code."""
        assert self.process is not None, "not started"
        return self.process.wait(timeout_s)

    def train(self, *more: str, env: dict[str, str] | None = None, timeout_s: float = PATIENCE_S) -> None:
        """Train to the end; a failure shows the run's output."""
        self.start(*more, env=env)
        assert self.finish(timeout_s) == 0, self.output()

    def output(self) -> str:
        logs = [self.root / f"{self.name}.log", *sorted((self.directory / "logs").glob("*.log"))]
        return "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs if log.exists())

    def steps(self) -> list[dict[str, Any]]:
        return series(self.directory)

    def wait_for(self, what: Callable[[], Any], timeout_s: float = PATIENCE_S, pause_s: float = 0.02) -> None:
        """Until `what()` is true."""
        assert self.process is not None, "not started"
        deadline = time.monotonic() + timeout_s
        while not what():
            assert self.process.poll() is None, f"the run ended early\n{self.output()}"
            assert time.monotonic() < deadline, f"nothing after {timeout_s} s\n{self.output()}"
            time.sleep(pause_s)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: any(line["step"] >= step for line in _lines(self.directory / "metrics.jsonl")))

    def wait_for_steps(self, count: int, after_term: int) -> None:
        """Until terms later than `after_term` have recorded `count` steps."""
        file = self.directory / "metrics.jsonl"
        self.wait_for(lambda: sum(line["term"] > after_term for line in _lines(file)) >= count)

    def wait_until_stopped(self, rank: int) -> psutil.Process:
        """Until FAULTS=step.N/RANK:stop has stopped the rank; its process, to `resume`. So the run stands where a test
        wants it, however fast steps are."""
        self.wait_for(
            lambda: any(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in self.pids("rank", rank))
        )
        (pid,) = self.pids("rank", rank)
        return psutil.Process(pid)

    def last_line(self) -> dict[str, Any]:
        """Of metrics.jsonl."""
        return _lines(self.directory / "metrics.jsonl")[-1]

    def pids(self, role: str, rank: int | None = None) -> list[int]:
        """Living processes of the run by role."""
        return [
            entry["pid"]
            for entry in pids.read(self.directory)
            if entry["role"] == role and rank in (None, entry["rank"]) and pids.alive(entry)
        ]

    def kill(self, role: str, rank: int | None = None) -> None:
        """SIGKILL, from outside, as soon as there is one: the last may have been killed a moment ago."""
        if self.process is not None:
            self.wait_for(lambda: self.pids(role, rank))
        victims = self.pids(role, rank)
        assert victims, f"no living {role} {rank} in {pids.read(self.directory)}"
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    def kill_everything(self) -> None:
        """SIGKILL to every process in pids.json; all that they started follow, Ray's two agents some time later."""
        self.wait_for(lambda: all(self.pids(role) for role in ("supervisor", "driver", "rank", "reader")))
        entries = [entry for entry in pids.read(self.directory) if pids.alive(entry)]
        family = [child for entry in entries for child in psutil.Process(entry["pid"]).children(recursive=True)]
        family = [process for process in family if "Agent" not in process.name()]
        for entry in entries:
            os.kill(entry["pid"], signal.SIGKILL)
        assert self.process is not None, "not started"
        self.process.wait(10)
        _, left = psutil.wait_procs(family, timeout=20)
        assert not left, f"left behind: {left}"

    def leftovers(self) -> list[psutil.Process]:
        """Processes of this machine that belong to the run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("FMSCALE_RUN") == str(self.directory.resolve()):
                    found.append(process)
        return found


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def assert_same_curve(run: Run, reference: Run) -> None:
    """The same losses, gradient norms and batch hashes to the last bit, each step once."""
    keys = ("step", "rows", "tokens", "loss", "lr", "grad_norm", "batch_hash")
    ours, theirs = ([[line[key] for key in keys] for line in r.steps()] for r in (run, reference))
    assert ours == theirs
    assert [line[0] for line in ours] == list(range(1, len(ours) + 1))
