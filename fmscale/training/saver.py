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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
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
from fmscale.training.fast_tier import FastTier
from fmscale.training.fragment_file import LiveFragments, Part, in_file_order, layout_of
from fmscale.training.host_image import HostImage
from fmscale.training.host_memory import Need, shortage
from fmscale.training.save import IDLE, Progress, Save
from fmscale.training.upload import under_copy

T = TypeVar("T")

ASK_AGAIN_S = 0.25
"""While training waits for a save, ranks tell each other this often that they are there; no collective times out."""
FINISH_S, GIVE_UP_S = 0.5, 5.0
"""How long a rank that fails waits for the save under way, and then for its threads to give up."""


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
        timeout_s: float = math.inf,
        fast: FastTier | None = None,
    ) -> None:
        """fragments: `Engine.fragments`. parent, step: the checkpoint that the run goes on from, and its step.

        timeout_s: how long a save that training waits for may stand still on this rank.
        """
        self._config, self._store, self._fragments = config, store, fragments
        self._rank, self._term, self._control, self._recorder = rank, term, control, recorder
        self._parent, self._saved_step, self._heart = parent, step, heart
        self._timeout_s, self._fast = timeout_s, fast
        self._save: Save | None = None
        self._problem: MachineError | None = None
        """Of the newest save that was no fast one."""
        self._failing: set[CheckpointStore] = set()
        """Since the last save there that succeeded."""
        layout = layout_of(in_file_order(fragments()))
        needs = self._gather(Need.of_this_process(layout.bytes))
        self._bytes = sum(need.bytes for need in needs)
        if fast is not None and fast.in_memory:
            copies = 2 + config.asynchronous  # the newest, the one that is written, and the host image
            if (text := shortage(needs, copies, "there are no fast checkpoints")) is not None:
                self._fast = None
                if recorder is not None:
                    recorder.remark(text)
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

    def begin(self, step: int, rows: int, state: dict[str, Any], *, fast: bool = False) -> None:
        """Have the state after `step` saved; `state` is what rank 0 commits beside the tensors.

        Waits for the save before it, and raises MachineError where that stands still. Returns once the tensors may
        change. What is saved or on its way already is not saved again. fast: in the fast tier, if the run has one.
        """
        store = self._fast if fast else self._store
        if store is None or step == self._saved_step:
            return
        started = time.monotonic()
        self._wait()
        name = directory_name(step, self._term)
        world = dist.get_world_size(self._control)
        save = Save(step=step, name=name, store=store, world=world, started=started)
        if not fast:
            self._saved_step, self._problem = step, None
        room = next((problem for problem in self._gather(self._no_room(save)) if problem is not None), None)
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
        save.work_at(lambda: store.write_rank(step, self._term, self._rank, part, save.moved), "write")
        if self._rank == 0:
            save.work_at(lambda: self._commit(save, rows, state), "commit")
        if self._image is None:
            self._wait()
        save.pause_s = time.monotonic() - started

    def progress(self, wait_s: float = 0.0) -> Progress:
        """What to tell the other ranks; after at most `wait_s` if the save has not ended.

        Raises what is no matter of the machine: CheckpointError where another process has taken the run over, say.
        """
        return self._save.progress(wait_s) if self._save is not None else IDLE

    def hear(self, all_ranks: list[Progress]) -> None:
        """What all ranks told, in one exchange; by rank."""
        save = self._save
        if save is None:
            return
        problem = next((progress.problem for progress in all_ranks if progress.problem is not None), None)
        if problem is not None:
            save.give_up.set()
        if save.written == math.inf and all(progress.written for progress in all_ranks):
            save.written = time.monotonic()
        if not all(progress.done for progress in all_ranks):
            return
        self._save = None
        if all_ranks[0].committed:
            self._succeeded(save)
        else:
            assert problem is not None, f"{save.name} has neither succeeded nor failed"
            self._failed(save, problem)

    def finish(self) -> None:
        """Wait for the save under way. Raises MachineError, on every rank, if the newest one failed, or where it stands
        still."""
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
        """Until no save is under way. What stands still is a hang in the end, for whoever watches the heartbeats; and
        where nobody does, it is this rank's end."""
        seen, moved = ("", -1), time.monotonic()
        while self._save is not None:
            if (now := self._save.lives) != seen:
                self._heart.beat("save", self._save.step)
                seen, moved = now, time.monotonic()
            elif time.monotonic() - moved > self._timeout_s:
                raise MachineError(
                    f"rank {self._rank} stands still in its part of {self._save.name} ({now[0]})",
                    expected=f"some progress within launch.timeout_s={self._timeout_s:g}",
                    found="none: the file system does not answer",
                    do=f"look at {self._save.store.root}; a restart goes on from the checkpoint before",
                )
            self.hear(self._gather(self.progress(ASK_AGAIN_S)))

    def _commit(self, save: Save, rows: int, state: dict[str, Any]) -> Commit:
        assert self._recorder is not None, "rank 0 records"
        self._recorder.before_commit()
        commit = save.store.commit(
            save.step, self._term, save.world, rows, self._parent, state, timeout_s=math.inf, check=save.looked
        )
        save.committed = time.monotonic()
        rule, say = self._config, save.said.append
        try:
            with storage(save.store.root, 0):
                spare = under_copy(self._store.run_dir, self._term)
                save.store.prune(rule.keep, commit, say, keep_every=rule.keep_every_steps, read_back=False, spare=spare)
                if self._fast is not None and save.store is self._store:
                    self._fast.clear(self._term)  # all of it is older now
        except (MachineError, CheckpointError) as error:
            save.said.append(f"{commit.name} stands, but older ones could not be removed: {error}")
        return commit

    def _no_room(self, save: Save) -> MachineError | None:
        try:
            path = save.store.root / save.name
            with storage(path, self._bytes):
                require_room(path, self._bytes, f"{path} (all ranks)")
        except MachineError as error:
            return error
        return None

    def _succeeded(self, save: Save) -> None:
        fast = save.store is self._fast
        if not fast:
            self._parent = save.name
        if save.store in self._failing:
            self._failing.remove(save.store)
            save.said.append(f"{save.name} stands: checkpoints can be written {'to the fast tier ' * fast}again")
        if self._recorder is not None:
            seconds = save.committed - save.started
            pause_s = save.pause_s if self._image is not None else seconds
            self._recorder.checkpoint(save.name, save.step, seconds, pause_s, self._bytes, fast=fast)
            for text in save.said:
                self._recorder.remark(text)

    def _failed(self, save: Save, problem: MachineError) -> None:
        fast = save.store is self._fast
        if not fast:
            self._problem, self._saved_step = problem, -1
        self._failing.add(save.store)
        if self._recorder is None:
            return
        directory = save.store.root / save.name
        try:
            with storage(directory, 0):
                if not (directory / MARKER).exists():  # the disk may have failed right after that
                    save.store.abandon(save.step, self._term)
        except MachineError as error:
            save.said.append(f"{save.name} could not be removed: {error}")
        what = "fast checkpoint" if fast else "checkpoint"
        for text in (f"no {what} at step {save.step}, training goes on: {problem}", *save.said):
            self._recorder.remark(text)

    def _gather(self, mine: T) -> list[T]:
        everyone: list[T] = [mine] * dist.get_world_size(self._control)
        dist.all_gather_object(everyone, mine, group=self._control)
        return everyone
