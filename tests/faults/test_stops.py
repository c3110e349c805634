"""Asked to stop: all ranks at one step, a save, the documented code, and a continuation to the last bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fmscale.errors import StopRequested
from fmscale.observe.events import read_events
from fmscale.training.checkpoint import CheckpointStore
from tests.runs import ON_RAY, Run, assert_same_curve

pytestmark = pytest.mark.processes

LONG = [
    "train.steps=3000",
    "checkpoint.every_steps=0",
    "eval.every_steps=0",
    "schedule.kind=wsd",
    "schedule.decay_steps=1",
]
"""Never over by itself, never saved by itself, and a learning rate that does not depend on the last step's number."""
TWO = [*LONG, "parallel.dp=2", "engine=zero"]


def commits(run: Run) -> list[int]:
    return [commit.step for commit in CheckpointStore(run.directory / "checkpoints").list()]


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.directory) if event["kind"] == kind]


def assert_goes_on(run: Run, saved: int) -> None:
    """From the step that was saved, and each step is there once."""
    run.train(f"train.steps={saved + 5}")
    assert [line["step"] for line in run.steps()] == list(range(1, saved + 6))
    assert [line["term"] for line in run.steps()] == [1] * saved + [2] * 5


def test_sigusr1_to_one_rank_stops_all_of_them_at_one_step(tmp_path: Path, words: Path) -> None:
    """F32. The last step that was trained is the one that is saved: nothing is lost."""
    run = Run(tmp_path, "one-rank", words, TWO)
    run.start()
    run.wait_for_step(3)
    os.kill(run.pids("rank", 1)[0], signal.SIGUSR1)
    assert run.finish() == StopRequested.exit_code == 85
    said = run.output()
    assert "SIGUSR1 to rank 1" in said
    saved = commits(run)
    assert len(saved) == 1
    assert run.steps()[-1]["step"] == saved[0]
    assert f"trained to step {saved[0]}, newest checkpoint step-{saved[0]:08d}.t0001" in said
    assert "restart" not in (tmp_path / "one-rank.log").read_text()
    assert run.leftovers() == []
    assert_goes_on(run, saved[0])
    assert not (run.directory / "stop-request").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_a_signal_to_the_supervisor_saves_and_stops(
    tmp_path: Path, words: Path, number: signal.Signals, code: int
) -> None:
    """And says so; a second SIGTERM hurries nobody."""
    run = Run(tmp_path, "asked", words, LONG)
    run.start()
    run.wait_for_step(3)
    assert run.process is not None
    run.process.send_signal(number)
    if number == signal.SIGTERM:
        time.sleep(0.15)
        run.process.send_signal(number)
    assert run.finish() == code
    log = (tmp_path / "asked.log").read_text()
    assert f"{number.name}: saving and stopping" in log
    assert "Traceback" not in log
    assert run.steps()[-1]["step"] == commits(run)[0]
    assert [event["reason"] for event in events(run, "stop_requested")] == [number.name]
    assert [event["step"] for event in events(run, "stopped")] == commits(run)
    assert run.leftovers() == []


def test_a_save_that_finds_no_room_is_told_with_what_stands(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "full", words, [*LONG, "checkpoint.every_steps=4"])
    run.start(env={"FAULTS": "ckpt.before_commit:enospc@2,step.7:stop"})
    stopped = run.wait_until_stopped(0)
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    run.wait_for(lambda: "saving and stopping" in (tmp_path / "full.log").read_text())
    stopped.resume()
    assert run.finish() == 85
    said = (tmp_path / "full.log").read_text()
    assert re.search(
        r"trained to step \d, which could not be saved \(a checkpoint could not be written; .*make room there.*\),"
        r" newest checkpoint step-00000004\.t0001\n  do: the same command goes on from there",
        said,
    ), said
    assert commits(run) == [4]
    assert run.leftovers() == []


def test_ctrl_c_twice_stops_now(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "now", words, LONG)
    run.start(env={"FAULTS": "step.5:hang"})
    run.wait_for_step(4)
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    run.wait_for(lambda: events(run, "stop_requested"))
    started = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130
    assert time.monotonic() - started < 5
    assert "stopped at once" in run.output()
    assert commits(run) == []


def test_a_save_that_does_not_finish_within_the_grace_period_is_killed(tmp_path: Path, words: Path) -> None:
    """F33: what stood before the save stands after it; further signals change nothing."""
    settings = [*LONG, "checkpoint.every_steps=4", "launch.grace_s=2"]
    run = Run(tmp_path, "grace", words, settings)
    run.start(env={"FAULTS": "ckpt.before_rank:hang@2"})
    run.wait_for(lambda: 4 in commits(run))
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    run.wait_for(lambda: "saving and stopping" in (tmp_path / "grace.log").read_text())
    for pid in [run.process.pid, *run.pids("rank")]:
        os.kill(pid, signal.SIGTERM)
    assert run.finish() == 85
    said = (tmp_path / "grace.log").read_text()
    assert "killed: not done within launch.grace_s=2" in said
    assert "newest checkpoint of step 4" in said
    assert commits(run) == [4]
    assert run.leftovers() == []


@pytest.mark.slow
def test_a_time_limit_saves_and_stops(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "limit", words, [*LONG, "launch.time_limit_s=50", "launch.grace_s=10"])
    started = time.monotonic()
    run.start()
    assert run.finish() == 85
    assert time.monotonic() - started < 52
    assert "the time limit: saving and stopping" in run.output()
    assert len(commits(run)) == 1


@pytest.mark.slow
def test_under_the_users_own_torchrun_its_sigterm_reaches_the_ranks(tmp_path: Path, words: Path) -> None:
    """The agent passes SIGTERM on and gives ranks 30 s; its own exit code tells nothing."""
    run = Run(tmp_path, "own", words, TWO)
    flags = ["--standalone", "--nproc-per-node=2", "-m", "launcher.cli", "train"]
    with (tmp_path / "own.log").open("w") as log:
        command = [sys.executable, "-m", "torch.distributed.run", *flags, *run.arguments()]
        run.process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() != 0
    assert "SIGTERM to rank " in run.output()
    assert commits(run) == [run.steps()[-1]["step"]]
    assert_goes_on(run, commits(run)[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_on_ray_too(tmp_path: Path, words: Path, reference_run: Run, number: signal.Signals) -> None:
    """F32 against an undisturbed run: the same series to the last bit."""
    for rank in (0, None):
        run = Run(tmp_path, f"ray-{rank}", words, ON_RAY)
        run.start()
        run.wait_for_step(60)
        if rank is None:
            assert run.process is not None
            run.process.send_signal(number)
        else:
            os.kill(run.pids("rank", rank)[0], number)
        assert run.finish() == 85, run.output()
        assert run.steps()[-1]["step"] == commits(run)[-1]
        assert run.leftovers() == []
        run.train()
        assert_same_curve(run, reference_run)
