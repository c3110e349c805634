"""All ranks of a run start from the same checkpoint, and each has hashed what it will read of it.

Rank 0 offers the commits of the run's history, newest first, or the one to roll back to. Each rank checks all JSONs,
and the blocks that hold its own part of the state: between them every byte. The first commit that every rank finds
intact is taken, and the others are passed over loudly. One of the fast tier is brought into the run directory first, so
that a run never goes on from anything outside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from fmscale.config import Config
from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.events import EventLog
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import MARKER, Commit, DamagedError
from fmscale.training.checkpoint_reader import CheckpointReader
from fmscale.training.fast_tier import FastTier
from fmscale.training.fragment_file import Range
from fmscale.training.history import checkpoint_names
from fmscale.training.restore import bring_back

ROLL_BACK = "FMSCALE_ROLL_BACK"
"""Environment variable: name of the checkpoint that an incarnation starts from, instead of the newest."""


@dataclass(frozen=True)
class _Offer:
    commit: Commit
    fast: bool
    """Whether it stands in the fast tier."""


def agree_on_checkpoint(
    config: Config,
    store: CheckpointStore,
    rank: int,
    world: int,
    control: dist.ProcessGroup,
    wanted: Sequence[Range],
    fast: FastTier | None = None,
) -> CheckpointReader | None:
    """The newest commit of the run's lineage that holds for all of `control`; None: the run never had one.

    It stands in the run directory, wherever it was found. wanted: what this rank will read of it, which has been hashed
    then. Raises CheckpointError, on every rank, where there were some in the run directory and none holds, or the one
    to roll back to does not; and where it does not have what is wanted.
    """
    if config.checkpoint.remote:
        bring_back(config, store, rank, world, control, os.environ.get(ROLL_BACK))
    warn = _Loud(config) if rank == 0 else None
    proposals = _proposals(store, fast, warn) if warn else iter(())
    refused: list[str] = []
    while True:
        # Where rank 0's iterator raises (commit markers are damaged and none is left, say), all raise: a run never
        # starts over by itself.
        message: list[_Offer | CheckpointError | None] = [_next_offer(store, proposals, refused)]
        dist.broadcast_object_list(message, src=0, group=control)
        offer = message[0]
        if isinstance(offer, CheckpointError):
            raise offer
        if offer is None:
            return None
        commit = offer.commit
        if offer.fast:
            assert fast is not None, "rank 0 has a fast tier, so all have"
            problem = _first_problem(control, partial(fast.copy_share, commit, rank, world))
            problem = problem or _first_problem(control, partial(fast.publish, commit, rank))
            if problem:
                if warn:
                    fast.give_up(commit)
                    warn(f"{commit.name} is passed over in the fast tier: {problem}")
                continue
        readers: list[CheckpointReader] = []
        problem = _first_problem(control, partial(_open_verified, store, commit, wanted, readers))
        if not problem:
            return readers[0]
        refused.append(commit.name)
        if warn:
            warn(f"{commit.name} is passed over: {problem}")


def _open_verified(
    store: CheckpointStore, commit: Commit, wanted: Sequence[Range], readers: list[CheckpointReader]
) -> None:
    reader = store.open(commit)
    reader.verify(wanted)
    readers.append(reader)


def _first_problem(control: dist.ProcessGroup, work: Callable[[], None]) -> str:
    """Of all ranks that do `work`; empty if they all could. What is no damage ends the run."""
    mine = ""
    try:
        work()
    except (DamagedError, MachineError) as error:
        mine = str(error)
    problems = [mine] * dist.get_world_size(control)
    dist.all_gather_object(problems, mine, group=control)
    return next((text for text in problems if text), "")


def _next_offer(
    store: CheckpointStore, proposals: Iterator[_Offer], refused: list[str]
) -> _Offer | CheckpointError | None:
    """The next commit to agree on; None: this run never had one. refused: names of those that did not hold."""
    try:
        offer = next(proposals, None)
    except CheckpointError as error:
        return error
    if offer is not None or not refused:
        return offer
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


def _proposals(store: CheckpointStore, fast: FastTier | None, warn: _Loud) -> Iterator[_Offer]:
    roll_back = os.environ.get(ROLL_BACK)
    if not roll_back:
        yield from _newest_first(store.candidates(warn), list(fast.candidates(warn)) if fast is not None else [])
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
    yield from (_Offer(commit, fast=False) for commit in commits)


def _newest_first(shared: Iterator[Commit], fast: list[Commit]) -> Iterator[_Offer]:
    """fast: of the newest term, newest first. If no shared commit can be believed, a fast one still may be."""
    failure: CheckpointError | None = None
    while True:
        try:
            commit = next(shared, None)
        except CheckpointError as error:
            commit, failure = None, error
        while fast and (commit is None or (fast[0].term, fast[0].step) > (commit.term, commit.step)):
            yield _Offer(fast.pop(0), fast=True)
        if failure is not None:
            raise failure
        if commit is None:
            return
        yield _Offer(commit, fast=False)
