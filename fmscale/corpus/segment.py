"""A stretch of a run's rows between two edits, and what each kind of edit makes of it.

    segment.mix(rows)                  # source of each row, and its position in that source
    segment.edited(entry, steps)       # the segment that a ledger entry opens after this one

An edit never looks back: the new segment takes over where each source stands, so nothing before it can change. After an
edit of weights, shares are measured from there: each source's count is what it was, and ideals begin anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fmscale.corpus.ledger import Entry
from fmscale.corpus.mixture import MAX_ROWS, Mixture, Stage, quantise
from fmscale.corpus.sequence import I64, Sequence, SourceSpec
from fmscale.corpus.steps import StepPlan
from fmscale.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows of the run from `start` to the next segment's, between two edits."""

    start: int
    origin: int
    """Row of the run that is row 0 of the mixture."""
    mixture: Mixture
    base: tuple[int, ...]
    """Position of each source at the mixture's row 0."""
    sequences: tuple[Sequence, ...]
    substitutes: tuple[dict[int, int], ...]
    """For each source, chunk -> the chunk that is read for it."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sequence.source.name for sequence in self.sequences)

    def mix(self, rows: I64) -> tuple[npt.NDArray[np.int32], I64]:
        """Source of each row [N], and its position in that source."""
        source, number = self.mixture.locate(rows - self.origin)
        return source, np.array(self.base)[source] + number

    def count(self, row: int) -> I64:
        """Rows of each source from the mixture's row 0 up to and without `row` of the run."""
        return self.mixture.counts(row - self.origin)

    def positions(self, row: int) -> I64:
        """Where each source stands before `row` of the run."""
        return np.array(self.base) + self.count(row)

    def rows_of(self, source: int, positions: I64) -> I64:
        """Rows of the run at which `source` is at `positions` [N]."""
        return self.origin + self.mixture.row_of(source, positions - self.base[source])

    def reads_on(self, following: Segment, source: int) -> bool:
        """Whether the segment that follows reads `source` as this one does, substitutes aside."""
        return (
            self.mixture is following.mixture
            and (self.origin, self.base) == (following.origin, following.base)
            and self.sequences[source] is following.sequences[source]
        )

    def edited(self, entry: Entry, steps: StepPlan) -> Segment:
        """The segment that `entry` opens. Raises DataError if the entry does not fit the run, ConfigError for a weight
        that is too small."""
        payload = entry.payload
        last = max([entry.from_row + payload.get("rows", 0), *(s["from_row"] for s in payload.get("stages", ()))])
        if last > MAX_ROWS:  # behind it integers overflow, and nothing says so
            raise foreign(entry, f"rows up to {MAX_ROWS:,}", f"row {last:,}")
        at = replace(self, start=entry.from_row)
        edit = {
            "weights": at._with_weights,
            "stages": at._with_stages,
            "source": at._with_source,
            "generation": at._with_generation,
            "quarantine": at._with_quarantine,
            "skip": at._with_skip,
        }[entry.kind]
        return edit(entry, payload, steps)

    def _with_weights(self, entry: Entry, payload: dict[str, Any], steps: StepPlan) -> Segment:
        return self._mixed_by((Stage(0, self._quantised(entry, payload["weights"])),))

    def _with_stages(self, entry: Entry, payload: dict[str, Any], steps: StepPlan) -> Segment:
        rows = [stage["from_row"] for stage in payload["stages"]]
        if rows[0] != entry.from_row or any(steps.edge(row) != row for row in rows):
            edges = [self.start, *(steps.edge(row) for row in rows[1:])]
            raise foreign(entry, f"stages from the first rows of steps: {edges}", str(rows))
        weights = [self._quantised(entry, stage["weights"]) for stage in payload["stages"]]
        return self._mixed_by(tuple(Stage(row - self.start, w) for row, w in zip(rows, weights, strict=True)))

    def _with_source(self, entry: Entry, payload: dict[str, Any], steps: StepPlan) -> Segment:
        name = payload["source"]
        if name in self.names:
            raise foreign(entry, f"a name other than {', '.join(self.names)}", name)
        fields = ("chunks", "chunk_tokens", "content_hash")
        spec = SourceSpec(name=name, **{field: payload[field] for field in fields})
        positions = tuple(self.positions(self.start).tolist())
        like = self.sequences[0]
        new = Sequence(source=spec, seed=like.seed, row_tokens=like.row_tokens, window_chunks=like.window_chunks)
        grown = replace(self, sequences=(*self.sequences, new), substitutes=(*self.substitutes, {}))
        weights = grown._quantised(entry, payload["weights"])
        return replace(grown, origin=self.start, mixture=Mixture((Stage(0, weights),)), base=(*positions, 0))

    def _with_generation(self, entry: Entry, payload: dict[str, Any], steps: StepPlan) -> Segment:
        s = self._source(entry)
        sequence = self.sequences[s]
        if payload["chunks"] < sequence.source.chunks:
            raise foreign(entry, f"{sequence.source.chunks} chunks or more, as before", str(payload["chunks"]))
        position = int(self.positions(self.start)[s])
        read = position - sequence.first_position
        later = replace(
            sequence,
            source=replace(sequence.source, chunks=payload["chunks"], content_hash=payload["content_hash"]),
            first_position=position,
            first_epoch=sequence.first_epoch - (-read // sequence.rows_per_epoch),  # an epoch begun is over
        )
        return replace(self, sequences=(*self.sequences[:s], later, *self.sequences[s + 1 :]))

    def _with_quarantine(self, entry: Entry, payload: dict[str, Any], steps: StepPlan) -> Segment:
        s = self._source(entry)
        bad, known, chunks = payload["chunk"], self.substitutes[s], self.sequences[s].source.chunks
        # An entry written later may hold from an earlier row, and have quarantined what this one reads.
        substitute = known.get(payload["substitute"], payload["substitute"])
        if bad == substitute or max(bad, substitute) >= chunks:
            found = f"chunk {bad} by {payload['substitute']}"
            raise foreign(entry, f"another, sound chunk below {chunks} as the substitute", found)
        # What was read for other chunks may itself turn out to be damaged: those follow to the new substitute.
        mended = {c: substitute if to == bad else to for c, to in known.items()} | {bad: substitute}
        return replace(self, substitutes=(*self.substitutes[:s], mended, *self.substitutes[s + 1 :]))

    def _with_skip(self, entry: Entry, payload: dict[str, Any], steps: StepPlan) -> Segment:
        # Stages go by rows that the run consumed, which a skip does not move: only the sources go on further ahead.
        left_out = self.count(self.start + payload["rows"]) - self.count(self.start)
        return replace(self, base=tuple((np.array(self.base) + left_out).tolist()))

    def _mixed_by(self, stages: tuple[Stage, ...]) -> Segment:
        base = tuple(self.positions(self.start).tolist())
        return replace(self, origin=self.start, mixture=Mixture(stages), base=base)

    def _quantised(self, entry: Entry, weights: dict[str, float]) -> tuple[int, ...]:
        if set(weights) != set(self.names):
            raise foreign(entry, f"weights of {', '.join(self.names)}", ", ".join(weights))
        return quantise([weights[name] for name in self.names], self.names)

    def _source(self, entry: Entry) -> int:
        name = entry.payload["source"]
        if name not in self.names:
            raise foreign(entry, f"a source: {', '.join(self.names)}", name)
        return self.names.index(name)


def foreign(entry: Entry, expected: str, found: str) -> DataError:
    """The error for an entry that belongs to another run or corpus."""
    return DataError(
        f"entry {entry.seq} of the edit ledger ({entry.kind}) does not fit this run",
        expected=expected,
        found=found,
        do="resume with the ledger and the sources that belong together",
    )
