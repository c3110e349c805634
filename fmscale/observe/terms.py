"""Term records: who continued a run from where, so that only one line of history is ever read.

A *term* is one holder's time on a run. Taking a run over writes `lease/term-00000003.json` exclusively; it pins the
commit that the term goes on from. Newest term T: its own steps count without limit; of its parent's term only the
steps up to the pinned one; of that one's parent's term up to where *it* was left, and so on down to a term that began
from nothing. Whatever a zombie or an abandoned branch wrote lies outside those intervals and is ignored, in checkpoints
and in metrics alike. Times are for people; nothing is decided by a clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from fmscale.durable import canonical_json
from fmscale.errors import CheckpointError

FORMAT, VERSION = "fmscale-term", 1


@dataclass(frozen=True, kw_only=True)
class Term:
    term: int
    parent: str | None
    """Directory name of the pinned checkpoint; None: from nothing."""
    parent_hash: str | None
    parent_step: int
    """0 without a parent."""
    parent_term: int
    """0 without a parent."""
    holder: str
    """Host and process id."""
    time: str
    """UTC, ISO 8601."""
    term_hash: str = ""
    """xxh3_128 over the canonical JSON of everything else."""

    def content(self) -> dict[str, Any]:
        fields = {"format": FORMAT, "version": VERSION, **asdict(self)}
        del fields["term_hash"]
        return fields

    def to_bytes(self) -> bytes:
        return canonical_json({**self.content(), "term_hash": digest(self.content())})


@dataclass(frozen=True, kw_only=True)
class Span:
    """Steps (after, up_to] of one term that belong to the run's history; up_to None: no limit."""

    term: Term
    after: int
    up_to: int | None

    def holds(self, step: int) -> bool:
        return self.after < step and (self.up_to is None or step <= self.up_to)


def digest(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(content))


def term_path(run_dir: Path, term: int) -> Path:
    return run_dir / "lease" / f"term-{term:08d}.json"


def term_numbers(run_dir: Path) -> list[int]:
    """Numbers of all terms, rising; by file names alone, so that a damaged record still counts."""
    try:
        names = [path.name for path in (run_dir / "lease").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in (re.fullmatch(r"term-(\d{8})\.json", name) for name in names) if match)


def newest_term(run_dir: Path) -> int:
    """0 before the first term."""
    return max(term_numbers(run_dir), default=0)


def load_term(run_dir: Path, term: int) -> Term:
    """Raises CheckpointError for a record that is missing, damaged or another term's."""
    path = term_path(run_dir, term)
    expected = f"the record of term {term} as it was written"
    remedy = "restore that file from a copy of the run, or name the checkpoint to go on from (that opens a new term)"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            "a term record cannot be read", expected=expected, found=f"{path}: {error.strerror}", do=remedy
        ) from error
    try:
        fields = json.loads(raw)
        claimed = fields.pop("term_hash")
        if digest(fields) != claimed or canonical_json({**fields, "term_hash": claimed}) != raw:
            raise ValueError("its hash does not hold")
        if (fields.pop("format"), fields.pop("version")) != (FORMAT, VERSION):
            raise ValueError("it is of another format version")
        record = Term(**fields, term_hash=claimed)
        if record.term != term:
            raise ValueError(f"it is the record of term {record.term}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        found = f"{path}: {str(error)[:120]}"
        raise CheckpointError("a term record is damaged", expected=expected, found=found, do=remedy) from error
    return record


def lineage(run_dir: Path) -> Iterator[Span]:
    """The run's history, newest span first; nothing before the first term.

    Raises CheckpointError as `load_term` does, on reaching a damaged record and not before.
    """
    number, up_to = newest_term(run_dir), None
    while number:
        record = load_term(run_dir, number)
        yield Span(term=record, after=record.parent_step if record.parent else -1, up_to=up_to)
        assert record.parent_term < number, f"term {number} continues term {record.parent_term}"
        number, up_to = record.parent_term, record.parent_step
