"""A 64-bit hash of any stretch of a batch's characters, each in constant time after one pass over them.

The hash of c_0 .. c_(n-1) is sum(c_i B^i) + n L mod 2^64 with odd B and L (Rabin-Karp, by prefix sums): the difference
of two prefix sums, times the inverse of B to the power of where the stretch starts. It depends on the characters
alone, not on their place in the batch. Equal texts always agree; others agree by accident, or because somebody built
them so (Thue-Morse words of a thousand characters), which here buys no more than a wrong count of duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]

_BASE = 0x9E3779B97F4A7C15
_LENGTH = np.uint64(0xD6E8FEB86659FD93)
_INVERSE = pow(_BASE, -1, 1 << 64)
_POWERS: list[U64] = [np.ones(1, np.uint64), np.ones(1, np.uint64)]
"""Of the base and of its inverse, as far as a batch has needed them: 8 bytes each a character of the longest batch."""


def _powers(count: int) -> tuple[U64, U64]:
    """base^i and base^-i for i in range(count)."""
    if len(_POWERS[0]) < count:
        for which, base in enumerate((_BASE, _INVERSE)):
            table = np.full(max(count, 1 << 20), base, np.uint64)
            table[0] = 1
            _POWERS[which] = np.multiply.accumulate(table)
    return _POWERS[0][:count], _POWERS[1][:count]


class Rolling:
    def __init__(self, codes: npt.NDArray[np.uint32]) -> None:
        """codes: uint32 [characters] of a batch."""
        powers, self._inverses = _powers(len(codes) + 1)
        self._sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(codes * powers[:-1], out=self._sums[1:])

    def hashes(self, start: Places, stop: Places) -> U64:
        """uint64 [n]: of the characters [start, stop), one hash a pair."""
        within = (self._sums[stop] - self._sums[start]) * self._inverses[start]
        return within + (stop - start).astype(np.uint64) * _LENGTH


def hashes_of(texts: Sequence[str]) -> U64:
    """uint64 [texts]: what `Rolling.hashes` gives for them; for short tables."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    stop = np.cumsum([len(text) for text in texts], dtype=np.intp)
    return Rolling(codes).hashes(np.concatenate([[0], stop[:-1]]), stop)


class Known:
    """A few strings, to be found among many hashes: a table of bits keeps out nearly all others, a search decides."""

    _SLOT_BITS = 16

    def __init__(self, texts: Sequence[str]) -> None:
        hashes = hashes_of(texts)
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]
        self._slots = np.zeros(1 << self._SLOT_BITS, bool)
        self._slots[self._slot(hashes)] = True

    def _slot(self, hashes: U64) -> Places:
        return (hashes * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(64 - self._SLOT_BITS)).astype(np.intp)

    def find(self, hashes: U64) -> tuple[Places, Places]:
        """Where in `hashes` one of the strings stands, and which one (its place among `texts`)."""
        maybe = np.flatnonzero(self._slots[self._slot(hashes)])
        at = np.minimum(np.searchsorted(self._hashes, hashes[maybe]), len(self._hashes) - 1)
        sure = self._hashes[at] == hashes[maybe]
        return maybe[sure], self._order[at[sure]]
