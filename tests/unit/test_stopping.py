"""What a rank takes for a request to stop, and for how long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fmscale.config import LaunchConfig
from fmscale.training.stopping import (
    REQUEST,
    Stopping,
    request_resize,
    request_stop,
    seconds_left,
    stop_requested,
    withdraw_request,
)
from launcher.requests import StopRequests

LAUNCH = LaunchConfig()


@pytest.fixture(autouse=True)
def _incarnation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSCALE_INCARNATION", "a.2")  # the third attempt of the driver of incarnation a
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request_inside_the_block_only(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stopping(tmp_path, 3, LAUNCH) as stopping:
        assert stopping.reason == ""
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.reason == f"{number.name} to rank 3"
    assert signal.getsignal(number) is before


def test_the_file_reaches_rank_0_of_its_incarnation_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request_stop(tmp_path, "a", "SIGTERM")
    assert Stopping(tmp_path, 0, LAUNCH).reason == "SIGTERM"
    assert Stopping(tmp_path, 1, LAUNCH).reason == ""
    for other in ("b", ""):
        monkeypatch.setenv("FMSCALE_INCARNATION", other)
        assert Stopping(tmp_path, 0, LAUNCH).reason == ""
    monkeypatch.setenv("FMSCALE_INCARNATION", "a")
    (tmp_path / REQUEST).write_text("{torn")
    assert Stopping(tmp_path, 0, LAUNCH).reason == ""
    withdraw_request(tmp_path)
    withdraw_request(tmp_path)
    assert not (tmp_path / REQUEST).exists()


def test_a_request_to_meet_again_is_for_one_attempt_of_an_elastic_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic = LaunchConfig(min_dp=1)
    request_resize(tmp_path, "a.2", "there is room")
    assert Stopping(tmp_path, 0, elastic).reason == "there is room"
    assert Stopping(tmp_path, 1, elastic).reason == ""
    assert Stopping(tmp_path, 0, LAUNCH).reason == ""
    assert stop_requested(tmp_path, "a") == "", "the run is not to stop"
    monkeypatch.setenv("FMSCALE_INCARNATION", "a.3")
    assert Stopping(tmp_path, 0, elastic).reason == ""
    monkeypatch.setenv("FMSCALE_INCARNATION", "a.2")
    request_stop(tmp_path, "a", "SIGTERM")
    assert Stopping(tmp_path, 0, elastic).reason == "SIGTERM", "to stop comes first"
    assert (stop_requested(tmp_path, "a"), stop_requested(tmp_path, "b")) == ("SIGTERM", "")


OPENED = """
import os, sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from fmscale.config import LaunchConfig
from fmscale.training.parts import missing_parts
from fmscale.training.stopping import Stopping
directory = Path(sys.argv[1])
for look, name in ((lambda: Stopping(directory, 0, LaunchConfig()).reason, "stop-request"),
                   (lambda: missing_parts(directory, range(2)), None)):
    del opened[:]
    look()
    assert str(directory) in opened, (look, opened)
    assert name is None or opened.index(str(directory)) < opened.index(str(directory / name)), opened
assert os.listdir(directory) == []
"""


def test_what_another_host_may_have_put_into_a_directory_is_looked_for_with_fresh_eyes(tmp_path: Path) -> None:
    """There is no NFS here. What its client asks the server for is to open the directory; that this is done first."""
    done = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_in_another_thread_signals_stay_with_the_process(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with Stopping(tmp_path, 0, LAUNCH):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("limit", "end", "left"),
    [(0, "", None), (100, "", 100 - 30 - 10), (0, "5200", 200 - 10), (100, "5050", 50 - 10), (0, "soon", None)],
)
def test_the_nearer_limit_counts(limit: float, end: str, left: float | None) -> None:
    """After 30 seconds, at 5,000 s of the epoch, with ten seconds of grace."""
    launch = LaunchConfig(time_limit_s=limit, grace_s=10)
    assert seconds_left(launch, {"SLURM_JOB_END_TIME": end}, ran_s=30, now=5000.0) == left


def test_without_a_supervisor_the_rank_keeps_the_time_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    launch = LaunchConfig(time_limit_s=60, grace_s=10)
    supervised = Stopping(tmp_path, 1, launch, lambda: now[0])
    monkeypatch.delenv("FMSCALE_INCARNATION")
    alone = Stopping(tmp_path, 1, launch, lambda: now[0])
    requests = StopRequests(launch, lambda: now[0])
    now[0] = 149
    assert (alone.reason, requests.reason) == ("", "")
    now[0] = 150
    assert alone.reason == requests.reason == "the time limit"
    assert requests.exit_code == 85
    assert supervised.reason == ""


def test_what_the_supervisor_notes() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequests(LAUNCH) as requests:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (requests.reason, requests.now, requests.exit_code) == ("SIGTERM", False, 85)
        os.kill(os.getpid(), signal.SIGINT)
        assert (requests.reason, requests.now, requests.exit_code) == ("SIGTERM", False, 130)
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.now
    assert signal.getsignal(signal.SIGINT) is before
