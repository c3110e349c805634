"""How ranks find each other again after a meeting that came to nothing."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fmscale.config import load
from fmscale.training.meeting import join, leave
from fmscale.training.place import RankPlace
from tests.ranks import run_ranks


def _meet_twice(rank: int, world: int, directory: Path) -> list[int]:
    """Rank 0 waits in vain for a peer; then for one that knows nothing of that."""
    dist.destroy_process_group()

    def meet(name: str, timeout_s: float) -> dist.ProcessGroup:
        store = dist.FileStore(str(directory / name), world)  # type: ignore[attr-defined]
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        place = RankPlace(rank=rank, world=world, local_rank=rank, device="cpu", store=store)
        return join(load([], [f"launch.timeout_s={timeout_s}", "launch.hang_s=0"]), place, torch.device("cpu"))

    if rank == 0:
        try:
            meet("in-vain", 0.5)
        except Exception as error:
            leave(type(error), error, None)
        else:
            raise AssertionError("it met nobody")
    group = meet("again", 20.0)
    seen = [-1] * world
    dist.all_gather_object(seen, rank, group=group)
    leave(None, None, None)
    return seen


@pytest.mark.processes
def test_a_process_whose_meeting_failed_meets_new_peers(tmp_path: Path) -> None:
    assert run_ranks(_meet_twice, 2, tmp_path) == [[0, 1], [0, 1]]
