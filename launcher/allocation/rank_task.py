"""A rank of a Slurm job without Ray: srun starts one task a rank, this makes torchrun's variables of srun's.

    srun python -m launcher.allocation.rank_task RUN_DIR/job -- train RUN_DIR/job/config.yaml
    srun python -m launcher.allocation.rank_task JOB_DIR -- evaluate RUN_DIR

The ranks meet in a store that rank 0 opens on a port of the system's choice and whose place it says in the step's
directory, so that two jobs on a node never want the same one. Everything else is as under the user's own torchrun: each
process is one rank, rank 0 holds the run's lease, and what a rank dies of ends the step (`srun --kill-on-bad-exit`),
which the batch script starts anew.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import Any

from fmscale.errors import RunHeldError
from launcher.allocation.node import HELD_S, OWN_ADDRESS
from launcher.allocation.place import Allocation, allocation_of, exit_with
from launcher.driver_process import die_with_parent
from launcher.interface import own_address, socket_environment

MEETING = "meeting"
MEET_S = 300.0
"""Longest wait for rank 0, which may have a cold file system to import from."""


def environment_of_rank(allocation: Allocation) -> dict[str, str]:
    """The variables of torchrun that say which rank a process is."""
    return {
        "RANK": str(allocation.task),
        "WORLD_SIZE": str(allocation.tasks),
        "LOCAL_RANK": str(allocation.local_task),
        "LOCAL_WORLD_SIZE": str(allocation.local_tasks),
    }


def be_a_rank(allocation: Allocation, interface: str, settings: list[str]) -> None:
    """Train to the last step. Raises FmscaleError."""
    from launcher.arguments import config_of
    from launcher.start import start

    config = config_of([*settings, "launch.backend=torchrun"])
    store = meet(allocation, interface, config.launch.timeout_s)
    deadline = time.monotonic() + HELD_S
    while True:
        try:
            start(config, store=store)
            return
        except RunHeldError:  # by an orphan of this job, which leaves when it sees us
            if allocation.restart + allocation.step == 0 or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def meet(allocation: Allocation, interface: str, timeout_s: float) -> Any:
    """The store that task 0 opens for the ranks; gloo and NCCL are told the interface that leads to it."""
    from fmscale.training.meeting import join_store, open_store

    told = os.environ.get(OWN_ADDRESS)
    if allocation.task == 0:
        own = told or own_address(interface, "")
        store = open_store(own, allocation.tasks, timeout_s)
        allocation.make_directory()
        allocation.say(MEETING, f"{own}:{store.port}")
    else:
        host, _, port = allocation.wait_for(MEETING, MEET_S).rpartition(":")
        own = told or own_address(interface, host)
        store = join_store(host, int(port), allocation.tasks, timeout_s)
    for name, value in socket_environment(own).items():
        os.environ.setdefault(name, value)
    return store


def watch_for_successor(allocation: Allocation) -> None:
    """End this process once a later step of its job has begun: Slurm has given this node up."""

    def watch() -> None:
        while not allocation.superseded():
            time.sleep(1.0)
        print(f"job {allocation.job} goes on without this process", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("job_dir", type=Path)
    parser.add_argument("--interface", default="")
    parser.add_argument("arguments", nargs="+", metavar="-- train|evaluate ARGUMENTS")
    options = parser.parse_args(argv)
    allocation = allocation_of(options.job_dir)
    die_with_parent()
    watch_for_successor(allocation)
    os.environ.update(environment_of_rank(allocation))
    command, *arguments = options.arguments
    if command == "train":
        be_a_rank(allocation, options.interface, arguments)
    elif command == "evaluate":
        from launcher.cli import app

        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # time is nearly up: nothing is to be saved, and it may do
        app([command, *arguments], prog_name="fmscale", obj=partial(meet, allocation, options.interface))
    else:
        parser.error(f"srun starts ranks of `train` and `evaluate` only, not of `{command}`")
    return 0


if __name__ == "__main__":
    exit_with(main)
