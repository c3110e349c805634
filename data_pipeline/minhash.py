"""Documents that say nearly the same, found by a key in common: MinHash signatures cut into bands.

    keys = signatures(texts)            # uint64 [documents, 14]; near-duplicates have the same key in some band

A document is the set of its runs of 5 words (shingles). The smallest hash of a set, under one hash function, is that of
another set with probability s, their Jaccard similarity (Broder 1997, "On the resemblance and containment of
documents"). Of `bands` keys, each made of `rows` such minima, at least one is then equal with probability
1 - (1 - s^rows)^bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3rd ed., section 3.4): `curve`.
14 bands of 8 rows and 5-grams are FineWeb's (Penedo et al. 2024, section 3.4) and datatrove's defaults: of pairs with
s = 0.6 they find 21 %, with 0.7 56 %, with 0.8 92 %.

Hash function i of a shingle is ((x ^ b_i) * a_i) mod 2^32, where x is the upper half of its 64-bit hash: xor, multiply
and minimum run on whole vectors of 32-bit lanes, and 112 functions cost less than finding the words. Two documents of
10^6 shingles that share none have one minimum in common, of 112, with a probability of about 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from data_pipeline.ngrams import I64, U64, mix, ngrams

U32 = npt.NDArray[np.uint32]

NO_KEY = 0
"""The key, in every band, of a document without a word: it is like no other."""
_COLUMNS, _FUNCTIONS = 1 << 13, 8
"""Shingles and hash functions worked on together: 256 KB, which stays in the second-level cache."""
_KEY_MULTIPLIER = np.uint64(0xD1342543DE82EF95)
"""Spreads well over the upper bits (Steele, Vigna 2021, "Computationally easy, spectrally good multipliers")."""


def signatures(texts: Sequence[str], *, bands: int = 14, rows: int = 8, ngram: int = 5) -> U64:
    """The band keys of each text: uint64 [documents, bands], NO_KEY where it has no word.

    ngram: words of a shingle; a text of fewer words has one shingle of what there is.
    """
    minima = shingle_minima(texts, bands * rows, ngram)
    keys = np.empty((len(texts), bands), np.uint64)
    for band in range(bands):
        key = np.full(len(texts), band + 1, np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            key = (key ^ minima[row]) * _KEY_MULTIPLIER
        keys[:, band] = mix(key)
    keys[keys == NO_KEY] = 1
    keys[(minima == _EMPTY).all(0)] = NO_KEY
    return keys


def curve(similarity: npt.ArrayLike, bands: int = 14, rows: int = 8) -> npt.NDArray[np.float64]:
    """Probability that two documents of this Jaccard similarity have a key in common."""
    return np.asarray(1 - (1 - np.asarray(similarity, np.float64) ** rows) ** bands)


_EMPTY = np.uint32(0xFFFFFFFF)
"""The minimum of nothing."""


def shingle_minima(texts: Sequence[str], functions: int, ngram: int) -> U32:
    """uint32 [functions, documents]: the smallest value that each hash function takes on a document's shingles."""
    minima = np.full((functions, len(texts)), _EMPTY)
    for some in ngrams(texts, ngram, short=True):
        own = np.flatnonzero(some.counts)
        starts = np.cumsum(some.counts[own]) - some.counts[own]
        _lower(minima, (some.hashes >> np.uint64(32)).astype(np.uint32), starts, own + some.first)
    return minima


def _lower(minima: U32, shingles: U32, starts: I64, documents: I64) -> None:
    """Take `shingles` into the minima of `documents`, whose first ones stand at `starts`."""
    xors, multipliers = _functions(len(minima))
    block = np.empty((_FUNCTIONS, min(_COLUMNS, len(shingles))), np.uint32)
    for begin in range(0, len(shingles), _COLUMNS):
        some = shingles[begin : begin + _COLUMNS]
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, begin + len(some), side="left"))
        cuts = np.maximum(starts[first:last] - begin, 0)
        own = documents[first:last]
        for function in range(0, len(minima), _FUNCTIONS):
            group = slice(function, function + _FUNCTIONS)
            values = block[: len(xors[group]), : len(some)]
            np.bitwise_xor(some, xors[group], out=values)
            np.multiply(values, multipliers[group], out=values)
            found = np.minimum.reduceat(values, cuts, axis=1)
            minima[group, own] = np.minimum(minima[group, own], found)


@cache
def _functions(count: int) -> tuple[U32, U32]:
    """(b, a) of the hash functions, uint32 [count, 1]; a is odd. Always the same: keys of any two runs compare."""
    numbers = mix(np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    upper = (numbers >> np.uint64(32)).astype(np.uint32).reshape(count, 2, 1)
    return np.ascontiguousarray(upper[:, 0]), np.ascontiguousarray(upper[:, 1]) | np.uint32(1)
