"""Who stands still, by the watch's clock: after the limit, not before, and the right one is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmscale.observe import heartbeat
from fmscale.observe.heartbeat import Heartbeat, HeartbeatWatch, dump_stacks, heartbeat_path, stacks_path
from fmscale.observe.pids import kernel_start, state


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watch(run_dir: Path, clock: Clock, world: int = 2) -> HeartbeatWatch:
    return HeartbeatWatch(run_dir=run_dir, world=world, limit_s=3.0, start_s=20.0, incarnation="a", clock=clock)


def ranks(run_dir: Path, world: int = 2, incarnation: str = "a") -> list[Heartbeat]:
    return [Heartbeat(run_dir, rank, incarnation) for rank in range(world)]


def wait(watched: HeartbeatWatch, clock: Clock, seconds: float, each: Callable[[], None] = lambda: None) -> str:
    """Let the time pass in pieces of half a second; the first verdict, if any."""
    for _ in range(round(seconds * 2)):
        clock.now += 0.5
        each()
        hang = watched.look()
        if hang is not None:
            return str(hang)
    return ""


def test_a_rank_that_is_behind_is_named_after_the_limit(tmp_path: Path) -> None:
    clock, hearts = Clock(), ranks(tmp_path)
    watched = watch(tmp_path, clock)
    for step in (1, 2, 3):
        for heart in hearts:
            heart.beat("read", step)
            heart.beat("step", step)
        assert wait(watched, clock, 2.0) == ""
    hearts[0].beat("exchange", 4)
    assert wait(watched, clock, 1.5) == ""  # 1.5 s were over
    said = wait(watched, clock, 1.0)
    assert said.startswith("rank 1 (in step of step 3 for ")
    assert f"process {os.getpid()} on " in said
    assert said.endswith("is stuck, no beat for 3 s")


@pytest.mark.parametrize(
    ("phases", "missing"),
    [
        (("exchange", "read"), [1]),
        (("step", "exchange"), [1]),
        (("step", "eval"), [0]),
        (("step", "step"), [0, 1]),
        (("done", "save"), [1]),
    ],
)
def test_within_a_step_the_phases_tell(tmp_path: Path, phases: tuple[str, str], missing: list[int]) -> None:
    clock, hearts = Clock(), ranks(tmp_path)
    watched = watch(tmp_path, clock)
    for heart, phase in zip(hearts, phases, strict=True):
        heart.beat("read", 1)
        heart.beat("read", 2)
        heart.beat(phase, 2)
    watched.look()
    clock.now += 4
    hang = watched.look()
    assert hang is not None
    assert [place.rank for place in hang.missing] == missing
    assert [place.rank for place in hang.places] == [0, 1]
    assert ("one of them is stuck" in str(hang)) == (len(missing) > 1)


def test_one_that_beats_where_it_waits_is_not_the_one_that_stands_still(tmp_path: Path) -> None:
    """As two ranks in a save, of which one has written its part."""
    clock, hearts = Clock(), ranks(tmp_path)
    watched = watch(tmp_path, clock)
    for heart in hearts:
        for step in (1, 2):
            heart.beat("save", step)
    said = wait(watched, clock, 4, hearts[0].again)
    assert said.startswith("rank 1 (in save of step 2 for 3.")
    assert "is stuck" in said


def test_start_and_first_step_have_a_longer_limit(tmp_path: Path) -> None:
    """Of each process: one that replaces another starts anew."""
    clock = Clock()
    watched = watch(tmp_path, clock)
    assert wait(watched, clock, 19) == ""
    hearts = ranks(tmp_path)
    assert wait(watched, clock, 19) == ""
    hearts[0].beat("step", 7)
    hearts[1].beat("exchange", 7)
    assert wait(watched, clock, 19) == ""
    assert "rank 1 (in exchange of step 7 for" in wait(watched, clock, 2)
    for heart in hearts:
        heart.beat("read", 8)
    assert wait(watched, clock, 2.5) == ""
    Heartbeat(tmp_path, 1, "a")
    hearts[0].beat("start", 0)
    assert wait(watched, clock, 19) == ""
    assert "(starting for 20" in wait(watched, clock, 2)


def test_lines_of_another_incarnation_and_torn_ones_are_no_beats(tmp_path: Path) -> None:
    clock = Clock()
    for heart in ranks(tmp_path, incarnation="before"):
        heart.beat("read", 1)
        heart.beat("read", 90)
    watched = watch(tmp_path, clock)
    assert wait(watched, clock, 19) == ""
    assert wait(watched, clock, 2).startswith("rank 0 (starting for 20")
    heartbeat_path(tmp_path, 0).write_bytes(b'{"count": 3, "step"')
    assert watched._place(0, clock.now).phase == "start"


def test_done_ranks_are_waited_for_only_once_all_are(tmp_path: Path) -> None:
    clock, hearts = Clock(), ranks(tmp_path)
    watched = watch(tmp_path, clock)
    for heart in hearts:
        heart.beat("read", 1)
        heart.beat("read", 2)
    with hearts[1]:
        pass
    assert wait(watched, clock, 30, lambda: hearts[0].beat("save", 2)) == ""
    with hearts[0]:
        pass
    assert wait(watched, clock, 19) == ""
    assert "rank 0 (finished for 20." in wait(watched, clock, 2)


def test_no_verdict_where_beats_cannot_be_written_or_the_watch_itself_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, hearts = Clock(), ranks(tmp_path)
    watched = watch(tmp_path, clock)
    for heart in hearts:
        heart.beat("read", 1)
        heart.beat("read", 2)
    watched.look()
    (tmp_path / "heartbeats" / ".watch").mkdir()  # writing there now fails, as on a disk that went read-only
    assert wait(watched, clock, 10) == ""
    (tmp_path / "heartbeats" / ".watch").rmdir()
    clock.now += 60
    assert watched.look() is None
    assert wait(watched, clock, 3) == ""
    assert wait(watched, clock, 1) != ""
    watched.forgive()
    assert wait(watched, clock, 3) == ""


def test_a_beat_that_cannot_be_written_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heart = Heartbeat(tmp_path, 0, "a")

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    before = heartbeat.heartbeat_path(tmp_path, 0).read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(heartbeat.os, "pwrite", full)
        heart.beat("read", 1)
    assert heartbeat.heartbeat_path(tmp_path, 0).read_bytes() == before
    heart.beat("read", 2)
    assert json.loads(heartbeat.heartbeat_path(tmp_path, 0).read_bytes())["step"] == 2


def test_a_beat_costs_microseconds(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, 0, "a")
    times = []
    for step in range(300):
        started = time.perf_counter()
        heart.beat("step", step)
        times.append(time.perf_counter() - started)
    assert sorted(times)[150] < 100e-6
    assert heartbeat_path(tmp_path, 0).stat().st_size == heartbeat.LINE_BYTES


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A rank in a process of its own that sleeps in `in_here`, in step 2."""
    code = f"""
import sys, time
from pathlib import Path
from fmscale.observe.heartbeat import Heartbeat
heart = Heartbeat(Path({str(tmp_path)!r}), 1, "a")
heart.beat("read", 1); heart.beat("read", 2)
def in_here():
    print("ready", flush=True)
    time.sleep(60)
in_here()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.processes
def test_stacks_of_a_living_rank_and_the_name_of_a_stopped_one(tmp_path: Path, victim: subprocess.Popen[str]) -> None:
    clock, heart = Clock(), Heartbeat(tmp_path, 0, "a")
    watched = watch(tmp_path, clock)
    heart.beat("read", 1)
    heart.beat("read", 2)  # both are at the same place
    watched.look()
    assert dump_stacks(tmp_path, "a first look", "another incarnation") == []
    files = dump_stacks(tmp_path, "a first look", "a")
    assert files == [stacks_path(tmp_path, rank) for rank in (0, 1)]
    text = files[1].read_text()
    assert f"process {victim.pid}: a first look" in text
    assert "in in_here" in text
    assert victim.poll() is None
    os.kill(victim.pid, signal.SIGSTOP)
    started = kernel_start(victim.pid)
    until = time.monotonic() + 5
    while state(victim.pid, started) != "T" and time.monotonic() < until:
        time.sleep(0.01)
    clock.now += 2
    assert [place.rank for place in watched.stopped()] == [1]
    clock.now += 2
    said = wait(watched, clock, 1)
    assert said.startswith("rank 1 (in read of step 2 for")
    assert "stopped by a signal" in said
    dump_stacks(tmp_path, said, "a")
    assert "cannot show its stacks" in files[1].read_text()
    victim.kill()
    victim.wait()
    assert state(victim.pid, started) == "gone"


def test_a_watch_of_an_elastic_run_counts_as_many_ranks_as_rank_0_says(tmp_path: Path) -> None:
    clock = Clock()
    watched = HeartbeatWatch(
        run_dir=tmp_path, world=3, limit_s=20.0, start_s=20.0, incarnation="a", elastic=True, clock=clock
    )

    def attempt(number: int, world: int) -> Callable[[], None]:
        hearts = [Heartbeat(tmp_path, rank, f"a.{number}", world=world) for rank in range(world)]
        steps = iter(range(1, 1000))

        def beat() -> None:
            step = next(steps)
            for heart in hearts:
                heart.beat("read", step)

        return beat

    assert wait(watched, clock, 30, attempt(0, 3)) == ""
    assert wait(watched, clock, 30, attempt(1, 2)) == "", "rank 2 is not missed"
    beat = attempt(2, 2)
    beat()
    assert wait(watched, clock, 30, beat) == ""
    hearts = [Heartbeat(tmp_path, rank, "a.3", world=3) for rank in range(2)]  # the third one still comes
    assert wait(watched, clock, 19, lambda: [heart.beat("start", 0) for heart in hearts] and None) == ""
    assert wait(watched, clock, 3, lambda: [heart.beat("start", 0) for heart in hearts] and None) != ""
