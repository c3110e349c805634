"""Ranks that end are noticed by one who is not their parent, with their exit code, whatever their parent does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from fmscale.observe.heartbeat import Heartbeat
from launcher.deaths import Death, DeathWatch

pytestmark = pytest.mark.processes

AGENT = """
import os, signal, subprocess, sys, time
if sys.argv[1] == "reaps":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for rank, command in enumerate(sys.argv[2:]):
    subprocess.Popen(["sh", "-c", f"exec {command}"], env={**os.environ, "RANK": str(rank)})
subprocess.Popen(["sleep", "60"])
time.sleep(60)
"""
SLEEPS = "sleep 60"


@contextmanager
def watched(run_dir: Path, *commands: str, agent: str = "waits for nobody") -> Iterator[DeathWatch]:
    """Rank i runs commands[i]; all have been met."""
    driver = subprocess.Popen([sys.executable, "-c", AGENT, agent, *commands])
    try:
        with closing(DeathWatch(run_dir, len(commands), "tag", driver)) as watch:
            until(watch, lambda: len(watch._met) == len(commands))
            yield watch
    finally:
        family = psutil.Process(driver.pid).children()
        driver.kill()
        driver.wait()
        for process in family:
            process.kill()


def until(watch: DeathWatch, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert not watch.wait(0.05), "the driver has ended"
        assert time.monotonic() < deadline, "nothing came of it"


def pid_of(watch: DeathWatch, rank: int) -> int:
    return watch._living[rank][0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_is_killed_is_told_with_its_signal_and_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with watched(tmp_path, SLEEPS, SLEEPS) as watch:
        assert not watch.wait(0.0)
        os.kill(pid_of(watch, 1), number)
        started = time.monotonic()
        while not watch.deaths:
            assert not watch.wait(30.0), "the driver has ended"
        assert time.monotonic() - started < 15, "it slept on"
        assert watch.deaths == [Death(1, -number)]
        assert not watch.all_gone
        os.kill(pid_of(watch, 0), signal.SIGTERM)
        until(watch, lambda: watch.all_gone)
        assert watch.deaths[1:] == [Death(0, -signal.SIGTERM)]


def test_who_was_sent_away_is_named_after_who_was_killed(tmp_path: Path) -> None:
    """torchrun's agent sends SIGTERM to the others, and this process may look after that only."""
    with watched(tmp_path, SLEEPS, SLEEPS) as watch:
        killed = pid_of(watch, 1)
        os.kill(killed, signal.SIGKILL)
        os.kill(pid_of(watch, 0), signal.SIGTERM)
        while any(psutil.Process(pid).status() != "zombie" for pid in (killed, pid_of(watch, 0))):
            time.sleep(0.01)
        watch.wait(0.0)
        assert watch.deaths == [Death(1, -signal.SIGKILL), Death(0, -signal.SIGTERM)]


def test_exit_codes_are_told(tmp_path: Path) -> None:
    with watched(tmp_path, "sh -c 'sleep 2; exit 3'", "sleep 2") as watch:
        until(watch, lambda: watch.all_gone)
        assert sorted(watch.deaths, key=lambda death: death.rank) == [Death(0, 3), Death(1, 0)]


def test_one_whose_parent_was_faster_died_of_nobody_knows_what(tmp_path: Path) -> None:
    with watched(tmp_path, SLEEPS, agent="reaps") as watch:
        os.kill(pid_of(watch, 0), signal.SIGKILL)
        until(watch, lambda: watch.deaths)
        assert watch.deaths == [Death(0, None)]


def test_who_has_done_all_may_go(tmp_path: Path) -> None:
    with watched(tmp_path, SLEEPS, SLEEPS) as watch:
        with Heartbeat(tmp_path, 0, "tag"):
            pass
        with Heartbeat(tmp_path, 1, "of another incarnation"):
            pass
        watch.kill_living()
        until(watch, lambda: watch.all_gone)
        assert watch.deaths == [Death(1, -signal.SIGKILL)]


def test_the_drivers_end_is_noticed_and_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    driver = subprocess.Popen(["sleep", "60"])
    with closing(DeathWatch(tmp_path, 0, "tag", driver)) as watch:
        assert not watch.wait(0.0)
        assert not watch.all_gone, "there never were any ranks"
        driver.kill()
        assert watch.wait(30.0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_pidfds_ranks_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with watched(tmp_path, SLEEPS) as watch:
        os.kill(pid_of(watch, 0), signal.SIGKILL)
        until(watch, lambda: watch.deaths)
        assert watch.deaths == [Death(0, -signal.SIGKILL)]
