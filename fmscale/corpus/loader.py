"""From row numbers to batches: what each rank reads, and a loader in this process.

    RowReader(data).read(rows, seq_len)                # any rows, now: pure
    LocalLoader(config, data, data_rank).batches(row)  # this rank's share of each global batch from `row` on, for ever

`RankPlan` says which rows, from which places, make up a rank's share; `read_rows` fetches their tokens; `batch_of`
makes the arrays. Every loader is these three; they differ in where `read_rows` runs: here in one thread ahead of the
trainer, in `readers.py` in reader actors. So all of them hand out the same bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fmscale.config import Config
from fmscale.corpus.batch import Batch, batch_of
from fmscale.corpus.manifest import token_dtype
from fmscale.corpus.order import Order
from fmscale.corpus.rows import Places, Readable, RowTokens, Spent, read_rows
from fmscale.corpus.sources import RunData
from fmscale.topology import PADDING, rank_rows, rows_per_rank

LOCATE_STEPS = 16
"""Steps whose rows are located in one go: a call's price is nearly the same for 16 rows and for 1000."""

I64 = npt.NDArray[np.int64]


class Loader(Protocol):
    """All that a feed asks of a loader. Implementations: LocalLoader here, RayLoader in readers.py."""

    def batches(self, first_row: int) -> Iterator[Batch]:
        """This rank's share of each global batch, the first of which begins with row `first_row`; without end.

        `targets` of what a loader hands out are those of the share. Raises DamagedChunk when a chunk of what was asked
        for ahead is not as it was written; the iterator has ended then."""

    def heldout_batches(self) -> Iterator[Batch]:
        """This rank's share of each held-out batch: the same number of batches, of the same shape, on every rank."""

    def take_wait(self) -> Spent:
        """What `next` waited for since the last call, and forget it."""

    def reorder(self, data: RunData) -> None:
        """Read by another order from now on; iterators handed out before are of no use."""

    def close(self) -> None:
        """Stop what runs ahead. Afterwards the loader is of no use."""


def heldout_places(corpora: Sequence[Readable], seq_len: int, limit: int) -> Places:
    """Places of the held-out rows of an evaluation: the first ones of each source, `limit` in all (0: every row).

    Sources take turns until the limit or their end; a source's rows stand in the order of the corpus. So none gives
    more than `limit` of them, and the cost is that of the rows asked for, not of the corpus.
    """
    per_chunk = [corpus.chunk_tokens // seq_len for corpus in corpora]
    rows = [corpus.chunks * n for corpus, n in zip(corpora, per_chunk, strict=True)]
    if limit:
        rows = [min(n, limit) for n in rows]
    turn = np.concatenate([np.arange(n) for n in rows])
    source = np.repeat(np.arange(len(corpora), dtype=np.int32), rows)
    in_turn = np.lexsort((source, turn))[: limit or None]
    source, row = source[in_turn], turn[in_turn]
    chunk, slot = np.divmod(row, np.array(per_chunk)[source])
    return Places(source, chunk, slot * seq_len)


class RowReader:
    """Any rows of a run as a Batch; no state but the corpora's record of which chunks were verified."""

    def __init__(self, data: RunData, documents: bool = False) -> None:
        """documents: positions and targets stay within documents (model.attention=document)."""
        self._corpora, self._order, self._documents = data.corpora("train"), data.order, documents

    def read(self, rows: I64, seq_len: int = 0) -> Batch:
        """Batch of `rows` [R] in this order, PADDING allowed, in sequences of seq_len (0: whole rows); `targets` are
        those of these rows."""
        places = places_of(self._order, rows)
        tokens = read_rows(self._corpora, places, self._order.row_tokens, self._documents)
        return collate(rows, tokens, seq_len or self._order.row_tokens, self._documents)


def places_of(order: Order, rows: I64) -> Places:
    """Places of the rows that are no padding."""
    at = order.locate(rows[rows != PADDING])
    return Places(at.source, at.chunk, at.start)


def collate(rows: I64, found: RowTokens, seq_len: int, documents: bool) -> Batch:
    return batch_of(
        rows,
        found.tokens,
        seq_len=seq_len,
        starts=found.document_starts(),
        lengths=found.lengths,
        documents=documents,
    )


@dataclass(frozen=True)
class Ask:
    """A rank's share of one global batch before its tokens are there."""

    split: str
    rows: I64
    """[R], PADDING at the end."""
    places: Places
    """Of the rows that are no padding."""
    seq_len: int


class RankPlan:
    """What one data-parallel rank reads, batch by batch; arithmetic only."""

    def __init__(self, config: Config, data: RunData, data_rank: int) -> None:
        self.row_tokens, self.documents = config.data.seq_len, config.model.attention == "document"
        self.global_batch, self.dp = config.train.global_batch, config.parallel.dp
        self.micro_batch, self.data_rank = config.train.micro_batch, data_rank
        self.order = data.order
        self.corpora = {split: data.corpora(split) for split in ("train", "heldout")}
        self._heldout_limit = config.eval.rows
        self.row_bytes = (self.row_tokens + 1) * token_dtype(self.corpora["train"][0].vocab_size).itemsize

    def train(self, first_row: int) -> Iterator[Ask]:
        """Shares of the global batches from row `first_row` on, for ever."""
        steps = self.order.steps
        for first in itertools.count(steps.step_from(first_row).number, LOCATE_STEPS):
            some = [steps.step(number) for number in range(first, first + LOCATE_STEPS)]
            shares = [rank_rows(s.first_row, s.rows, self.dp, self.data_rank, self.micro_batch) for s in some]
            places = places_of(self.order, np.concatenate(shares))
            stops = np.cumsum([np.count_nonzero(share != PADDING) for share in shares]).tolist()
            for step, share, begin, stop in zip(some, shares, [0, *stops], stops, strict=False):
                yield Ask("train", share, places.part(slice(begin, stop)), step.seq_len)

    def heldout(self) -> Iterator[Ask]:
        """Shares of the held-out batches; the last one is filled up with padding to the shape of the others."""
        places = heldout_places(self.corpora["heldout"], self.row_tokens, self._heldout_limit)
        for first in range(0, len(places.chunk), self.global_batch):
            count = min(self.global_batch, len(places.chunk) - first)
            share = rank_rows(first, count, self.dp, self.data_rank, self.micro_batch)
            rows = np.full(rows_per_rank(self.global_batch, self.dp, self.micro_batch), PADDING, np.int64)
            rows[: len(share)] = share
            own = places.part(share[share != PADDING])
            yield Ask("heldout", rows, own, self.row_tokens)

    def read(self, split: str, places: Places) -> RowTokens:
        """The tokens at `places`, in this process."""
        return read_rows(self.corpora[split], places, self.row_tokens, self.documents)

    def batch(self, ask: Ask, found: RowTokens) -> Batch:
        return collate(ask.rows, found, ask.seq_len, self.documents)


class LocalLoader:
    """A Loader in this process: one thread reads ahead, `data.prefetch_batches` batches and the one it is at."""

    def __init__(self, config: Config, data: RunData, data_rank: int) -> None:
        self._config, self._data_rank = config, data_rank
        self._plan = RankPlan(config, data, data_rank)
        self._running: list[_ReadAhead] = []

    def batches(self, first_row: int) -> Iterator[Batch]:
        asks = map(self._read, self._plan.train(first_row))
        self._running.append(_ReadAhead(asks, self._config.data.prefetch_batches))
        return self._running[-1]

    def heldout_batches(self) -> Iterator[Batch]:
        return (batch for batch, _ in map(self._read, self._plan.heldout()))

    def take_wait(self) -> Spent:
        waited = Spent()
        for ahead in self._running:
            waited, ahead.waited = waited + ahead.waited, Spent()
        return waited

    def reorder(self, data: RunData) -> None:
        self.close()
        self._plan = RankPlan(self._config, data, self._data_rank)

    def close(self) -> None:
        for ahead in self._running:
            ahead.close()
        self._running = []

    def _read(self, ask: Ask) -> tuple[Batch, Spent]:
        found = self._plan.read(ask.split, ask.places)
        started = time.perf_counter()
        batch = self._plan.batch(ask, found)
        return batch, found.spent + Spent(collate_s=time.perf_counter() - started)


class _ReadAhead(Iterator[Batch]):
    """An endless iterator of batches, drawn by a thread: `depth` of them wait and it holds one more, no further."""

    def __init__(self, batches: Iterator[tuple[Batch, Spent]], depth: int) -> None:
        self.waited = Spent()
        self._queue: queue.Queue[tuple[Batch, Spent] | Exception] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches,), name="read-ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        assert not self._closed.is_set(), "the loader is closed"
        started = time.perf_counter()
        item = self._queue.get()
        if isinstance(item, Exception):
            self._queue.put(item)  # the thread has ended: whoever asks again gets the same answer
            raise item
        batch, spent = item
        self.waited += spent.within(time.perf_counter() - started)
        return batch

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _fill(self, batches: Iterator[tuple[Batch, Spent]]) -> None:
        try:
            for batch in batches:
                self._put(batch)
                if self._closed.is_set():
                    return
        except Exception as error:  # the thread that trains is to see it, where it asked for the batch
            self._put(error)

    def _put(self, item: tuple[Batch, Spent] | Exception) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)
        return None
