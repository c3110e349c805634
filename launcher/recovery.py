"""What the driver does about lost ranks by itself: notice, judge as the supervisor would, tell, mend, and go on.

The incidents of one life of the supervisor are one budget (launcher/restarts.py), whoever restarts: they stand in
events.jsonl, where this process finds those before it and the supervisor finds those of this process. What ends the
run is raised, recorded as the driver's own failure, and for the supervisor to tell.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmscale.config import Config
from fmscale.errors import RunHeldError, StopRequested
from fmscale.observe.events import EventLog, read_events
from fmscale.observe.failure import first_cause
from fmscale.observe.heartbeat import HeartbeatWatch
from fmscale.observe.metrics import last_step
from fmscale.observe.oom import oom_kills
from fmscale.observe.terms import newest_term
from fmscale.training.stopping import request_resize, request_stop, stop_requested
from launcher import restarts
from launcher.drain import DrainWatch
from launcher.driver_process import ROLL_BACK
from launcher.elastic import Elastic
from launcher.group import Ending
from launcher.incarnation import committed_step, rolled_back, show_hang, starts_from
from launcher.progress import Follower
from launcher.restarts import Restarts, classify


class Recovery:
    """The attempts of one driver."""

    def __init__(self, config: Config, tag: str, elastic: Elastic, follower: Follower) -> None:
        """tag: of the incarnation that this driver is."""
        self._config, self._run_dir, self._tag = config, config.run_dir, tag
        self._elastic, self._members, self._follower = elastic, elastic.members, follower
        self._events = EventLog(self._run_dir)
        self._restarts = Restarts(config.launch.max_restarts, incidents_of_this_life(self._run_dir))
        self._asked, self._lock = False, self._run_dir / "lease" / "lock"
        self._held = _identity(self._lock)
        self._number, self._first_term = -1, newest_term(self._run_dir)
        self._begin()
        self._tell_ranks(config.parallel.dp, "the cluster has no room for more")

    @property
    def attempt(self) -> str:
        """Name of the attempt that is under way: failures and heartbeats carry it."""
        return f"{self._tag}.{self._number}"

    def _begin(self) -> None:
        launch = self._config.launch
        self._number, self._hang, self._moving = self._number + 1, "", ""
        self._step_before, self._kills_before = starts_from(self._run_dir, self.roll_back), oom_kills()
        self._drain = DrainWatch(self._members.nodes)
        self._watch = HeartbeatWatch(
            run_dir=self._run_dir,
            world=self._members.world,
            limit_s=launch.hang_s or launch.timeout_s,
            start_s=launch.timeout_s,
            incarnation=self.attempt,
        )

    @property
    def roll_back(self) -> str:
        """The checkpoint that this attempt is to start from; "": the newest."""
        name = os.environ.get(ROLL_BACK, "")
        return "" if name and rolled_back(self._run_dir, name, self._first_term) else name

    def idle(self) -> Sequence[int]:
        """Show progress; ask the ranks to stop where Ray drains a node, to meet again where the run can do without that
        node or has room for more; the ranks that hang."""
        self._follower.update()
        if notice := self._drain.look():
            placement = self._members.placement
            (self._move if placement.elastic and placement.suffices() else self.ask_to_stop)(notice)
        elif more := self._elastic.look():
            self._move(more)
        if not self._config.launch.hang_s or (hang := self._watch.look()) is None:
            return []
        self._hang = str(hang)
        show_hang(self._run_dir, hang, self.attempt, self._events)
        return [place.rank for place in hang.missing]

    def ask_to_stop(self, reason: str) -> None:
        """Have the ranks save and stop before their next step; once is enough."""
        if not self._asked:
            self._asked = True
            with contextlib.suppress(OSError):  # ranks could not save there either
                request_stop(self._run_dir, self._tag, reason)

    def _move(self, why: str) -> None:
        """Have the ranks of this attempt save before their next step, to go on in other seats."""
        if not self._moving:
            self._moving = why
            # Before the request: else a supervisor that finds this process dead takes it for a stop of the run.
            self._events.write("resize_requested", incarnation=self.attempt, why=why)
            with contextlib.suppress(OSError):
                request_resize(self._run_dir, self.attempt, why)

    def judge(self, ending: Ending) -> None:
        """Count and tell the incident, if it is one and not the end of an attempt that was asked for.

        Raises StopRequested if the ranks have stopped because they were asked to, RunHeldError if the run was taken
        over meanwhile, otherwise what `Restarts.judge` does.
        """
        if _identity(self._lock) != self._held:
            raise RunHeldError(
                "another process took this run over",
                expected=f"the lock that this run began with: {self._lock}",
                found="a newer one",
                do="nothing: the run goes on there",
            )
        failure, step = first_cause(self._run_dir, self.attempt), max(0, last_step(self._run_dir))
        if failure is not None and failure.exit_code == StopRequested.exit_code:
            if self._moving and self._moving in failure.message:
                self._require_wanted()
                return
            raise StopRequested(failure.message)
        self._moving = ""
        incident = classify(
            restarts.Ending(
                exit_code=1,
                step=step,
                committed=committed_step(self._run_dir),
                moved=step > self._step_before,
                failure=failure,
                hang=self._hang,
                oom_kills=max(0, oom_kills() - self._kills_before),
                rank=next(iter(ending.dead), None),
                words=ending.words,
            )
        )
        self._events.write("incident", incarnation=self.attempt, **incident.to_event())
        self._restarts.judge(incident)
        self._events.write("restart", number=self._restarts.count)
        now, limit = time.strftime("%H:%M:%S", time.gmtime()), self._config.launch.max_restarts
        number = self._restarts.standing(incident.committed)
        self._follower.note(f"{now} {incident.words}, after step {step}; restart {number} of {limit}")

    def mend(self, ending: Ending) -> None:
        """Fill every place again, of fewer or more ranks if need be; raises what `Elastic.mend` does, StopRequested."""
        started, before, why = time.monotonic(), self._members.dp, self._moving
        self._elastic.mend(self._require_wanted, at_once=bool(why))
        seconds = time.monotonic() - started
        self._events.write("mended", dead=list(ending.dead), stuck=list(ending.stuck), seconds=seconds)
        came = f"no room came within {self._config.launch.elastic_wait_s:g} s"
        self._tell_ranks(before, why or (came if self._members.dp < before else "there is room again"))
        self._begin()

    def _tell_ranks(self, before: int, why: str) -> None:
        """That the run goes on with another number of ranks, if it does."""
        if (dp := self._members.dp) != before:
            self._events.write("resized", incarnation=self.attempt, **{"from": before, "to": dp, "why": why})
            now = time.strftime("%H:%M:%S", time.gmtime())
            self._follower.note(f"{now} goes on with {dp} of {self._config.parallel.dp} data-parallel ranks: {why}")

    def _require_wanted(self) -> None:
        """Raises StopRequested if the run is to stop, while there are no ranks that could be told."""
        if reason := stop_requested(self._run_dir, self._tag):
            raise StopRequested(
                f"stopped by {reason}, between two attempts",
                found=f"newest checkpoint of step {committed_step(self._run_dir)}",
                do="the same command goes on from there",
            )


def _identity(lock: Path) -> tuple[int, int] | None:
    """A take-over puts another file in its place (fmscale/training/lease.py)."""
    try:
        found = os.stat(lock)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def incidents_of_this_life(run_dir: Path) -> list[dict[str, Any]]:
    """Events of kind "incident" since a supervisor last began."""
    found: list[dict[str, Any]] = []
    for event in read_events(run_dir):
        if event["kind"] == "start" and event.get("restarts") == 0:
            found = []
        elif event["kind"] == "incident":
            found.append(event)
    return found
