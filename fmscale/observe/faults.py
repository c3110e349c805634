"""Places where a test may kill this process: `FAULTS=ckpt.mid_rank:kill,step.12/1:stop@2`.

A fault is POINT[/RANK]:ACTION[@N]: at the N-th passage (default 1) of POINT in this process (by RANK only) do ACTION:

    kill   SIGKILL to this process       exit   os._exit(0), as if all were well
    stop   SIGSTOP to this process       raise  RuntimeError
    hang   sleep for ever                enospc OSError: no space left on device
    eat    take memory until there is none

With `FAULTS_ONCE=DIR` a fault fires once over all processes and restarts (a marker file in DIR is created first).
Without FAULTS a passage costs one look-up in the environment.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

from fmscale.errors import ConfigError

ACTIONS = ("kill", "stop", "hang", "exit", "raise", "enospc", "eat")

_passages: Counter[str] = Counter()


def fault_point(point: str, rank: int | None = None) -> None:
    """Do what FAULTS asks for at `point`; normally nothing. Raises ConfigError for a FAULTS that cannot be read."""
    spec = os.environ.get("FAULTS")
    if not spec:
        return
    for fault in spec.split(","):
        match = re.fullmatch(rf"([\w.]+)(?:/(\d+))?:({'|'.join(ACTIONS)})(?:@([1-9]\d*))?", fault.strip())
        if not match:
            raise ConfigError(
                "the environment variable FAULTS cannot be read",
                expected=f"POINT[/RANK]:ACTION[@N],... with ACTION one of {', '.join(ACTIONS)}",
                found=fault,
                do="correct it, or unset FAULTS",
            )
        name, only_rank, action, passage = match.groups()
        if name != point or (only_rank is not None and rank != int(only_rank)):
            continue
        _passages[fault] += 1
        if _passages[fault] == int(passage or 1) and _first_time(fault.strip()):
            _act(action, fault)


def _first_time(fault: str) -> bool:
    directory = os.environ.get("FAULTS_ONCE")
    if not directory:
        return True
    try:
        (Path(directory) / re.sub(r"[^\w.@-]", "_", fault)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _act(action: str, fault: str) -> None:
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    elif action == "exit":
        os._exit(0)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, f"injected by FAULTS={fault}")
    elif action == "eat":
        taken = []
        while True:
            taken.append(b"x" * (16 << 20))
    elif action == "raise":
        raise RuntimeError(f"injected by FAULTS={fault}")
    else:
        while True:
            time.sleep(3600)
