"""pids.json: which processes a run consists of, a list of `{role, rank, node, pid, started}`.

Every long-lived process registers itself; whoever wants to watch, stop or (in a test) kill one finds it here. `started`
is the kernel's start time of the process, so that a recycled pid is never taken for it. Writers take a lock and replace
the file; entries of this node whose process is gone are dropped on the way.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from fmscale.durable import replace

FILE = "pids.json"


def register(run_dir: Path, role: str, rank: int, node: str = "") -> None:
    """Enter the calling process, in place of an entry of the same role, rank and node, and of its own former role.

    node: the host name by default.
    """
    me = {
        "role": role,
        "rank": rank,
        "node": node or socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }
    with _locked(run_dir):
        others = [
            entry
            for entry in read(run_dir)
            if [entry[key] for key in ("role", "rank", "node")] != [me[key] for key in ("role", "rank", "node")]
            and (entry["node"] != me["node"] or (entry["pid"] != me["pid"] and alive(entry)))
        ]
        content = json.dumps([*others, me], indent=1) + "\n"
        replace(run_dir / FILE, content.encode())


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All entries; none without the file. Entries may be of dead processes: see `alive`."""
    try:
        entries = json.loads((run_dir / FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return [entry for entry in entries if {"role", "rank", "node", "pid"} <= entry.keys()]


def is_here(entry: dict[str, Any]) -> bool:
    """Whether an entry is of a process of this host."""
    return bool(entry["node"] == socket.gethostname())


def alive(entry: dict[str, Any]) -> bool:
    """Whether the process of an entry of this host runs (stopped counts, a zombie does not)."""
    try:
        process = psutil.Process(entry["pid"])
        same = abs(process.create_time() - entry.get("started", process.create_time())) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kernel_start(pid: int) -> float:
    """When a process of this host began, as the kernel counts (no clock enters, unlike `create_time`); -1: no such one.

    Together with the pid it names a process until the next boot.
    """
    fields = _stat(pid)
    return float(fields[19]) if fields else -1.0


def state(pid: int, started: float) -> str:
    """The kernel's letter for what the process does (R, S, D, T stopped, Z zombie, ...); "gone" if it is not there."""
    fields = _stat(pid)
    return fields[0] if fields and float(fields[19]) == started else "gone"


def exit_code(pid: int, started: float) -> int | None:
    """Of a process of this user's that has ended and that its parent has not waited for yet; -N: killed by signal N.

    None: it runs, or is not there any more (proc(5), /proc/PID/stat, field 52).
    """
    fields = _stat(pid)
    if not fields or float(fields[19]) != started or fields[0] != "Z":
        return None
    return os.waitstatus_to_exitcode(int(fields[49]))


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc(5); Linux); none without the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / f".{FILE}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
