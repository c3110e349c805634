"""Documents with which the same was done: how many, how long, what spoke against them, a few to look at. Bounded.

Lengths go by powers of two, values by quarters of one. Of names and samples those with the smallest hashes are kept: a
name that is among the smallest of all is so among any part of them, so parts merge in any order and grouping to what
one pass would have counted, and each count that is shown is whole.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import xxhash

from data_pipeline.document import Document

T = TypeVar("T")
SAMPLES = 8
"""Documents shown of each fate."""
SAMPLE_CHARACTERS = 500
NAMES = 256
"""Reasons, languages, and names found by a reason, that are told apart; of more only the total is known."""
NAME_CHARACTERS = 100
_LAST_BIN = 4 * 60 + 1


class Sample(NamedTuple):
    """A document, cut. Of many, those with the smallest hashes of their ids are kept."""

    hash: int
    file: int
    record: int
    id: str
    source: str
    found: float | str | None
    characters: int
    text: str


@dataclass
class Fate:
    """Documents with which the same was done."""

    documents: int = 0
    characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """By number of bits of the length in characters: bin b holds [2^(b-1), 2^b), bin 0 the empty ones."""
    found: Counter[int] = field(default_factory=Counter)
    """The values that spoke against them, by `bin_number`."""
    names: Counter[str] = field(default_factory=Counter)
    """The same where they are no numbers."""
    samples: list[Sample] = field(default_factory=list)

    def add(self, document: Document, order: int) -> None:
        self.documents += 1
        length = len(document.text)
        self.characters += length
        self.lengths[length.bit_length()] += 1
        found = document.found
        if isinstance(found, str):
            found = found[:NAME_CHARACTERS]
            count_name(self.names, found, 1)
        elif found is not None:
            found = float(found)
            if math.isfinite(found):
                self.found[bin_number(found)] += 1
            else:
                found = str(found)
                count_name(self.names, found, 1)
        place = (order, document.file, document.record)
        if len(self.samples) < SAMPLES or place < self.samples[-1][:3]:
            names = document.id[:NAME_CHARACTERS], document.source[-2 * NAME_CHARACTERS :]
            sample = Sample(*place, *names, found, length, document.text[:SAMPLE_CHARACTERS])
            insort(self.samples, sample, key=_place)
            del self.samples[SAMPLES:]

    def merge(self, other: Fate) -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.lengths.update(other.lengths)
        self.found.update(other.found)
        for name, count in other.names.items():
            count_name(self.names, name, count)
        self.samples = sorted([*self.samples, *other.samples], key=_place)[:SAMPLES]

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "characters": self.characters,
            "lengths": {str(key): self.lengths[key] for key in sorted(self.lengths)},
            "found": {str(key): self.found[key] for key in sorted(self.found)},
            "names": {key: self.names[key] for key in sorted(self.names)},
            "samples": [list(sample) for sample in self.samples],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Fate:
        return Fate(
            value["documents"],
            value["characters"],
            Counter({int(key): count for key, count in value["lengths"].items()}),
            Counter({int(key): count for key, count in value["found"].items()}),
            Counter(value["names"]),
            [Sample(*sample) for sample in value["samples"]],
        )


def bin_number(value: float) -> int:
    """Number of the bin of a finite `value`: four between two powers of two, the same below zero with a minus.

    Bin 0 is what is nearer to zero than 2^-20; the last one takes all from 2^40 on.
    """
    mantissa, exponent = math.frexp(abs(value))  # mantissa in [0.5, 1)
    if mantissa == 0 or exponent <= -20:
        return 0
    place = min(4 * (exponent + 19) + int(mantissa * 8) - 3, _LAST_BIN)
    return place if value > 0 else -place


def bin_edge(number: int) -> float:
    """The edge of the bin that is nearest to zero."""
    if number == 0:
        return 0.0
    octave, quarter = divmod(abs(number) - 1, 4)
    return math.copysign(math.ldexp(1 + quarter / 4, octave - 20), number)


def entry(table: dict[str, T], name: str, make: Callable[[], T]) -> T:
    """The entry called `name`; where the table is full and other names' hashes are smaller, one that nobody keeps."""
    if name not in table:
        table[name] = make()
    found = table[name]
    if len(table) > NAMES:
        del table[max(table, key=_rank)]
    return found


def count_name(table: Counter[str], name: str, count: int) -> None:
    """`count` more of `name`, if it is one of those that are told apart."""
    table[name] += count
    if len(table) > NAMES:
        del table[max(table, key=_rank)]


def _place(sample: Sample) -> tuple[int, int, int]:
    return sample[:3]


@lru_cache(1 << 12)
def _rank(name: str) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")), name
