"""How many processes the kernel has killed for lack of memory in this process's memory cgroup (v1 and v2).

A kill for memory is a SIGKILL like any other; only this counter tells. A machine without a limit on the cgroup counts
too, since the kernel charges the victim's own cgroup.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def oom_kills(root: Path = ROOT, membership: Path = Path("/proc/self/cgroup")) -> int:
    """The counter `oom_kill`; 0 where the machine has none. Compare two readings: it counts from the cgroup's birth."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return 0
    counts = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            files = [root / "memory" / path.lstrip("/") / "memory.oom_control", root / "memory" / "memory.oom_control"]
        elif not controllers:  # version 2
            files = [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        else:
            continue
        counts.append(next((count for file in files if (count := _count(file)) is not None), 0))
    return max(counts, default=0)


def _count(file: Path) -> int | None:
    try:
        match = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None
