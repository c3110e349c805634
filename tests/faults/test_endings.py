"""How processes end, and what a user is told: the first cause, with its name, and no success where there was none."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmscale.observe.events import read_events
from tests.runs import Run

pytestmark = pytest.mark.processes

TWO = ["parallel.dp=2", "engine=zero", "train.steps=8", "eval.every_steps=0"]
TWO += ["launch.spares=1"]


def incidents(run: Run) -> list[dict[str, Any]]:
    return [event for event in read_events(run.directory) if event["kind"] == "incident"]


def test_the_first_cause_is_shown_and_not_the_collectives_error(tmp_path: Path, words: Path) -> None:
    """F04: all ranks are gone within five seconds of it."""
    run = Run(tmp_path, "raises", words, TWO)
    run.train(env={"FAULTS": "step.6/1:raise", "FAULTS_ONCE": str(tmp_path)})
    (incident,) = incidents(run)
    assert incident["cause"] == "exception"
    assert incident["words"].startswith("rank 1 failed: RuntimeError: injected by FAULTS=")
    log = (tmp_path / "raises.log").read_text()
    assert "closed by peer" not in log
    assert "after step 5; restart 1 of 10" in log
    files = [file.stat().st_mtime for file in (run.directory / "logs" / "failures").iterdir()]
    ended = next(e["time"] for e in read_events(run.directory) if e["kind"] == "incident")
    assert datetime.fromisoformat(ended).timestamp() - min(files) < 5


def test_a_killed_rank_is_named_with_its_signal_whatever_torchrun_and_the_others_do(
    tmp_path: Path, words: Path
) -> None:
    """F01 under torchrun: neither its agent's word nor the others' leaving is waited for; here both are stopped."""
    run = Run(tmp_path, "killed", words, [*TWO, "train.steps=60", "checkpoint.every_steps=20"])
    run.start()
    run.wait_for_step(25)
    other, victim = run.pids("rank", 0)[0], run.pids("rank", 1)[0]
    for pid in (psutil.Process(victim).ppid(), other):
        os.kill(pid, signal.SIGSTOP)
    killed = time.time()
    os.kill(victim, signal.SIGKILL)
    run.wait_for(lambda: incidents(run))
    (incident,) = incidents(run)
    print(f"told {datetime.fromisoformat(incident['time']).timestamp() - killed:.2f} s after the kill")
    assert (incident["cause"], incident["words"]) == ("killed", "rank 1 was killed by SIGKILL")
    assert run.finish() == 0, run.output()
    assert [line["step"] for line in run.steps()] == list(range(1, 61))
    assert [event["kind"] for event in read_events(run.directory)].count("hang") == 0
    assert run.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchrun", "ray"])
def test_ranks_do_not_outlive_a_killed_driver(tmp_path: Path, words: Path, backend: str) -> None:
    """F15: they are gone within ten seconds, and the run comes back by itself."""
    settings = [*TWO, "train.steps=100", "checkpoint.every_steps=20", f"launch.backend={backend}"]
    run = Run(tmp_path, f"driver-{backend}", words, settings)
    run.start()
    run.wait_for_step(30)
    ranks = run.pids("rank")
    driver = psutil.Process(ranks[0]).ppid() if backend == "torchrun" else run.pids("driver")[0]
    os.kill(driver, signal.SIGKILL)
    killed = time.monotonic()
    while any(psutil.pid_exists(pid) for pid in ranks):
        assert time.monotonic() - killed < 10, "ranks outlive their driver"
        time.sleep(0.05)
    assert run.finish() == 0, run.output()
    (incident,) = incidents(run)
    assert (incident["cause"], incident["words"]) == ("driver lost", "the driver was killed by SIGKILL")
    assert [line["step"] for line in run.steps()] == list(range(1, 101))
    assert run.leftovers() == []


@pytest.mark.slow
def test_one_rank_that_leaves_in_silence_is_no_success(tmp_path: Path, words: Path) -> None:
    """F05, and the second time at the same step ends the run."""
    run = Run(tmp_path, "left", words, [*TWO, "launch.timeout_s=60", "launch.hang_s=5"])
    run.start(env={"FAULTS": "step.6/1:exit"})
    assert run.finish() == 7
    assert "failed twice at the same step in the same way" in (tmp_path / "left.log").read_text()


def test_a_rank_without_memory_says_so_and_stops_the_second_time(tmp_path: Path, words: Path) -> None:
    """F06's unprivileged twin: memory that ends by RLIMIT_DATA."""
    run = Run(tmp_path, "limited", words, ["train.steps=8"])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, before[1]))  # what the run inherits
    try:
        run.start(env={"FAULTS": "step.4:eat"})
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert run.finish() == 7
    log = (tmp_path / "limited.log").read_text()
    assert "rank 0 found no memory: MemoryError" in log
    assert "failed twice at the same step in the same way" in log
    assert "lower train.micro_batch" in log


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A memory cgroup (version 1 or 2) of which a test may set the limit; a loud skip where root is lacking."""
    name = f"fmscale-test-{os.getpid()}"
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        own = root / name
        with contextlib.suppress(OSError):
            own.mkdir()
            if (own / "memory.limit_in_bytes").exists() or (own / "memory.max").exists():
                yield own
                until = time.monotonic() + 5
                while (own / "cgroup.procs").read_text().strip() and time.monotonic() < until:
                    time.sleep(0.1)
                own.rmdir()
                return
            own.rmdir()
    pytest.skip("SKIPPED LOUDLY: no memory cgroup can be made here (needs root); the RLIMIT_DATA twin has run")


@pytest.mark.slow
def test_the_kernel_kills_a_rank_for_memory_and_the_run_says_so(
    tmp_path: Path, words: Path, memory_cgroup: Path
) -> None:
    """F06. Twice at the same step, so it stops, with advice and not after ten restarts."""
    limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max"]
    for name in limits:
        with contextlib.suppress(OSError):
            (memory_cgroup / name).write_text("0" if name == "memory.swap.max" else str(1500 << 20))
    run = Run(tmp_path, "oom", words, ["train.steps=8", "checkpoint.every_steps=2"])
    procs = memory_cgroup / "cgroup.procs"
    join = f"import os, sys; open('{procs}', 'w').write(str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])"
    with (tmp_path / "oom.log").open("w") as log:
        command = [sys.executable, "-c", join, sys.executable, "-m", "launcher.cli", "train", *run.arguments()]
        run.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "FAULTS": "step.4:eat"})
    assert run.finish() == 7, run.output()
    said = (tmp_path / "oom.log").read_text()
    assert "was killed by the kernel or by Ray because memory ran out (1 killed)" in said
    assert "failed twice at the same step in the same way" in said
    assert "lower train.micro_batch" in said
    assert run.leftovers() == []
