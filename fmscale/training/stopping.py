"""What asks a run to stop before its last step: preemption, a time limit, Ctrl-C. Asked once, all ranks stop together.

A rank learns of it by SIGTERM or SIGUSR1 to itself, or, rank 0 alone, by the file RUN/stop-request. The file is how the
supervisor and the driver reach ranks on whatever node, under Ray and torchrun alike: a signal would need the ranks'
process ids and their hosts, and is seen no earlier, since a rank looks between steps only (on NFS too: `look_anew`). It
names the incarnation that it is meant for, so that it means nothing to the next one. What one rank knows, all learn in
the exchange before a step (feed.py); then no rank trains that step, all save, and `StopRequested` ends them.

A request to meet again in other numbers (RUN/resize-request, of an elastic run's driver on Ray) works alike, but names
one attempt of an incarnation, and means nothing to the next attempt.

Without a supervisor (the user's own torchrun or srun) ranks watch the time limit themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType

from fmscale.config import LaunchConfig
from fmscale.durable import look_anew, replace

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
REQUEST = "stop-request"
RESIZE = "resize-request"


def request_stop(run_dir: Path, incarnation: str, reason: str) -> None:
    """Ask the ranks of `incarnation` to stop, on whatever nodes. Raises OSError where the file cannot be written."""
    replace(run_dir / REQUEST, json.dumps({"incarnation": incarnation, "reason": reason}).encode() + b"\n")


def request_resize(run_dir: Path, attempt: str, reason: str) -> None:
    """Ask the ranks of `attempt` to save and leave, so that another number of them can go on. Raises OSError."""
    replace(run_dir / RESIZE, json.dumps({"incarnation": attempt, "reason": reason}).encode() + b"\n")


def stop_requested(run_dir: Path, incarnation: str) -> str:
    """Why that incarnation is to stop, "" if it is not."""
    return _asked(run_dir / REQUEST, incarnation)


def _asked(file: Path, name: str) -> str:
    """The reason in a request that is meant for `name`."""
    look_anew(file.parent)  # else it may come to light after the grace period only
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return ""
    return str(said["reason"]) if name and said["incarnation"] == name else ""


def withdraw_request(run_dir: Path) -> None:
    """Where the directory takes no writes it stays: it names an incarnation that is over."""
    with contextlib.suppress(OSError):
        (run_dir / REQUEST).unlink(missing_ok=True)


def seconds_left(launch: LaunchConfig, environment: Mapping[str, str], ran_s: float, now: float) -> float | None:
    """Seconds until a run must begin to stop so that `launch.grace_s` remain; None: there is no limit.

    ran_s: seconds since the start that launch.time_limit_s counts from. now: seconds since the epoch, as Slurm's
    SLURM_JOB_END_TIME counts.
    """
    limits = [launch.time_limit_s - ran_s] if launch.time_limit_s else []
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal():
        limits.append(int(end) - now)
    return min(limits) - launch.grace_s if limits else None


class Stopping:
    """What a rank knows of requests to stop. Inside the block signals are requests; afterwards they are what they were.

    Signals reach the main thread only: where a rank runs in another one, the file is left.
    """

    def __init__(
        self, run_dir: Path, rank: int, launch: LaunchConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run_dir, self._rank, self._clock = run_dir, rank, clock
        self._attempt = os.environ.get("FMSCALE_INCARNATION", "")
        self._incarnation, self._elastic = self._attempt.partition(".")[0], launch.min_dp > 0
        self._reason = ""
        self._before: list[tuple[int, Callable[[int, FrameType | None], object] | int | None]] = []
        left = None if self._incarnation else seconds_left(launch, os.environ, 0.0, time.time())
        self._deadline = None if left is None else clock() + left

    @property
    def reason(self) -> str:
        """Why this rank is to stop, "" as long as it is not."""
        if not self._reason and self._deadline is not None and self._clock() >= self._deadline:
            self._reason = "the time limit"
        if not self._reason and self._rank == 0:
            self._reason = stop_requested(self._run_dir, self._incarnation)
            if not self._reason and self._elastic:
                self._reason = _asked(self._run_dir / RESIZE, self._attempt)
        return self._reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or f"{signal.Signals(number).name} to rank {self._rank}"
        if self._incarnation:  # should this attempt end before the ranks have met, the next one is to know
            with contextlib.suppress(OSError):
                request_stop(self._run_dir, self._incarnation, self._reason)

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = [(number, signal.signal(number, self._on_signal)) for number in SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
