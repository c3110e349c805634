"""What is asked of a cluster, and what every kind of cluster answers. Pure: no cluster is spoken to in here.

JobSpec     one `fmscale` command on so many nodes
Site        the facts of one cluster, written down once (slurm/README.md)
Backend     Slurm's queue, Ray's jobs: submit, state, logs, cancel
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Container:
    kind: Literal["none", "pyxis", "apptainer"] = "none"
    """pyxis: srun's own plug-in. apptainer: `apptainer exec` in front of each node's command."""
    image: str = ""
    """pyxis: a squashfs file, or REGISTRY#IMAGE:TAG. apptainer: a .sif file, or docker://IMAGE:TAG."""
    mounts: list[str] = field(default_factory=list)
    """HOST:CONTAINER. Where the project, the corpora and the runs lie is to be seen inside under the same paths."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster's facts that no job changes; a YAML file of these, `slurm/site.yaml` for example."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    options: list[str] = field(default_factory=list)
    """Further options of sbatch, one each: `--exclusive`, `--switches=1`."""
    gpus: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How GPUs are asked for: `--gpus-per-node=8`, or `--gres=gpu:8` where that is not known."""
    gpu_type: str = ""
    """Asked for by name: `h100` makes `--gpus-per-node=h100:8`."""
    modules: list[str] = field(default_factory=list)
    """Loaded by `module load` in the batch script."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that run on every node before our command, for example `export NCCL_IB_HCA=mlx5`. They are the
    only shell that is taken as it is: whoever writes this file could as well write the batch script."""
    container: Container = Container()
    python: str = ""
    """Interpreter on the nodes; empty: the one that submits."""
    scratch: str = "/tmp"
    """Directory of each node's own for Ray's session; at most 30 characters (a Unix socket's path has 107)."""
    interface: str = ""
    """Network interface of ranks and Ray; empty: the one that leads to the first node."""
    warning_s: int = 120
    """How long before the time limit, or a preemption with notice, Slurm sends USR1; `launch.grace_s` must fit in."""


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """An `fmscale` command on the nodes of a cluster."""

    name: str
    """The run's, and the job's in the queue."""
    run_dir: Path
    """Absolute, and seen by all nodes. Logs go there."""
    arguments: tuple[str, ...]
    """Of `fmscale`: ("train", "/runs/a/job/config.yaml")."""
    directory: Path
    """Where the command is started: relative paths in the config begin here."""
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int = 0
    """0: what the site gives."""
    memory: str = ""
    """A node, as the cluster spells it: `64G`. Empty: what the site gives."""
    time_limit: str = ""
    """As Slurm spells it: minutes, HH:MM:SS or D-HH:MM:SS. Empty: what the site gives."""
    ranks: Literal["ray", "srun"] = "ray"
    """ray: a Ray cluster of the job's own, in which our supervisor runs. srun: one task a rank and no Ray."""
    ranks_per_node: int = 0
    """At most, so that they stand evenly on the nodes; 0: no training."""
    requeues: int = 100
    """How often the job may go back into the queue: preempted, out of time, or a node was lost."""
    site: Site = Site()


State = Literal["waiting", "running", "done", "failed", "cancelled", "unknown"]
"""unknown: the cluster has forgotten the job."""


@dataclass(frozen=True)
class JobState:
    state: State
    detail: str = ""
    """In the cluster's own words: `PENDING (Resources)`, `exit code 7`."""


class Backend(Protocol):
    """A cluster that jobs can be handed to. All raise MachineError where it cannot be reached."""

    name: str
    """As in `--on`."""

    def submit(self, spec: JobSpec) -> str:
        """The job's id."""

    def state(self, job: str) -> JobState: ...

    def logs(self, job: str, follow: bool) -> Iterator[str]:
        """What the job has printed, piece by piece; with `follow` until it ends."""

    def cancel(self, job: str) -> None:
        """End it for good: it saves, and does not come back."""
