"""When a run on Ray takes more ranks, or is moved off nodes that are to go: what may interrupt ranks that train.

A loss interrupts them anyway; what is done then is `Placement.renew`'s. When there is room for more than train, Ray is
asked for it, processes start there and warm up while the others train on, and only then are the ranks asked to save
between two steps. At most once in `launch.elastic_wait_s`, so that a node that comes and goes does not eat the run.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

from fmscale.config import Config
from fmscale.observe.events import EventLog
from launcher.members import Members, Preparation

LOOK_EVERY_S = 1.0


class Elastic:
    """`mend` before each attempt, `look` a few times a second while its ranks train."""

    def __init__(self, config: Config, members: Members, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_s, self.members, self._clock = config.launch.elastic_wait_s, members, clock
        self._run_dir = config.run_dir
        self._prepared: Preparation | None = None
        self._changed, self._looked = clock(), -math.inf

    def look(self) -> str:
        """Why the ranks are to stop for a moment; "" while there is no reason to."""
        placement, now = self.members.placement, self._clock()
        if not placement.elastic or placement.dp == placement.most or now - self._looked < LOOK_EVERY_S:
            return ""
        self._looked = now
        if self._prepared is None:
            if now - self._changed < self._wait_s:
                return ""
            if (plan := placement.look_for_more()) is not None:
                self._prepared = self.members.prepare(plan)
            return ""
        if not self._prepared.is_ready():
            return ""
        if why := self._prepared.failure():
            self._give_up(self._prepared, why)
            return ""
        return f"there is room for {self._prepared.plan.dp} data-parallel ranks"

    def mend(self, meanwhile: Callable[[], None], at_once: bool = False) -> None:
        """A seat and a process for every rank: of more ranks if their processes are ready, elsewhere if nodes are lost.

        at_once: without waiting for other room. Raises as `Placement.renew` and `Members.fill`.
        """
        if self.members.placement.elastic:  # else a spare may do in the place of a lost node
            self._settle(meanwhile, at_once)
        while not self.members.fill(meanwhile):
            self._settle(meanwhile, at_once=False)
        self._changed = self._clock()

    def _give_up(self, prepared: Preparation, why: str) -> None:
        """Ranks that train are not interrupted for processes that cannot be used; looked for again some time later."""
        self.members.discard(prepared)
        self.members.placement.adopt(self.members.placement.plan)
        self._prepared, self._changed = None, self._clock()
        text = f"{prepared.plan.dp} data-parallel ranks would have room, but cannot be: {why}"
        EventLog(self._run_dir).write("remark", text=text)
        print(text, file=sys.stderr, flush=True)

    def _settle(self, meanwhile: Callable[[], None], at_once: bool) -> None:
        placement, prepared = self.members.placement, self._prepared
        if prepared is not None:
            lost = placement.lost([*prepared.plan.seats, *placement.seats])
            if lost or prepared.is_ready():
                self._prepared = None
                if lost or not self.members.take_over(prepared):
                    self.members.discard(prepared)
        placement.renew(meanwhile, at_once)
