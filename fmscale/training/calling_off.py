"""A rank that waits at the meeting point for a peer that has died is called off, so that it can meet a living one.

In a collective operation a rank learns of a peer's death from its connection to it. While groups are made it has none
yet: it waits at the store for the peer's address, up to `launch.timeout_s`. So who owns the ranks leaves a file that
names the attempt, and a thread of the rank hangs up on the store: the call that waits there fails at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmscale.durable import look_anew, replace

FILE = "called-off"
LOOK_EVERY_S = 0.1
MEETING = "FMSCALE_MEETING"
"""Environment variable: the file in which ranks of one machine meet (fmscale/training/meeting.py)."""


@contextlib.contextmanager
def called_off(run_dir: Path, attempt: str) -> Iterator[None]:
    """Inside the block the ranks of `attempt` that are still meeting fail; if the file cannot be written, they wait."""
    with contextlib.suppress(OSError):
        replace(run_dir / FILE, attempt.encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (run_dir / FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def may_be_called_off(run_dir: Path, attempt: str, store: Any) -> Iterator[None]:
    """Around all that makes process groups. store: a TCPStore; None: whoever owns this rank kills it instead."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            look_anew(run_dir)
            with contextlib.suppress(OSError):
                if (run_dir / FILE).read_text() == attempt:
                    hang_up(store.port)
                    return

    thread = threading.Thread(target=watch, name="called off", daemon=True)
    if store is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if store is not None:
            thread.join()


def hang_up(port: int) -> None:
    """Close this process's TCP connections to `port`, of whatever host; whoever uses them gets an error."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                peer = connection.getpeername()
                if connection.family in (socket.AF_INET, socket.AF_INET6) and peer[1] == port:
                    connection.shutdown(socket.SHUT_RDWR)
