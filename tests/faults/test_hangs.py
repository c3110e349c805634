"""A rank that stands still: found within the limit, named, its stacks shown, and the run comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fmscale.observe.events import read_events
from fmscale.observe.heartbeat import stacks_path
from tests.runs import Run, assert_same_curve

pytestmark = pytest.mark.processes

TWO = ["parallel.dp=2", "engine=zero", "train.steps=60", "checkpoint.every_steps=10", "eval.every_steps=0"]
TWO += ["launch.spares=1"]
QUICK = [*TWO, "launch.hang_s=3", "launch.timeout_s=60"]


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.directory) if event["kind"] == kind]


@pytest.fixture(scope="module")
def undisturbed(runs_root: Path, words: Path) -> Run:
    run = Run(runs_root, "no-hang", words, TWO)
    run.train()
    return run


def test_a_stopped_rank_is_named_and_replaced(tmp_path: Path, words: Path, undisturbed: Run) -> None:
    """F07: SIGSTOP from outside, anywhere in a step. Detection takes the limit and at most a second more."""
    run = Run(tmp_path, "stopped", words, QUICK)
    run.start()
    run.wait_for_step(15)
    victim = run.pids("rank", 1)[0]
    os.kill(victim, signal.SIGSTOP)
    started = time.monotonic()
    run.wait_for(lambda: events(run, "hang"))
    seconds = time.monotonic() - started
    print(f"found after {seconds:.2f} s of a limit of 3 s")
    assert seconds < 3 + 1 + 2.2, "the stacks take at most two seconds"
    assert run.finish() == 0, run.output()
    (hang,) = events(run, "hang")
    assert hang["missing"] == [1]
    assert "stopped by a signal" in hang["text"]
    assert f"process {victim} " in hang["text"]
    assert "rank 1 (in " in (tmp_path / "stopped.log").read_text()
    assert "cannot show its stacks" in stacks_path(run.directory, 1).read_text()
    other = stacks_path(run.directory, 0).read_text()
    assert "no beat for 3 s" in other
    assert "trainer.py" in other
    assert run.leftovers() == []
    assert_same_curve(run, undisturbed)


@pytest.mark.slow
def test_a_rank_that_sleeps_in_its_code_is_named_by_its_place_and_shown(
    tmp_path: Path, words: Path, undisturbed: Run
) -> None:
    run = Run(tmp_path, "asleep", words, QUICK)
    run.train(env={"FAULTS": "step.13/0:hang", "FAULTS_ONCE": str(tmp_path)})
    (hang,) = events(run, "hang")
    assert hang["missing"] == [0]
    assert hang["text"].startswith("rank 0 (in step of step 12 for 3.")
    assert "in fault_point" in stacks_path(run.directory, 0).read_text()
    assert "in _exchange" in stacks_path(run.directory, 1).read_text()
    (incident,) = events(run, "incident")
    assert (incident["cause"], incident["step"]) == ("hang", 12)
    assert_same_curve(run, undisturbed)


@pytest.mark.slow
def test_a_hang_at_the_same_step_twice_stops_with_advice(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "twice", words, [*QUICK, "train.steps=8", "parallel.dp=1", "launch.hang_s=2"])
    run.start(env={"FAULTS": "step.3:hang"})
    assert run.finish() == 7
    said = (tmp_path / "twice.log").read_text()
    assert "failed twice at the same step in the same way" in said
    assert "read logs/stacks-rank-*.txt" in said
    assert "found: rank 0 (in step of step 2" in said


@pytest.mark.slow
@pytest.mark.parametrize(("point", "rank"), [("ckpt.before_rank/1", 1), ("ckpt.before_commit", 0)])
def test_a_save_that_stands_still_is_a_hang_of_the_rank_whose_part_it_is(
    tmp_path: Path, words: Path, undisturbed: Run, point: str, rank: int
) -> None:
    """Training goes on beside it; the next save waits for it, and the ranks that have nothing left to do beat."""
    run = Run(tmp_path, "save", words, QUICK)
    run.train(env={"FAULTS": f"{point}:hang", "FAULTS_ONCE": str(tmp_path)})
    (hang,) = events(run, "hang")
    assert hang["missing"] == [rank]
    assert f"rank {rank} (in save of step 10 for 3." in hang["text"]
    assert_same_curve(run, undisturbed)


@pytest.mark.slow
def test_where_nobody_watches_a_save_that_stands_still_ends_the_run(tmp_path: Path, words: Path) -> None:
    """Under the user's own torchrun; without this it would be waited for for ever."""
    run = Run(tmp_path, "alone", words, [*TWO, "launch.hang_s=0", "launch.timeout_s=20"])
    flags = ["--standalone", "--nproc-per-node=2", "-m", "launcher.cli", "train"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, *run.arguments()]
    with (tmp_path / "alone.log").open("w") as log:
        environment = {**os.environ, "FAULTS": "ckpt.before_rank/1:hang"}
        run.process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)
    assert run.finish() != 0
    said = (tmp_path / "alone.log").read_text()
    assert "rank 1 stands still in its part of step-00000010.t0001 (write)" in said
    assert "some progress within launch.timeout_s=20" in said
