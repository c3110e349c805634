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
from types import FrameType

import psutil

from fmscale.config import Config
from fmscale.errors import FmscaleError, RestartBudgetError
from fmscale.observe import pids
from fmscale.observe.events import EventLog
from fmscale.observe.failure import Failure, first_cause
from fmscale.observe.metrics import last_step
from fmscale.training.lease import Lease
from launcher import snapshot
from launcher.ray_cluster import private_environment

INCARNATION, RUN = "FMSCALE_INCARNATION", "FMSCALE_RUN"
"""Environment variables that every process of an incarnation carries: its tag, and the run's directory."""

DEADLY_EXIT_CODES = frozenset({2, 3, 4, 5})
"""Failures that a restart cannot mend: settings, data, checkpoints, a run that somebody else holds."""


def supervise(config: Config, roll_back: str | None = None, take_over: bool = False) -> None:
    """Run `config` to its last step, through as many incarnations as its budget allows.

    roll_back: name of the committed checkpoint that the first incarnation starts from, instead of the newest.
    take_over: take the run from a holder that lives, but is stopped or cut off; its writes are refused from then on.
    Raises RunHeldError, RestartBudgetError, or the failure that no restart can mend.
    """
    run_dir = config.run_dir
    with Lease(run_dir).held(take_over=take_over), _signals_stop_us(), private_environment():
        changed = snapshot.enter(config)
        pids.register(run_dir, "supervisor", 0)
        events = EventLog(run_dir)
        if changed:
            events.write("settings_changed", changed=changed)
        sweep(RUN, str(run_dir.resolve()))  # the lease is ours: whatever is left is of a supervisor that was killed
        restarts, last = 0, (-1, "")
        while True:
            incarnation = uuid.uuid4().hex[:12]
            events.write("start", incarnation=incarnation, restarts=restarts, backend=config.launch.backend)
            code = _incarnation(config, incarnation, roll_back)
            if code == 0:
                events.write("end", incarnation=incarnation, step=last_step(run_dir))
                return
            roll_back = None
            cause, step = first_cause(run_dir, incarnation), max(0, last_step(run_dir))
            words = _words(cause, code)
            events.write("incident", incarnation=incarnation, exit_code=code, step=step, cause=words)
            _stop_if_hopeless(config, cause, words, restarts, step, last)
            restarts, last = restarts + 1, (step, words)
            _say(f"{words}, after step {step}; restart {restarts} of {config.launch.max_restarts}")


def _stop_if_hopeless(
    config: Config, cause: Failure | None, words: str, restarts: int, step: int, last: tuple[int, str]
) -> None:
    logs = config.run_dir / "logs"
    if cause is not None and cause.exit_code in DEADLY_EXIT_CODES:
        error = FmscaleError(cause.message)
        error.exit_code = cause.exit_code
        raise error
    if cause is not None and last == (step, words):
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
    if cause is not None:
        return f"rank {cause.rank} failed: {cause.kind}: {cause.message.splitlines()[0] if cause.message else ''}"
    return f"a process of the run was killed (driver exit code {code})"


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


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop; the driver and its ranks are gone, the newest checkpoint stays."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
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
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", flush=True)
