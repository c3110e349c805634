"""What asks the supervisor to stop: signals and the time limit. It only notes them; `incarnation.py` acts.

SIGTERM, SIGUSR1   preemption: save and stop, exit code 85; once or more often
SIGINT (Ctrl-C)    save and stop, exit code 130; a second one stops now
the time limit     save and stop, exit code 85, `launch.grace_s` before it
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from fmscale.config import LaunchConfig
from fmscale.errors import StopRequested
from fmscale.training.stopping import seconds_left

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequests:
    """Inside the block those signals are requests; afterwards they are what they were."""

    def __init__(self, launch: LaunchConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        left = seconds_left(launch, os.environ, 0.0, time.time())
        self._deadline = None if left is None else clock() + left
        self._first = ""
        self._interrupts = 0

    @property
    def reason(self) -> str:
        """Why the run is to stop; "" as long as nobody asks."""
        if not self._first and self._deadline is not None and self._clock() >= self._deadline:
            self._first = "the time limit"
        return self._first

    @property
    def now(self) -> bool:
        """Whether there is no time to save."""
        return self._interrupts > 1

    @property
    def exit_code(self) -> int:
        return 128 + signal.SIGINT if self._interrupts else StopRequested.exit_code

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        self._first = self._first or signal.Signals(number).name

    def __enter__(self) -> StopRequests:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
