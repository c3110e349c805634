"""`fmscale submit` and `fmscale jobs`: a run handed to a cluster's queue, and what became of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.arguments import AsJson, Settings, config_of

if TYPE_CHECKING:
    from fmscale.config import Config
    from launcher.jobs.record import Submitted
    from launcher.jobs.spec import Backend, JobSpec

jobs_app = typer.Typer(help="Jobs that were submitted: list, status, logs, cancel.", no_args_is_help=True)
Job = Annotated[str, typer.Argument(help="A job's id, or the name of its run.")]
CLUSTER_SHAPE = "The cluster"
FILES = ("kuberay", "skypilot")
"""Kinds of clusters that are handed a file by their own tools."""
KINDS = ("slurm", "ray", *FILES)


def submit(
    settings: Settings,
    on: Annotated[str, typer.Option("--on", help=f"{', '.join(KINDS)}.")] = "slurm",
    nodes: Annotated[int, typer.Option(help="Nodes.", rich_help_panel=CLUSTER_SHAPE)] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs a node, one a rank.", rich_help_panel=CLUSTER_SHAPE)] = 0,
    cpus_per_node: Annotated[int, typer.Option(help="Cores a node; 0: as given.", rich_help_panel=CLUSTER_SHAPE)] = 0,
    mem: Annotated[str, typer.Option(help="Memory a node: 64G.", rich_help_panel=CLUSTER_SHAPE)] = "",
    time: Annotated[str, typer.Option(help="Slurm's limit: 12:00:00.", rich_help_panel=CLUSTER_SHAPE)] = "",
    requeues: Annotated[int, typer.Option(help="How often a job may go back into Slurm's queue.")] = 100,
    site: Annotated[Path | None, typer.Option(help="YAML with the cluster's facts; slurm/README.md.")] = None,
    address: Annotated[str, typer.Option(help="With --on ray: http://HOST:8265.")] = "",
    packages: Annotated[str, typer.Option(help="With --on ray: the cluster's, or pinned.")] = "cluster",
    cluster: Annotated[list[str], typer.Option(help="With kuberay and skypilot: image=…, claim=…, mount=….")] = [],  # noqa: B006 - typer's
    do: Annotated[str, typer.Option("--do", help="Another command than train: 'data prepare', evaluate.")] = "train",
    name: Annotated[str, typer.Option(help="With --do: the job's name.")] = "",
    dry_run: Annotated[bool, typer.Option(help="Print what would be submitted, and stop.")] = False,
) -> None:
    """Hand a run to a cluster; the same command again goes on with it. kuberay and skypilot print a file."""
    from launcher.jobs.submit import Wish, command_job, hand_over, load_site, train_job

    _require_kind(on)
    wish = Wish(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        memory=mem,
        time_limit=time,
        requeues=requeues,
    )
    facts, config = load_site(site, on), None
    if do == "train":
        config = _checked(settings, on)
        spec = train_job(config, wish, facts, () if on == "slurm" else settings)
    else:
        spec = command_job([*shlex.split(do), *settings], name, Path("runs"), wish, facts)
    if dry_run or on in FILES:
        typer.echo(_text(spec, on, cluster), nl=False)
        return
    job = hand_over(spec, config, _backend(on, address, packages), address)
    typer.echo(f"job {job} of {spec.run_dir}; `fmscale jobs logs {job} --follow`, `fmscale jobs cancel {job}`")


def _checked(settings: Sequence[str], on: str) -> Config:
    """The config. Corpora are looked at where this machine sees them as the cluster does: on Slurm."""
    from fmscale.validate import validate
    from launcher.start import check

    config = config_of(settings)
    if on == "slurm":
        check(config)
    else:
        validate(config, elsewhere=True)
    return config


def _text(spec: JobSpec, on: str, cluster: Sequence[str]) -> str:
    """What a cluster of this kind would be handed."""
    from fmscale.settings import load_settings
    from launcher.jobs.kuberay import KubeRay, rayjob
    from launcher.jobs.ray_jobs import entrypoint
    from launcher.jobs.shipped import shipped
    from launcher.jobs.skypilot import SkyPilot, task
    from launcher.jobs.slurm_script import batch_script

    if on == "kuberay":
        return rayjob(spec, load_settings(KubeRay, [], cluster))
    if on == "skypilot":
        return task(spec, load_settings(SkyPilot, [], cluster))
    if on == "ray":
        load = shipped(spec)
        return f"{entrypoint(spec, load)}\n# job/config.yaml:\n{load.text}"
    return batch_script(spec)


@jobs_app.command("list")
def list_jobs(
    everything: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What was submitted from this account, the newest last."""
    from launcher.jobs.record import submitted

    rows = []
    for entry in submitted():
        state = _state(entry)
        if everything or state["state"] in ("waiting", "running", "unreachable"):
            rows.append(state)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['job']:<24} {row['on']:<6} {row['name']:<24} step {row['step']:>8}  {row['detail']}")
    if not rows:
        typer.echo("no job waits or runs" if not everything else "no job was submitted from this account")


@jobs_app.command()
def status(job: Job, as_json: AsJson = False) -> None:
    """How a job stands, in the cluster's words, and how far its run is."""
    from launcher.jobs.record import find

    found = _state(find(job))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for key in ("job", "on", "name", "run_dir", "time", "state", "detail", "step"):
        typer.echo(f"{key:<8} {found[key]}")


@jobs_app.command()
def logs(job: Job, follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False) -> None:
    """What the job has printed."""
    from launcher.jobs.record import find

    entry = find(job)
    for text in _backend(entry.on, entry.address).logs(entry.job, follow):
        typer.echo(text, nl=False)


@jobs_app.command()
def cancel(job: Job) -> None:
    """End a job for good: it saves and stops. `fmscale submit` goes on with its run."""
    from launcher.jobs.record import find

    entry = find(job)
    _backend(entry.on, entry.address).cancel(entry.job)
    typer.echo(f"job {entry.job} is asked to save and stop")


def _state(entry: Submitted) -> dict[str, str | int]:
    from dataclasses import asdict

    from fmscale.errors import MachineError
    from fmscale.observe.metrics import last_step

    try:
        found = _backend(entry.on, entry.address).state(entry.job)
        state, detail = str(found.state), found.detail
    except MachineError as error:
        state, detail = "unreachable", str(error).splitlines()[0]
    return {**asdict(entry), "state": state, "detail": detail, "step": max(0, last_step(Path(entry.run_dir)))}


def _require_kind(on: str) -> None:
    from fmscale.errors import ConfigError

    if on not in KINDS:
        raise ConfigError(
            "no such kind of cluster",
            expected=" or ".join(f"--on {kind}" for kind in KINDS),
            found=f"--on {on}",
            do="choose one of them",
        )


def _backend(on: str, address: str, packages: str = "cluster") -> Backend:
    from fmscale.errors import ConfigError
    from launcher.jobs.ray_jobs import RayJobs
    from launcher.jobs.record import submitted
    from launcher.jobs.slurm import Slurm

    if on == "slurm":
        logs = {entry.job: Path(entry.run_dir) / "logs" / f"slurm-{entry.job}.out" for entry in submitted()}
        return Slurm(logs.get)
    if packages not in ("cluster", "pinned"):
        raise ConfigError(
            "no such choice of packages", expected="cluster or pinned", found=packages, do="choose one of them"
        )
    return RayJobs(address, "pinned" if packages == "pinned" else "cluster")
