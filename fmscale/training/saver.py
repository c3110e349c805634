"""How a checkpoint comes about while training goes on: copied at the step boundary, written behind its back.

    training thread   begin: copy what this rank owns into host memory      ...the next steps...      hear, finish
    writer thread            stream, hash, fsync, read back, publish the rank's JSON
    committer thread         (rank 0)  wait for all JSONs, check, COMMIT.json, remove what is too old

At most one save is under way: the next one waits for it. Threads meet on the file system and never take part in a
collective operation; what a rank knows about the save (`Progress`) rides on the exchange before each step, so that all
ranks learn in the same step that it ended, and how. If one rank fails, all give up; rank 0 removes the parts once
nobody is writing, says so, and training goes on. Only the save that a run ends with must succeed (`finish`).

Where the copies of a node's ranks do not fit into its memory, training waits while its tensors are written themselves.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fmscale.config import CheckpointConfig
from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.heartbeat import Heartbeat
from fmscale.observe.recorder import Recorder
from fmscale.training.block_file import require_room, storage
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import MARKER, Commit, directory_name
from fmscale.training.engine import Fragment
from fmscale.training.fragment_file import LiveFragments, Part, in_file_order, layout_of
from fmscale.training.host_image import HostImage
from fmscale.training.host_memory import Need, shortage

T = TypeVar("T")

ASK_AGAIN_S = 0.25
"""While training waits for a save, ranks tell each other this often that they are there; no collective times out."""
FINISH_S, GIVE_UP_S = 1.0, 5.0
"""How long a rank that fails waits for the save under way, and then for its threads to give up."""


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
class _Save:
    """The save under way."""

    step: int
    name: str
    started: float
    """Monotonic clock, as `committed`."""
    pause_s: float = 0.0
    committed: float = math.inf
    threads: list[Future[Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """By the committer, for the recorder, which belongs to the training thread."""
    give_up: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        if self.give_up.is_set():
            raise _GivenUpError


class Saver:
    """Saves one rank's state; every call but `progress` is made by all ranks at the same step."""

    def __init__(
        self,
        config: CheckpointConfig,
        store: CheckpointStore,
        fragments: Callable[[], Iterator[Fragment]],
        *,
        rank: int,
        term: int,
        parent: str | None,
        step: int,
        device: torch.device,
        control: dist.ProcessGroup,
        heart: Heartbeat,
        recorder: Recorder | None,
    ) -> None:
        """fragments: `Engine.fragments`. parent, step: the checkpoint that the run goes on from, and its step."""
        self._config, self._store, self._fragments = config, store, fragments
        self._rank, self._term, self._control, self._recorder = rank, term, control, recorder
        self._parent, self._saved_step, self._heart = parent, step, heart
        self._save: _Save | None = None
        self._problem: MachineError | None = None
        """Of the newest save."""
        self._failing = False
        """Since the last save that succeeded."""
        layout = layout_of(in_file_order(fragments()))
        needs = self._gather(Need.of_this_process(layout.bytes))
        self._bytes = sum(need.bytes for need in needs)
        self._image: HostImage | None = None
        if config.asynchronous:
            if (text := shortage(needs)) is None:
                self._image = HostImage(layout, device)
            elif recorder is not None:
                recorder.remark(text)

    @property
    def newest(self) -> str | None:
        """Name of the newest checkpoint of the run that stands; None before the first."""
        return self._parent

    def begin(self, step: int, rows: int, state: dict[str, Any]) -> None:
        """Have the state after `step` saved; `state` is what rank 0 commits beside the tensors.

        Waits for the save before it. Returns once the tensors may change. What is saved or on its way already is not
        saved again.
        """
        if step == self._saved_step:
            return
        started = time.monotonic()
        self._wait()
        name = directory_name(step, self._term)
        save = _Save(step=step, name=name, started=started)
        self._saved_step, self._problem = step, None
        room = next((problem for problem in self._gather(self._no_room(name)) if problem is not None), None)
        if room is not None:
            self._failed(save, room)
            return
        part: Part
        if self._image is not None:
            self._image.fill(self._fragments())
            part = self._image
        else:
            part = LiveFragments(self._fragments())
        self._save = save
        save.threads.append(_in_background(lambda: self._write(save, part), f"checkpoint {step}: write"))
        if self._rank == 0:
            world = dist.get_world_size(self._control)
            save.threads.append(
                _in_background(lambda: self._commit(save, world, rows, state), f"checkpoint {step}: commit")
            )
        if self._image is None:
            self._wait()
        save.pause_s = time.monotonic() - started

    def progress(self, wait_s: float = 0.0) -> Progress:
        """What to tell the other ranks; after at most `wait_s` if the save has not ended.

        Raises what is no matter of the machine: CheckpointError where another process has taken the run over, say.
        """
        if self._save is None:
            return IDLE
        done = not wait(self._save.threads, wait_s).not_done
        problem: MachineError | None = None
        committed = False
        for thread in self._save.threads:
            if thread.done():
                try:
                    committed = isinstance(thread.result(), Commit)
                except _GivenUpError:
                    pass
                except MachineError as error:
                    problem = problem or error
        return Progress(done, problem, committed)

    def hear(self, all_ranks: list[Progress]) -> None:
        """What all ranks told, in one exchange; by rank."""
        save = self._save
        if save is None:
            return
        problem = next((progress.problem for progress in all_ranks if progress.problem is not None), None)
        if problem is not None:
            save.give_up.set()
        if not all(progress.done for progress in all_ranks):
            return
        self._save = None
        if all_ranks[0].committed:
            self._succeeded(save)
        else:
            assert problem is not None, f"{save.name} has neither succeeded nor failed"
            self._failed(save, problem)

    def finish(self) -> None:
        """Wait for the save under way. Raises MachineError, on every rank, if the newest one failed."""
        self._wait()
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        """Of a rank that fails: what is under way may still be finished in a moment, else it is given up."""
        if self._save is not None:
            wait(self._save.threads, FINISH_S)
            self._save.give_up.set()
            wait(self._save.threads, GIVE_UP_S)

    def _wait(self) -> None:
        while self._save is not None:
            self._heart.beat("save", self._save.step)
            self.hear(self._gather(self.progress(ASK_AGAIN_S)))

    def _write(self, save: _Save, part: Part) -> None:
        self._store.write_rank(save.step, self._term, self._rank, part, save.check)

    def _commit(self, save: _Save, world: int, rows: int, state: dict[str, Any]) -> Commit:
        assert self._recorder is not None, "rank 0 records"
        self._recorder.before_commit()
        commit = self._store.commit(
            save.step, self._term, world, rows, self._parent, state, timeout_s=math.inf, check=save.check
        )
        save.committed = time.monotonic()
        try:
            with storage(self._store.root, 0):
                self._store.prune(
                    self._config.keep,
                    commit,
                    save.said.append,
                    keep_every=self._config.keep_every_steps,
                    read_back=False,
                )
        except (MachineError, CheckpointError) as error:
            save.said.append(f"{commit.name} stands, but older ones could not be removed: {error}")
        return commit

    def _no_room(self, name: str) -> MachineError | None:
        try:
            path = self._store.root / name
            with storage(path, self._bytes):
                require_room(path, self._bytes, f"{path} (all ranks)")
        except MachineError as error:
            return error
        return None

    def _succeeded(self, save: _Save) -> None:
        self._parent = save.name
        if self._failing:
            save.said.append(f"{save.name} stands: checkpoints can be written again")
        self._failing = False
        if self._recorder is not None:
            seconds = save.committed - save.started
            pause_s = save.pause_s if self._image is not None else seconds
            self._recorder.checkpoint(save.name, save.step, seconds, pause_s, self._bytes)
            for text in save.said:
                self._recorder.remark(text)

    def _failed(self, save: _Save, problem: MachineError) -> None:
        self._problem, self._saved_step = problem, -1
        self._failing = True
        if self._recorder is None:
            return
        try:
            with storage(self._store.root / save.name, 0):
                if not (self._store.root / save.name / MARKER).exists():  # the disk may have failed right after that
                    self._store.abandon(save.step, self._term)
        except MachineError as error:
            save.said.append(f"{save.name} could not be removed: {error}")
        for text in (f"no checkpoint at step {save.step}, training goes on: {problem}", *save.said):
            self._recorder.remark(text)

    def _gather(self, mine: T) -> list[T]:
        everyone: list[T] = [mine] * dist.get_world_size(self._control)
        dist.all_gather_object(everyone, mine, group=self._control)
        return everyone


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
