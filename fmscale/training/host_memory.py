"""How much memory this process may still take: what the machine has available, and what its control groups allow.

A control group's own limit counts page cache that the kernel would give back, so that is added to what is left of it.
Version 2 keeps limits in `memory.max`, version 1 in `memory.limit_in_bytes`; a limit on any ancestor holds as well.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARE = 0.8
"""Of the available memory that copies may take; the first step of training wants some, too."""


def available_bytes(root: Path = Path("/")) -> int:
    """Of the machine and of every control group above this process, the least. root: where /proc and /sys are."""
    left = [_left(directory, version) for version, directory in _groups(root)]
    return min([int(psutil.virtual_memory().available), *(bytes_ for bytes_ in left if bytes_ is not None)])


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """(version, directory) of each memory control group that holds this process, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    base = root / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            version, top = 2, base
        elif "memory" in controllers.split(","):
            version, top = 1, base / "memory"
        else:
            continue
        directory = top / path.lstrip("/")
        while directory != top:
            yield version, directory
            directory = directory.parent
        yield version, top


def _left(directory: Path, version: int) -> int | None:
    """Bytes that the group may still take; None without a limit that can be read."""
    limit, used, cache = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        allowed, taken = (int((directory / name).read_text()) for name in (limit, used))
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not there, or "max"
        return None
    return max(0, allowed - taken + int(stat.get(cache, 0)))


def in_memory(folder: Path) -> bool:
    """Whether files in `folder` take memory: on tmpfs or ramfs, as /dev/shm is."""
    try:
        device = folder.stat().st_dev
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(line.split()[2] == number and line.split(" - ")[1].split()[0] in ("tmpfs", "ramfs") for line in lines)


@dataclass(frozen=True)
class Need:
    """What a rank asks of its node."""

    node: str
    bytes: int
    available: int

    @staticmethod
    def of_this_process(bytes_: int) -> Need:
        return Need(platform.node(), bytes_, available_bytes())


def shortage(
    needs: Sequence[Need], copies: int = 1, so: str = "checkpoints are written while training waits"
) -> str | None:
    """Why `copies` checkpoints of these ranks cannot be in the memory of their nodes, and what follows; None: they can.

    The same on every rank, since it is computed from what all of them told.
    """
    for node in dict.fromkeys(need.node for need in needs):
        here = [need for need in needs if need.node == node]
        wanted, available = copies * sum(need.bytes for need in here), min(need.available for need in here)
        if wanted > SHARE * available:
            return (
                f"{so}: their copies do not fit into memory\n"
                f"  expected: {wanted:,} bytes of {len(here)} ranks on {node}, at most {SHARE:.0%} of what it has\n"
                f"  found: {available:,} bytes available\n"
                "  do: give the node more memory, or share the state among more of them (parallel.zero, parallel.dp)"
            )
    return None
