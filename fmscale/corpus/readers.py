"""Reader actors on Ray, and the loader that asks them: other processes map, verify and gather, ranks only copy.

A reader is asked for places (split, source, chunk, offset) and answers with tokens. It knows nothing of rows, ranks or
steps: so it can die at any moment, Ray starts it again, and any reader gives the same answer to the same question. The
loader keeps requests ahead of the trainer. Ray moves an object of 2 MB about ten times as fast a byte as one of 32 KB,
so small batches are asked for several at a time, and very large ones in parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice, pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from fmscale.config import Config
from fmscale.corpus.batch import Batch
from fmscale.corpus.loader import Ask, Places, RankPlan, Tokens, read_rows
from fmscale.corpus.manifest import SPLITS
from fmscale.corpus.shards import Corpus, open_splits
from fmscale.corpus.sources import RunData
from fmscale.errors import FmscaleError, MachineError

REQUEST_BYTES = 2 << 20
"""A request asks for as many batches as fit into this, one at least."""
PART_BYTES = 8 << 20
"""A request for more than this is cut into parts, which different readers answer at once."""
REQUEST_BATCHES = 64
"""Most batches of a request: bounds what a first step waits for."""
ASK_ANOTHER_AFTER_S = 2.0
"""A reader that has not answered by then may be dead or starting again; another one is asked as well."""

Register = Callable[[Path, str, int], None]


class ReaderActor:
    """Answers with the tokens at any places of a run's corpora. Holds mappings and which chunks it has verified."""

    def __init__(self, config: Config, run_dir: Path, number: int, register: Register | None) -> None:
        self._config = config
        if register is not None:
            register(run_dir, "reader", number)

    @cached_property
    def _corpora(self) -> dict[str, list[Corpus]]:
        # At the first question rather than at the start, so that a damaged corpus is an answer and no dead actor.
        # All generations of both splits: chunks keep their numbers when a corpus grows.
        opened = [open_splits(source.corpus) for _, source in sorted(self._config.data.sources.items())]
        return {split: [corpora[split] for corpora in opened] for split in SPLITS}

    def node(self) -> str:
        """The Ray node it stands on."""
        return str(ray.get_runtime_context().get_node_id())

    def read(self, split: str, places: Places) -> Tokens:
        """Tokens [R, seq_len + 1]. Raises DataError if a chunk is not as it was written."""
        return read_rows(self._corpora[split], places, self._config.data.seq_len)


def start_readers(
    config: Config, run_dir: Path, scheduling_strategy: Any = None, register: Register | None = None
) -> list[Any]:
    """Handles of `data.readers_per_node` new reader actors, which Ray restarts for as long as their driver lives.

    register: called in each actor process, also after a restart, as register(run_dir, "reader", number).
    """
    actor = ray.remote(ReaderActor).options(
        num_cpus=0,  # a reader works for moments between steps; ranks get the processors
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=scheduling_strategy,
    )
    return [actor.remote(config, run_dir, number, register) for number in range(config.data.readers_per_node)]


class RayLoader:
    """A Loader that has reader actors read, those on its own node before others."""

    def __init__(self, readers: list[Any], config: Config, data: RunData, data_rank: int) -> None:
        self._plan = RankPlan(config, data, data_rank)
        self._ahead = config.data.prefetch_batches
        self._closed = False
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

    def close(self) -> None:
        self._closed = True

    def _stream(self, asks: Iterator[Ask]) -> Iterator[Batch]:
        """Batches of `asks`; `prefetch_batches` of them, in one request at least, are under way before they are wanted.

        Requests are made before each batch is handed out, not once per request: one holds up to REQUEST_BATCHES, and
        the trainer is not to wait for a whole one whenever the last of these is used.
        """
        pending: deque[tuple[list[Ask], list[_Call]]] = deque()
        waiting = 0  # batches requested and not yet handed out

        def request_ahead() -> None:
            nonlocal waiting
            while (waiting < self._ahead or not pending) and (group := self._group(asks)):
                pending.append((group, self._request(group)))
                waiting += len(group)

        request_ahead()
        while pending:
            group, calls = pending.popleft()
            request_ahead()
            # Copied at once: a view would hold the object in shared memory for as long as its last batch is not used.
            tokens = np.concatenate([call.result() for call in calls])
            del calls
            stops = np.cumsum([len(ask.places.chunk) for ask in group])
            for ask, stop in zip(group, stops.tolist(), strict=True):
                if self._closed:
                    return
                waiting -= 1
                request_ahead()
                yield ask.batch(tokens[stop - len(ask.places.chunk) : stop])

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


class _Call:
    """One question, put to one reader, and to others if that one does not answer."""

    def __init__(self, readers: list[Any], split: str, places: Places) -> None:
        self._others = deque(readers)
        self._question = (split, places)
        self._answers = [self._ask()]

    def _ask(self) -> Any:
        return self._others.popleft().read.remote(*self._question)

    def result(self) -> Tokens:
        """Tokens [R, seq_len + 1], a view of Ray's shared memory. Raises DataError, or MachineError without readers."""
        while True:
            ready, _ = ray.wait(self._answers, timeout=ASK_ANOTHER_AFTER_S if self._others else None)
            if not ready:
                self._answers.append(self._ask())
                continue
            try:
                tokens: Tokens = ray.get(ready[0])
            except RayTaskError as error:
                if isinstance(error.cause, FmscaleError):
                    raise error.cause from None
                raise
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
                return tokens
