"""What a run was started with, beside the run: config.yaml, which a resume is checked against, and snapshot.json.

`config.yaml` is replaced on a resume that changes what may change; each start's differences go to events.jsonl.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from fmscale.config import Config, flatten, from_yaml, to_yaml
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.sources import begin_ledger, with_added
from fmscale.durable import replace
from fmscale.errors import CheckpointError
from fmscale.resume import check_resume

PACKAGES = ("torch", "deepspeed", "ray", "webdataset", "wandb", "sentencepiece", "omegaconf", "numpy", "safetensors")


def changes(config: Config) -> dict[str, str]:
    """Settings that differ from the run's last start, as {key: "old -> new"}; none for a new run.

    Raises ConfigError where a difference is not allowed, CheckpointError where there are checkpoints without the
    config they were made with.
    """
    file, checkpoints = config.run_dir / "config.yaml", config.run_dir / "checkpoints"
    if file.exists():
        ledger = Ledger.load(config.run_dir / FILE_NAME)
        old, config = (with_added(each, ledger) for each in (from_yaml(file.read_text(), str(file)), config))
        check_resume(old, config)
        before, after = dict(flatten(old)), dict(flatten(config))
        keys = sorted(before.keys() | after.keys())
        return {k: f"{before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)}
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
        raise CheckpointError(
            "the run directory has checkpoints but no config.yaml",
            expected=str(file),
            found="no such file",
            do="restore it, or start another run with run.name=NEW",
        )
    return {}


def enter(config: Config) -> dict[str, str]:
    """Create the run directory, or go on with the one that is there; returns and raises like `changes`."""
    run_dir = config.run_dir
    changed = changes(config)
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    begin_ledger(config)
    replace(run_dir / "config.yaml", to_yaml(config).encode())
    replace(run_dir / "snapshot.json", (json.dumps(environment(), indent=1) + "\n").encode())
    return changed


def environment() -> dict[str, Any]:
    """Versions, code revision and machine; no environment variables, since secrets live there."""
    root = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(root)]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        ).stdout.strip()
        dirty = bool(subprocess.run([*git, "status", "--porcelain"], capture_output=True, timeout=10).stdout)
    except (OSError, subprocess.TimeoutExpired):
        revision, dirty = "", False
    return {
        "revision": revision or None,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
