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
from fmscale.training.parts import missing_parts

T = TypeVar("T")

SEEN_S = 90.0
"""How long what another node has written may take to be seen on this one. A mount of NFS with `nocto` shows a directory
as it was for up to 60 s (nfs(5), acdirmax)."""


@dataclass(frozen=True)
class Progress:
    """What a rank tells all others about the save under way."""

    done: bool
    """Its threads have ended."""
    problem: MachineError | None = None
    """Why its part failed."""
    written: bool = False
    """Its own part is on the disk."""
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
    world: int
    """Ranks that write."""
    started: float
    """Monotonic clock, as `written` and `committed`."""
    pause_s: float = 0.0
    written: float = math.inf
    """When all ranks had told that their parts are on the disk."""
    committed: float = math.inf
    threads: list[Future[Any]] = field(default_factory=list)
    """The writer's, and on rank 0 the committer's."""
    said: list[str] = field(default_factory=list)
    """By the committer, for the recorder, which belongs to the training thread."""
    blocks: int = 0
    """That the writer has begun to write, or to read back."""
    looks: int = 0
    """That the committer has taken for the parts."""
    give_up: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Called by the threads now and then: ends them once the save is given up."""
        if self.give_up.is_set():
            raise _GivenUpError

    def moved(self) -> None:
        """Called by the writer before each block: `check`, and a sign of life."""
        self.blocks += 1
        self.check()

    def looked(self) -> None:
        """Called by the committer at each look for the parts: `check`, and a sign of life.

        Raises MachineError where parts that were written long ago are not to be seen.
        """
        self.looks += 1
        self.check()
        if time.monotonic() - self.written > SEEN_S:
            missing = missing_parts(self.store.root / self.name, range(self.world))
            raise MachineError(
                f"the ranks have written {self.name}, and rank 0 does not see all of it",
                expected=f"what they write to {self.store.root} to be seen on its node within {SEEN_S:g} s",
                found=f"nothing from rank {', '.join(map(str, missing[:8]))}{' ...' if missing[8:] else ''}",
                do="put run.root on storage that all nodes share under the same path",
            )

    @property
    def lives(self) -> tuple[str, int]:
        """Changes as long as this rank's own work makes progress; where it has none left, it needs to make none."""
        if not self.threads[0].done():
            return "write", self.blocks
        if not all(thread.done() for thread in self.threads):
            return "commit", self.looks
        return "wait", time.monotonic_ns()

    def work_at(self, work: Callable[[], Any], what: str) -> None:
        self.threads.append(_in_background(work, f"checkpoint {self.step}: {what}"))

    def progress(self, wait_s: float) -> Progress:
        """After at most `wait_s` if its threads have not ended. Raises what is no matter of the machine."""
        done = not wait(self.threads, wait_s).not_done
        problem: MachineError | None = None
        succeeded = [False, False]
        for number, thread in enumerate(self.threads):
            if thread.done():
                try:
                    thread.result()
                    succeeded[number] = True
                except _GivenUpError:
                    pass
                except MachineError as error:
                    problem = problem or error
        return Progress(done, problem, written=succeeded[0], committed=succeeded[1])


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
