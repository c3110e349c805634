"""Fault points do nothing by themselves and exactly what FAULTS says otherwise."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fmscale.errors import ConfigError
from fmscale.observe.faults import fault_point


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except RuntimeError:
            os._exit(31)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(30)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("faults", "ends"),
    [
        ("", 30),
        ("step.3:kill", -signal.SIGKILL),
        ("step.4:kill", 30),
        ("step.3/1:kill", -signal.SIGKILL),
        ("step.3/0:kill", 30),
        ("step.3:kill@2", 30),
        ("again:kill@2", -signal.SIGKILL),
        ("again:kill@3", 30),
        ("other:kill, step.3:raise", 31),
        ("step.3:exit", 0),
        ("step.3:enospc", errno.ENOSPC),
    ],
)
def test_actions(faults: str, ends: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTS", faults)

    def passages() -> None:
        fault_point("again")
        fault_point("step.3", rank=1)
        fault_point("again")

    assert in_child(passages) == ends


@pytest.mark.parametrize("action", ["stop", "hang"])
def test_a_process_can_be_made_to_stand_still(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTS", f"x:{action}")
    pid = os.fork()
    if pid == 0:
        fault_point("x")
        os._exit(0)
    if action == "stop":
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    else:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_once_over_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTS", "step.3/1:kill")
    monkeypatch.setenv("FAULTS_ONCE", str(tmp_path))
    assert in_child(lambda: fault_point("step.3", 1)) == -signal.SIGKILL
    assert in_child(lambda: fault_point("step.3", 1)) == 30


@pytest.mark.parametrize("faults", ["step.3", "step.3:explode", "step.3:kill@0", ":kill"])
def test_what_cannot_be_read_is_refused(faults: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTS", faults)
    with pytest.raises(ConfigError, match="environment variable FAULTS cannot be read") as caught:
        fault_point("x")
    assert faults in str(caught.value)
