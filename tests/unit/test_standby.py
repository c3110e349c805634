"""When the next driver is started ahead, what it is told, and that it never stays."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fmscale.config import Config, load
from fmscale.observe.heartbeat import Heartbeat
from launcher import driver_process, standby
from launcher.driver_process import DriverProcess
from launcher.standby import Standby

pytestmark = pytest.mark.processes

RANKS = """
import os, subprocess, sys, time
read = ["dd", "bs=1", "count=1", "status=none"]
ranks = [
    subprocess.Popen([*read, f"of={sys.argv[1]}/rank-{rank}.part"], env={**os.environ, "RANK": str(rank)})
    for rank in range(2)
]
for rank, process in enumerate(ranks):
    process.wait()
    os.rename(f"{sys.argv[1]}/rank-{rank}.part", f"{sys.argv[1]}/rank-{rank}")
print("they have left", file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def _two_ranks_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a torchrun: each writes the word that it read."""
    monkeypatch.setattr(
        driver_process, "_command", lambda config, meeting: [sys.executable, "-c", RANKS, str(tmp_path)]
    )
    monkeypatch.setattr(standby, "AFTER_S", 0.0)
    monkeypatch.setattr(standby, "AGAIN_S", 0.0)


def config_of(tmp_path: Path, *more: str) -> Config:
    return load([], [f"run.root={tmp_path}", "run.name=run", "launch.backend=torchrun", "parallel.dp=2", *more])


@contextmanager
def running(config: Config) -> Iterator[DriverProcess]:
    driver = DriverProcess(config, "now", ahead=True)
    try:
        yield driver
    finally:
        driver.end()


def train(config: Config, steps: int, incarnation: str = "now") -> None:
    heart = Heartbeat(config.run_dir, 0, incarnation)
    for step in range(1, steps + 1):
        heart.beat("step", step)


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.02)


def look(each: Standby, driver: DriverProcess) -> None:
    for _ in range(3):
        each.look(driver)


def words(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(tmp_path.glob("rank-?"))]


def test_one_is_started_once_a_step_is_done_and_begins_at_the_word(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with running(config) as driver, Standby(config) as each:
        for steps, of in ((0, "now"), (1, "now"), (5, "another")):
            train(config, steps, of)
            look(each, driver)
            assert each.take() is None
        train(config, 2)
        look(each, driver)
        taken = each.take()
        assert taken is not None
        assert each.take() is None, "there is one"
        assert taken.log_name != driver.log_name
        assert words(tmp_path) == []
        taken.go()
        until(lambda: words(tmp_path) == [b"g", b"g"])
        assert taken.process.wait(30) == 0
        assert taken.end() == 0
        assert taken.text() == "they have left\n"
        assert driver.text() == ""


def test_where_none_waits_one_is_started_when_it_is_needed(tmp_path: Path) -> None:
    with running(config_of(tmp_path)) as driver, Standby(config_of(tmp_path)) as each:
        each.hurry(driver)
        assert each._waiting is not None
        waiting = each._waiting.process.pid
        each.hurry(driver)
        taken = each.take()
        assert taken is not None
        assert taken.process.pid == waiting, "one is enough"
        taken.end()


def test_without_the_word_they_leave_at_the_end_of_their_input(tmp_path: Path) -> None:
    driver = DriverProcess(config_of(tmp_path), "now", ahead=True)
    assert driver.process.stdin is not None
    driver.process.stdin.close()
    assert driver.process.wait(30) == 0
    assert words(tmp_path) == [b"", b""]
    driver.end()


@pytest.mark.parametrize("whole", [True, False])
def test_one_that_has_died_is_not_taken_and_another_is_started(tmp_path: Path, whole: bool) -> None:
    """whole: torchrun itself; otherwise a rank, which torchrun may take its time to notice."""
    config = config_of(tmp_path)

    def kill(process: subprocess.Popen[bytes]) -> None:
        victim = psutil.Process(process.pid) if whole else ranks(process)[1]
        victim.kill()
        until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)

    with running(config) as driver, Standby(config) as each:
        train(config, 2)
        look(each, driver)
        assert each._waiting is not None
        first = each._waiting.process
        until(lambda: each.look(driver) or len(each._watch._met) == 2)  # type: ignore[union-attr]
        kill(first)
        look(each, driver)
        assert each._waiting is not None
        second = each._waiting.process
        assert second.pid != first.pid
        until(lambda: each.look(driver) or len(each._watch._met) == 2)  # type: ignore[union-attr]
        kill(second)
        assert each.take() is None


def ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if child.name() == "dd"]


@pytest.mark.parametrize("why", ["memory", "the end"])
def test_none_is_left(tmp_path: Path, why: str) -> None:
    config = config_of(tmp_path)
    with running(config) as driver:
        with Standby(config) as each:
            train(config, 2)
            look(each, driver)
            assert each._waiting is not None
            process = each._waiting.process
            if why == "memory":
                each.give_up()
                look(each, driver)
                assert each.take() is None
        assert process.returncode is not None
    assert b"g" not in words(tmp_path)


@pytest.mark.parametrize("settings", [["launch.spares=0"], ["launch.backend=ray"]])
def test_there_is_none_where_none_is_wanted(tmp_path: Path, settings: list[str]) -> None:
    config = config_of(tmp_path, *settings)
    with running(config) as driver, Standby(config) as each:
        train(config, 5)
        look(each, driver)
        each.hurry(driver)
        assert each.take() is None
