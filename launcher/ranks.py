"""A rank as a Ray actor: a process of its own, in which alone torch and DeepSpeed are imported.

The same `worker.run_rank` runs under torchrun without Ray; this class only tells it where it stands and hands it a
loader that asks reader actors. An actor may run more than once: one that lost a peer is asked again, with another in
the peer's place. A spare is an actor that has nothing to do yet, has imported everything and has stepped a small engine
once: what takes ten seconds in a new process takes it a fraction of one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray

from fmscale.config import Config
from fmscale.corpus.readers import RayLoader
from fmscale.errors import MachineError
from fmscale.observe import pids
from fmscale.observe.events import EventLog
from launcher.interface import socket_environment


class RankActor:
    """A process that can be a rank; torch and DeepSpeed are imported in here, never in the driver."""

    def __init__(self, config: Config, name: str, environment: dict[str, str], driver: tuple[str, int]) -> None:
        """config: with absolute paths. name: of the log until it is a rank.

        environment: the driver's own settings, which a joined cluster does not know. driver: its host and process id.
        """
        self.config, self._driver = config, driver
        self.store: Any = None
        os.environ.update(environment)  # before torch is imported: it reads OMP_NUM_THREADS then
        self.address = str(ray.util.get_node_ip_address())
        for variable, value in socket_environment(self.address).items():
            os.environ.setdefault(variable, value)
        if self._has_the_runs_disk():
            _log_to(config.run_dir / "logs" / f"{name}.log")

    def whereabouts(self) -> tuple[str, str, int]:
        """(Ray's node id, host name, process id). Raises MachineError where the run directory is not the driver's."""
        if not self._has_the_runs_disk():
            found = "one of another run" if self.config.run_dir.exists() else "no such directory"
            raise MachineError(
                "a node of the Ray cluster does not have the run directory",
                expected=f"{self.config.run_dir} on a disk that all nodes share, as {self._driver[0]} has it",
                found=f"on {socket.gethostname()} {found}",
                do="set run.root to a shared disk (NFS, Lustre, a mounted volume), or mount it on that node",
            )
        return str(ray.get_runtime_context().get_node_id()), socket.gethostname(), os.getpid()

    def warm_up(self, number: int) -> None:
        """Be spare `number`: have done once all that is slow for the first time."""
        from fmscale.training.warm import warm_up

        warm_up(self.config)
        pids.register(self.config.run_dir, "spare", number)

    def open_store(self, world: int, timeout_s: float) -> tuple[str, int]:
        """Rank 0 opens the meeting point of all ranks: (address, port)."""
        from fmscale.training.meeting import open_store

        self.store = open_store(self.address, world, timeout_s)
        return self.address, int(self.store.port)

    def run(
        self,
        rank: int,
        dp: int,
        local_rank: int,
        address: str,
        port: int,
        readers: list[Any],
        attempt: str,
        roll_back: str,
    ) -> None:
        """Be rank `rank` until the last step.

        dp: data-parallel ranks of this attempt; the config has the most that there may be. attempt: the name under
        which a failure is recorded. roll_back: the checkpoint to start from, "" the newest.

        Raises what ends the rank; the actor can run again afterwards.
        """
        from fmscale.training.meeting import join_store
        from fmscale.training.place import RankPlace
        from fmscale.training.worker import guarded, run_rank

        config = replace(self.config, parallel=replace(self.config.parallel, dp=dp))
        world = config.world_size
        _log_to(config.run_dir / "logs" / f"rank-{rank:05d}.log")
        os.environ.update(FMSCALE_INCARNATION=attempt, FMSCALE_ROLL_BACK=roll_back)
        with guarded(config.run_dir, rank):
            store = self.store if rank == 0 else join_store(address, port, world, config.launch.timeout_s)
            device: Literal["cpu", "cuda"] = "cuda" if ray.get_gpu_ids() else "cpu"
            place = RankPlace(
                rank=rank,
                world=world,
                local_rank=local_rank,
                device=device,
                shows_progress=False,
                store=store,
            )
            run_rank(config, place, lambda **loader: RayLoader(readers, tell=self._remark, **loader))

    def _has_the_runs_disk(self) -> bool:
        """Whether the driver's entry is to be seen: what an earlier run has left here has another one, or none."""
        with contextlib.suppress(OSError):
            os.listdir(self.config.run_dir)  # has NFS ask the server: what it knows of files there may be a minute old
        there = pids.read(self.config.run_dir)
        return any((each["role"], each["node"], each["pid"]) == ("driver", *self._driver) for each in there)

    def _remark(self, text: str) -> None:
        EventLog(self.config.run_dir).write("remark", text=text)
        print(text, file=sys.stderr, flush=True)


def _log_to(path: Path) -> None:
    """Send this process's standard output and error to the end of `path`."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
