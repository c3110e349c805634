"""How the ranks of a run find each other, and how a rank takes leave, so that its process can meet others later."""

from __future__ import annotations

import datetime
from types import TracebackType

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from fmscale.config import Config
from fmscale.training.place import RankPlace


def open_store(world: int, timeout_s: float) -> TCPStore:
    """The meeting point of a run's ranks, on a port that the system chose (`.port`)."""
    timeout = datetime.timedelta(seconds=timeout_s)
    return TCPStore("0.0.0.0", 0, world, is_master=True, timeout=timeout, wait_for_workers=False)


def join_store(address: str, port: int, world: int, timeout_s: float) -> TCPStore:
    timeout = datetime.timedelta(seconds=timeout_s)
    return TCPStore(address, port, world, is_master=False, timeout=timeout, wait_for_workers=False)


def join(config: Config, place: RankPlace, device: torch.device) -> dist.ProcessGroup:
    """The default process group, and a gloo group for the small talk of the control path."""
    timeout = datetime.timedelta(seconds=config.launch.timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    where = {"store": place.store, "rank": place.rank, "world_size": place.world} if place.store else {}
    dist.init_process_group(backend, timeout=timeout, **where)
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "this rank is in the control group"
    return group


def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """As an ExitStack calls it, pushed before `join`: however far that came, this process can join again.

    On an error NCCL's groups are left to the end of the process: to destroy them waits for kernels of dead peers.
    """
    if not dist.is_initialized():
        # torch numbers groups, and peers look for each other in the store under that number. One that did not come
        # about is counted too, and then this process would wait where no new one ever comes.
        dist.distributed_c10d._world.group_count = 0
    elif error is None or dist.get_backend() != "nccl":
        dist.destroy_process_group()
