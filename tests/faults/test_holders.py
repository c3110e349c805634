"""One holder at a time: who is refused, who is taken over, and what an old holder that wakes up can still do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fmscale.observe.metrics import read_lines
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from tests.runs import ON_RAY, PATIENCE_S, Run, assert_same_curve

pytestmark = pytest.mark.processes

SMALL = ["train.steps=60", "checkpoint.every_steps=10", "eval.every_steps=0", "parallel.dp=2", "engine=zero"]


def command(run: Run, *more: str) -> list[str]:
    return [sys.executable, "-m", "launcher.cli", "train", *run.arguments(*more)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "settings", "step"),
    [("torchrun", SMALL, 25), ("ray", ON_RAY, 60)],
)
def test_a_second_launch_is_refused_and_a_killed_supervisor_is_followed_at_once(
    tmp_path: Path, runs_root: Path, words: Path, backend: str, settings: list[str], step: int
) -> None:
    """F36, F45, and F46: ports in use and what dead processes left change nothing."""
    reference = Run(runs_root, f"undisturbed-{backend}", words, settings)
    reference.train()
    run = Run(tmp_path, "held", words, [*settings, f"launch.backend={backend}"])
    run.start(env={"FAULTS": f"step.{step + 1}/0:stop"})  # so that it is not over before the second one asks
    run.wait_for_step(step)
    moved = time.monotonic()
    run.wait_until_stopped(0)
    assert run.process is not None
    second = subprocess.run(command(run), capture_output=True, text=True)
    assert second.returncode == 5
    assert f"process {run.process.pid} on {socket.gethostname()}, since 20" in second.stderr
    age = re.search(r"its ranks last moved (\d+) s ago", second.stderr)
    assert age is not None
    assert int(age[1]) <= time.monotonic() - moved + 1
    ranks = run.pids("rank")
    run.process.kill()
    killed = time.monotonic()
    run.process.wait()
    while any(psutil.pid_exists(pid) for pid in ranks):
        assert time.monotonic() - killed < 10, "ranks outlive their supervisor"
        time.sleep(0.05)
    print(f"ranks were gone {time.monotonic() - killed:.2f} s after their supervisor")
    stale = {"rank": 0, "incarnation": "x", "host": socket.gethostname(), "pid": os.getpid(), "started": -1.0}
    line = json.dumps({"count": 1, "step": 10**6, "phase": "step", "first": 1, **stale})
    (run.directory / "heartbeats" / "rank-00000").write_text(line)
    (run.directory / "stop-request").write_text(json.dumps({"incarnation": "x", "reason": "long ago"}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run.train(env={"MASTER_PORT": str(taken.getsockname()[1])})
    assert_same_curve(run, reference)
    assert run.leftovers() == []


@pytest.mark.slow
def test_a_holder_that_wakes_up_after_it_was_taken_over_does_no_harm(
    tmp_path: Path, runs_root: Path, words: Path
) -> None:
    """F37. Under the user's own torchrun, so that the new supervisor's sweep does not find the old processes (as it
    would not on another host): stopped, taken over, woken up, their lines are ignored and their save is refused.
    """
    reference = Run(runs_root, "never-taken", words, SMALL)
    reference.train()
    run = Run(tmp_path, "zombie", words, SMALL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    with (tmp_path / "old.log").open("w") as log:
        old = subprocess.Popen([*torchrun, "launcher.cli", *command(run)[3:]], stdout=log, stderr=log)
    run.process = old  # type: ignore[assignment]
    run.wait_for_step(14)
    family = [old.pid, *(child.pid for child in psutil.Process(old.pid).children(recursive=True))]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    at = len(read_lines(run.directory / "metrics.jsonl"))
    assert at < 55, "it was stopped too late to be of use"
    refused = subprocess.run(command(run), capture_output=True, text=True)
    assert refused.returncode == 5
    run.start("--take-over")
    assert run.finish() == 0, run.output()
    assert_same_curve(run, reference)
    for pid in reversed(family):
        os.kill(pid, signal.SIGCONT)
    assert old.wait(PATIENCE_S) != 0
    said = (tmp_path / "old.log").read_text()
    assert "term 1 may not write checkpoints of this run" in said
    zombie = [line for line in read_lines(run.directory / "metrics.jsonl")[at:] if line["term"] == 1]
    assert zombie, "it wrote on, or this test shows nothing"
    assert_same_curve(run, reference)
    commits = CheckpointStore(run.directory / "checkpoints").list()
    assert max(commit.step for commit in commits if commit.term == 1) <= 20
    assert [term.term for term in Lease(run.directory).terms()] == [1, 2]
