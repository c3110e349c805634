"""What a job takes along to a cluster that does not see this machine's files: one config with absolute paths.

    load = shipped(spec)        load.config as YAML, load.arguments with CONFIG where it is to stand

Files and settings of `train` become one config, as `fmscale train` would read them here; so nothing that a user wrote
has to pass through anybody's shell. What only Slurm can do is refused rather than dropped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from fmscale.config import Config, load, to_yaml
from fmscale.errors import ConfigError
from launcher.arguments import split
from launcher.jobs.spec import JobSpec, Site

CONFIG = "config.yaml"
"""Stands among the arguments for the config, wherever that will lie."""

WITH_VALUE = frozenset({"--roll-back"})
"""Options of `train` that take the next argument."""

PLAIN = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")
"""An argument that every shell passes on as it is."""

_MEMORY = re.compile(r"(\d+)([MGT])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Shipped:
    config: Config | None
    """None for a command that takes no run's config."""
    arguments: tuple[str, ...]
    """Of `fmscale`."""

    @property
    def text(self) -> str:
        """The config as YAML, "" without one."""
        return to_yaml(self.config) if self.config is not None else ""

    def with_config_at(self, place: str) -> list[str]:
        return [place if argument == CONFIG else argument for argument in self.arguments]

    @property
    def stop_s(self) -> int:
        """Seconds from SIGTERM to the end of the command's last process: `launch.grace_s`, and as much again as it
        takes to sweep up."""
        return int(self.config.launch.grace_s if self.config is not None else 0) + 30


def shipped(spec: JobSpec, facts: Collection[str] = ("python",)) -> Shipped:
    """facts: fields of `Site` that whoever asks can use.

    Raises ConfigError for settings that cannot be, and for what only Slurm can do; `requeues` is Slurm's too, and says
    how often at most, so it is left.
    """
    _require_no_slurm(spec, facts)
    if not spec.arguments or spec.arguments[0] != "train":
        return Shipped(config=None, arguments=spec.arguments)
    settings, options = _settings_and_options(spec.arguments[1:])
    files, overrides = split(settings)
    config = _absolute(load([spec.directory / file for file in files], overrides), spec.directory)
    return Shipped(config=config, arguments=("train", CONFIG, *options))


def require_places(spec: JobSpec, config: Config | None) -> None:
    """Raise ConfigError if the nodes that the job asks for have no place for every rank."""
    if config is None:
        return
    each, what = (spec.gpus_per_node, "GPUs") if spec.gpus_per_node else (spec.cpus_per_node, "CPUs")
    if spec.nodes * each < config.world_size:
        raise ConfigError(
            "the job has fewer places than the run has ranks",
            expected=f"{config.world_size} places: parallel.dp x pp x tp of the config",
            found=f"{spec.nodes} nodes x {each} {what}",
            do="ask for more nodes or more of each, or lower parallel.dp",
        )


def require_shared(spec: JobSpec, config: Config | None, below: Sequence[str], what: str) -> None:
    """Raise ConfigError for a run directory or corpus outside of `below`, the directories that all nodes see.

    what: whose they are, in words. The first of them is the one for runs.
    """
    sources = config.data.sources if config is not None else {}
    wanted = [("run.root", spec.run_dir, below[:1])]
    wanted += [(f"data.sources.{name}.corpus", Path(source.corpus), below) for name, source in sources.items()]
    for key, path, allowed in wanted:
        if not any(path.is_relative_to(directory) for directory in allowed):
            raise ConfigError(
                "a path is not on storage that all nodes share",
                expected=f"{key} below {' or '.join(allowed)}, {what}",
                found=str(path),
                do=f"set {key} to a directory there, or mount it elsewhere",
            )


def label(name: str) -> str:
    """A run's name as a DNS label (RFC 1035), at most 40 characters: KubeRay takes 47 and adds to them."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
    return (plain if plain[0].isalpha() else f"run-{plain}")[:40].strip("-")


def plain_command(program: Sequence[str], arguments: Sequence[str]) -> str:
    """A command line that needs no quoting: some launchers have it read by two shells, one after another.

    Raises ConfigError for an argument that would need some.
    """
    for argument in (*program, *arguments):
        if not PLAIN.fullmatch(argument):
            raise ConfigError(
                "an argument cannot be handed to this launcher",
                expected="letters, digits and _ . / : = , @ % + - only: more than one shell will read it",
                found=argument,
                do="write it into the config file, which travels as a file",
            )
    return " ".join([*program, *arguments])


def gigabytes(memory: str) -> int:
    """Whole GiB of a size as `JobSpec.memory` has it. Raises ConfigError."""
    match = _MEMORY.fullmatch(memory)
    size = int(match[1]) * {"M": 1, "G": 1024, "T": 1024**2}[match[2].upper()] // 1024 if match else 0
    if size < 1:
        raise ConfigError(
            "the memory of a node is no size",
            expected="1G or more, as 64G, 65536M or 1T",
            found=memory or "nothing",
            do="say how much memory a node is to have",
        )
    return size


def _settings_and_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    settings: list[str] = []
    options: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith("--"):
            settings.append(argument)
            continue
        options.append(argument)
        if argument in WITH_VALUE:
            options += [value for value in [next(waiting, None)] if value is not None]
    return settings, options


def _absolute(config: Config, directory: Path) -> Config:
    """Relative paths begin at `directory`, as they would for a command started there."""
    sources = {
        name: replace(source, corpus=str(directory / source.corpus)) for name, source in config.data.sources.items()
    }
    fast_dir = config.checkpoint.fast_dir
    return replace(
        config,
        run=replace(config.run, root=str(directory / config.run.root)),
        data=replace(config.data, sources=sources),
        checkpoint=replace(config.checkpoint, fast_dir=str(directory / fast_dir) if fast_dir else ""),
    )


def _require_no_slurm(spec: JobSpec, facts: Collection[str]) -> None:
    """The fields that a Ray cluster, Kubernetes and SkyPilot have nothing for."""
    if spec.time_limit:
        raise ConfigError(
            "only Slurm's jobs have a time limit of their own",
            expected="a run that stops by itself",
            found=f"the time limit {spec.time_limit}",
            do="set launch.time_limit_s=SECONDS: the run then saves and stops in time",
        )
    if spec.ranks != "ray":
        raise ConfigError(
            "ranks without Ray are Slurm's alone",
            expected="ranks=ray",
            found=f"ranks={spec.ranks}",
            do="leave it out, or submit with `--on slurm`",
        )
    ours, default = spec.site, Site()
    foreign = [
        field.name
        for field in fields(Site)
        if field.name not in facts and getattr(ours, field.name) != getattr(default, field.name)
    ]
    if foreign:
        raise ConfigError(
            "the site file has facts that this kind of cluster has no use for",
            expected=f"{' and '.join(facts)} at most",
            found=", ".join(foreign),
            do="submit with another site file, or without one",
        )
