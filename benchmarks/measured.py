"""A command, measured from outside: wall time, processor time and memory of it and all processes below it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_EVERY_S = 0.1
"""How often is looked; what a process used after the last look is not seen."""


@dataclass(frozen=True)
class Measured:
    wall_s: float
    cpu_s: float
    """Of all processes, those of the system's part too."""
    largest_mib: float
    """Resident memory of the largest process, at its largest."""
    output: str


def measured(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Measured:
    """Run `command`, its stderr into `log`. Raises RuntimeError with the end of the log if it fails."""
    used: dict[tuple[int, float], float] = {}
    largest = 0
    begin = time.perf_counter()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
        )
        top = psutil.Process(process.pid)
        while process.poll() is None:
            for each in (top, *_below(top)):
                try:
                    with each.oneshot():
                        times, memory = each.cpu_times(), each.memory_info().rss
                        used[each.pid, each.create_time()] = times.user + times.system
                except psutil.Error:
                    continue
                largest = max(largest, memory)
            time.sleep(_EVERY_S)
        output = process.stdout.read() if process.stdout else ""
    wall = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}: {log.read_text()[-2000:]}")
    return Measured(wall, sum(used.values()), largest / 2**20, output)


def _below(top: psutil.Process) -> list[psutil.Process]:
    try:
        return top.children(recursive=True)
    except psutil.Error:
        return []
