"""Jobs for tests: a tiny run, as `fmscale submit` would describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.jobs.spec import JobSpec
from tests.runs import TINY

HOSTILE = '"; touch canary #$(touch canary)`touch canary`'
"""A name that runs a command wherever it is pasted into a shell, and ends a string wherever it is pasted into YAML."""


def spec_of(directory: Path, name: str = "mine", *settings: str, **fields: Any) -> JobSpec:
    """A job that trains two ranks; its config file lies in `directory`, its runs and corpus below /shared."""
    config = directory / "tiny.yaml"
    config.write_text(TINY.replace("backend: torchrun, ", ""))
    given = ["run.root=/shared/runs", "run.name=mine", "data.sources.words.corpus=/shared/words", *settings]
    values: dict[str, Any] = {
        "name": name,
        "run_dir": Path("/shared/runs/mine"),
        "arguments": ("train", "tiny.yaml", "engine=zero", "parallel.dp=2", *given),
        "directory": directory,
        "nodes": 2,
        "cpus_per_node": 16,
        "memory": "64G",
    }
    return JobSpec(**{**values, **fields})
