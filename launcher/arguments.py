"""What several commands take: settings, a run, JSON instead of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fmscale.config import Config

Settings = Annotated[list[str], typer.Argument(help="YAML files and key=value settings, later ones win.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Run = Annotated[str, typer.Argument(help="A run directory, or a name below `runs/`.")]


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """YAML files and key=value settings."""
    is_file = [argument.endswith((".yaml", ".yml")) and "=" not in argument for argument in arguments]
    files = [a for a, file in zip(arguments, is_file, strict=True) if file]
    return files, [a for a, file in zip(arguments, is_file, strict=True) if not file]


def config_of(arguments: Sequence[str]) -> Config:
    """The settings that the arguments name. Raises ConfigError."""
    from fmscale.config import load

    return load(*split(arguments))


def sample_bytes_of(sample_mb: float) -> int:
    """Raises ConfigError where it is no amount of text."""
    from fmscale.errors import ConfigError

    if not 0 < sample_mb < 1e9:  # nan is neither
        raise ConfigError(
            "--sample-mb is out of range",
            expected="megabytes of text, more than 0",
            found=f"{sample_mb:g}",
            do="leave it out for the default, or give more than all text for all of it",
        )
    return max(int(sample_mb * 1e6), 1)


def run_dir_of(run: str) -> Path:
    """The run's directory. Raises ConfigError if there is none."""
    from fmscale.errors import ConfigError

    for candidate in (Path(run), Path("runs") / run):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(
        "no such run", expected="a directory with a config.yaml, or a name below runs/", found=run, do="see `ls runs`"
    )
