"""The driver of a run on Ray: places ranks and readers, shows the run's progress, and exits when any rank does.

    python -m launcher.driver RUN_DIR      # started by supervise.py, which reads the exit code

Ranks are actors of our own in one placement group (all of them or none). They meet in a TCPStore that rank 0 opens on
a port the system chose. Readers stand on the nodes where ranks are. A lost rank ends the driver: restarting is the
supervisor's business, and a lost reader is Ray's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from fmscale.config import Config, from_yaml
from fmscale.corpus.readers import start_readers
from fmscale.errors import MachineError
from fmscale.observe import pids
from fmscale.observe.failure import record
from launcher.group import NodeLost, RankGroup
from launcher.progress import Follower
from launcher.ray_cluster import Cluster, RayLost, cluster
from launcher.recovery import Recovery, incidents_of_this_life

PLACEMENT_TIMEOUT_S = 120.0


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
    run_dir, world = config.run_dir, config.world_size
    placement, gpus = _place(config)
    places = [PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank) for rank in range(world)]
    group = RankGroup(config, ray_processes, places, gpus, _environment())
    readers = [
        reader
        for node in group.nodes
        for reader in start_readers(config, run_dir, NodeAffinitySchedulingStrategy(node, soft=True), pids.register)
    ]
    with Follower(config) as follower:
        recovery = Recovery(config, incarnation, group, follower)
        for number in (signal.SIGTERM, signal.SIGUSR1):  # Slurm may send them to every process of a job
            signal.signal(number, lambda got, frame: recovery.ask_to_stop(signal.Signals(got).name))
        while True:
            ending = group.attempt(readers, recovery.attempt, recovery.roll_back, recovery.idle)
            if ending is None:
                return 0
            recovery.judge(ending)
            started = time.monotonic()
            group.mend()
            recovery.mended(ending, time.monotonic() - started)


def _place(config: Config) -> tuple[PlacementGroup, int]:
    """A slot for each rank, all or none: (placement group, GPUs a rank)."""
    world = config.world_size
    available = int(ray.cluster_resources().get("GPU", 0))
    gpus = int(config.launch.device == "cuda" or (config.launch.device == "auto" and available >= world))
    group = placement_group([{"CPU": 1, **({"GPU": 1} if gpus else {})}] * world, strategy="PACK")
    there = ray.cluster_resources()
    impossible = there.get("CPU", 0) < world or there.get("GPU", 0) < world * gpus
    begun = bool(incidents_of_this_life(config.run_dir))  # the cluster was large enough, and a node may come back
    if (impossible and not begun) or not group.wait(PLACEMENT_TIMEOUT_S):
        raise (NodeLost if begun else MachineError)(
            "the Ray cluster cannot place all ranks at once",
            expected=f"{world} x (1 CPU{', 1 GPU' if gpus else ''}) free",
            found=f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs in all",
            do="free or add nodes, or lower parallel.dp or parallel.pp",
        )
    return group, gpus


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
