"""All ranks of a run start from the same checkpoint, and each byte of it has been read by one of them.

Rank 0 offers the commits of the run's history, newest first, or the one to roll back to. Each rank hashes its share of
the files; the first commit that every rank finds intact is taken, and the others are passed over loudly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch.distributed as dist

from fmscale.config import Config
from fmscale.errors import CheckpointError
from fmscale.observe.events import EventLog
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import MARKER, Commit
from fmscale.training.history import checkpoint_names
from fmscale.training.restore import bring_back

ROLL_BACK = "FMSCALE_ROLL_BACK"
"""Environment variable: name of the checkpoint that an incarnation starts from, instead of the newest."""


def agree_on_checkpoint(
    config: Config, store: CheckpointStore, rank: int, world: int, control: dist.ProcessGroup
) -> Commit | None:
    """The newest commit of the run's lineage that holds for all of `control`; None: the run never had one.

    Raises CheckpointError, on every rank, where there were some and none holds, or the one to roll back to does not.
    """
    if config.checkpoint.remote:
        bring_back(config, store, rank, world, control, os.environ.get(ROLL_BACK))
    warn = _Loud(config) if rank == 0 else None
    proposals = _proposals(store, warn) if warn else iter(())
    refused: list[str] = []
    while True:
        # Where rank 0's iterator raises (commit markers are damaged and none is left, say), all raise: a run never
        # starts over by itself.
        offer: list[Commit | CheckpointError | None] = [_next_offer(store, proposals, refused)]
        dist.broadcast_object_list(offer, src=0, group=control)
        commit = offer[0]
        if isinstance(commit, CheckpointError):
            raise commit
        if commit is None:
            return None
        problem = ""
        try:
            store.open(commit).verify_share(rank, world)
        except CheckpointError as error:
            problem = str(error)
        problems: list[str] = [""] * world
        dist.all_gather_object(problems, problem, group=control)
        first = next((text for text in problems if text), None)
        if first is None:
            return commit
        refused.append(commit.name)
        if warn:
            warn(f"{commit.name} is passed over: {first}")


def _next_offer(
    store: CheckpointStore, proposals: Iterator[Commit], refused: list[str]
) -> Commit | CheckpointError | None:
    """The next commit to agree on; None: this run never had one. refused: names of those that did not hold."""
    try:
        commit = next(proposals, None)
    except CheckpointError as error:
        return error
    if commit is not None or not refused:
        return commit
    if not os.environ.get(ROLL_BACK):
        return store.none_holds(refused)
    return _damaged(refused[0])


def _damaged(name: str) -> CheckpointError:
    return CheckpointError(
        "the checkpoint to roll back to is damaged",
        expected="one of which every byte holds",
        found=f"{name}; `fmscale checkpoint verify` names the file",
        do="choose another from `fmscale checkpoint list`",
    )


class _Loud:
    """Tells the user and the run's events of every checkpoint that is not believed."""

    def __init__(self, config: Config) -> None:
        self.events = EventLog(config.run_dir)

    def __call__(self, text: str) -> None:
        self.events.write("checkpoint_passed_over", text=text)
        print(f"checkpoint {text}", flush=True)


def _proposals(store: CheckpointStore, warn: _Loud) -> Iterator[Commit]:
    roll_back = os.environ.get(ROLL_BACK)
    if not roll_back:
        yield from store.candidates(warn)
        return
    commits = [commit for commit in store.list() if commit.name == roll_back]  # an abandoned branch is good too
    if not commits and roll_back in checkpoint_names(store.root) and (store.root / roll_back / MARKER).exists():
        raise _damaged(roll_back)
    if not commits:
        raise CheckpointError(
            "no such checkpoint to roll back to",
            expected="one that `fmscale checkpoint list` shows",
            found=roll_back,
            do="choose another",
        )
    yield from commits
