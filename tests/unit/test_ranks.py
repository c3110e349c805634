"""The harness itself: results by rank, the first cause, and no world that outlives its time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.ranks import RankError, meeting_store, run_ranks


def _sum(rank: int, world: int, offset: int) -> float:
    import torch
    import torch.distributed as dist

    total = torch.tensor([float(rank)])
    dist.all_reduce(total)
    return total.item() + offset + rank


def _fail(rank: int, world: int, how: str) -> None:
    import torch.distributed as dist

    if rank == 1 and how == "raise":
        raise ValueError("the first cause")
    if rank == 1 and how == "die":
        os._exit(3)
    if rank == 1 and how == "hang":
        time.sleep(60)
    dist.barrier()


@pytest.mark.processes
def test_results_come_back_by_rank() -> None:
    assert run_ranks(_sum, 3, 10) == [13.0, 14.0, 15.0]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "rank 1 of 2 failed first:.*ValueError: the first cause"),
        ("die", "rank 1 of 2 failed first:.*exit code 3"),
        ("hang", r"ranks \[0, 1\] of 2 did not return within 1.0 s.*rank 1.*_fail"),
    ],
)
def test_the_first_cause_is_shown(how: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(RankError, match=f"(?s){message}"):
        run_ranks(_fail, 2, how, timeout_s=1.0 if how == "hang" else 30.0)
    assert time.monotonic() - started < 25.0


def _meet(rank: int, world: int, folder: Path) -> bool:
    """Fails the first time as gloo does, with a place in the store."""
    store, first = meeting_store(0, world), folder / str(rank)
    stale = bool(store.check(["place"]))
    if not first.exists():
        first.touch()
        store.set("place", "127.0.0.1:1")
        raise RuntimeError("Gloo connectFullMesh failed with ...")
    return stale


@pytest.mark.processes
def test_a_meeting_that_failed_is_tried_again_in_another_place(tmp_path: Path) -> None:
    assert run_ranks(_meet, 2, tmp_path) == [False, False]
