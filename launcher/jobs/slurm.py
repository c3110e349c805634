"""Slurm's queue: hand a batch script over, ask after the job, read its log, cancel it.

By Slurm's own commands, which every site has and which know how to authenticate. A job that has ended stays known to
`scontrol` for some minutes (MinJobAge), to `sacct` for long where the site keeps accounts, and to its log.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import overload

from fmscale.durable import replace
from fmscale.errors import ConfigError, MachineError
from launcher.jobs.slurm_script import batch_script
from launcher.jobs.spec import JobSpec, JobState, State

ANSWER_S = 60.0
"""Longest wait for one of Slurm's commands: a busy controller takes its time."""
FOLLOW_EVERY_S = 0.5
STATES: dict[State, tuple[str, ...]] = {
    "waiting": ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    "running": ("RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"),
    "done": ("COMPLETED",),
    "cancelled": ("CANCELLED", "REVOKED"),
}
"""Others (FAILED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, ...) are failures: squeue(1), JOB STATE CODES."""


class Slurm:
    """launcher.jobs.spec.Backend"""

    name = "slurm"

    def __init__(self, log_of: Callable[[str], Path | None] = lambda job: None) -> None:
        """log_of: where the log of a job stands that Slurm itself has forgotten."""
        self._log_of = log_of

    def submit(self, spec: JobSpec) -> str:
        (spec.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        (spec.run_dir / "job").mkdir(exist_ok=True)
        script = spec.run_dir / "job" / "job.sbatch"
        replace(script, batch_script(spec).encode())
        said = _run("sbatch", "--parsable", str(script))
        return said.strip().split(";")[0]

    def state(self, job: str) -> JobState:
        found = self._properties(job)
        if found is None:
            return self._accounted(job)
        word = found["JobState"]
        code, _, number = found.get("ExitCode", "0:0").partition(":")
        if word == "PENDING":
            return JobState("waiting", f"{word} ({found.get('Reason', '')})")
        if word in STATES["running"]:
            return JobState("running", f"{word} on {found.get('NodeList', '')} for {found.get('RunTime', '')}")
        ended = f"exit code {code}" if number == "0" else f"signal {number}"
        return JobState(_word(word), f"{word}, {ended}")

    def logs(self, job: str, follow: bool) -> Iterator[str]:
        path = self._log(job)
        position = 0
        while True:
            over = not follow or self.state(job).state not in ("waiting", "running")
            if path.exists():
                with path.open("rb") as file:
                    file.seek(position)
                    text = file.read()
                position += len(text)
                if text:
                    yield text.decode(errors="replace")
            elif over:
                raise MachineError(
                    f"job {job} has no log",
                    expected=str(path),
                    found="no such file: it has not begun, or the run was moved",
                    do=f"`fmscale jobs status {job}` says how it stands",
                )
            if over:
                return
            time.sleep(FOLLOW_EVERY_S)

    def cancel(self, job: str) -> None:
        if self._properties(job) is None:
            raise _unknown(job)
        _run("scancel", job)

    def _log(self, job: str) -> Path:
        found = self._properties(job)
        path = Path(found["StdOut"]) if found is not None and "StdOut" in found else self._log_of(job)
        if path is None:
            raise _unknown(job)
        return path

    def _properties(self, job: str) -> dict[str, str] | None:
        """What the controller knows of the job; None if it has forgotten it, or never knew it."""
        if not job.isdecimal():
            raise ConfigError(
                "this is no job of Slurm's", expected="a number", found=repr(job), do="see `fmscale jobs list`"
            )
        said = _run("scontrol", "--oneliner", "show", "job", job, unknown="Invalid job id")
        return None if said is None else dict(re.findall(r"(\w+(?:/\w+)?)=(\S*)", said))

    def _accounted(self, job: str) -> JobState:
        said = None
        if shutil.which("sacct"):
            said = _run("sacct", "-nPX", "-j", job, "-o", "State,ExitCode", unknown="")
        if not said or not said.strip():
            return JobState("unknown", "Slurm has forgotten it")
        word, _, code = said.strip().splitlines()[-1].partition("|")
        return JobState(_word(word.split()[0]), f"{word}, exit code {code.partition(':')[0]}")


def _word(state: str) -> State:
    return next((word for word, states in STATES.items() if state in states), "failed")


def _unknown(job: str) -> ConfigError:
    return ConfigError(
        f"Slurm does not know job {job}",
        expected="a job that waits, runs, or ended some minutes ago",
        found="no such job",
        do="see `fmscale jobs list`",
    )


@overload
def _run(*command: str) -> str: ...
@overload
def _run(*command: str, unknown: str) -> str | None: ...
def _run(*command: str, unknown: str | None = None) -> str | None:
    """What a command of Slurm's prints; None if it fails with `unknown` in its words. Raises MachineError."""
    if shutil.which(command[0]) is None:
        raise MachineError(
            "there is no Slurm here",
            expected=f"{command[0]} on the PATH",
            found="no such command",
            do="run this on a login node of the cluster, or use --on ray; `--dry-run` shows the script anywhere",
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise MachineError(
            "Slurm's controller does not answer",
            expected=f"an answer to {command[0]} within {ANSWER_S:g} s",
            found="none",
            do="try `scontrol ping`, and again later",
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = " ".join((done.stderr or done.stdout).split())
    if unknown is not None and unknown in said:
        return None
    raise MachineError(
        f"Slurm refuses: {command[0]}",
        expected="exit code 0",
        found=said[:300] or f"exit code {done.returncode}",
        do="mend the job's options or the site's file (partition, account, time limit)",
    )
