"""One incarnation of a run: a driver (Ray's, or torchrun), watched until it ends, and nothing of it left behind.

While it runs, requests to stop are passed on to the ranks and given `launch.grace_s`; under torchrun the ranks'
heartbeats and deaths are watched here, on Ray by the driver (and heartbeats here with a longer limit, should the driver
itself be stuck).
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmscale.config import Config
from fmscale.errors import StopRequested
from fmscale.observe.events import EventLog, read_events
from fmscale.observe.failure import first_cause, of_rank
from fmscale.observe.heartbeat import Hang, HeartbeatWatch, dump_stacks
from fmscale.observe.metrics import last_step
from fmscale.observe.oom import oom_kills
from fmscale.observe.terms import load_term, term_numbers
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import parse_directory_name
from fmscale.training.stopping import request_stop, withdraw_request
from launcher.deaths import Death, DeathWatch
from launcher.driver_process import DriverProcess
from launcher.requests import StopRequests
from launcher.restarts import Ending
from launcher.standby import Standby

LOOK_EVERY_S = 0.1
LEAVE_S = 0.7
"""Under torchrun: how long the others have to leave once a rank has failed or died. A moment more than they wait for a
save under way (fmscale/training/saver.py), and a death is told within a second."""
AGENT_S = 1.0
"""How long torchrun's agent has to tell how a rank died, where it knows that alone."""
DRIVER_IS_STUCK_S = 120.0
"""On Ray: how much longer than `launch.timeout_s` ranks may be silent until the driver is taken to be stuck as well."""


@dataclass(kw_only=True)
class Incarnation:
    config: Config
    tag: str
    events: EventLog
    requests: StopRequests
    standby: Standby
    ready: DriverProcess | None = None
    """A driver with that tag which was started ahead."""
    roll_back: str | None = None
    killed: str = ""
    """Why the supervisor itself ended it, if it did, instead of waiting for its ranks."""

    def run(self) -> Ending:
        """Have a driver begin, wait for it, leave nothing of it behind."""
        config, run_dir = self.config, self.config.run_dir
        before, kills, hang = starts_from(run_dir, self.roll_back), oom_kills(), None
        withdraw_request(run_dir)
        driver = self.ready or DriverProcess(config, self.tag, roll_back=self.roll_back)
        watched = config.world_size if config.launch.backend == "torchrun" else 0
        try:
            if self.ready is not None:
                driver.go()
            with contextlib.closing(DeathWatch(run_dir, watched, self.tag, driver.process)) as watch:
                hang = self._wait(driver, watch)
                death = self._first_death(watch)
                if death is not None and death.exit_code is None:
                    watch.kill_living()  # the agent waits for them
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        driver.process.wait(AGENT_S)
        finally:
            code = driver.end()
            withdraw_request(run_dir)
        if code is not None and code < 0:
            death = None  # the ranks died of it, not before it: they have the kernel kill them then
        step, judged = max(0, last_step(run_dir)), judged_by_driver(run_dir, self.tag)
        resized = of_attempts(run_dir, self.tag, "resize_requested")  # their ranks were to leave, the run was to go on
        last = max((int(event["incarnation"].rpartition(".")[2]) for event in [*judged, *resized]), default=-1)
        return Ending(
            exit_code=1 if code is None else code,
            step=step,
            committed=committed_step(run_dir),
            moved=step > before,
            failure=first_cause(run_dir, self.tag, after=last),
            hang=str(hang) if hang else "",
            rank=death.rank if death is not None else None,
            rank_exit=death.exit_code if death is not None else None,
            # What the driver has recovered from is no cause of what came later.
            oom_kills=0 if judged else max(0, oom_kills() - kills),
            words="" if judged else driver.text(),
        )

    def _wait(self, driver: DriverProcess, watch: DeathWatch) -> Hang | None:
        """Until the driver has ended, hangs or is out of time, or its ranks have failed."""
        asked_at: float | None = None
        failed_at: float | None = None
        heartbeats = self._heartbeats()
        while not watch.wait(LOOK_EVERY_S):
            now = time.monotonic()
            self.standby.look(driver)
            if self.requests.now:
                self.killed = "stopped at once"
                return None
            if asked_at is None and (reason := self.requests.reason):
                asked_at = now
                self._pass_on(reason)
            if asked_at is not None:
                if now - asked_at > self.config.launch.grace_s:
                    self.killed = f"killed: not done within launch.grace_s={self.config.launch.grace_s:g}"
                    return None
                continue
            if failed_at is None and self._a_rank_failed(watch):
                failed_at = now
                self.events.write("noticed", incarnation=self.tag, ranks=[death.rank for death in watch.deaths])
                self.standby.hurry(driver)
            if failed_at is not None:
                if watch.all_gone or now - failed_at > LEAVE_S:
                    return None
            elif heartbeats is not None and (hang := heartbeats.look()) is not None:
                self._show(hang)
                return hang
        return None

    def _a_rank_failed(self, watch: DeathWatch) -> bool:
        """Whether a rank of torchrun's is dead or has said that it ends (on Ray the driver may replace it).

        Not where ranks stop as they were asked to, which may take `launch.grace_s`. One that leaves with exit code 0
        may be the first that has done all, on a disk that did not take its last beat.
        """
        if self.config.launch.backend != "torchrun":
            return False
        failure = first_cause(self.config.run_dir, self.tag)
        if failure is not None and failure.exit_code == StopRequested.exit_code:
            return False
        return any(death.exit_code != 0 for death in watch.deaths) or (failure is not None and not failure.is_echo)

    def _first_death(self, watch: DeathWatch) -> Death | None:
        """Of a rank that had no time to say why; the others died of that."""
        silent = (death for death in watch.deaths if of_rank(self.config.run_dir, self.tag, death.rank) is None)
        return next(silent, None)

    def _pass_on(self, reason: str) -> None:
        self.events.write("stop_requested", incarnation=self.tag, reason=reason)
        try:
            request_stop(self.config.run_dir, self.tag, reason)
        except OSError as error:  # ranks could not save there either; the grace period ends this
            say(f"the ranks cannot be asked to stop: {error}")
        say(f"{reason}: saving and stopping, at most {self.config.launch.grace_s:g} s; Ctrl-C twice stops now")

    def _heartbeats(self) -> HeartbeatWatch | None:
        launch = self.config.launch
        if not launch.hang_s:
            return None
        start_s = launch.timeout_s + (DRIVER_IS_STUCK_S if launch.backend == "ray" else 0.0)
        start_s += launch.elastic_wait_s if launch.min_dp else 0.0
        return HeartbeatWatch(
            run_dir=self.config.run_dir,
            world=self.config.world_size,
            limit_s=start_s if launch.backend == "ray" else launch.hang_s,
            start_s=start_s,
            incarnation=self.tag,
            elastic=launch.min_dp > 0,
        )

    def _show(self, hang: Hang) -> None:
        show_hang(self.config.run_dir, hang, self.tag, self.events)


def show_hang(run_dir: Path, hang: Hang, incarnation: str, events: EventLog) -> None:
    """Have all ranks of this host write their stacks, and tell the run's events who is missing."""
    stacks = dump_stacks(run_dir, str(hang), incarnation)
    events.write(
        "hang",
        incarnation=incarnation,
        missing=[place.rank for place in hang.missing],
        ranks=[str(place) for place in hang.places],
        stacks=[str(path.relative_to(run_dir)) for path in stacks],
        text=str(hang),
    )


def judged_by_driver(run_dir: Path, tag: str) -> list[dict[str, Any]]:
    """Incidents of the attempts of incarnation `tag`, which its driver has judged."""
    return of_attempts(run_dir, tag, "incident")


def of_attempts(run_dir: Path, tag: str, kind: str) -> list[dict[str, Any]]:
    """Events of that kind that attempts of incarnation `tag` have."""
    events = (event for event in read_events(run_dir) if event.get("kind") == kind)
    return [event for event in events if str(event.get("incarnation", "")).startswith(f"{tag}.")]


def starts_from(run_dir: Path, roll_back: str | None) -> int:
    """Step of the checkpoint that an incarnation begins with; 0: from nothing."""
    name = parse_directory_name(roll_back) if roll_back else None
    return name[0] if name else committed_step(run_dir)


def committed_step(run_dir: Path) -> int:
    """Step of the newest commit, by term first; 0 without one."""
    commits = CheckpointStore(run_dir / "checkpoints").list()
    return max(((commit.term, commit.step) for commit in commits), default=(0, 0))[1]


def rolled_back(run_dir: Path, name: str, first_term: int) -> bool:
    """Whether a term since `first_term` goes on from the checkpoint `name`: then restarts go on from that term."""
    since = (term for term in term_numbers(run_dir) if term > first_term)
    return any(load_term(run_dir, term).parent == name for term in since)


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be reading any more
        print(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", flush=True)
