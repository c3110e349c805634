"""The processes of a run on Ray: those that are ranks, and the spares that take the places of lost ones.

    members = Members(config, cluster, placement, environment)
    members.fill(meanwhile)       # a process for each seat of the placement
    members.drop({1})             # rank 1's is dead, or to be killed: its seat is empty now

A process belongs to a seat and is whatever rank sits there: ranks may be numbered anew without one that starts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmscale.config import Config
from fmscale.errors import FmscaleError
from launcher.placement import NodeLost, Placement, Plan, Slot
from launcher.ranks import RankActor
from launcher.ray_cluster import Cluster, is_gone
from launcher.ray_join import RANK_START

START_S = 120.0
"""Longest wait for a new actor's process, unless RANK_START says another."""


@dataclass(frozen=True)
class Member:
    """A process that is a rank, or could be one."""

    actor: Any
    node: str
    """Ray's id of its node."""
    process: psutil.Process | None
    """Where it runs on this machine: the kernel knows of its death seconds before Ray does."""

    def kill(self) -> None:
        """SIGKILL where it can be sent from here: Ray asks first, and a stopped process does not listen."""
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.kill()
        ray.kill(self.actor)

    def is_gone(self) -> bool:
        return self.process is not None and is_gone(self.process)


@dataclass(frozen=True)
class Preparation:
    """Processes for the seats of a plan that is not in force yet."""

    plan: Plan
    actors: Mapping[Slot, Any]
    answers: Mapping[Slot, Any]
    """To be had once they are warm: where they are."""

    def is_ready(self) -> bool:
        """Whether all have answered; a dead one has, too."""
        answers = list(self.answers.values())
        return len(ray.wait(answers, num_returns=len(answers), timeout=0)[0]) == len(answers) if answers else True

    def failure(self) -> str:
        """Of those that are ready: why one cannot be used, "" if all can."""
        for answer in self.answers.values():
            try:
                ray.get(answer)
            except RayError as error:
                return str(error.cause if isinstance(error, RayTaskError) else error)
        return ""


class _SeatLostError(Exception):
    """Nothing can start there any more."""


@dataclass
class Members:
    config: Config
    cluster: Cluster
    placement: Placement
    """Where each rank is placed."""
    environment: dict[str, str]
    """What ranks are to know of the driver's environment."""
    _seated: dict[Slot, Member] = field(init=False, default_factory=dict)
    _spares: list[tuple[str, Any]] = field(init=False, default_factory=list)
    """(node, actor), the longest warm first."""
    _numbers: Iterator[int] = field(init=False, default_factory=itertools.count)

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.placement.dp

    @property
    def world(self) -> int:
        """Ranks."""
        return len(self.placement.seats)

    @property
    def nodes(self) -> list[str]:
        """Ray's node ids of the ranks, each once."""
        return list(dict.fromkeys(self.at(rank).node for rank in range(self.world)))

    def at(self, rank: int) -> Member:
        return self._seated[self.placement.seats[rank]]

    def drop(self, ranks: Collection[int]) -> None:
        """Kill the processes of these ranks."""
        for rank in ranks:
            self._seated.pop(self.placement.seats[rank]).kill()

    def fill(self, meanwhile: Callable[[], None]) -> bool:
        """Put a process into each empty seat: a spare of the same node, of any, or a new one; those without a seat end.

        False if a node has turned out to be lost, so that other seats are needed. With elasticity ranks stay where they
        are placed: a spare is for its own node only. meanwhile: called while there is something to wait for.
        Raises NodeLost, RayLost, MachineError where a node does not have the run directory; what `meanwhile` does.
        """
        seats, new = self.placement.seats, {}
        for slot in self._seated.keys() - set(seats):
            self._seated.pop(slot).kill()
        for rank, slot in enumerate(seats):
            if slot not in self._seated:
                spare = self._take_spare(slot.node)
                if spare is not None:
                    self._seated[slot] = spare
                else:
                    new[slot] = self._start_in(slot, f"rank-{rank:05d}")
        asked = {slot: actor.whereabouts.remote() for slot, actor in new.items()}
        for slot, answer in asked.items():
            found = self._whereabouts(answer, lambda: self.placement.lost(new), meanwhile)
            if found is None:
                for actor in new.values():
                    ray.kill(actor)
                return False
            self._seated[slot] = _member(new.pop(slot), found)
        return True

    def prepare(self, plan: Plan) -> Preparation:
        """Start what `plan` needs beyond what is there, and have it warm up, while the ranks train."""
        lacking = [slot for slot in plan.seats if slot not in self._seated]
        actors = {slot: self._start_in(slot, "rank-new") for slot in lacking}
        if not self.placement.gpus:
            for actor in actors.values():
                actor.warm_up.remote(next(self._numbers))
        return Preparation(plan, actors, {slot: actor.whereabouts.remote() for slot, actor in actors.items()})

    def discard(self, prepared: Preparation) -> None:
        """Its processes are not needed."""
        for actor in prepared.actors.values():
            ray.kill(actor)

    def take_over(self, prepared: Preparation) -> bool:
        """Have the plan in force, and its new processes in their seats; not if one of them is dead again."""
        try:
            found = {slot: ray.get(answer) for slot, answer in prepared.answers.items()}
        except RayError:
            return False
        self._seated |= {slot: _member(prepared.actors[slot], where) for slot, where in found.items()}
        self.placement.adopt(prepared.plan)
        return True

    def start_spares(self) -> None:
        """`launch.spares` on each node with ranks, in the background. On GPUs they would be of no use."""
        if self.placement.gpus:
            return
        for node in self.nodes:
            have = sum(at == node for at, _ in self._spares)
            for number in itertools.islice(self._numbers, max(0, self.config.launch.spares - have)):
                place = NodeAffinitySchedulingStrategy(node, soft=False)
                actor = self._start(f"spare-{number}", place, num_cpus=0)
                actor.warm_up.remote(number)
                self._spares.append((node, actor))

    def _start_in(self, slot: Slot, name: str) -> Any:
        return self._start(name, slot.strategy, num_cpus=1, num_gpus=self.placement.gpus)

    def _start(self, name: str, place: Any, **resources: int) -> Any:
        options = ray.remote(RankActor).options(scheduling_strategy=place, **resources)
        return options.remote(self.config, name, self.environment, (socket.gethostname(), os.getpid()))

    def _take_spare(self, node: str) -> Member | None:
        """One whose process lives, best one of `node`; None without any. One that still warms up is waited for."""
        while True:
            fitting = [spare for spare in self._spares if spare[0] == node]
            if not fitting and not self.placement.elastic:
                fitting = self._spares
            if not fitting:
                return None
            at, actor = fitting[0]
            self._spares.remove((at, actor))
            try:
                return _member(actor, self.soon(actor.whereabouts.remote()))
            except RayError:
                ray.kill(actor)

    def _whereabouts(
        self, answer: Any, lost: Callable[[], bool], meanwhile: Callable[[], None]
    ) -> tuple[str, str, int] | None:
        """What a new actor says; None if its node is `lost`, so that there will be none."""

        def each() -> None:
            meanwhile()
            if lost():
                raise _SeatLostError

        try:
            found: tuple[str, str, int] = self.soon(answer, each)
        except _SeatLostError:
            return None
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, FmscaleError):
                raise error.cause from None
            if lost():
                return None
            raise NodeLost(
                "a rank's process does not start",
                expected=f"an answer within {_start_s():g} s",
                found=str(error).splitlines()[0],
                do=f"look at {self.config.run_dir / 'logs'} and at the cluster's nodes (`ray status`)",
            ) from error
        return found

    def soon(self, answer: Any, each: Callable[[], None] = lambda: None) -> Any:
        """`ray.get` with `_start_s()` to go and an eye on Ray. Raises RayError, RayLost; what `each` does, which is
        called twice a second."""
        deadline = time.monotonic() + _start_s()
        while True:
            self.cluster.require_alive()
            each()
            try:
                return ray.get(answer, timeout=0.5)
            except GetTimeoutError:
                if time.monotonic() > deadline:
                    raise


def _start_s() -> float:
    return float(os.environ.get(RANK_START, START_S))


def _member(actor: Any, whereabouts: tuple[str, str, int]) -> Member:
    node, host, pid = whereabouts
    return Member(actor, node, psutil.Process(pid) if host == socket.gethostname() else None)
