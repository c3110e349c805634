"""Reader actors on Ray, and the loader that asks them: other processes map, verify and gather, ranks only copy.

A reader is asked for places (split, source, chunk, offset) and answers with tokens. It knows nothing of rows, ranks or
steps: so it can die at any moment, any reader gives the same answer to the same question, and Ray starts it again. The
loader keeps requests ahead of the trainer. Ray moves an object of 4 MB more than ten times as fast a byte as one of
32 KB, so small batches are asked for several at a time, and very large ones in parts.

Answers pass through Ray's object store. Where that is full (of somebody else's objects: ours are a few megabytes) and
the disk that it spills to as well, a rank reads the rows itself: slower, said, and the same bytes. It does so too where
no reader answers at all: Ray, on a full disk, now and then never says that it is full.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice, pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import (
    ActorUnavailableError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayTaskError,
)

from fmscale.config import Config
from fmscale.corpus.batch import Batch
from fmscale.corpus.loader import Ask, RankPlan
from fmscale.corpus.manifest import SPLITS
from fmscale.corpus.rows import Places, Readable, RowTokens, Spent, read_rows
from fmscale.corpus.sources import RunData, open_run_data
from fmscale.errors import FmscaleError, MachineError

REQUEST_BYTES = 4 << 20
"""A request asks for as many batches as fit into this, one at least. With one reader and batches of 1 MB a rank was
handed 205 M tokens/s in requests of 2 MB, 330 of 4, 375 of 8 (two cores); two requests of each rank are under way."""
PART_BYTES = 8 << 20
"""A request for more than this is cut into parts, which different readers answer at once."""
REQUEST_BATCHES = 64
"""Most batches of a request: bounds what a first step waits for."""
FULL = (OutOfDiskError, ObjectStoreFullError)
ASK_ANOTHER_AFTER_S = 0.5
"""A reader that has not answered by then may be dead or starting again; another one is asked as well."""
SILENCE_S = 20.0
"""The longest wait for an answer of any reader; while a rank reads by itself, ASK_ANOTHER_AFTER_S."""

Register = Callable[[Path, str, int], None]


class ReaderActor:
    """Answers with the tokens at any places of a run's corpora. Holds mappings and which chunks it has verified."""

    def __init__(self, config: Config, run_dir: Path, number: int, register: Register | None) -> None:
        self._config = config
        if register is not None:
            register(run_dir, "reader", number)

    @cached_property
    def _corpora(self) -> dict[str, list[Readable]]:
        # At the first question rather than at the start, so that a damaged corpus is an answer and no dead actor.
        # All generations of both splits: chunks keep their numbers when a corpus grows.
        data = open_run_data(self._config)
        return {split: data.corpora(split) for split in SPLITS}

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]
    def node(self) -> str:
        """The Ray node it stands on. Who asks one that is starting again waits for it."""
        return str(ray.get_runtime_context().get_node_id())

    def read(self, split: str, places: Places) -> RowTokens:
        """The rows at `places`. Raises DamagedChunk if a chunk is not as it was written."""
        config = self._config
        return read_rows(self._corpora[split], places, config.data.seq_len, config.model.attention == "document")


def start_readers(
    config: Config, run_dir: Path, scheduling_strategy: Any = None, register: Register | None = None
) -> list[Any]:
    """Handles of `data.readers_per_node` new reader actors, which Ray restarts for as long as their driver lives.

    register: called in each actor process, also after a restart, as register(run_dir, "reader", number).
    """
    actor = ray.remote(ReaderActor).options(
        num_cpus=0,  # a reader works for moments between steps; ranks get the processors
        max_restarts=-1,
        max_task_retries=0,  # a reader that died is an answer at once, and another one is asked
        scheduling_strategy=scheduling_strategy,
    )
    return [actor.remote(config, run_dir, number, register) for number in range(config.data.readers_per_node)]


class RayLoader:
    """A Loader that has reader actors read, those on its own node before others."""

    def __init__(
        self,
        readers: list[Any],
        config: Config,
        data: RunData,
        data_rank: int,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """tell: is told when this rank begins and ceases to read by itself, since answers find no room."""
        self._config, self._data_rank = config, data_rank
        self._tell, self._alone = tell, False
        self._plan = RankPlan(config, data, data_rank)
        self._ahead = config.data.prefetch_batches
        self._closed = False
        self._waited = Spent()
        here = str(ray.get_runtime_context().get_node_id())
        nodes = ray.get([reader.node.remote() for reader in readers])
        near = [reader for reader, node in zip(readers, nodes, strict=True) if node == here]
        far = [reader for reader in readers if reader not in near]
        first = data_rank % max(1, len(near))
        self._readers = near[first:] + near[:first] + far
        self._near = len(near) or len(readers)
        self._calls = 0

    def batches(self, first_row: int) -> Iterator[Batch]:
        return self._stream(self._plan.train(first_row))

    def heldout_batches(self) -> Iterator[Batch]:
        return self._stream(self._plan.heldout())

    def take_wait(self) -> Spent:
        waited, self._waited = self._waited, Spent()
        return waited

    def reorder(self, data: RunData) -> None:
        self._plan = RankPlan(self._config, data, self._data_rank)

    def close(self) -> None:
        self._closed = True

    def _stream(self, asks: Iterator[Ask]) -> Iterator[Batch]:
        """Batches of `asks`; `prefetch_batches` of them, in one request at least, are under way before they are wanted.

        The next request is made before the last batch of the one before is handed out, so that it has that batch's step
        to be answered in.
        """
        pending: deque[tuple[list[Ask], list[_Call]]] = deque()
        waiting = 0

        def request_ahead() -> None:
            nonlocal waiting
            while waiting < self._ahead and (group := self._group(asks)):
                pending.append((group, self._request(group)))
                waiting += len(group)

        request_ahead()
        while pending:
            group, calls = pending.popleft()
            request_ahead()
            rows = self._answer(calls)
            stops = np.cumsum([len(ask.places.chunk) for ask in group])
            for ask, stop in zip(group, stops.tolist(), strict=True):
                if self._closed:
                    return
                waiting -= 1
                request_ahead()
                started = time.perf_counter()
                batch = self._plan.batch(ask, rows.part(slice(stop - len(ask.places.chunk), stop)))
                self._waited += Spent(collate_s=time.perf_counter() - started)
                yield batch

    def _answer(self, calls: list[_Call]) -> RowTokens:
        """The rows of a request, and what was waited for."""
        started = time.perf_counter()
        parts = [self._result(call) for call in calls]
        answered = time.perf_counter()
        # Copied at once: a view would hold the object in shared memory for as long as its last batch is not used.
        rows = RowTokens.joined(parts)
        self._waited += rows.spent.within(answered - started) + Spent(transfer_s=time.perf_counter() - answered)
        return rows

    def _result(self, call: _Call) -> RowTokens:
        try:
            rows, alone = call.result(ASK_ANOTHER_AFTER_S if self._alone else SILENCE_S), ""
        except _NoAnswerError as error:
            rows, alone = self._plan.read(call.split, call.places), str(error)
        if bool(alone) != self._alone:
            self._alone = bool(alone)
            who = f"data rank {self._data_rank} reads by itself"
            self._tell(f"{who}: {alone}" if alone else f"{who} no more")
        return rows

    def _group(self, asks: Iterator[Ask]) -> list[Ask]:
        """The next asks that make a request."""
        group = list(islice(asks, 1))
        if group:
            size = max(1, len(group[0].places.chunk) * self._plan.row_bytes)
            group += islice(asks, min(REQUEST_BYTES // size, REQUEST_BATCHES) - 1 if size < REQUEST_BYTES else 0)
        return group

    def _request(self, group: list[Ask]) -> list[_Call]:
        places = Places(*(np.concatenate(column) for column in zip(*(ask.places for ask in group), strict=True)))
        rows = len(places.chunk)
        parts = max(1, ceil(rows * self._plan.row_bytes / PART_BYTES))
        cuts = [rows * i // parts for i in range(parts + 1)]
        calls = []
        for start, stop in pairwise(cuts):
            first = self._calls % self._near
            calls.append(
                _Call(self._readers[first:] + self._readers[:first], group[0].split, places.part(slice(start, stop)))
            )
            self._calls += 1
        return calls


class _NoAnswerError(Exception):
    """No reader can answer, or none does; the words say why, and what to do."""


def _no_room(error: BaseException) -> _NoAnswerError:
    """A question or its answer found no room in Ray's object store."""
    disk = isinstance(error, OutOfDiskError)
    full = "Ray's object store and the disk it spills to are full" if disk else "Ray's object store is full"
    return _NoAnswerError(f"{full}; make room, see `ray memory`")


class _Call:
    """One question, put to one reader, and to others if that one does not answer."""

    def __init__(self, readers: list[Any], split: str, places: Places) -> None:
        self._others = deque(readers)
        self.split, self.places = split, places
        self._asked: dict[Any, Any] = {}
        self._answers: list[Any] = []
        self._no_room: _NoAnswerError | None = None
        try:
            self._answers.append(self._ask())
        except _NoAnswerError as error:  # no room for the question; to be told where the answer is wanted
            self._no_room = error

    def _ask(self) -> Any:
        reader = self._others.popleft()
        try:
            answer = reader.read.remote(self.split, self.places)
        except FULL as error:
            raise _no_room(error) from None
        self._asked[answer] = reader
        return answer

    def result(self, patience_s: float) -> RowTokens:
        """The rows, a view of Ray's shared memory. Raises DataError, MachineError without readers, _NoAnswerError.

        patience_s: how long there may be no answer at all, after all readers have been asked.
        """
        if self._no_room is not None:
            raise self._no_room
        while True:
            ready, _ = ray.wait(self._answers, timeout=ASK_ANOTHER_AFTER_S if self._others else patience_s)
            if not ready and self._others:
                self._answers.append(self._ask())
                continue
            if not ready:
                raise _NoAnswerError(
                    f"none of {len(self._answers)} readers has answered for {patience_s:g} s; look at Ray's disk "
                    "(`df`), its store (`ray memory`) and the readers' logs"
                )
            try:
                rows: RowTokens = ray.get(ready[0])
            except RayTaskError as error:
                if isinstance(error.cause, FmscaleError):
                    raise error.cause from None
                if isinstance(error.cause, FULL):
                    raise _no_room(error.cause) from None
                raise
            except ActorUnavailableError:  # it starts again
                self._answers.remove(ready[0])
                if not self._others:
                    time.sleep(0.05)
                self._others.append(self._asked.pop(ready[0]))
                self._answers.append(self._ask())
            except RayActorError as error:  # gone for good: its node is lost, or someone stopped it
                self._answers.remove(ready[0])
                if self._others:
                    self._answers.append(self._ask())
                elif not self._answers:
                    raise MachineError(
                        "no reader is left to answer",
                        expected="at least one reader actor alive",
                        found=str(error).splitlines()[0],
                        do="start the run again: it goes on from its newest checkpoint",
                    ) from error
            else:
                return rows
