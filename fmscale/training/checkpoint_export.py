"""A checkpoint as DeepSpeed's universal checkpoint, which DeepSpeed itself loads with ZeRO 1 to 3 on any ranks.

    OUT/latest_universal                       names the directory beside it, as DeepSpeed's converter does
        step-00001000.t0003/
            mp_rank_00_model_states.pt         counts, and where it came from; ZeRO 3 reads it under its second name,
            zero_pp_rank_0_mp_rank_00_...      a hard link
            zero/optimizer_state.pt            what is no tensor of a parameter
                 NAME/{fp32,exp_avg,exp_avg_sq,step}.pt

Written by torch.save, since DeepSpeed reads nothing else; this package reads no such file. Parameters keep their
canonical names (fmscale/model/decoder.py). One tensor is in memory at a time. Hyperparameters are left out: DeepSpeed
keeps those of the optimizer that it was given, however many groups that has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fmscale.durable import fsync_directory, temporary_name
from fmscale.errors import ConfigError, MachineError
from fmscale.training.block_file import storage
from fmscale.training.checkpoint_reader import CheckpointReader

FILES = {"master": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
"""Kind -> DeepSpeed's name of it."""

MODEL_FILE, MODEL_FILE_ZERO_3 = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"
WRITTEN_FOR = "0.19.8"
"""DeepSpeed's version of which the layout is."""


def export_deepspeed(reader: CheckpointReader, out: Path, progress: Callable[[int], None] = lambda done: None) -> int:
    """Verify the checkpoint, then write it to the new directory `out`; bytes of tensors written.

    progress: is told bytes of tensors as they are written. Raises CheckpointError for a checkpoint that does not hold,
    ConfigError where `out` exists, MachineError where there is no room. `out` appears whole or not at all.
    """
    _require_free(out)
    reader.verify()
    size = reader.bytes
    if (free := shutil.disk_usage(out.absolute().parent).free) < size:
        raise MachineError(
            "the export does not fit on the disk",
            expected=f"{size:,} bytes for {out}",
            found=f"{free:,} bytes free",
            do="make room there, or choose another directory",
        )
    temporary = temporary_name(out.absolute())
    try:
        with storage(out.absolute(), size):
            _write(reader, temporary, progress)
        _require_free(out)
        os.rename(temporary, out)  # of a directory: fails over anything but an empty one
        fsync_directory(out.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size


def _require_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ConfigError(
            "an export never overwrites anything",
            expected="a path that does not exist",
            found=str(out),
            do="name another, or remove it",
        )
    if not out.absolute().parent.is_dir():
        raise ConfigError(
            "there is no directory for the export",
            expected=f"the directory {out.absolute().parent}",
            found="no such directory",
            do="make it first",
        )


def _write(reader: CheckpointReader, root: Path, progress: Callable[[int], None]) -> None:
    tag = root / reader.commit.name
    steps = torch.tensor(float(reader.state["optimizer_steps"]))
    for name, shape in reader.params.items():
        directory = tag / "zero" / name
        directory.mkdir(parents=True)
        for kind, file in FILES.items():
            tensor = reader.whole(name, kind).view(shape)
            _save(directory / f"{file}.pt", {"param": tensor})
            progress(tensor.nbytes)
        _save(directory / "step.pt", steps)
        fsync_directory(directory)
    _save(tag / "zero" / "optimizer_state.pt", _optimizer_state(reader, steps))
    _save(tag / MODEL_FILE, _model_state(reader))
    os.link(tag / MODEL_FILE, tag / MODEL_FILE_ZERO_3)
    with _durable(root / "latest_universal") as latest:
        latest.write(tag.name.encode())
    for directory in (tag / "zero", tag, root):
        fsync_directory(directory)


def _optimizer_state(reader: CheckpointReader, steps: torch.Tensor) -> dict[str, Any]:
    # DeepSpeed goes through its groups and these side by side and stops where either ends, so there are as many as
    # any optimizer can have. ZeRO 3 would give the first one's weight decay to all groups: they say nothing.
    groups: list[dict[str, Any]] = [{} for _ in reader.params]
    state = {"state": {0: {"step": steps}}, "param_groups": groups}
    return {"ds_version": WRITTEN_FOR, "param_groups": groups, "optimizer_state_dict": state}


def _model_state(reader: CheckpointReader) -> dict[str, Any]:
    commit = reader.commit
    return {
        "module": {},  # weights come from zero/
        "buffer_names": [],
        "param_shapes": [{name: torch.Size(shape) for name, shape in reader.params.items()}],
        "lr_scheduler": None,
        "global_steps": commit.step,
        "global_samples": commit.rows,
        "skipped_steps": 0,
        "dp_world_size": commit.world,
        "mp_world_size": 1,
        "ds_version": WRITTEN_FOR,
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.4},
        "fmscale": {"checkpoint": commit.name, "commit_hash": commit.commit_hash, "state": commit.state},
    }


def _save(path: Path, value: Any) -> None:
    # Through a Python file, whose errors say what the disk said; torch's own writer speaks of positions.
    with _durable(path) as file:
        torch.save(value, file)


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[Any]:
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
