"""Under torchrun the next set of ranks is ready before it is needed, and needs nobody to leave when it is not."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmscale.observe.events import read_events
from fmscale.training.waiting import AHEAD
from tests.faults.test_stops import TWO
from tests.runs import Run

pytestmark = [pytest.mark.processes, pytest.mark.slow]

KEYS = ("step", "loss", "grad_norm", "batch_hash")


def waiting(run: Run) -> list[int]:
    """Process ids of ranks that have got ready and read from their standard input."""
    found = []
    for process in run.leftovers():
        with contextlib.suppress(psutil.Error, OSError):
            environment, blocked = process.environ(), Path(f"/proc/{process.pid}/wchan").read_text()
            if AHEAD in environment and "RANK" in environment and "pipe_read" in blocked:
                found.append(process.pid)
    return sorted(found)


def starts(run: Run) -> list[dict[str, Any]]:
    return [event for event in read_events(run.directory) if event["kind"] == "start"]


def test_ranks_that_got_ready_take_over_and_die_with_their_supervisor(tmp_path: Path, words: Path) -> None:
    settings = [*TWO, "train.steps=100000", "checkpoint.every_steps=20", "launch.max_restarts=3"]
    quiet = Run(tmp_path, "quiet", words, [*settings, "launch.spares=0"])
    run = Run(tmp_path, "killed", words, [*settings, "launch.spares=1"])
    run.start()
    run.wait_for(lambda: len(waiting(run)) == 2)
    ready = waiting(run)
    killed = time.monotonic()
    run.kill("rank", 1)
    run.wait_for_steps(1, after_term=1)
    print(f"next step {time.monotonic() - killed:.2f} s after the kill")
    assert sorted(run.pids("rank")) == ready
    first, second = starts(run)
    assert first["ahead_s"] == 0
    assert second["ahead_s"] > 1
    run.wait_for_steps(5, after_term=1)
    run.wait_for(lambda: len(waiting(run)) == 2)
    next_ones = waiting(run)
    assert run.process is not None
    run.process.kill()
    run.process.wait()
    died = time.monotonic()
    while any(psutil.pid_exists(pid) for pid in [*ready, *next_ones]):
        assert time.monotonic() - died < 10, "ranks outlive their supervisor"
        time.sleep(0.05)
    count = len(run.steps())
    quiet.start()
    quiet.wait_for_step(count + 1)
    assert not waiting(quiet), "launch.spares=0"
    assert quiet.process is not None
    quiet.process.send_signal(signal.SIGTERM)
    assert quiet.finish() == 85
    ours, theirs = ([[line[key] for key in KEYS] for line in each.steps()[:count]] for each in (run, quiet))
    assert ours == theirs
    assert [line[0] for line in ours] == list(range(1, count + 1))


def test_a_standby_that_is_killed_costs_nothing_and_none_is_left(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "unused", words, [*TWO, "train.steps=100000", "launch.spares=1"])
    run.start()
    run.wait_for(lambda: len(waiting(run)) == 2)
    lacking = waiting(run)
    psutil.Process(lacking[0]).kill()
    run.kill("rank", 0)
    run.wait_for_steps(1, after_term=1)
    assert set(run.pids("rank")).isdisjoint(lacking), "what lacks a rank does not begin"
    assert len(starts(run)) == 2
    assert [event["words"] for event in read_events(run.directory) if event["kind"] == "incident"] == [
        "rank 0 was killed by SIGKILL"
    ]
    run.wait_for(lambda: len(waiting(run)) == 2)
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 85
    assert run.leftovers() == []
