"""One save under way: the threads that work at it, and what this rank can tell the others about it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fmscale.errors import MachineError
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import Commit

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """What a rank tells all others about the save under way."""

    done: bool
    """Its threads have ended."""
    problem: MachineError | None = None
    """Why its part failed."""
    committed: bool = False
    """On rank 0, once COMMIT.json stands."""


IDLE = Progress(done=True)


class _GivenUpError(Exception):
    """Another rank failed; ends the threads of this one."""


@dataclass(kw_only=True)
class Save:
    step: int
    name: str
    store: CheckpointStore
    """The run's checkpoints, or the fast ones."""
    started: float
    """Monotonic clock, as `committed`."""
    pause_s: float = 0.0
    committed: float = math.inf
    threads: list[Future[Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """By the committer, for the recorder, which belongs to the training thread."""
    blocks: int = 0
    """That the writer has begun to write, or to read back."""
    give_up: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Called by the threads now and then: ends them once the save is given up."""
        if self.give_up.is_set():
            raise _GivenUpError

    def moved(self) -> None:
        """Called by the writer before each block: `check`, and a sign of life."""
        self.blocks += 1
        self.check()

    @property
    def lives(self) -> int:
        """Changes as long as this rank's part makes progress; a writer that has ended needs to make none."""
        return self.blocks if not self.threads[0].done() else -time.monotonic_ns()

    def work_at(self, work: Callable[[], Any], what: str) -> None:
        self.threads.append(_in_background(work, f"checkpoint {self.step}: {what}"))

    def progress(self, wait_s: float) -> Progress:
        """After at most `wait_s` if its threads have not ended. Raises what is no matter of the machine."""
        done = not wait(self.threads, wait_s).not_done
        problem: MachineError | None = None
        committed = False
        for thread in self.threads:
            if thread.done():
                try:
                    committed = isinstance(thread.result(), Commit)
                except _GivenUpError:
                    pass
                except MachineError as error:
                    problem = problem or error
        return Progress(done, problem, committed)


def _in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Run in a thread that does not keep the process from ending.

    At the priority of all others: one that is held back while it holds the interpreter lock holds training back too.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
