"""From what a user asks for to a job: everything that can be known to be wrong is told before a cluster is spoken to.

spec = train_job(config, wish, site)      # `fmscale submit CONFIG --on slurm --nodes 2 --gpus-per-node 8`
spec = command_job(arguments, ...)        # `fmscale submit --do "data prepare" ...`
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fmscale import durable
from fmscale.config import Config, to_yaml
from fmscale.errors import ConfigError, RunHeldError
from fmscale.settings import load_settings
from launcher.jobs.record import Submitted, remember, submitted
from launcher.jobs.slurm_script import OPTION
from launcher.jobs.spec import Backend, JobSpec, Site

LONGEST_SCRATCH = 30
"""Bytes: what is left of a Unix socket's 107 for the site's `scratch` below Ray's own names and ours."""
SITE, SITE_FILE = "FMSCALE_SITE", Path("slurm/site.yaml")
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
"""sbatch(1), --time: minutes, minutes:seconds, h:m:s, days-h, days-h:m, days-h:m:s."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line says about the job, apart from its config."""

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int = 0
    memory: str = ""
    time_limit: str = ""
    requeues: int = 100


def load_site(file: Path | None, on: str = "slurm") -> Site:
    """The site's facts from `file`; for Slurm else from $FMSCALE_SITE, else from slurm/site.yaml where that is."""
    if on != "slurm":
        return load_settings(Site, [file] if file is not None else [], shell=["setup"])
    if file is None and os.environ.get(SITE):
        file = Path(os.environ[SITE])
    if file is None and SITE_FILE.exists():
        file = SITE_FILE
    site = load_settings(Site, [file] if file is not None else [], shell=["setup"])
    return replace(site, python=site.python or sys.executable)


def train_job(config: Config, wish: Wish, site: Site, settings: Sequence[str] = ()) -> JobSpec:
    """The job that trains `config`, which has been checked. Raises ConfigError where config and wish do not fit.

    settings: what `config` was read from, for clusters that do not see the run's directory; else the job reads the
    config that `hand_over` writes there.
    """
    ranks: Literal["ray", "srun"] = "srun" if config.launch.backend == "torchrun" else "ray"
    _check(wish, site)
    _check_ranks(config, wish, ranks)
    run_dir = Path(os.path.abspath(config.run_dir))
    settings = settings or [str(run_dir / "job" / "config.yaml")]
    spec = _job(config.run.name, run_dir, ("train", *settings), wish, site)
    if config.launch.grace_s > site.warning_s:
        raise ConfigError(
            "the run would be killed while it saves",
            expected=f"launch.grace_s at most the site's warning_s, {site.warning_s}",
            found=f"launch.grace_s={config.launch.grace_s:g}",
            do="raise warning_s in the site's file, or lower launch.grace_s",
        )
    return replace(spec, ranks=ranks, ranks_per_node=-(-config.world_size // wish.nodes))


def command_job(arguments: Sequence[str], name: str, root: Path, wish: Wish, site: Site) -> JobSpec:
    """The job that runs another command of `fmscale`: `data prepare` on a Ray cluster of its own, `evaluate` as ranks
    under srun, one a GPU or one a node. Raises ConfigError."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(
            "a job that is no training needs a name",
            expected="--name with letters, digits and ._-",
            found=repr(name),
            do="add `--name NAME`: its logs go to runs/NAME/logs",
        )
    _check(wish, site)
    spec = _job(name, Path(os.path.abspath(root / name)), tuple(arguments), wish, site)
    if arguments[0] == "evaluate":
        return replace(spec, ranks="srun", ranks_per_node=max(1, wish.gpus_per_node))
    return spec


def hand_over(spec: JobSpec, config: Config | None, backend: Backend, address: str = "") -> str:
    """Submit, and remember it; the job's id. Raises RunHeldError while another job of this run waits or runs."""
    for earlier in submitted():
        if (earlier.run_dir, earlier.on, earlier.address) == (str(spec.run_dir), backend.name, address):
            _require_over(earlier, backend)
    if config is not None and spec.arguments == ("train", str(spec.run_dir / "job" / "config.yaml")):
        (spec.run_dir / "job").mkdir(parents=True, exist_ok=True)
        durable.replace(spec.run_dir / "job" / "config.yaml", to_yaml(config).encode())
    job = backend.submit(spec)
    remember(job, backend.name, address, spec.name, spec.run_dir)
    return job


def _require_over(earlier: Submitted, backend: Backend) -> None:
    state = backend.state(earlier.job)
    if state.state in ("waiting", "running"):
        raise RunHeldError(
            f"job {earlier.job} of this run has not ended",
            expected="one job of a run at a time",
            found=state.detail,
            do=f"`fmscale jobs logs {earlier.job} --follow`, or `fmscale jobs cancel {earlier.job}` first",
        )


def _job(name: str, run_dir: Path, arguments: tuple[str, ...], wish: Wish, site: Site) -> JobSpec:
    return JobSpec(
        name=name,
        run_dir=run_dir,
        arguments=arguments,
        directory=Path.cwd(),
        nodes=wish.nodes,
        gpus_per_node=wish.gpus_per_node,
        cpus_per_node=wish.cpus_per_node,
        memory=wish.memory,
        time_limit=wish.time_limit,
        requeues=wish.requeues,
        site=site,
    )


def _check_ranks(config: Config, wish: Wish, ranks: str) -> None:
    world, nodes, gpus = config.world_size, wish.nodes, wish.gpus_per_node
    degrees = f"parallel.dp={config.parallel.dp} x parallel.pp={config.parallel.pp} = {world} ranks"
    if gpus and world != nodes * gpus:
        raise ConfigError(
            "the job's GPUs and the run's ranks do not fit",
            expected=f"one GPU a rank: {nodes} nodes x {gpus} GPUs = {nodes * gpus}",
            found=degrees,
            do=f"set parallel.dp={max(1, nodes * gpus // config.parallel.pp)}, or ask for {world} GPUs",
        )
    if gpus and config.launch.device == "cpu":
        raise ConfigError(
            "the job asks for GPUs that the run would not use",
            expected="launch.device=auto or cuda",
            found="launch.device=cpu",
            do="leave out --gpus-per-node, or set launch.device=auto",
        )
    if not gpus and config.launch.device == "cuda":
        raise ConfigError(
            "the run wants GPUs and the job asks for none",
            expected="--gpus-per-node with launch.device=cuda",
            found="--gpus-per-node 0",
            do=f"add `--gpus-per-node {max(1, world // nodes)}`",
        )
    if world < nodes:
        raise ConfigError(
            "nodes would stand idle",
            expected=f"at least one rank on each of {nodes} nodes",
            found=degrees,
            do=f"ask for {world} nodes, or set parallel.dp={nodes}",
        )
    if ranks == "srun" and world % nodes:
        raise ConfigError(
            "without Ray every node has as many ranks as the others",
            expected=f"ranks that {nodes} nodes divide",
            found=degrees,
            do="change --nodes or parallel.dp, or set launch.backend=ray",
        )
    if wish.cpus_per_node and wish.cpus_per_node * nodes < world:
        raise ConfigError(
            "the job has fewer cores than ranks",
            expected=f"{world} cores or more",
            found=f"{nodes} nodes x {wish.cpus_per_node} cores",
            do=f"ask for --cpus-per-node {-(-world // nodes)}",
        )


def _check(wish: Wish, site: Site) -> None:
    for flag, value, least in (
        ("--nodes", wish.nodes, 1),
        ("--gpus-per-node", wish.gpus_per_node, 0),
        ("--cpus-per-node", wish.cpus_per_node, 0),
        ("--requeues", wish.requeues, 0),
    ):
        if value < least:
            raise ConfigError(f"{flag} is too small", expected=f"{least} or more", found=str(value), do="raise it")
    if wish.memory and not re.fullmatch(r"\d+[KMGT]?", wish.memory):
        raise ConfigError(
            "--mem is no amount of memory", expected="a number and K, M, G or T: 64G", found=wish.memory, do="mend it"
        )
    if wish.time_limit:
        seconds = time_limit_s(wish.time_limit)
        if seconds <= site.warning_s:
            raise ConfigError(
                "the time limit leaves no time to train",
                expected=f"more than the {site.warning_s} s before it at which Slurm gives notice",
                found=f"--time {wish.time_limit}: {seconds} s",
                do="raise --time, or lower warning_s in the site's file",
            )
    if len(site.scratch.encode()) > LONGEST_SCRATCH or not site.scratch.startswith("/"):
        raise ConfigError(
            "the site's scratch is no directory for Ray's sockets",
            expected=f"an absolute path of at most {LONGEST_SCRATCH} bytes, on each node's own disk",
            found=site.scratch,
            do="set `scratch: /tmp` in the site's file",
        )
    if site.container.kind != "none" and not site.container.image:
        raise ConfigError(
            "the site names a container without an image",
            expected=f"container.image with container.kind={site.container.kind}",
            found="none",
            do="set it in the site's file",
        )
    if site.container.kind == "none" and site.container.image:
        raise ConfigError(
            "the site names an image and no container",
            expected="container.kind pyxis or apptainer",
            found=f"container.image={site.container.image}",
            do="set container.kind in the site's file",
        )
    if bad := next((mount for mount in site.container.mounts if ":" not in mount or "," in mount), None):
        raise ConfigError(
            "a mount of the site's container is not understood",
            expected="HOST:CONTAINER, without commas",
            found=bad,
            do="mend container.mounts in the site's file",
        )
    if bad := next(
        (option for option in site.options if not option.startswith("-") or not OPTION.fullmatch(option)), None
    ):
        raise ConfigError(
            "an option of the site is none of sbatch's",
            expected="one option each, as in `--exclusive` or `--switches=1`",
            found=bad,
            do="mend `options` in the site's file",
        )


def time_limit_s(text: str) -> int:
    """Seconds of a time limit as sbatch spells it. Raises ConfigError."""
    match = TIME.fullmatch(text)
    if match is None:
        raise ConfigError(
            "--time is no time limit of Slurm's",
            expected="minutes, HH:MM:SS or D-HH:MM:SS",
            found=text,
            do="write 12:00:00 for twelve hours",
        )
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None:
        return ((days * 24 + first) * 60 + second) * 60 + third
    if match[4] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second
