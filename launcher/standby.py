"""The next torchrun, started while this one trains: its ranks have imported everything and wait for a word.

On Ray a spare takes a lost rank's place. Under torchrun all ranks start anew, and what they would spend seconds on
before they can meet is done by then. It costs the memory of a second set of ranks (some 400 MB each) and, once, the
processor time of their start.
"""

from __future__ import annotations

import time
import uuid
from types import TracebackType

from fmscale.config import Config
from fmscale.observe.heartbeat import last_beat
from launcher.deaths import DeathWatch
from launcher.driver_process import DriverProcess

AFTER_S = 10.0
"""From the first step that a process has finished: what starts beside training slows it, and a short run needs none."""
AGAIN_S = 60.0
"""Until another is started where one has died."""
LOGS = ("driver.log", "driver-2.log")
"""Whose turn it is: what one of the two says must not be taken for the other's."""


class Standby:
    """At most one at a time; none but under a torchrun of ours with `launch.spares`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._wanted = config.launch.backend == "torchrun" and config.launch.spares > 0
        self._waiting: DriverProcess | None = None
        self._watch: DeathWatch | None = None
        self._due: float | None = None

    def look(self, running: DriverProcess) -> None:
        """To be called a few times a second while `running` trains: starts the next one in its time."""
        now = time.monotonic()
        if not self._wanted or (self._due is not None and now < self._due):
            return
        if self._waiting is not None:
            if not self._lives():
                self._drop()
                self._due = now + AGAIN_S
        elif self._due is None:
            said = last_beat(self._config.run_dir, 0, running.tag)
            if said is not None and said["step"] > said["first"] > 0:
                self._due = now + AFTER_S
        else:
            self._start(running)

    def hurry(self, running: DriverProcess) -> None:
        """`running` is about to end: where none waits, one is started now rather than when all have left."""
        if self._wanted and not self._lives():
            self._drop()
            self._start(running)

    def take(self) -> DriverProcess | None:
        """The one that waits; None if none does."""
        if not self._lives():
            self._drop()
        taken, self._waiting, self._due = self._waiting, None, None
        self._drop()
        return taken

    def give_up(self) -> None:
        """Have none any more: its memory is needed."""
        self._wanted = False
        self._drop()

    def _start(self, running: DriverProcess) -> None:
        log = next(name for name in LOGS if name != running.log_name)
        driver = self._waiting = DriverProcess(self._config, uuid.uuid4().hex[:12], ahead=True, log=log)
        self._watch = DeathWatch(self._config.run_dir, self._config.world_size, driver.tag, driver.process)

    def _lives(self) -> bool:
        """Whether it could begin: its torchrun and all of its ranks are there."""
        return self._watch is not None and not self._watch.wait(0.0) and not self._watch.deaths

    def _drop(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None

    def __enter__(self) -> Standby:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
