"""What a run was started with, beside the run: config.yaml, which a resume is checked against, and snapshot.json.

`config.yaml` is replaced on a resume that changes what may change; each start's differences go to events.jsonl. So are
versions: other ones may round otherwise, which is told, or refused where `launch.other_versions` says so.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fmscale.config import Config, from_yaml, to_yaml
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.sources import begin_ledger, with_added
from fmscale.durable import replace
from fmscale.errors import CheckpointError, ConfigError
from fmscale.observe.events import EventLog
from fmscale.resume import check_resume
from fmscale.settings import flatten

SNAPSHOT = "snapshot.json"
PACKAGES = ("torch", "deepspeed", "ray", "webdataset", "wandb", "sentencepiece", "omegaconf", "numpy", "safetensors")


def changes(config: Config) -> dict[str, str]:
    """Settings that differ from the run's last start, as {key: "old -> new"}; none for a new run.

    Raises ConfigError where a difference, or another version, is not allowed, CheckpointError where there are
    checkpoints without the config they were made with.
    """
    file, checkpoints = config.run_dir / "config.yaml", config.run_dir / "checkpoints"
    _check_versions(config)
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
    others = other_versions(run_dir)
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    begin_ledger(config)
    replace(run_dir / "config.yaml", to_yaml(config).encode())
    replace(run_dir / SNAPSHOT, (json.dumps(environment(), indent=1) + "\n").encode())
    if others:
        EventLog(run_dir).write("versions_changed", changed=others)
        print(f"note: other versions than at the run's last start: {_listed(others)}", file=sys.stderr, flush=True)
    return changed


def other_versions(run_dir: Path) -> dict[str, str]:
    """What of Python, the libraries and the code is not as at the run's last start: {name: "old -> new"}."""
    try:
        before = json.loads((run_dir / SNAPSHOT).read_text())
        pairs = _versions(before), _versions(environment())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # a first start, or a file that nobody can compare with
    names = sorted(pairs[0].keys() | pairs[1].keys())
    told = {name: [each.get(name) for each in pairs] for name in names}
    return {name: f"{old} -> {new}" for name, (old, new) in told.items() if old != new}


def _versions(environment: dict[str, Any]) -> dict[str, str]:
    revision = f"{environment['revision']}{' with changes' if environment['dirty'] else ''}"
    return {"python": environment["python"], "fmscale revision": revision, **environment["packages"]}


def _check_versions(config: Config) -> None:
    if config.launch.other_versions == "refuse" and (others := other_versions(config.run_dir)):
        raise ConfigError(
            "this run was trained with other versions, and launch.other_versions=refuse",
            expected=f"those of {config.run_dir / SNAPSHOT}",
            found=_listed(others),
            do="install those, or set launch.other_versions=warn: losses may then differ in their last digits",
        )


def _listed(others: dict[str, str]) -> str:
    return "; ".join(f"{name} {change}" for name, change in others.items())


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
