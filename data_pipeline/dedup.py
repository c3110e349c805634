"""Which documents say what others said: exact duplicates, and held-out documents that training text gives away.

Exact: of documents with the same text (xxh3_128) the first in pinned order stays; one sort, 17 bytes a document.
Decontamination: the set of all word n-grams of held-out documents is built, every n-gram of training text looked up
in it, and a held-out document of which any n-gram was met is removed (Brown et al. 2020, appendix C, n = 13: case,
punctuation and white space ignored). A word is a run of letters, digits and `_`; each kana or CJK ideograph is one.

All in numpy over batches of documents, no Python loop over words. An n-gram is a 64-bit hash: among 10^9 held-out
n-grams a training n-gram finds one by accident with probability 5e-11, and then a document too many goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

TEXT_HASH_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8")])


def first_of_each(hashes: npt.NDArray[np.void], candidate: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """bool[n]: candidates whose hash (TEXT_HASH_DTYPE[n]) no candidate before them has."""
    rows = np.flatnonzero(candidate)
    high, low = hashes["high"][rows], hashes["low"][rows]
    order = np.lexsort((low, high))  # stable, so the first of equals comes first
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    first = np.zeros(len(hashes), bool)
    first[rows[order[new]]] = True
    return first


def shared_with(
    hashes: npt.NDArray[np.void], mine: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """bool[n]: of the rows in `mine`, those whose hash also stands in a row of `others`."""
    found = mine.copy()
    found[mine] = np.isin(_as_one(hashes[mine]), _as_one(hashes[others]))
    return found


def _as_one(hashes: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(hashes).view("V16").ravel()


def which_in(hashes: U64, members: U64) -> npt.NDArray[np.bool_]:
    """bool[n]: which of `hashes` are among `members`, which are sorted; costs n log m, where np.isin sorts both."""
    if not len(members):
        return np.zeros(len(hashes), bool)
    place = np.searchsorted(members, hashes)
    place[place == len(members)] = 0
    found: npt.NDArray[np.bool_] = members[place] == hashes
    return found


def unique_in_place(hashes: U64) -> U64:
    """The sorted members of `hashes`, which is left sorted: less than half the memory of np.unique."""
    hashes.sort()
    new = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=new[1:])
    return hashes[new]


def ngram_hashes(texts: Sequence[str], n: int) -> tuple[U64, npt.NDArray[np.int64]]:
    """(hash [m], index of its text [m]) of every run of `n` words inside one text; fewer words, no n-gram."""
    words, owners = _word_hashes(texts)
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hashes = np.zeros(count, np.uint64)
    for k in range(n):  # sum of word * M^k: order matters, and n shifted sums cost less than any sort
        hashes += words[k : k + count] * np.uint64(pow(_NGRAM_MULTIPLIER, k, 1 << 64))
    inside = owners[:count] == owners[n - 1 :]
    return _mix(hashes[inside]), owners[:count][inside]


class NgramSet:
    """A fixed set of n-gram hashes that answers millions of look-ups a second."""

    def __init__(self, hashes: U64) -> None:
        """`hashes` sorted and unique."""
        self._hashes = hashes
        bits = min(max(16, len(hashes).bit_length() + 3), 30)  # 1 in 8 strangers passes, or fewer
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, bool)
        for begin in range(0, len(hashes), _SLICE):  # in slices, so that no second set stands in memory meanwhile
            self._filter[(hashes[begin : begin + _SLICE] >> self._shift).astype(np.intp)] = True
        self.met = np.zeros(len(hashes), bool)
        """Which members `meet` has seen."""

    def meet(self, hashes: U64) -> None:
        """Mark the members that are among `hashes`."""
        if not len(self._hashes):
            return
        likely = hashes[self._filter[(hashes >> self._shift).astype(np.intp)]]
        place = np.searchsorted(self._hashes, likely)
        place[place == len(self._hashes)] = 0
        self.met[place[self._hashes[place] == likely]] = True


# Words. Classes of characters: 0 separates, 1 belongs to a word, 2 is a word by itself.
_SINGLE_FIRST, _SINGLE_LAST = 0x3041, 0x9FFF
"""Kana and CJK ideographs are written without spaces between words."""
_SEPARATORS = ((0x2000, 0x3040), (0xFF00, 0xFF0F), (0xFF1A, 0xFF20))
"""Punctuation and symbols beyond the table: general, mathematical, CJK, full-width."""
_TABLE_SIZE = 0x590
"""Latin, Greek, Cyrillic, Armenian: the same case and classes in every Unicode version that Python has shipped."""
_WORD_MULTIPLIER = 0x9E3779B97F4A7C15
_NGRAM_MULTIPLIER = 0xD6E8FEB86659FD93
_SLICE = 1 << 18
"""Characters looked at together: fits the cache, and bounds memory for a document of any length."""


def _word_hashes(texts: Sequence[str]) -> tuple[U64, npt.NDArray[np.int64]]:
    """(hash [words], index of its text [words])."""
    joined = "\n".join(texts)
    hashes, starts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    begin = 0
    while begin < len(joined):
        end = min(begin + _SLICE, len(joined))
        if end < len(joined):  # cut behind white space, so that no word is cut (unless it is longer than a slice)
            end = max(joined.rfind("\n", begin, end), joined.rfind(" ", begin, end)) + 1 or end
        found, at = _slice_words(joined[begin:end])
        hashes.append(found)
        starts.append(at + begin)
        begin = end
    text_ends = np.cumsum(np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts)))
    return np.concatenate(hashes), np.searchsorted(text_ends, np.concatenate(starts), side="right")


def _slice_words(text: str) -> tuple[U64, npt.NDArray[np.int64]]:
    """(hash [words], position of its first character [words])."""
    if text.isascii():
        points: npt.NDArray[Any] = np.frombuffer(text.encode("ascii"), np.uint8)
    else:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds, values = _classify(points)
    edge = np.zeros(1, np.uint8)
    alone = kinds == 2
    starts = np.flatnonzero((kinds == 1) & (np.concatenate([edge, kinds[:-1]]) != 1) | alone)
    ends = np.flatnonzero((kinds == 1) & (np.concatenate([kinds[1:], edge]) != 1) | alone) + 1
    # A word's hash is a difference of prefix sums of value * M^position, with the power at its start divided out.
    powers, inverses = _powers()
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[: len(points)], dtype=np.uint64)])
    return _mix((sums[ends] - sums[starts]) * inverses[starts]), starts


def _classify(points: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], U64]:
    """Class and case-folded 64-bit value of each code point."""
    kind_table, value_table = _tables()
    if points.dtype == np.uint8:
        return kind_table[points], value_table[points]
    low = np.minimum(points, _TABLE_SIZE - 1)
    kinds, values = kind_table[low], value_table[low]
    far = points >= _TABLE_SIZE
    kinds[far] = 1
    for first, last in _SEPARATORS:
        kinds[(points >= first) & (points <= last)] = 0
    kinds[(points >= _SINGLE_FIRST) & (points <= _SINGLE_LAST)] = 2
    values[far] = _mix(points[far].astype(np.uint64))
    return kinds, values


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], U64]:
    characters = [chr(point) for point in range(_TABLE_SIZE)]
    kinds = np.array([c.isalnum() or c == "_" for c in characters], np.uint8)
    folded = np.array([ord(c.lower()) if len(c.lower()) == 1 else ord(c) for c in characters], np.uint64)
    return kinds, _mix(folded)


@cache
def _powers() -> tuple[U64, U64]:
    """M^(i+1) and its inverse modulo 2^64, for each place in a slice."""
    inverse = pow(_WORD_MULTIPLIER, -1, 1 << 64)
    powers = np.multiply.accumulate(np.full(_SLICE, _WORD_MULTIPLIER, np.uint64))
    return powers, np.multiply.accumulate(np.full(_SLICE, inverse, np.uint64))


def _mix(x: U64) -> U64:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
