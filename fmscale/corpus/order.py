"""Row n of a run -> source, chunk and token offset: a pure function of the settings, the corpora and the edit ledger.

    order = order_from_config(config, corpora, ledger)
    order.locate(np.arange(10**12, 10**12 + 32))          # no state, no memory, any row at the same price

Three steps, all arithmetic. (1) The ledger cuts the run's rows into segments; inside one, weights, corpora and
substitutes are constant. (2) Weights are integers that sum to 65536; a fixed pattern of that length says which source
each row comes from, so row n = 65536 k + m is number base + k * weight + occ[m] of its source. (3) `sequence.py` turns
that number into a place. A run's data position is one integer, rows consumed; ranks and restarts do not enter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fmscale.config import Config
from fmscale.corpus.ledger import Entry, Ledger
from fmscale.corpus.mixture import PERIOD, pattern_of, quantise
from fmscale.corpus.sequence import I64, Sequence, SourceSpec
from fmscale.corpus.shards import Corpus
from fmscale.errors import DataError

VERSION = 1
"""Of the order itself: any change of which row comes when is a new version, and the old one stays readable."""

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
    sources: tuple[SourceSpec, ...]
    """As they were when the run began (generation 0 of their corpora; later ones enter by the ledger)."""
    weights: tuple[float, ...]
    """Share of rows of each source, relative to the others', at row 0."""
    seed: int
    row_tokens: int
    """U: tokens of a row."""
    global_batch: int
    window_chunks: int
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        assert len(self.sources) == len(self.weights) >= 1, "one weight per source"
        assert self._segments, "ConfigError and DataError are raised here, not at the first row"

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
        total = np.zeros(len(self.sources), np.int64)
        for i, segment in enumerate(self._segments):
            stop = self._segments[i + 1].start if i + 1 < len(self._segments) else rows
            if segment.start < min(stop, rows):
                total += segment.count(min(stop, rows)) - segment.count(segment.start)
        return total

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
            "sources": [asdict(source) for source in self.sources],
            "weights": quantise(self.weights, [source.name for source in self.sources]),
            "seed": self.seed,
            "row_tokens": self.row_tokens,
            "global_batch": self.global_batch,
            "window_chunks": self.window_chunks,
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _segments(self) -> list[_Segment]:
        names = tuple(source.name for source in self.sources)
        settings = {"seed": self.seed, "row_tokens": self.row_tokens, "window_chunks": self.window_chunks}
        segment = _Segment(
            start=0,
            phase=0,
            weights=quantise(self.weights, names),
            base=(0,) * len(names),
            sequences=tuple(Sequence(source=source, **settings) for source in self.sources),
            substitutes=({},) * len(names),
        )
        segments = [segment]
        for entry in sorted(self.ledger.entries, key=lambda entry: (entry.from_row, entry.seq)):
            segments.append(segments[-1].edited(entry, names))
        return segments

    @cached_property
    def _starts(self) -> I64:
        return np.array([segment.start for segment in self._segments], np.int64)


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """Rows of the run from `start` to the next segment's, between two edits."""

    start: int
    phase: int
    """Place of row `start` in the endless repetition of the pattern."""
    weights: tuple[int, ...]
    base: tuple[int, ...]
    """Position of each source at phase 0."""
    sequences: tuple[Sequence, ...]
    substitutes: tuple[dict[int, int], ...]
    """For each source, chunk -> the chunk that is read for it."""

    def mix(self, rows: I64) -> tuple[I32, I64]:
        """Source of each row [N], and its position in that source."""
        pattern, occurrence = pattern_of(self.weights)
        period, m = np.divmod(rows - self.start + self.phase, PERIOD)
        source = pattern[m]
        return source, np.array(self.base)[source] + period * np.array(self.weights)[source] + occurrence[m]

    def count(self, row: int) -> I64:
        """Rows of each source from phase 0 up to and without `row`."""
        period, m = divmod(row - self.start + self.phase, PERIOD)
        pattern, _ = pattern_of(self.weights)
        return period * np.array(self.weights) + np.bincount(pattern[:m], minlength=len(self.weights))

    def edited(self, entry: Entry, names: tuple[str, ...]) -> _Segment:
        """The segment that `entry` opens after this one."""
        at, payload = replace(self, start=entry.from_row, phase=self.phase + entry.from_row - self.start), entry.payload
        next_position = tuple(b + int(n) for b, n in zip(self.base, self.count(entry.from_row), strict=True))
        if entry.kind == "skip":
            return replace(at, phase=at.phase + payload["rows"])
        if entry.kind == "weights":
            if set(payload["weights"]) != set(names):
                raise _foreign(entry, f"weights of {', '.join(names)}", ", ".join(payload["weights"]))
            weights = quantise(tuple(payload["weights"][name] for name in names), names)
            return replace(at, phase=0, weights=weights, base=next_position)
        if payload["source"] not in names:
            raise _foreign(entry, f"a source: {', '.join(names)}", payload["source"])
        s = names.index(payload["source"])
        sequence = self.sequences[s]
        if entry.kind == "generation":
            if payload["chunks"] < sequence.source.chunks:
                raise _foreign(entry, f"{sequence.source.chunks} chunks or more, as before", str(payload["chunks"]))
            grown = replace(sequence.source, chunks=payload["chunks"], content_hash=payload["content_hash"])
            read = next_position[s] - sequence.first_position
            later = replace(
                sequence,
                source=grown,
                first_position=next_position[s],
                first_epoch=sequence.first_epoch - (-read // sequence.rows_per_epoch),  # an epoch begun is over
            )
            return replace(at, sequences=(*self.sequences[:s], later, *self.sequences[s + 1 :]))
        assert entry.kind == "quarantine", f"the ledger let a kind through: {entry.kind}"
        bad, substitute, known = payload["chunk"], payload["substitute"], self.substitutes[s]
        if bad == substitute or substitute in known or max(bad, substitute) >= sequence.source.chunks:
            raise _foreign(
                entry,
                f"another, sound chunk below {sequence.source.chunks} as the substitute",
                f"chunk {bad} by {substitute}",
            )
        # What was read for other chunks may itself turn out to be damaged: those follow to the new substitute.
        mended = {c: substitute if to == bad else to for c, to in known.items()} | {bad: substitute}
        return replace(at, substitutes=(*self.substitutes[:s], mended, *self.substitutes[s + 1 :]))


def _foreign(entry: Entry, expected: str, found: str) -> DataError:
    return DataError(
        f"entry {entry.seq} of the edit ledger ({entry.kind}) does not fit this run",
        expected=expected,
        found=found,
        do="resume with the ledger and the sources that belong together",
    )


def order_from_config(config: Config, corpora: Mapping[str, Corpus], ledger: Ledger) -> Order:
    """The order of the run that `config` describes; `corpora` are the train splits of its sources, by name.

    Sources are taken in the order of their names, so that the order of lines in a YAML file means nothing. Of a corpus
    that has grown only generation 0 is used, unless the ledger says otherwise (`pin_generations` at a run's start).
    Raises ConfigError (rows longer than chunks, a weight too small), DataError (a ledger that does not fit).
    """
    names = sorted(config.data.sources)
    order = Order(
        sources=tuple(spec_of(name, corpora[name], generation=0) for name in names),
        weights=tuple(config.data.sources[name].weight for name in names),
        seed=config.data.seed,
        row_tokens=config.data.seq_len,
        global_batch=config.train.global_batch,
        window_chunks=config.data.window_chunks,
        ledger=ledger,
    )
    for entry in ledger.entries:
        if entry.kind == "generation":
            spec = spec_of(entry.payload["source"], corpora[entry.payload["source"]], entry.payload["generation"])
            if (spec.chunks, spec.content_hash) != (entry.payload["chunks"], entry.payload["content_hash"]):
                raise _foreign(
                    entry,
                    f"{entry.payload['chunks']} chunks, {entry.payload['content_hash'][:16]}",
                    f"{spec.chunks} chunks, {spec.content_hash[:16]}",
                )
    return order


def spec_of(name: str, corpus: Corpus, generation: int) -> SourceSpec:
    """What the order needs to know of a corpus up to `generation`. Raises DataError if it has no such one."""
    part = corpus.up_to(generation)
    return SourceSpec(name=name, chunks=part.chunks, chunk_tokens=part.chunk_tokens, content_hash=part.content_hash)


def first_generation(ledger: Ledger, name: str) -> int:
    """The generation of source `name` with which the run begins: that of the ledger's entry at row 0, else 0."""
    pinned = [
        int(entry.payload["generation"])
        for entry in ledger.entries
        if entry.kind == "generation" and entry.from_row == 0 and entry.payload["source"] == name
    ]
    return pinned[-1] if pinned else 0


def pin_generations(corpora: Mapping[str, Corpus], global_batch: int) -> Ledger:
    """The ledger a new run begins with: an entry at row 0 for each corpus that has grown before the run began."""
    ledger = Ledger()
    for name, corpus in sorted(corpora.items()):
        if corpus.manifest.generation:
            payload = {
                "source": name,
                "generation": corpus.manifest.generation,
                "chunks": corpus.chunks,
                "content_hash": corpus.content_hash,
            }
            ledger = ledger.append("generation", payload, from_row=0, rows_consumed=0, global_batch=global_batch)
    return ledger
