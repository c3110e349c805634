"""Before ranks agree on a checkpoint: bring here what the object store has and this run directory has not.

Term records are made equal on both sides; then, if the newest commit of the run's lineage in the store lies after the
newest one here, every rank fetches its share of the files, whole, since what is here is whole: each byte comes over
the network once, however many ranks there are, and is checked before it gets its name. The marker comes last.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Iterator

import torch.distributed as dist

from fmscale.config import Config
from fmscale.errors import CheckpointError, FmscaleError
from fmscale.observe.events import EventLog
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import Commit
from fmscale.training.remote_store import RemoteStore

Report = Callable[[str], None]


def bring_back(
    config: Config, store: CheckpointStore, rank: int, world: int, control: dist.ProcessGroup, roll_back: str | None
) -> None:
    """The newest commit of the store that holds is here, or one here is as new. roll_back: that one instead.

    Raises on every rank MachineError where the store does not answer or refuses, CheckpointError where another run
    stands in it, or where it has checkpoints of this run and neither one there holds nor one here.
    """
    remote = RemoteStore(config.checkpoint.remote, config.run_dir, config.checkpoint.remote_timeout_s)
    report: Report = _Report(config) if rank == 0 else _silent
    offers = _offers(remote, store, roll_back, report) if rank == 0 else iter(())
    while True:
        offer = [_next(remote, offers, config.launch.timeout_s / 2)]
        dist.broadcast_object_list(offer, src=0, group=control)
        commit = offer[0]
        if isinstance(commit, FmscaleError):
            raise commit
        if commit is None:
            return
        remote.restart_clock()
        outcomes = _together(functools.partial(remote.fetch, commit, rank, world), world, control)
        problems = [outcome for outcome in outcomes if isinstance(outcome, FmscaleError)]
        for problem in problems:
            if not isinstance(problem, CheckpointError):
                raise problem
        if problems:
            report(f"{commit.name} is passed over in the object store: {problems[0]}")
            continue
        if rank == 0:
            remote.publish(commit)
            got = sum(outcome for outcome in outcomes if isinstance(outcome, int))
            EventLog(config.run_dir).write("fetch", name=commit.name, bytes=got, retries=remote.bucket.retries)
            print(f"{commit.name} was fetched from {remote.bucket.url}", flush=True)
        dist.barrier(group=control)
        return


def _offers(remote: RemoteStore, store: CheckpointStore, roll_back: str | None, report: Report) -> Iterator[Commit]:
    remote.sync_terms()
    with remote.mirror() as there:
        if roll_back:
            if not (store.root / roll_back).exists():
                yield from (commit for commit in there.list() if commit.name == roll_back)
            return
        here = _newest(store)
        refused: list[str] = []
        for commit in there.candidates(report):
            if here and commit.step <= here.step:
                return
            refused.append(commit.name)
            yield commit
        if refused and not here:
            raise there.none_holds(refused)


def _newest(store: CheckpointStore) -> Commit | None:
    try:
        return next(store.candidates(_silent), None)
    except CheckpointError:
        return None  # `agree_on_checkpoint` says so, if the store has none either


def _next(remote: RemoteStore, offers: Iterator[Commit], limit_s: float) -> Commit | FmscaleError | None:
    remote.bucket.within(min(remote.limit_s, limit_s))  # the other ranks wait in a collective
    try:
        return next(offers, None)
    except FmscaleError as error:
        return error


def _together(work: Callable[[], int], world: int, control: dist.ProcessGroup) -> list[int | FmscaleError | None]:
    """What `work` came to on each rank. It may take longer than a collective operation's limit."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(work)
        outcomes: list[int | FmscaleError | None] = [None] * world
        while None in outcomes:
            concurrent.futures.wait([job], timeout=0.2)
            outcome: int | FmscaleError | None = None
            if job.done():
                try:
                    outcome = job.result()
                except FmscaleError as error:
                    outcome = error
            dist.all_gather_object(outcomes, outcome, group=control)
    return outcomes


class _Report:
    def __init__(self, config: Config) -> None:
        self.events = EventLog(config.run_dir)

    def __call__(self, text: str) -> None:
        self.events.write("checkpoint_passed_over", text=text)
        print(text, flush=True)


def _silent(text: str) -> None:
    return None
