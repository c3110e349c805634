"""Ranks of a torchrun that end, noticed at once, though their parent is torchrun's agent and not this process.

The agent tells of a death when all ranks have left and it is leaving itself: seconds later. But a pidfd wakes whoever
waits for a process to end (pidfd_open(2), Linux 5.3), and /proc holds how it ended until the agent takes that away, at
its next look (every 0.1 s). So a thread does nothing but wait and read that: what else this process does between two
looks may take longer. Where there are no pidfds, ranks are looked at as often as `wait` returns, and the agent may have
been first.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from fmscale.observe.heartbeat import last_beat
from fmscale.observe.pids import exit_code, kernel_start, state

MEET_EVERY_S = 0.25
"""How often ranks are looked for until all are found: it takes a look at every process of the machine."""
NEWLY_MET_S = 0.1
"""How long it may take until the thread waits for a process that was just met, too."""


@dataclass(frozen=True)
class Death:
    """A rank that ended before it had done all."""

    rank: int
    exit_code: int | None
    """-N: signal N; None: the agent has taken it away."""


class DeathWatch:
    """`wait` in a loop; `deaths` grows. To be closed."""

    def __init__(self, run_dir: Path, world: int, incarnation: str, driver: subprocess.Popen[bytes]) -> None:
        """world: ranks that `driver`, a torchrun, starts on this machine; with 0 only `driver` itself is watched."""
        self._run_dir, self._world, self._incarnation, self._driver = run_dir, world, incarnation, driver
        self._living: dict[int, tuple[int, float]] = {}
        """Rank -> process id and its start as the kernel counts."""
        self._met: set[int] = set()
        self._looked = -float("inf")
        self._ends = _Ends()
        self._ends.add(driver.pid, kernel_start(driver.pid))
        self.deaths: list[Death] = []
        """In the order in which they were noticed."""

    @property
    def all_gone(self) -> bool:
        """Whether of the ranks that were ever there none is left."""
        return bool(self._met) and not self._living

    def wait(self, timeout_s: float) -> bool:
        """Until a rank or the driver ends, at most `timeout_s`. Whether the driver has ended."""
        self._ends.wait(timeout_s)
        if len(self._met) < self._world and time.monotonic() - self._looked > MEET_EVERY_S:
            self._meet()
        new = []
        for rank, process in list(self._living.items()):
            if state(*process) in ("Z", "X", "gone"):
                del self._living[rank]
                said = last_beat(self._run_dir, rank, self._incarnation)
                if said is None or said["phase"] != "done":
                    new.append(Death(rank, self._ends.code(*process)))
        # The agent sends SIGTERM to those that are left.
        self.deaths += sorted(new, key=lambda death: death.exit_code == -signal.SIGTERM)
        return self._driver.poll() is not None

    def kill_living(self) -> None:
        for pid, started in self._living.values():
            if kernel_start(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self._ends.close()

    def _meet(self) -> None:
        self._looked = time.monotonic()
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._driver.pid).children():
                with contextlib.suppress(psutil.Error, OSError):
                    number = child.environ().get("RANK", "")
                    if number.isdecimal() and int(number) not in self._met:
                        self._met.add(int(number))
                        self._living[int(number)] = child.pid, kernel_start(child.pid)
                        self._ends.add(*self._living[int(number)])


class _Ends:
    """The thread that waits for processes to end and reads their exit codes in that moment."""

    def __init__(self) -> None:
        self._poll, self._processes = select.poll(), dict[int, tuple[int, float]]()
        """pidfd -> process id and start"""
        self._codes: dict[tuple[int, float], int | None] = {}
        self._one_ended, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="deaths", daemon=True)
        self._thread.start()

    def add(self, pid: int, started: float) -> None:
        with contextlib.suppress(AttributeError, OSError):  # no Linux, an old one, a container that forbids it; gone
            descriptor = os.pidfd_open(pid)
            self._processes[descriptor] = pid, started
            self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_s: float) -> None:
        """Until one has ended that no earlier call has returned for."""
        self._one_ended.wait(timeout_s)
        self._one_ended.clear()

    def code(self, pid: int, started: float) -> int | None:
        """As `fmscale.observe.pids.exit_code`, of a process that has ended."""
        found = self._codes.get((pid, started))
        return exit_code(pid, started) if found is None else found

    def close(self) -> None:
        self._closed = True
        self._thread.join()
        for descriptor in self._processes:
            os.close(descriptor)

    def _watch(self) -> None:
        while not self._closed:
            for descriptor, _ in self._poll.poll(NEWLY_MET_S * 1000):
                process = self._processes.pop(descriptor)
                self._codes[process] = exit_code(*process)
                self._poll.unregister(descriptor)
                os.close(descriptor)
                self._one_ended.set()
