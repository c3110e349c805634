"""Hands a rank its share of each step's global batch, and makes sure that all ranks are at the same one.

Before a step is trained, the ranks tell each other the hash of their shares, how many targets they have, and whether a
chunk turned out to be damaged. So the batch hash is of what will be trained, the loss is divided by the targets of the
global batch whatever rows have, and a quarantine (data.bad_chunks) holds on all ranks from the same row on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch.distributed as dist

from fmscale.config import Config
from fmscale.corpus.batch import Batch, batch_hash, combine, hash_hex
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.loader import Loader
from fmscale.corpus.quarantine import loss_of, quarantined, require_budget, spoilt_by, unit_of
from fmscale.corpus.rows import Spent
from fmscale.corpus.shards import DamagedChunk
from fmscale.corpus.sources import RunData
from fmscale.corpus.steps import Step
from fmscale.errors import FmscaleError, RunHeldError, StopRequested
from fmscale.observe.faults import fault_point
from fmscale.observe.heartbeat import Heartbeat
from fmscale.observe.recorder import Recorder
from fmscale.observe.terms import newest_term
from fmscale.topology import Topology, rank_rows
from fmscale.training.save import Progress
from fmscale.training.stopping import Stopping


@dataclass(frozen=True)
class Fed:
    """What a step trains on one rank."""

    batch: Batch
    """`targets` are those of the global batch."""
    batch_hash: str
    """Over all ranks: 32 hex digits."""
    wait_s: float
    """Of the rank that waited longest, since all wait for that one."""
    spent: Spent
    """What it waited for; sums to wait_s."""
    saves: list[Progress]
    """What each rank told of the save under way."""


@dataclass(frozen=True)
class _Share:
    """What a rank tells the others before a step."""

    digest: int
    """Batch hash of its share; ranks of one pipeline have the same one."""
    targets: int
    damage: tuple[int, int] | None
    """(source, chunk of its corpus) that kept its share from coming."""
    wait_s: float
    spent: Spent
    save: Progress
    stop: str
    """Why it was asked to stop, if it was."""


@dataclass(kw_only=True)
class Feed:
    config: Config
    topology: Topology
    rank: int
    loader: Loader
    data: RunData
    """Its ledger grows when a chunk is quarantined."""
    control: dist.ProcessGroup
    term: int
    """The ledger is written while it is the newest."""
    heart: Heartbeat
    stopping: Stopping
    recorder: Recorder | None
    """On rank 0 alone."""
    _batches: Iterator[Batch] = field(init=False)

    def start(self, first_row: int) -> None:
        """Have the loader read ahead from the step that begins with `first_row`."""
        self._batches = self.loader.batches(first_row)

    def next(self, step: Step, save: Progress) -> Fed:
        """This rank's share of `step`; tells the others of its save.

        Raises DataError: damage that the settings do not allow to replace. StopRequested, on all ranks: one of them was
        asked to stop, and `step` is not to be trained.
        """
        waited, spent = 0.0, Spent()
        while True:
            started = time.perf_counter()
            self.heart.beat("read", step.number)
            batch, damage = self._share()
            waited, spent = waited + time.perf_counter() - started, spent + self.loader.take_wait()
            self.heart.beat("exchange", step.number)
            shares = self._exchange(_Share(*_digest(batch), damage, waited, spent, save, self.stopping.reason))
            if (why := next((share.stop for share in shares if share.stop), "")) != "":
                raise StopRequested(f"stopped before step {step.number}: {why}")
            damaged = sorted({share.damage for share in shares if share.damage is not None})
            if not damaged:
                break
            self._quarantine(damaged, step)
        assert batch is not None, "a rank without a batch has said why"
        self._require_own_rows(batch, step)
        firsts = shares[: self.topology.dp]  # ranks are numbered stage by stage
        for rank, share in enumerate(shares):
            first = firsts[self.topology.data_rank(rank)]
            assert share.digest == first.digest, f"rank {rank} has another batch than the first stage of its pipeline"
        slowest = max(shares, key=lambda share: share.wait_s)
        slowest.spent.queue_s += max(0.0, slowest.wait_s - slowest.spent.total())
        return Fed(
            batch=replace(batch, targets=sum(share.targets for share in firsts)),
            batch_hash=hash_hex(combine(share.digest for share in firsts)),
            wait_s=slowest.wait_s,
            spent=slowest.spent,
            saves=[share.save for share in shares],
        )

    def heldout(self) -> Iterator[Batch]:
        """This rank's share of each held-out batch, `targets` those of the whole batch."""
        for batch in self.loader.heldout_batches():
            counts = [0] * self.topology.world_size
            own = batch.targets if self.topology.stage(self.rank) == 0 else 0
            dist.all_gather_object(counts, own, group=self.control)
            yield replace(batch, targets=sum(counts))
        self.loader.take_wait()  # an evaluation's waiting is no step's

    def _share(self) -> tuple[Batch | None, tuple[int, int] | None]:
        """The next batch, or the (source, chunk of its corpus) that kept it from coming."""
        try:
            return next(self._batches), None
        except DamagedChunk as error:
            if self.config.data.bad_chunks == "fail" or error.place is None:
                raise
            return None, (error.place[0], error.chunk)

    def _exchange(self, mine: _Share) -> list[_Share]:
        """What every rank says, by rank."""
        shares = [mine] * self.topology.world_size
        dist.all_gather_object(shares, mine, group=self.control)
        return shares

    def _quarantine(self, damaged: list[tuple[int, int]], step: Step) -> None:
        """Read substitutes from this step on, on every rank; rank 0 writes them down first."""
        outcome: list[Any] = [None]
        if self.rank == 0:
            try:
                outcome[0] = self._write_entries(damaged, step).to_json()
            except FmscaleError as error:
                outcome[0] = error
        dist.broadcast_object_list(outcome, src=0, group=self.control)
        if isinstance(outcome[0], FmscaleError):
            raise outcome[0]
        self.data = self.data.edited(Ledger.from_json(outcome[0], "rank 0's ledger"))
        self.loader.reorder(self.data)
        self.start(step.first_row)

    def _write_entries(self, damaged: list[tuple[int, int]], step: Step) -> Ledger:
        self._require_newest_term()
        order, corpora = self.data.order, self.data.corpora("train")
        for source, chunk in damaged:
            spoilt = spoilt_by(corpora[source], chunk)
            ledger = quarantined(order, source, spoilt, step.first_row)
            if ledger is not order.ledger:
                order = replace(order, ledger=ledger)
                require_budget(order, self.config.data, source, spoilt)
        if self.recorder is not None:  # before the ledger: a kill in between tells it twice, never not at all
            unit, steps = unit_of(self.config.data), self.config.train.steps
            for entry in order.ledger.entries[len(self.data.ledger.entries) :]:
                self.recorder.quarantine(loss_of(order, entry.payload, entry.from_row, steps, unit))
        order.ledger.save(self.config.run_dir / FILE_NAME)
        fault_point("ledger.saved", self.rank)
        return order.ledger

    def _require_newest_term(self) -> None:
        newest = newest_term(self.config.run_dir)
        if newest != self.term:
            raise RunHeldError(
                "another process took this run over",
                expected=f"term {self.term} to be the newest, as the edit ledger is to be written",
                found=f"term {newest}",
                do="nothing: the run goes on there",
            )

    def _require_own_rows(self, batch: Batch, step: Step) -> None:
        """Which rank holds a row does not enter the batch hash, so the loader is held to it here."""
        rank = self.topology.data_rank(self.rank)
        own = rank_rows(step.first_row, step.rows, self.topology.dp, rank, self.config.train.micro_batch)
        assert np.array_equal(batch.rows, own), f"rank {self.rank} was handed rows {batch.rows}, its own are {own}"


def _digest(batch: Batch | None) -> tuple[int, int]:
    """Hash and targets."""
    return (0, 0) if batch is None else (batch_hash(batch), batch.targets)
