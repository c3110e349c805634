"""N-grams of words in common: held-out documents that training text gives away, and training text with test questions.

Decontamination: the set of all word n-grams of held-out documents is built, every n-gram of training text looked up
in it, and a held-out document of which any n-gram was met is removed (Brown et al. 2020, appendix C, n = 13: case,
punctuation and white space ignored; ngrams.py). An n-gram is a 64-bit hash: among 10^9 held-out n-grams a training
n-gram finds one by accident with probability 5e-11, and then a document too many goes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_pipeline.ngrams import U64

_SLICE = 1 << 18
"""Hashes looked at together, where a second array of all would be too much."""


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
        self.met[self.find(hashes)[1]] = True

    def find(self, hashes: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(places in `hashes` that hold a member, place of that member in the set)."""
        if not len(self._hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        likely = np.flatnonzero(self._filter[(hashes >> self._shift).astype(np.intp)])
        place = np.searchsorted(self._hashes, hashes[likely])
        place[place == len(self._hashes)] = 0
        hit = self._hashes[place] == hashes[likely]
        return likely[hit], place[hit]
