"""A node without the disk of a run or a corpus says so; with two hosts for real: tests/faults/test_hosts.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from data_pipeline.plan import Work
from data_pipeline.scan import scan
from data_pipeline.workers import _call
from fmscale.config import Config, RunConfig
from fmscale.errors import MachineError
from fmscale.observe import pids
from launcher.ranks import RankActor


def actor_of(run_dir: Path, driver: tuple[str, int]) -> RankActor:
    """Without Ray, which would tell it the address of its node."""
    actor = object.__new__(RankActor)
    actor.config, actor._driver = Config(run=RunConfig(root=str(run_dir.parent), name=run_dir.name)), driver
    return actor


@pytest.mark.parametrize(("left", "found"), [(False, "no such directory"), (True, "one of another run")])
def test_a_rank_without_the_run_directory(tmp_path: Path, left: bool, found: str) -> None:
    run_dir = tmp_path / "mine"
    if left:
        run_dir.mkdir()
        pids.register(run_dir, "driver", 0)
    with pytest.raises(MachineError) as caught:
        actor_of(run_dir, ("head", 1)).whereabouts()
    assert str(caught.value).splitlines() == [
        "a node of the Ray cluster does not have the run directory",
        f"  expected: {run_dir} on a disk that all nodes share, as head has it",
        f"  found: on {socket.gethostname()} {found}",
        "  do: set run.root to a shared disk (NFS, Lustre, a mounted volume), or mount it on that node",
    ]


def test_a_rank_that_sees_its_driver_has_the_runs_disk(tmp_path: Path) -> None:
    pids.register(tmp_path, "driver", 0)
    assert actor_of(tmp_path, (socket.gethostname(), os.getpid()))._has_the_runs_disk()


def test_a_worker_without_the_directory_of_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        _call(lambda work, task: scan(work, task, 0), Work(tmp_path / "gone"), 0, "")
    assert str(caught.value).splitlines() == [
        "a node of the Ray cluster does not have the directory of the corpus",
        f"  expected: {tmp_path / 'gone'} on a disk that all nodes share",
        f"  found: no such directory on {socket.gethostname()}",
        "  do: set output to a shared disk (NFS, Lustre, a mounted volume), or mount it on that node",
    ]
