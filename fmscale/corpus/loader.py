"""From row numbers to batches: what each rank reads, and a loader in this process.

    RowReader(corpora, order, seq_len).read(rows)      # any rows, now: pure
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fmscale.config import Config
from fmscale.corpus.batch import Batch, batch_of
from fmscale.corpus.manifest import token_dtype
from fmscale.corpus.order import Order
from fmscale.corpus.shards import Corpus
from fmscale.corpus.sources import RunData
from fmscale.topology import PADDING, rank_rows, rows_per_rank

LOCATE_BATCHES = 16
"""Batches whose rows are located in one go: a call's price is nearly the same for 16 rows and for 1000."""

I64 = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.unsignedinteger]


class Places(NamedTuple):
    """Where rows [R] stand: number of the source (in the order of names), chunk, token offset."""

    source: npt.NDArray[np.int32]
    chunk: I64
    start: I64

    def part(self, which: slice | I64) -> Places:
        return Places(self.source[which], self.chunk[which], self.start[which])


class Loader(Protocol):
    """All that the trainer asks of a loader. Implementations: LocalLoader here, RayLoader in readers.py."""

    def batches(self, first_row: int) -> Iterator[Batch]:
        """This rank's share of each global batch, the first of which begins with row `first_row`; without end."""

    def heldout_batches(self) -> Iterator[Batch]:
        """This rank's share of each held-out batch: the same number of batches, of the same shape, on every rank."""

    def close(self) -> None:
        """Stop what runs ahead. Afterwards the loader is of no use."""


def read_rows(corpora: Sequence[Corpus], places: Places, seq_len: int) -> Tokens:
    """Tokens [R, seq_len + 1] at `places`, each row with the token that follows it; verified chunk by chunk.

    Raises DataError if a chunk is not as it was written.
    """
    out = np.empty((len(places.chunk), seq_len + 1), token_dtype(corpora[0].vocab_size))
    by_chunk = zip(places.source.tolist(), places.chunk.tolist(), places.start.tolist(), strict=True)
    for i, (source, chunk, start) in enumerate(by_chunk):
        out[i] = corpora[source].tokens(chunk)[start : start + seq_len + 1]
    return out


def targets_of(rows: int, seq_len: int) -> int:
    """Targets of `rows` rows for the causal objective: every token of a row has the next one as its label."""
    return rows * seq_len


def heldout_places(corpora: Sequence[Corpus], seq_len: int, limit: int) -> Places:
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

    def __init__(self, corpora: Mapping[str, Corpus], order: Order, seq_len: int) -> None:
        """corpora: train splits by name of source."""
        assert order.row_tokens == seq_len, "a row is one sequence in this version"
        self._corpora = [corpora[source.name] for source in order.sources]
        self._order, self._seq_len = order, seq_len

    def read(self, rows: I64) -> Batch:
        """Batch of `rows` [B] in this order, PADDING allowed; `targets` are those of a global batch."""
        places = places_of(self._order, rows)
        tokens = read_rows(self._corpora, places, self._seq_len)
        return batch_of(rows, tokens, targets_of(self._order.global_batch, self._seq_len))


def places_of(order: Order, rows: I64) -> Places:
    """Places of the rows that are no padding."""
    at = order.locate(rows[rows != PADDING])
    return Places(at.source, at.chunk, at.start)


@dataclass(frozen=True)
class Ask:
    """A rank's share of one global batch before its tokens are there."""

    split: str
    rows: I64
    """[B], PADDING at the end."""
    places: Places
    """Of the rows that are no padding."""
    targets: int

    def batch(self, row_tokens: Tokens) -> Batch:
        return batch_of(self.rows, row_tokens, self.targets)


class RankPlan:
    """What one data-parallel rank reads, batch by batch; arithmetic only."""

    def __init__(self, config: Config, data: RunData, data_rank: int) -> None:
        self.seq_len = config.data.seq_len
        self.global_batch, self.dp = config.train.global_batch, config.parallel.dp
        self.micro_batch, self.data_rank = config.train.micro_batch, data_rank
        self.order, self.names = data.order, [source.name for source in data.order.sources]
        self.corpora = {
            "train": [data.train[name] for name in self.names],
            "heldout": [data.heldout[name] for name in self.names],
        }
        self._heldout_limit = config.eval.rows
        self.row_bytes = (self.seq_len + 1) * token_dtype(self.corpora["train"][0].vocab_size).itemsize

    def train(self, first_row: int) -> Iterator[Ask]:
        """Shares of the global batches from row `first_row` on, for ever."""
        targets = targets_of(self.global_batch, self.seq_len)
        for first in itertools.count(first_row, LOCATE_BATCHES * self.global_batch):
            firsts = range(first, first + LOCATE_BATCHES * self.global_batch, self.global_batch)
            shares = [
                rank_rows(start, self.global_batch, self.dp, self.data_rank, self.micro_batch) for start in firsts
            ]
            places = places_of(self.order, np.concatenate(shares))
            real = len(places.chunk) // LOCATE_BATCHES
            for i, rows in enumerate(shares):
                yield Ask("train", rows, places.part(slice(i * real, (i + 1) * real)), targets)

    def heldout(self) -> Iterator[Ask]:
        """Shares of the held-out batches; the last one is filled up with padding to the shape of the others."""
        places = heldout_places(self.corpora["heldout"], self.seq_len, self._heldout_limit)
        for first in range(0, len(places.chunk), self.global_batch):
            count = min(self.global_batch, len(places.chunk) - first)
            share = rank_rows(first, count, self.dp, self.data_rank, self.micro_batch)
            rows = np.full(rows_per_rank(self.global_batch, self.dp, self.micro_batch), PADDING, np.int64)
            rows[: len(share)] = share
            own = places.part(share[share != PADDING])
            yield Ask("heldout", rows, own, targets_of(count, self.seq_len))


class LocalLoader:
    """A Loader in this process: one thread reads ahead, `data.prefetch_batches` batches and the one it is at."""

    def __init__(self, config: Config, data: RunData, data_rank: int) -> None:
        self._plan = RankPlan(config, data, data_rank)
        self._depth = config.data.prefetch_batches
        self._running: list[_ReadAhead] = []

    def batches(self, first_row: int) -> Iterator[Batch]:
        self._running.append(_ReadAhead(map(self._read, self._plan.train(first_row)), self._depth))
        return self._running[-1]

    def heldout_batches(self) -> Iterator[Batch]:
        return map(self._read, self._plan.heldout())

    def close(self) -> None:
        for ahead in self._running:
            ahead.close()

    def _read(self, ask: Ask) -> Batch:
        return ask.batch(read_rows(self._plan.corpora[ask.split], ask.places, self._plan.seq_len))


class _ReadAhead(Iterator[Batch]):
    """An endless iterator of batches, drawn by a thread: `depth` of them wait and it holds one more, no further."""

    def __init__(self, batches: Iterator[Batch], depth: int) -> None:
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches,), name="read-ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        assert not self._closed.is_set(), "the loader is closed"
        item = self._queue.get()
        if isinstance(item, Exception):
            self._queue.put(item)  # the thread has ended: whoever asks again gets the same answer
            raise item
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _fill(self, batches: Iterator[Batch]) -> None:
        try:
            for batch in batches:
                self._put(batch)
                if self._closed.is_set():
                    return
        except Exception as error:  # the thread that trains is to see it, where it asked for the batch
            self._put(error)

    def _put(self, item: Batch | Exception) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)
        return None
