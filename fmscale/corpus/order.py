"""Row n of a run -> source, chunk and token offset: a pure function of the settings, the corpora and the edit ledger.

    order = order_from_config(config, corpora, ledger)
    order.locate(np.arange(10**12, 10**12 + 32))          # no state, no memory, any row at the same price

Three steps, all arithmetic. (1) The ledger cuts the run's rows into segments; inside one, planned weights, corpora and
substitutes stay as they are. (2) `mixture.py` says which source a row comes from, and how many rows that source gave
before. (3) `sequence.py` turns that number into a place. A run's data position is one integer, rows consumed; ranks and
restarts do not enter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmscale.config import Config
from fmscale.corpus.ledger import Ledger
from fmscale.corpus.mixture import Mixture, Stage
from fmscale.corpus.packing import Packed
from fmscale.corpus.segment import Segment, foreign
from fmscale.corpus.sequence import I64, Sequence, SourceSpec
from fmscale.corpus.shards import Corpus
from fmscale.corpus.stages import stages_of
from fmscale.corpus.steps import StepPlan, step_plan

VERSION = 2
"""Of the order itself: any change of which row comes when is a new version."""

I32 = npt.NDArray[np.int32]


class Location(NamedTuple):
    """Where rows [N] of a run stand; all arrays [N]."""

    source: I32
    """Number of the source in `Order.sources`."""
    epoch: I64
    chunk: I64
    start: I64
    """Token offset of the row in its chunk."""
    position: I64
    """Which of its source's own rows it is: 0, 1, 2 ... over all epochs."""


@dataclass(frozen=True)
class Order:
    begun_with: tuple[SourceSpec, ...]
    """Sources as they were when the run began (generation 0 of their corpora; later ones enter by the ledger)."""
    stages: tuple[Stage, ...]
    """Weights of these sources over the run, as it was planned when it began."""
    seed: int
    row_tokens: int
    """U: tokens of a row."""
    steps: StepPlan
    window_chunks: int
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        assert len(self.begun_with) == len(self.stages[0].weights) >= 1, "one weight per source"
        assert self._segments, "ConfigError and DataError are raised here, not at the first row"

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """Those that the run began with, then those that the ledger added, each as it is at the ledger's end."""
        return tuple(sequence.source for sequence in self._segments[-1].sequences)

    def locate(self, rows: npt.ArrayLike) -> Location:
        """Where `rows` [N] of the run stand, each >= 0, in any order."""
        wanted = np.atleast_1d(np.asarray(rows, np.int64))
        assert (wanted >= 0).all(), "rows are counted from 0 (padding has no place)"
        source = np.zeros(wanted.shape, np.int32)
        epoch, chunk, start, position = np.zeros((4, *wanted.shape), np.int64)
        segment_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(segment_of):
            segment = self._segments[number]
            some = np.flatnonzero(segment_of == number)
            source[some], position[some] = segment.mix(wanted[some])
            for s in np.unique(source[some]):
                own = some[source[some] == s]
                epoch[own], chunk[own], start[own] = segment.sequences[s].at(position[own])
                wanted_chunk = chunk[own]
                for bad, substitute in segment.substitutes[s].items():  # a substitute is never itself replaced
                    chunk[own[wanted_chunk == bad]] = substitute
        return Location(source, epoch, chunk, start, position)

    def shares(self, rows: int) -> I64:
        """How many of the rows [0, rows) come from each source, [sources]; in closed form."""
        number = int(np.searchsorted(self._starts, rows, side="right")) - 1
        segment, total = self._segments[number], self._given[number].copy()
        total[: len(segment.base)] += segment.count(rows) - segment.count(segment.start)
        return total

    def epochs(self, rows: int) -> list[float]:
        """Where each source stands after `rows` rows of the run, in epochs of its own, [sources]: what a skip leaves
        out counts, and an epoch that a new generation cut short is over."""
        segment = self._segments[int(np.searchsorted(self._starts, max(rows, 1), side="left")) - 1]
        known = [
            sequence.first_epoch + (int(position) - sequence.first_position) / sequence.rows_per_epoch
            for sequence, position in zip(segment.sequences, segment.positions(rows), strict=True)
        ]
        return known + [0.0] * (len(self.sources) - len(known))

    def readers_of(self, source: int, chunk: int, from_row: int, to_row: int) -> I64:
        """Rows of the run in [from_row, to_row) whose place is in `chunk`, substitutes aside; rising."""
        found, spans = [], self._spans(to_row)
        for i, (segment, stop) in enumerate(spans):
            if stop <= from_row or source >= len(segment.base):
                continue
            if i + 1 < len(spans) and segment.reads_on(spans[i + 1][0], source):
                continue  # as the next one does, which looks back this far
            begin = segment.start
            while i and spans[i - 1][0].reads_on(segment, source):
                i, begin = i - 1, spans[i - 1][0].start
            first, last = (int(segment.positions(row)[source]) for row in (max(from_row, begin), stop))
            positions = segment.sequences[source].positions_in(chunk, first, last)
            found.append(segment.rows_of(source, positions))
        return np.sort(np.concatenate([np.empty(0, np.int64), *found]))

    def substitutes(self, source: int) -> dict[int, int]:
        """Quarantined chunk -> the chunk that is read for it, at the end of the ledger."""
        return dict(self._segments[-1].substitutes[source])

    def as_of(self, row: int) -> Order:
        """The order as the entries up to `row` make it: what an entry from there on is about. Entries may hold from
        later rows than others that were written after them."""
        return replace(self, ledger=Ledger(tuple(e for e in self.ledger.entries if e.from_row <= row)))

    def mixtures(self, rows: int) -> list[tuple[int, Mixture]]:
        """(row from which it holds, mixture) over the rows [0, rows)."""
        origins = {segment.origin: segment.mixture for segment, _ in self._spans(rows)}
        return sorted(origins.items(), key=lambda item: item[0])

    def rows_per_epoch(self, source: int) -> int:
        """Rows of one pass over the source (index in `sources`), as it is at the end of the ledger."""
        return self._segments[-1].sequences[source].rows_per_epoch

    def tokens_cut_per_epoch(self, source: int) -> int:
        """Tokens at chunk ends that no row of one pass reaches: none where U divides the chunk."""
        return self._segments[-1].sequences[source].tokens_cut_per_epoch

    def fingerprint(self) -> str:
        """SHA-256 over all that defines the order but the ledger, which is compared on its own: 64 hex digits."""
        body = {
            "version": VERSION,
            "sources": [asdict(source) for source in self.begun_with],
            "stages": self.stages,
            "seed": self.seed,
            "row_tokens": self.row_tokens,
            "batches": self.steps.batches,
            "lengths": self.steps.lengths,
            "window_chunks": self.window_chunks,
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def _spans(self, rows: int) -> list[tuple[Segment, int]]:
        """Segments that hold any of the rows [0, rows), each with the row before which it ends there."""
        stops = [*(segment.start for segment in self._segments[1:]), rows]
        pairs = zip(self._segments, stops, strict=True)
        return [(segment, min(stop, rows)) for segment, stop in pairs if segment.start < min(stop, rows)]

    @cached_property
    def _segments(self) -> list[Segment]:
        settings = {"seed": self.seed, "row_tokens": self.row_tokens, "window_chunks": self.window_chunks}
        segments = [
            Segment(
                start=0,
                origin=0,
                mixture=Mixture(self.stages),
                base=(0,) * len(self.begun_with),
                sequences=tuple(Sequence(source=source, **settings) for source in self.begun_with),
                substitutes=({},) * len(self.begun_with),
            )
        ]
        for entry in sorted(self.ledger.entries, key=lambda entry: (entry.from_row, entry.seq)):
            segments.append(segments[-1].edited(entry, self.steps))
        return segments

    @cached_property
    def _given(self) -> list[I64]:
        """Rows of each source before each segment, [sources]."""
        given = [np.zeros(len(self.sources), np.int64)]
        for segment, following in pairwise(self._segments):
            given.append(given[-1].copy())
            given[-1][: len(segment.base)] += segment.count(following.start) - segment.count(segment.start)
        return given

    @cached_property
    def _starts(self) -> I64:
        return np.array([segment.start for segment in self._segments], np.int64)


def order_from_config(config: Config, corpora: Mapping[str, Corpus | Packed], ledger: Ledger) -> Order:
    """The order of the run that `config` describes; `corpora` are the train splits of its sources, by name, those that
    the ledger added among them.

    Sources are taken in the order of their names, so that the order of lines in a YAML file means nothing. Of a corpus
    that has grown only generation 0 is used, unless the ledger says otherwise (`pin_generations` at a run's start).
    Raises ConfigError (rows longer than chunks, a weight too small), DataError (a ledger that does not fit).
    """
    added = {entry.payload["source"] for entry in ledger.entries if entry.kind == "source"}
    names = sorted(config.data.sources.keys() - added)
    steps = step_plan(config)
    order = Order(
        begun_with=tuple(spec_of(name, corpora[name], generation=0) for name in names),
        stages=stages_of(config.data, names, steps),
        seed=config.data.seed,
        row_tokens=config.data.seq_len,
        steps=steps,
        window_chunks=config.data.window_chunks,
        ledger=ledger,
    )
    for entry in ledger.entries:
        if entry.kind in ("generation", "source"):
            spec = spec_of(entry.payload["source"], corpora[entry.payload["source"]], entry.payload["generation"])
            if (spec.chunks, spec.content_hash) != (entry.payload["chunks"], entry.payload["content_hash"]):
                raise foreign(
                    entry,
                    f"{entry.payload['chunks']} chunks, {entry.payload['content_hash'][:16]}",
                    f"{spec.chunks} chunks, {spec.content_hash[:16]}",
                )
    return order


def spec_of(name: str, corpus: Corpus | Packed, generation: int) -> SourceSpec:
    """What the order needs to know of a corpus up to `generation`. Raises DataError if it has no such one."""
    part = corpus.up_to(generation)
    return SourceSpec(name=name, chunks=part.chunks, chunk_tokens=part.chunk_tokens, content_hash=part.content_hash)
