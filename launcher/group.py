"""The ranks of a run on Ray, and the spares that take the places of lost ones.

    group = RankGroup(config, strategies, gpus)
    ending = group.attempt(readers, NAME, idle)     # None: all ranks are at the last step
    group.mend()                                    # spares for the dead, everybody else keeps their process

Ranks that lose a peer find out within a moment (their collective operation fails), give up what they were doing and
wait to be asked again. So recovery costs a new process group, a new engine and reading the checkpoint: no process
starts, no import. On GPUs all ranks start anew: NCCL's communicators with a dead peer cannot be left cleanly.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmscale.config import Config
from fmscale.errors import MachineError, StopRequested
from fmscale.observe.failure import of_rank
from fmscale.training.calling_off import called_off
from launcher.ranks import RankActor
from launcher.ray_cluster import Cluster, is_gone

GIVE_UP_S = 5.0
"""After one rank has failed, the others have this long to notice it; one that has not by then is replaced, too."""
START_S = 120.0
"""Longest wait for a new actor's process."""


class NodeLost(MachineError):
    """No process could be had in a lost rank's place."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended before the last step."""

    attempt: str
    """Name under which ranks recorded their failures."""
    dead: Sequence[int] = ()
    """Ranks whose process is gone."""
    stuck: Sequence[int] = ()
    """Ranks that had to be killed: they did not answer after a peer had failed, or hung."""
    words: str = ""
    """What Ray said of the first one, or how a rank hung."""


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


@dataclass
class RankGroup:
    config: Config
    cluster: Cluster
    strategies: Sequence[Any]
    """Where each rank is placed."""
    gpus: int
    """GPUs a rank."""
    environment: dict[str, str]
    """What ranks are to know of the driver's environment."""
    _members: dict[int, Member] = field(init=False, default_factory=dict)
    _spares: list[tuple[str, Any]] = field(init=False, default_factory=list)
    """(node, actor), the longest warm first."""
    _nodes: dict[int, str] = field(init=False, default_factory=dict)
    """Where each rank stands, or stood last."""
    _numbers: Iterator[int] = field(init=False, default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.mend()

    @property
    def nodes(self) -> list[str]:
        """Ray's node ids of the ranks, each once."""
        return list(dict.fromkeys(self._members[rank].node for rank in sorted(self._members)))

    def mend(self) -> None:
        """Put another process in each empty place: a spare of the same node, of any, or a new one."""
        new = {}
        for rank in range(self.config.world_size):
            if rank not in self._members:
                spare = self._take_spare(self._nodes.get(rank, ""))
                if spare is not None:
                    self._members[rank] = spare
                else:
                    new[rank] = self._start(f"rank-{rank:05d}", self.strategies[rank], num_cpus=1, num_gpus=self.gpus)
        asked = {rank: actor.whereabouts.remote() for rank, actor in new.items()}
        for rank, answer in asked.items():
            self._members[rank] = _member(new[rank], self._whereabouts(answer))
        self._nodes = {rank: member.node for rank, member in self._members.items()}

    def attempt(
        self, readers: list[Any], name: str, roll_back: str, idle: Callable[[], Sequence[int]]
    ) -> Ending | None:
        """Have all ranks run, from the newest checkpoint on or from `roll_back`, until the last step or a failure.

        idle: called several times a second; the ranks it returns hang, and end the attempt.
        Raises RayLost.
        """
        world = self.config.world_size
        store = self._members[0].actor.open_store.remote(world, self.config.launch.timeout_s)
        try:
            address, port = self._soon(store)
        except (RayActorError, GetTimeoutError) as error:
            return self._ended(name, dead={0}, stuck=set(), words=str(error))
        seen: dict[str, int] = defaultdict(int)
        running = {}
        for rank in range(world):
            member = self._members[rank]
            where = (rank, world, seen[member.node], address, port)
            answer = member.actor.run.remote(*where, readers, name, roll_back)
            running[answer] = rank
            seen[member.node] += 1
        self._start_spares()
        while running:
            done, _ = ray.wait(list(running), timeout=0.05)
            self.cluster.require_alive()
            dead, failed, words = self._take(running, done)
            hung = set(idle())
            if dead or failed or hung:
                return self._wind_up(name, running, dead, failed, hung, words)
        return None

    def _take(self, running: dict[Any, int], done: Sequence[Any]) -> tuple[set[int], set[int], str]:
        """Of those that answered, and of those that cannot any more: who is dead, who failed, and Ray's words."""
        dead, failed, words = set(), set(), ""
        for answer in done:
            rank = running.pop(answer)
            try:
                ray.get(answer)
            except RayActorError as error:
                dead.add(rank)
                words = words or str(error)
            except Exception as error:  # the rank has recorded it
                failed.add(rank)
                print(f"rank {rank}: {error}", file=sys.stderr)
        for answer, rank in list(running.items()):
            if self._members[rank].is_gone():
                dead.add(running.pop(answer))
        return dead, failed, words

    def _wind_up(
        self, name: str, running: dict[Any, int], dead: set[int], failed: set[int], hung: set[int], words: str
    ) -> Ending:
        """Wait until every other rank has noticed; kill those that do not. Ranks that were asked to stop have the grace
        period, which the supervisor watches."""
        for rank in hung:
            self._members[rank].kill()
        waiting = {answer: rank for answer, rank in running.items() if rank not in hung}
        deadline = time.monotonic() + GIVE_UP_S
        with called_off(self.config.run_dir, name):
            while waiting and (time.monotonic() < deadline or self._asked_to_stop(name, failed)):
                done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0.02)
                more, others, said = self._take(waiting, done)
                dead, failed, words = dead | more, failed | others, words or said
        # What a rank has failed by itself leaves its process in who knows what state; an echo of a peer's end does not.
        by_themselves = {rank for rank in failed if not self._is_echo(name, rank)}
        return self._ended(name, dead=dead, stuck=hung | set(waiting.values()), words=words, replace=by_themselves)

    def _is_echo(self, name: str, rank: int) -> bool:
        said = of_rank(self.config.run_dir, name, rank)
        return said is not None and said.is_echo

    def _asked_to_stop(self, name: str, failed: set[int]) -> bool:
        said = (of_rank(self.config.run_dir, name, rank) for rank in failed)
        return any(failure is not None and failure.exit_code == StopRequested.exit_code for failure in said)

    def _ended(
        self, name: str, *, dead: set[int], stuck: set[int], words: str, replace: Collection[int] = ()
    ) -> Ending:
        """Empty the places of the lost and of those to replace; on GPUs all of them."""
        for rank in range(len(self._members)) if self.gpus else {*dead, *stuck, *replace}:
            self._members.pop(rank).kill()
        first = words.splitlines()[0] if words else ""
        return Ending(attempt=name, dead=sorted(dead), stuck=sorted(stuck), words=first)

    # --- processes

    def _start(self, name: str, place: Any, **resources: int) -> Any:
        options = ray.remote(RankActor).options(scheduling_strategy=place, **resources)
        return options.remote(self.config, name, self.environment)

    def _start_spares(self) -> None:
        """`launch.spares` on each node with ranks, in the background. On GPUs they would be of no use."""
        if self.gpus:
            return
        for node in self.nodes:
            have = sum(at == node for at, _ in self._spares)
            for number in itertools.islice(self._numbers, max(0, self.config.launch.spares - have)):
                place = NodeAffinitySchedulingStrategy(node, soft=False)
                actor = self._start(f"spare-{number}", place, num_cpus=0)
                actor.warm_up.remote(number)
                self._spares.append((node, actor))

    def _take_spare(self, node: str) -> Member | None:
        """One whose process lives, best one of `node`; None without any. One that still warms up is waited for."""
        while self._spares:
            at, actor = next((spare for spare in self._spares if spare[0] == node), self._spares[0])
            self._spares.remove((at, actor))
            try:
                return _member(actor, self._soon(actor.whereabouts.remote()))
            except (RayActorError, GetTimeoutError):
                ray.kill(actor)
        return None

    def _whereabouts(self, answer: Any) -> tuple[str, str, int]:
        try:
            found: tuple[str, str, int] = self._soon(answer)
        except (RayActorError, GetTimeoutError) as error:
            raise NodeLost(
                "a rank's process does not start",
                expected=f"an answer within {START_S:g} s",
                found=str(error).splitlines()[0],
                do=f"look at {self.config.run_dir / 'logs'} and at the cluster's nodes (`ray status`)",
            ) from error
        return found

    def _soon(self, answer: Any) -> Any:
        """`ray.get` with START_S to go and an eye on Ray. Raises RayActorError, GetTimeoutError, RayLost."""
        deadline = time.monotonic() + START_S
        while True:
            self.cluster.require_alive()
            try:
                return ray.get(answer, timeout=0.5)
            except GetTimeoutError:
                if time.monotonic() > deadline:
                    raise


def _member(actor: Any, whereabouts: tuple[str, str, int]) -> Member:
    node, host, pid = whereabouts
    return Member(actor, node, psutil.Process(pid) if host == socket.gethostname() else None)
