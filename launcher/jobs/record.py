"""The jobs that this user has submitted: one line each in a file of the user's own, oldest first.

Clusters forget; and which cluster a job was handed to, and which run it is, only we know.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Submitted:
    job: str
    on: str
    """slurm, ray"""
    address: str
    """Of a Ray cluster; "" for Slurm."""
    name: str
    run_dir: str
    time: str
    """UTC"""


def jobs_file() -> Path:
    """$XDG_STATE_HOME/fmscale/jobs.jsonl, as the XDG Base Directory Specification has it."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "fmscale" / "jobs.jsonl"


def remember(job: str, on: str, address: str, name: str, run_dir: Path) -> None:
    path = jobs_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = Submitted(job=job, on=on, address=address, name=name, run_dir=str(run_dir), time=now)
    with path.open("a") as file:  # one write of one line: two submissions at once do not mix
        file.write(json.dumps(asdict(line)) + "\n")


def submitted() -> list[Submitted]:
    """Oldest first. A line that was cut off, by a full disk for example, is passed over."""
    found = []
    try:
        lines = jobs_file().read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            found.append(Submitted(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def find(job: str) -> Submitted:
    """The newest job with this id, or of the run with this name or directory. Raises ConfigError."""
    for entry in reversed(submitted()):
        if job in (entry.job, entry.name, entry.run_dir):
            return entry
    raise ConfigError(
        "no such job",
        expected="a job's id, or the name of a run that was submitted from this account",
        found=job,
        do="see `fmscale jobs list`",
    )
