"""One small process that owns a run: holds its lease, starts the driver, restarts it, and says why it stopped.

No Ray and no torch in here, so that nothing of theirs can take it down. The driver (Ray's, or torchrun) dies with this
process (PR_SET_PDEATHSIG) and ranks die with the driver; whatever is left of an incarnation is found by the tag in its
environment and killed before the next one starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from fmscale.config import Config
from fmscale.errors import CheckpointError, FmscaleError, MachineError, RestartBudgetError, RunHeldError
from fmscale.observe import pids
from fmscale.observe.events import EventLog
from fmscale.observe.failure import Failure, first_cause
from fmscale.observe.metrics import last_step
from fmscale.observe.terms import load_term, newest_term
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from launcher import snapshot
from launcher.ray_cluster import private_environment

INCARNATION, RUN = "FMSCALE_INCARNATION", "FMSCALE_RUN"
"""Environment variables that every process of an incarnation carries: its tag, and the run's directory."""

FATAL_EXIT_CODES = frozenset({2, 3, 4, 5})
"""Failures that a restart cannot mend: settings, data, checkpoints, a run that somebody else holds."""


def supervise(config: Config, roll_back: str | None = None, take_over: bool = False) -> None:
    """Run `config` to its last step, through as many incarnations as its budget allows.

    roll_back: name of the committed checkpoint to go on from, instead of the newest.
    take_over: take the run from a holder that lives, but is stopped or cut off; its writes are refused from then on.
    Raises RunHeldError, RestartBudgetError, Stopped, or the failure that no restart can mend.
    """
    run_dir, lease = config.run_dir, Lease(config.run_dir)
    with lease.held(take_over=take_over), _signals_stop_us(), private_environment():
        changed = snapshot.enter(config)
        pids.register(run_dir, "supervisor", 0)
        events = EventLog(run_dir)
        if changed:
            events.write("settings_changed", changed=changed)
        sweep(RUN, str(run_dir.resolve()))  # the lease is ours: whatever is left is of a supervisor that was killed
        restarts, last, first_term = 0, (-1, ""), newest_term(run_dir)
        while True:
            _require(lease)
            if roll_back and _rolled_back(run_dir, roll_back, first_term):
                roll_back = None
            incarnation, step_before = uuid.uuid4().hex[:12], max(0, last_step(run_dir))
            events.write("start", incarnation=incarnation, restarts=restarts, backend=config.launch.backend)
            code = _incarnation(config, incarnation, roll_back)
            _require(lease)
            if code == 0 and finished(config):
                events.write("end", incarnation=incarnation, step=last_step(run_dir))
                return
            cause, step = first_cause(run_dir, incarnation), max(0, last_step(run_dir))
            words = _words(cause, code)
            events.write("incident", incarnation=incarnation, exit_code=code, step=step, cause=words)
            _stop_if_hopeless(config, cause, words, restarts, step, step_before, last)
            restarts, last = restarts + 1, (step, words)
            events.write("restart", number=restarts)
            _say(f"{words}, after step {step}; restart {restarts} of {config.launch.max_restarts}")


def finished(config: Config) -> bool:
    """Whether the run has committed a checkpoint of its last step."""
    try:
        newest = next(CheckpointStore(config.run_dir / "checkpoints").candidates(lambda text: None), None)
    except CheckpointError:
        return False
    return newest is not None and newest.step >= config.train.steps


def _require(lease: Lease) -> None:
    if not lease.still_held():
        raise RunHeldError(
            "another process took this run over",
            expected=f"to hold {lease.run_dir}",
            found="a newer lock on it",
            do="nothing: the run goes on there",
        )


def _rolled_back(run_dir: Path, name: str, first_term: int) -> bool:
    """Whether a term since the start goes on from the checkpoint `name`: then restarts go on from that term."""
    newest = newest_term(run_dir)
    return newest > first_term and load_term(run_dir, newest).parent == name


def _stop_if_hopeless(
    config: Config, cause: Failure | None, words: str, restarts: int, step: int, step_before: int, last: tuple[int, str]
) -> None:
    logs = config.run_dir / "logs"
    machine_at_start = cause is not None and cause.exit_code == MachineError.exit_code and step == step_before
    if cause is not None and (cause.exit_code in FATAL_EXIT_CODES or machine_at_start):
        error = FmscaleError(cause.message)
        error.exit_code = cause.exit_code
        raise error
    if cause is not None and not cause.is_echo and last == (step, words):
        raise RestartBudgetError(
            "the run failed twice at the same step in the same way",
            expected=f"step {step + 1} to finish",
            found=words,
            do=f"read {logs}; the cause is in settings, code or data, and another restart would repeat it",
        )
    if restarts >= config.launch.max_restarts:
        raise RestartBudgetError(
            "the run used up its restarts",
            expected=f"at most launch.max_restarts={config.launch.max_restarts}",
            found=f"{words}, after step {step}",
            do=f"read {logs}, then start the same command again: it goes on from the newest checkpoint",
        )


def _words(cause: Failure | None, code: int) -> str:
    """One line for people."""
    if cause is None:
        return "the ranks left before the last step" if code == 0 else f"a process was killed (driver exit code {code})"
    said = cause.message.splitlines()[0] if cause.message else ""
    who = "the driver" if cause.rank < 0 else f"rank {cause.rank}"
    if cause.is_echo:
        return f"a rank was killed or hung ({who} lost it: {cause.kind}: {said[:100]})"
    return f"{who} failed: {cause.kind}: {said}"


def _incarnation(config: Config, incarnation: str, roll_back: str | None) -> int:
    """Start a driver, wait for it, leave nothing of it behind; its exit code."""
    run_dir = config.run_dir
    environment = {**os.environ, INCARNATION: incarnation, RUN: str(run_dir.resolve())}
    if roll_back:
        environment["FMSCALE_ROLL_BACK"] = roll_back
    threads = str(config.train.threads_per_rank)
    environment.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if config.launch.backend == "ray":
        command = [sys.executable, "-m", "launcher.driver", str(run_dir)]
    else:
        flags = ["--standalone", f"--nproc-per-node={config.world_size}", "--max-restarts=0"]
        command = [sys.executable, "-m", "torch.distributed.run", *flags]
        command += ["-m", "fmscale.training.worker", str(run_dir)]
    log = run_dir / "logs" / "driver.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        driver = subprocess.Popen(command, env=environment, stderr=stderr, preexec_fn=die_with_parent)
        try:
            return driver.wait()
        finally:
            driver.kill()
            driver.wait()
            sweep(INCARNATION, incarnation)


def sweep(variable: str, value: str) -> None:
    """Kill every process of this machine that carries the variable, and wait until they are gone (at most 10 s)."""
    left = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(variable) == value:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG; Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Stopped(FmscaleError):
    """A signal asked the run to stop; the driver and its ranks are gone, the newest checkpoint stays."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}", do="the same command goes on from its checkpoint")
        self.exit_code = 128 + number


@contextlib.contextmanager
def _signals_stop_us() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be reading any more
        print(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", flush=True)
