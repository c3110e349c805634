"""The ranks of a run on Ray, all of them at a time: asked to run, watched, and wound up when one fails.

    group = RankGroup(config, members)
    ending = group.attempt(readers, NAME, "", idle)    # None: all ranks are at the last step

Ranks that lose a peer find out within a moment (their collective operation fails), give up what they were doing and
wait to be asked again. So recovery costs a new process group, a new engine and reading the checkpoint: no process
starts, no import. On GPUs all ranks start anew: NCCL's communicators with a dead peer cannot be left cleanly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from fmscale.config import Config
from fmscale.errors import StopRequested
from fmscale.observe.failure import of_rank
from fmscale.training.calling_off import called_off
from launcher.members import Members
from launcher.seats import local_ranks

LOOK_EVERY_S = 0.1
"""At processes, heartbeats and requests; an answer of a rank wakes at once. Each look takes a core some 2 ms."""
GIVE_UP_S = 5.0
"""After one rank has failed, the others have this long to notice it; one that has not by then is replaced, too."""


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


@dataclass
class RankGroup:
    config: Config
    members: Members

    def attempt(
        self, readers: list[Any], name: str, roll_back: str, idle: Callable[[], Sequence[int]]
    ) -> Ending | None:
        """Have all ranks run, from the newest checkpoint on or from `roll_back`, until the last step or a failure.

        idle: called several times a second; the ranks it returns hang, and end the attempt.
        Raises RayLost.
        """
        store = self.members.at(0).actor.open_store.remote(self.members.world, self.config.launch.timeout_s)
        try:
            address, port = self.members.soon(store)
        except (RayActorError, GetTimeoutError) as error:
            return self._ended(name, dead={0}, stuck=set(), words=str(error))
        running = {}
        all_of_them = [self.members.at(rank) for rank in range(self.members.world)]
        for rank, local_rank in enumerate(local_ranks([member.node for member in all_of_them])):
            where = (rank, self.members.dp, local_rank, address, port)
            answer = all_of_them[rank].actor.run.remote(*where, readers, name, roll_back)
            running[answer] = rank
        self.members.start_spares()
        while running:
            done, _ = ray.wait(list(running), timeout=LOOK_EVERY_S)
            self.members.cluster.require_alive()
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
            if self.members.at(rank).is_gone():
                dead.add(running.pop(answer))
        return dead, failed, words

    def _wind_up(
        self, name: str, running: dict[Any, int], dead: set[int], failed: set[int], hung: set[int], words: str
    ) -> Ending:
        """Wait until every other rank has noticed; kill those that do not. Ranks that were asked to stop have the grace
        period."""
        for rank in dead | hung:  # one that Ray calls dead may train on: its raylet has died, and its peers see nothing
            self.members.at(rank).kill()
        waiting = {answer: rank for answer, rank in running.items() if rank not in hung}
        started, limit_s = time.monotonic(), GIVE_UP_S
        with called_off(self.config.run_dir, name):
            while waiting and time.monotonic() - started < limit_s:
                limit_s = self.config.launch.grace_s if self._asked_to_stop(name, failed) else GIVE_UP_S
                done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0.02)
                more, others, said = self._take(waiting, done)
                dead, failed, words = dead | more, failed | others, words or said
        # What a rank has failed by itself leaves its process in who knows what state; an echo of a peer's end does not,
        # nor does a stop between two steps.
        by_themselves = {rank for rank in failed if not self._left_well(name, rank)}
        return self._ended(name, dead=dead, stuck=hung | set(waiting.values()), words=words, replace=by_themselves)

    def _left_well(self, name: str, rank: int) -> bool:
        said = of_rank(self.config.run_dir, name, rank)
        return said is not None and (said.is_echo or said.exit_code == StopRequested.exit_code)

    def _asked_to_stop(self, name: str, failed: set[int]) -> bool:
        said = (of_rank(self.config.run_dir, name, rank) for rank in failed)
        return any(failure is not None and failure.exit_code == StopRequested.exit_code for failure in said)

    def _ended(
        self, name: str, *, dead: set[int], stuck: set[int], words: str, replace: Collection[int] = ()
    ) -> Ending:
        """Empty the places of the lost and of those to replace; on GPUs all of them."""
        everyone = range(self.members.world)
        self.members.drop(everyone if self.members.placement.gpus else {*dead, *stuck, *replace})
        first = words.splitlines()[0] if words else ""
        return Ending(attempt=name, dead=sorted(dead), stuck=sorted(stuck), words=first)
