"""What stands more than once in its document: lines, paragraphs, and n-grams of words.

An n-gram that repeats consists of two (n-1)-grams that repeat, so from n to n + 1 only these are looked at again, as
pairs of the places where they stood first: exact, and in ordinary text soon few. Equal keys find one another in a
table by a part of their bits, those of which another took the place by other bits; there is no sorting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.rolling import U64, Places

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

_MIX = np.uint64(0x9FB21C651E98DF25)
_DOCUMENT = np.uint64(0xC2B2AE3D27D4EB4F)


def repeated(hashes: U64, document: Places) -> Bools:
    """bool[n]: whether an equal hash of the same document stands before."""
    first = _first_equal(_scrambled(hashes) + document.astype(np.uint64) * _DOCUMENT)
    found: Bools = first < np.arange(len(first))
    return found


def _scrambled(keys: U64) -> U64:
    return (keys ^ keys >> np.uint64(29)) * _MIX


def _first_equal(keys: U64) -> Places:
    """int [n]: where the first key stands that equals each one."""
    first, left = np.empty(len(keys), np.intp), np.arange(len(keys))
    while len(left):
        bits = (4 * len(left)).bit_length()
        slot = (keys >> np.uint64(64 - bits)).astype(np.intp)
        table = np.empty(1 << bits, np.int32)
        table[slot[::-1]] = np.arange(len(left), dtype=np.int32)[::-1]  # the first one stays: it is written last
        holder = table[slot]
        first[left] = left[holder]
        other = np.flatnonzero(keys[holder] != keys)
        left, keys = left[other], _scrambled(keys[other])
    return first


@dataclass(frozen=True)
class NGrams:
    """The n-grams of one n that stand more than once in their document."""

    n: int
    row: Places
    """[places]: of the first word of each, among all words; ascending."""
    first: Places
    """[places]: the place, among these, where an equal one of the same document stands first."""

    def longer(self) -> NGrams:
        """Those of n + 1."""
        beside = np.flatnonzero(np.diff(self.row) == 1)
        both = self.first[beside].astype(np.uint64) << np.uint64(32) | self.first[beside + 1].astype(np.uint64)
        return _several(self.n + 1, self.row[beside], _first_equal(_scrambled(both)))

    def only(self, kept: Bools) -> NGrams:
        """Without the places that are not kept [places]; with a place all equal ones must go."""
        if kept.all():
            return self
        moved = np.cumsum(kept) - 1
        return NGrams(self.n, self.row[kept], moved[self.first[kept]])

    @property
    def again(self) -> Bools:
        """[places]: whether an equal one stands before."""
        found: Bools = self.first < np.arange(len(self.row))
        return found


def _several(n: int, row: Places, first: Places) -> NGrams:
    """Without the n-grams that have no equal."""
    kept = np.bincount(first, minlength=len(first))[first] > 1
    moved = np.cumsum(kept) - 1
    return NGrams(n, row[kept], moved[first[kept]])


def ngrams(n: int, hashes: U64, document: Places) -> NGrams:
    """hashes, document: of all words [words], document ascending."""
    count = max(len(hashes) - n + 1, 0)
    keys = document[:count].astype(np.uint64) * _DOCUMENT
    for step in range(n):
        keys = _scrambled(keys + hashes[step : step + count])
    row = np.flatnonzero(document[:count] == document[n - 1 : n - 1 + count])
    return _several(n, row, _first_equal(keys if len(row) == count else keys[row]))


def most_repeated(grams: NGrams, document: Places, documents: int) -> tuple[Places, Counts]:
    """[documents]: where the most frequent n-gram of each stands first, and how often; -1 and 1 where none repeats.

    document: [words]. Of equally frequent ones the first counts.
    """
    place = np.flatnonzero(~grams.again)
    times = np.bincount(grams.first, minlength=len(grams.first))[place]
    owner = document[grams.row[place]]
    begin = np.flatnonzero(np.diff(owner, prepend=-1))
    where, count = np.full(documents, -1), np.ones(documents, np.int64)
    if len(place):
        most = np.maximum.reduceat(times, begin)
        winner = np.flatnonzero(times == np.repeat(most, np.diff(begin, append=len(owner))))[::-1]
        where[owner[winner]] = grams.row[place[winner]]  # backwards: the first one is written last
        count[owner[begin]] = most
    return where, count


def at_most_repeated(grams: NGrams, before: Counts, document: Places, documents: int) -> Counts:
    """[documents]: characters in words that belong to an n-gram seen before: no less than `repeated_characters`.

    before: [words + 1], characters of all words before each.
    """
    row = grams.row[grams.again]
    stop = np.minimum(row + grams.n, np.append(row[1:], len(before)))
    return np.bincount(document[row], before[stop] - before[row], documents).astype(np.int64)


def repeated_characters(grams: NGrams, before: Counts, document: Places, documents: int) -> Counts:
    """[documents]: characters in n-grams seen before, reading each document from left to right.

    An n-gram that was seen before counts, and reading goes on behind it; of any other the first word is passed, and the
    n-gram is seen from then on. What is jumped over is not seen: so whether a place counts hangs on those before it. It
    is found in turns: assume which places were seen before, read, correct the assumption by what was jumped over. Each
    turn makes at least one more place right for good; two or three turns do in practice.
    """
    row, place = grams.row, np.arange(len(grams.row))
    seen = grams.again
    while True:
        read = place[seen][_one_after_another(row[seen], grams.n)]
        reach = np.append(-1, row[read] + grams.n)[np.searchsorted(read, place)]  # of the last one read before
        jumped = row < reach
        earliest = np.full(len(row), len(row))
        stays = np.flatnonzero(~jumped)[::-1]
        earliest[grams.first[stays]] = stays
        now = earliest[grams.first] < place
        if (now == seen).all():
            break
        seen = now
    counted = row[read]
    return np.bincount(document[counted], before[counted + grams.n] - before[counted], documents).astype(np.int64)


def _one_after_another(row: Places, n: int) -> Bools:
    """bool[places]: which are read, taking the first, then always the first that is at least n behind the last one."""
    jump = np.append(np.searchsorted(row, row + n), len(row))
    taken = np.zeros(len(row) + 1, bool)
    taken[[0, -1]] = True
    while True:
        there = jump[taken]
        if taken[there].all():
            return taken[:-1]
        taken[there] = True
        jump = jump[jump]
