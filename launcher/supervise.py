"""One small process that owns a run: holds its lease, starts incarnations of it, and says why it stopped.

No Ray and no torch in here, so that nothing of theirs can take it down. The driver dies with this process
(PR_SET_PDEATHSIG) and ranks die with the driver; whatever is left of an incarnation is found by the tag in its
environment and killed before the next one starts. Whether one follows is decided in restarts.py.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from fmscale.config import Config
from fmscale.errors import CheckpointError, RestartBudgetError, RunHeldError, StopRequested
from fmscale.observe import pids
from fmscale.observe.events import EventLog
from fmscale.observe.metrics import last_step
from fmscale.observe.terms import newest_term
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from fmscale.training.upload import uploaded
from launcher import snapshot
from launcher.driver_process import RUN, sweep
from launcher.incarnation import Incarnation, committed_step, judged_by_driver, rolled_back, say
from launcher.ray_cluster import private_environment
from launcher.requests import StopRequests
from launcher.restarts import Ending, Restarts, classify
from launcher.standby import Standby


def supervise(config: Config, roll_back: str | None = None, take_over: bool = False) -> None:
    """Run `config` to its last step, through as many incarnations as its budget allows.

    roll_back: name of the committed checkpoint to go on from, instead of the newest.
    take_over: take the run from a holder that lives, but is stopped or cut off; its writes are refused from then on.
    Raises RunHeldError, RestartBudgetError, StopRequested, or the failure that no restart can mend.
    """
    run_dir, lease = config.run_dir, Lease(config.run_dir)
    with (
        lease.held(take_over=take_over),
        StopRequests(config.launch) as requests,
        private_environment(),
        Standby(config) as standby,
    ):
        changed = snapshot.enter(config)
        pids.register(run_dir, "supervisor", 0)
        events = EventLog(run_dir)
        if changed:
            events.write("settings_changed", changed=changed)
        sweep(RUN, str(run_dir.resolve()))  # the lease is ours: whatever is left is of a supervisor that was killed
        restarts, first_term = Restarts(config.launch.max_restarts), newest_term(run_dir)
        while True:
            _require(lease)
            if requests.reason:
                raise _asked(requests, "between two incarnations", run_dir)
            if roll_back and rolled_back(run_dir, roll_back, first_term):
                roll_back = None
            ready = standby.take() if roll_back is None else None
            tag = ready.tag if ready is not None else uuid.uuid4().hex[:12]
            incarnation = Incarnation(
                config=config,
                tag=tag,
                events=events,
                requests=requests,
                standby=standby,
                ready=ready,
                roll_back=roll_back,
            )
            ahead_s = time.monotonic() - ready.started if ready is not None else 0.0
            began = {"restarts": restarts.count, "backend": config.launch.backend, "ahead_s": ahead_s}
            events.write("start", incarnation=tag, **began)
            ending = incarnation.run()
            _require(lease)
            if ending.exit_code == 0 and finished(config):
                events.write("end", incarnation=tag, step=last_step(run_dir))
                return
            _stop_if_asked(incarnation, ending)
            restarts.recall(judged_by_driver(run_dir, tag))
            incident = classify(ending)
            if incident.exit_code != RestartBudgetError.exit_code:  # else the driver has judged it, and written it
                events.write("incident", incarnation=tag, driver_exit_code=ending.exit_code, **incident.to_event())
            restarts.judge(incident)
            if incident.cause == "out of memory":
                standby.give_up()
            events.write("restart", number=restarts.count)
            number = restarts.standing(incident.committed)
            say(f"{incident.words}, after step {ending.step}; restart {number} of {config.launch.max_restarts}")


def finished(config: Config) -> bool:
    """Whether the run has committed a checkpoint of its last step, also to its object store if it has one."""
    try:
        newest = next(CheckpointStore(config.run_dir / "checkpoints").candidates(lambda text: None), None)
    except CheckpointError:
        return False
    return newest is not None and newest.step >= config.train.steps and uploaded(config, newest)


def _stop_if_asked(incarnation: Incarnation, ending: Ending) -> None:
    """Raises StopRequested, with the code of what asked, if the supervisor or a rank was asked to stop."""
    requests, run_dir = incarnation.requests, incarnation.config.run_dir
    by_ranks = ending.failure is not None and ending.failure.exit_code == StopRequested.exit_code
    if not (by_ranks or requests.reason):
        return
    if by_ranks and ending.failure is not None:
        error = StopRequested(ending.failure.message)
    else:
        how = incarnation.killed or f"the ranks ended otherwise: {classify(ending).words}"
        error = _asked(requests, f"without a save of its own; {how}", run_dir)
    error.exit_code = requests.exit_code
    incarnation.events.write("stopped", incarnation=incarnation.tag, step=ending.step, text=str(error))
    raise error


def _asked(requests: StopRequests, how: str, run_dir: Path) -> StopRequested:
    error = StopRequested(
        f"stopped by {requests.reason}, {how}",
        found=f"trained to step {max(0, last_step(run_dir))}, newest checkpoint of step {committed_step(run_dir)}",
        do="the same command goes on from there",
    )
    error.exit_code = requests.exit_code
    return error


def _require(lease: Lease) -> None:
    if not lease.still_held():
        raise RunHeldError(
            "another process took this run over",
            expected=f"to hold {lease.run_dir}",
            found="a newer lock on it",
            do="nothing: the run goes on there",
        )
