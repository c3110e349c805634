"""All ranks of a run start from the same checkpoint, and each has hashed what it will read of it.

Rank 0 offers the commits of the run's history, newest first, or the one to roll back to: those of the run directory,
and those that stand in a tier beside it, the object store or the fast one. One of a tier is brought into the run
directory first, so that a run never goes on from anything outside it; what is damaged here is so made whole. Then each
rank checks all JSONs, and the blocks that hold its own part of the state: between them every byte. The first commit
that every rank finds intact is taken, and the others are passed over loudly.
"""

from __future__ import annotations

import concurrent.futures
import heapq
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch.distributed as dist

from fmscale.config import Config
from fmscale.errors import CheckpointError, FmscaleError, MachineError
from fmscale.observe.events import EventLog
from fmscale.training.checkpoint import CheckpointStore, Report
from fmscale.training.checkpoint_format import MARKER, Commit, DamagedError
from fmscale.training.checkpoint_reader import CheckpointReader
from fmscale.training.fast_tier import FastTier
from fmscale.training.fragment_file import Range
from fmscale.training.history import checkpoint_names
from fmscale.training.restore import RemoteTier

ROLL_BACK = "FMSCALE_ROLL_BACK"
"""Environment variable: name of the checkpoint that an incarnation starts from, instead of the newest."""


ASK_AGAIN_S = 0.2
"""While one rank reads, the others tell each other this often that they are there; no collective times out."""


class Tier(Protocol):
    """Where checkpoints of a run stand beside its directory. This is all that a start asks of it."""

    @property
    def where(self) -> str:
        """For messages: "in the object store"."""

    def candidates(self, report: Report) -> Iterator[Commit]:
        """The commits that the run may go on from, newest first."""

    def copy_share(self, commit: Commit, rank: int, world: int) -> int:
        """Bring what is lacking of the files that fall to `rank` of `world`, every byte checked; bytes."""

    def publish(self, commit: Commit, rank: int, copied: int = 0) -> None:
        """Make the files a checkpoint of the run, once all ranks have brought theirs, of `copied` bytes together."""

    def give_up(self, commit: Commit) -> None:
        """Remove what was brought of one that does not hold."""


HERE, FAST, REMOTE = "here", "fast", "remote"


@dataclass(frozen=True)
class _Offer:
    commit: Commit
    place: str


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
    then. Raises on every rank CheckpointError, where there were some in the run directory or the object store and none
    holds, or the one to roll back to does not, or it does not have what is wanted, or another run stands in the object
    store; MachineError where that does not answer or refuses.
    """
    remote = RemoteTier(config, store) if config.checkpoint.remote else None
    tiers: dict[str, Tier] = {FAST: fast} if fast is not None else {}
    if remote is not None:
        tiers[REMOTE] = remote
    warn = _Loud(config) if rank == 0 else None
    proposals = _proposals(store, fast, remote, warn) if warn else iter(())
    return _agree(store, rank, world, control, wanted, proposals, tiers, warn, bool(os.environ.get(ROLL_BACK)))


def agree_to_read(
    store: CheckpointStore, name: str, control: dist.ProcessGroup, wanted: Sequence[Range], warn: Report
) -> CheckpointReader | None:
    """The checkpoint `name`, or the newest of the run's lineage ("") that holds for all of `control`.

    For processes that only read, also while others train the run: nothing is written, nothing fetched from elsewhere.
    warn: is told on rank 0 of what is passed over. None and errors as `agree_on_checkpoint`.
    """
    rank, world = dist.get_rank(control), dist.get_world_size(control)
    offers: Iterator[_Offer] = iter(())
    if rank == 0:
        offers = _named(name, store, None) if name else (_Offer(commit, HERE) for commit in store.candidates(warn))
    return _agree(store, rank, world, control, wanted, offers, {}, warn if rank == 0 else None, bool(name))


def _agree(
    store: CheckpointStore,
    rank: int,
    world: int,
    control: dist.ProcessGroup,
    wanted: Sequence[Range],
    proposals: Iterator[_Offer],
    tiers: Mapping[str, Tier],
    warn: Report | None,
    named: bool,
) -> CheckpointReader | None:
    """The first of rank 0's `proposals` that holds for all. warn: rank 0's. named: one was asked for by its name."""
    refused: list[str] = []
    while True:
        # Where rank 0's iterator raises (commit markers are damaged and none is left, say), all raise: a run never
        # starts over by itself.
        message: list[_Offer | FmscaleError | None] = [_next_offer(store, proposals, refused, named)]
        dist.broadcast_object_list(message, src=0, group=control)
        offer = message[0]
        if isinstance(offer, FmscaleError):
            raise offer
        if offer is None:
            return None
        commit, tier = offer.commit, tiers.get(offer.place)
        if tier is not None:
            problem = _brought(tier, commit, rank, world, control)
            if problem is not None:
                if isinstance(problem, MachineError) and offer.place == REMOTE:
                    raise problem  # nothing is wrong with the checkpoint, and a later start may have it
                if offer.place == REMOTE:  # of the fast tier a run may lose all
                    refused.append(commit.name)
                if warn:
                    tier.give_up(commit)
                    warn(f"{commit.name} is passed over {tier.where}: {problem}")
                continue
        readers: list[CheckpointReader] = []
        _, problem = _together(control, partial(_open_verified, store, commit, wanted, readers))
        if problem is None:
            return readers[0]
        refused.append(commit.name)
        if warn:
            warn(f"{commit.name} is passed over: {problem}")


def _open_verified(
    store: CheckpointStore, commit: Commit, wanted: Sequence[Range], readers: list[CheckpointReader]
) -> int:
    reader = store.open(commit)
    reader.verify(wanted)
    readers.append(reader)
    return 0


def _brought(tier: Tier, commit: Commit, rank: int, world: int, control: dist.ProcessGroup) -> FmscaleError | None:
    """What keeps the tier's commit from being one of the run directory; None: it is."""

    def publish() -> int:
        tier.publish(commit, rank, copied)
        return 0

    copied, problem = _together(control, partial(tier.copy_share, commit, rank, world))
    return problem or _together(control, publish)[1]


def _together(control: dist.ProcessGroup, work: Callable[[], int]) -> tuple[int, FmscaleError | None]:
    """What all ranks that do `work` came to, added up, and a problem that one of them had: the machine's, if any was.

    It may take longer than a collective operation's limit. Raises on every rank what is no damage and no matter of the
    machine.
    """
    world = dist.get_world_size(control)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(work)
        outcomes: list[int | FmscaleError | None] = [None] * world
        while None in outcomes:
            concurrent.futures.wait([job], timeout=ASK_AGAIN_S)
            outcome: int | FmscaleError | None = None
            if job.done():
                try:
                    outcome = job.result()
                except FmscaleError as error:
                    outcome = error
            dist.all_gather_object(outcomes, outcome, group=control)
    problems = [outcome for outcome in outcomes if isinstance(outcome, FmscaleError)]
    problems.sort(key=lambda problem: (isinstance(problem, DamagedError), isinstance(problem, MachineError)))
    if problems and not isinstance(problems[0], DamagedError | MachineError):
        raise problems[0]
    return sum(outcome for outcome in outcomes if isinstance(outcome, int)), problems[0] if problems else None


def _next_offer(
    store: CheckpointStore, proposals: Iterator[_Offer], refused: list[str], named: bool
) -> _Offer | FmscaleError | None:
    """The next commit to agree on; None: this run never had one. refused: names of those that did not hold."""
    try:
        offer = next(proposals, None)
    except FmscaleError as error:
        return error
    if offer is not None or not refused:
        return offer
    if not named:
        return store.none_holds(list(dict.fromkeys(refused)))
    return _damaged(refused[0])


def _damaged(name: str) -> CheckpointError:
    return CheckpointError(
        "the checkpoint that was asked for is damaged",
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


def _proposals(
    store: CheckpointStore, fast: FastTier | None, remote: RemoteTier | None, warn: _Loud
) -> Iterator[_Offer]:
    if remote is not None:
        remote.sync()
    roll_back = os.environ.get(ROLL_BACK)
    if roll_back:
        return (yield from _named(roll_back, store, remote))
    places = {HERE: store.candidates(warn)}
    if fast is not None:
        places[FAST] = fast.candidates(warn)
    if remote is not None:
        places[REMOTE] = remote.candidates(warn)
    yield from _newest_first(places)


def _named(name: str, store: CheckpointStore, remote: RemoteTier | None) -> Iterator[_Offer]:
    """The commit `name`, of an abandoned branch too."""
    found = False
    for place, commits in (
        (HERE, iter(store.list())),
        (REMOTE, remote.named(name) if remote is not None else iter(())),
    ):
        for commit in commits:
            if commit.name == name:
                found = True
                yield _Offer(commit, place)
    if found:
        return
    if name in checkpoint_names(store.root) and (store.root / name / MARKER).exists():
        raise _damaged(name)
    raise CheckpointError(
        "this run has no checkpoint of that name",
        expected="one that `fmscale checkpoint list` shows",
        found=name,
        do="choose another",
    )


def _age(offer: _Offer) -> tuple[int, int]:
    return offer.commit.term, offer.commit.step


def _newest_first(places: Mapping[str, Iterator[Commit]]) -> Iterator[_Offer]:
    """Of equally new ones that of the first place first. Where one place has none to believe, another still may.

    Raises what the first place that has none raised, once all that others have was refused.
    """
    failures: dict[str, CheckpointError] = {}

    def offers(place: str, commits: Iterator[Commit]) -> Iterator[_Offer]:
        try:
            for commit in commits:
                yield _Offer(commit, place)
        except CheckpointError as error:
            failures[place] = error

    yield from heapq.merge(*(offers(*place) for place in places.items()), key=_age, reverse=True)
    for place in places:
        if place in failures:
            raise failures[place]
