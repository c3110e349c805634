"""The driver of a run on Ray: places ranks and readers, shows the run's progress, and goes on when a rank is lost.

    python -m launcher.driver RUN_DIR      # started by supervise.py, which reads the exit code

Ranks are actors of our own, placed all or none. They meet in a TCPStore that rank 0 opens on a port the system chose.
Readers stand on the nodes where ranks are. A lost rank is this process's business (recovery.py), a lost reader is
Ray's; where Ray itself is lost the driver ends, and restarting is the supervisor's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmscale.config import Config, from_yaml
from fmscale.corpus.readers import start_readers
from fmscale.observe import pids
from fmscale.observe.failure import record
from launcher.elastic import Elastic
from launcher.group import RankGroup
from launcher.members import Members
from launcher.placement import Placement
from launcher.progress import Follower
from launcher.ray_cluster import Cluster, RayLost, cluster
from launcher.recovery import Recovery, incidents_of_this_life


def main(run_dir: Path) -> int:
    config = _absolute(from_yaml((run_dir / "config.yaml").read_text()))
    incarnation = os.environ["FMSCALE_INCARNATION"]
    pids.register(run_dir, "driver", 0)
    try:
        with cluster(min_cpus=config.world_size) as ray_processes:
            try:
                return _drive(config, incarnation, ray_processes)
            except RayLost as error:
                record(run_dir, incarnation, -1, error)
                print(error, file=sys.stderr, flush=True)
                os._exit(error.exit_code)  # to take leave of Ray would wait for what is gone
    except Exception as error:
        record(run_dir, incarnation, -1, error)
        raise


def _absolute(config: Config) -> Config:
    """Paths as every process of the run can follow them: nodes of a cluster have working directories of their own."""
    sources = {
        name: replace(source, corpus=os.path.abspath(source.corpus)) for name, source in config.data.sources.items()
    }
    run = replace(config.run, root=os.path.abspath(config.run.root))
    return replace(config, run=run, data=replace(config.data, sources=sources))


def _environment() -> dict[str, str]:
    """What the supervisor told this process and ranks must know too; no secrets: Ray shows arguments."""
    told = ("FMSCALE_", "FAULTS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name.startswith(told)}


def _drive(config: Config, incarnation: str, ray_processes: Cluster) -> int:
    with Follower(config) as follower:
        placement = Placement(config)
        placement.begin(ray_processes.require_alive, begun=bool(incidents_of_this_life(config.run_dir)))
        members = Members(config, ray_processes, placement, _environment())
        elastic = Elastic(config, members)
        elastic.mend(ray_processes.require_alive)
        group, readers = RankGroup(config, members), Readers(config)
        recovery = Recovery(config, incarnation, elastic, follower)
        for number in (signal.SIGTERM, signal.SIGUSR1):  # Slurm may send them to every process of a job
            signal.signal(number, lambda got, frame: recovery.ask_to_stop(signal.Signals(got).name))
        while True:
            beside = readers.beside(members.nodes)
            ending = group.attempt(beside, recovery.attempt, recovery.roll_back, recovery.idle)
            if ending is None:
                return 0
            recovery.judge(ending)
            recovery.mend(ending)


class Readers:
    """Reader actors on the nodes where ranks are."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._of: dict[str, list[Any]] = {}
        """By Ray's id of the node."""

    def beside(self, nodes: Sequence[str]) -> list[Any]:
        """Those of `nodes`; where there are no ranks any more, readers go too."""
        for node in self._of.keys() - set(nodes):
            for reader in self._of.pop(node):
                ray.kill(reader)
        for node in nodes:
            if node not in self._of:
                place = NodeAffinitySchedulingStrategy(node, soft=True)
                self._of[node] = start_readers(self._config, self._config.run_dir, place, pids.register)
        return [reader for node in nodes for reader in self._of[node]]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
