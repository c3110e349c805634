"""Where a rank stands: its number, its node's share of the ranks, its device; and its process, made ready for that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fmscale.config import Config
from fmscale.errors import MachineError


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Where a rank stands, as decided by whoever places all of them: a rank never chooses for itself alone."""

    rank: int
    world: int
    local_rank: int
    device: Literal["cpu", "cuda"]
    """cuda: one GPU of this node is this rank's."""
    shows_progress: bool = True
    store: Any = None
    """The meeting point; None: the environment names it, as torchrun does."""
    address: str = ""
    """Where other hosts of the run reach this one; empty: there are none, or ranks are looked after, as Ray's are."""


def place_from_environment(config: Config, environment: Mapping[str, str] = os.environ) -> RankPlace:
    """As torchrun says it; srun's variables are translated by the job script.

    launch.device=auto: a GPU if this node has one for each of its ranks, so that its ranks all choose the same.
    Raises MachineError for launch.device=cuda where it has not.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, world, local_rank, local_world = (int(environment[name]) for name in names)
    device: Literal["cpu", "cuda"] = "cpu"
    if config.launch.device != "cpu":
        visible = torch.cuda.device_count()
        if config.launch.device == "cuda":
            _require_gpus(local_world, visible)
        device = "cuda" if visible >= local_world else "cpu"
    return RankPlace(rank=rank, world=world, local_rank=local_rank, device=device)


def prepare_process(config: Config, place: RankPlace) -> torch.device:
    """Threads, determinism and device of this process; DeepSpeed reads LOCAL_RANK from the environment."""
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world), LOCAL_RANK=str(place.local_rank))
    torch.set_num_threads(config.train.threads_per_rank)
    with contextlib.suppress(RuntimeError):  # only before the first parallel region; a spare process may be past it
        torch.set_num_interop_threads(1)
    if place.device == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    index = place.local_rank if visible > 1 else 0  # Ray shows a rank its own GPU alone; torchrun shows all of them
    _require_gpus(index + 1, visible)
    torch.cuda.set_device(index)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return torch.device("cuda", index)


def _require_gpus(ranks: int, visible: int) -> None:
    if visible < ranks:
        raise MachineError(
            "this node has fewer GPUs than ranks",
            expected=f"a GPU for each of {ranks} ranks",
            found=f"{visible} visible to torch",
            do="start fewer ranks on this node, or set launch.device=cpu",
        )
