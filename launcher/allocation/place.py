"""Where a process stands in a Slurm job, and the directory in which the processes of one step meet.

A step is one start of everything: a requeued job, or a step started anew in the same allocation, has a directory of its
own, so that nothing of an earlier one (an address, a token) is ever taken for its own. The directory lies in the run's,
which all nodes see. A step that finds a later one of its job beside it is an orphan, whose node Slurm had given up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fmscale.durable import look_anew, replace
from fmscale.errors import FmscaleError, MachineError

LOOK_EVERY_S = 0.05
"""Between two looks at a file that another node is to write."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    job: int
    restart: int
    """How often the job has been requeued."""
    step: int
    task: int
    """Of this process, from 0 over all nodes."""
    tasks: int
    node: int
    nodes: int
    node_name: str
    local_task: int
    local_tasks: int
    job_dir: Path

    @property
    def directory(self) -> Path:
        """Where the step's processes meet; mode 0700, for a token lies there."""
        return self.job_dir / f"{self.job}.{self.restart}.{self.step}"

    @property
    def tag(self) -> str:
        """Of this job on this node, whatever the step: what is left of an earlier one is found by it."""
        return f"{self.job}.{self.node_name}.{self.job_dir}"

    def superseded(self) -> bool:
        """Whether a later step of this job has begun."""
        mine = (self.job, self.restart, self.step)
        return any(number is not None and number[0] == mine[0] and number > mine for number in _steps(self.job_dir))

    def make_directory(self) -> None:
        """By task 0, before anything is put there."""
        self.job_dir.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def say(self, name: str, content: str) -> None:
        replace(self.directory / name, content.encode())

    def said(self, name: str) -> str | None:
        """What task 0 has said under `name`; None as long as it has not."""
        look_anew(self.directory)
        try:
            return (self.directory / name).read_text()
        except FileNotFoundError:
            return None

    def wait_for(self, name: str, timeout_s: float, alive: Callable[[], object] = lambda: None) -> str:
        """`said`, once it is. alive: called in between, to raise what ends the wait. Raises MachineError."""
        deadline = time.monotonic() + timeout_s
        while (found := self.said(name)) is None:
            alive()
            if time.monotonic() > deadline:
                raise MachineError(
                    f"node {self.node_name} hears nothing from the first node of job {self.job}",
                    expected=f"{self.directory / name} within {timeout_s:g} s",
                    found="no such file",
                    do="look at the first node's log beside it, and whether all nodes see this directory",
                )
            time.sleep(LOOK_EVERY_S)
        return found


def exit_with(main: Callable[[list[str]], int]) -> NoReturn:
    """Be the process of a task: `main` of its arguments. What a user can mend is told, and ends it with its code."""
    try:
        sys.exit(main(sys.argv[1:]))
    except FmscaleError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def allocation_of(job_dir: Path, environment: Mapping[str, str] = os.environ) -> Allocation:
    """As srun tells it. Raises MachineError outside of a step."""
    try:
        number = {name: int(environment[f"SLURM_{name}"]) for name in _NUMBERS}
        node_name = environment["SLURMD_NODENAME"]
    except KeyError as error:
        raise MachineError(
            "this command is started by srun, inside a Slurm job",
            expected="SLURM_JOB_ID, SLURM_PROCID and the like in the environment",
            found=f"no {error.args[0]}",
            do="use `fmscale submit CONFIG --on slurm`, or `fmscale train CONFIG` outside of Slurm",
        ) from error
    return Allocation(
        job=number["JOB_ID"],
        restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
        step=number["STEP_ID"],
        task=number["PROCID"],
        tasks=number["NTASKS"],
        node=number["NODEID"],
        nodes=number["NNODES"],
        node_name=node_name,
        local_task=number["LOCALID"],
        local_tasks=number["NTASKS"] // number["NNODES"],
        job_dir=job_dir,
    )


_NUMBERS = ("JOB_ID", "STEP_ID", "PROCID", "NTASKS", "NODEID", "NNODES", "LOCALID")


def _steps(job_dir: Path) -> list[tuple[int, int, int] | None]:
    look_anew(job_dir)
    return [_step(entry.name) for entry in os.scandir(job_dir)] if job_dir.is_dir() else []


def _step(name: str) -> tuple[int, int, int] | None:
    parts = name.split(".")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        return None
    job, restart, step = map(int, parts)
    return job, restart, step
