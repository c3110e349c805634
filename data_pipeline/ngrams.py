"""Words of texts as 64-bit hashes, and runs of n of them: what de-duplication and decontamination compare.

A word is a run of letters, digits and `_`, whatever its case; each kana or CJK ideograph is one; all else separates.

All in numpy over batches of documents, no Python loop over words, in slices of the text: the generators here hold some
15 MB of arrays whatever the length of a document. A hash is a function of the words alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

# Classes of characters: 0 separates, 1 belongs to a word, 2 is a word by itself.
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


class Ngrams(NamedTuple):
    """Some n-grams, in the order of the text: those of neighbouring documents."""

    hashes: U64
    first: int
    """The document that `counts` begins with."""
    counts: I64
    """[documents]: how many of `hashes` are of each; a long document's come in several lots."""

    def owners(self) -> I64:
        """The document of each n-gram."""
        return np.repeat(np.arange(self.first, self.first + len(self.counts)), self.counts)


def ngram_hashes(texts: Sequence[str], n: int) -> tuple[U64, I64]:
    """(hash [m], index of its text [m]) of every run of `n` words inside one text; fewer words, no n-gram."""
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for some in ngrams(texts, n):
        hashes.append(some.hashes)
        owners.append(some.owners())
    return np.concatenate(hashes), np.concatenate(owners)


def ngrams(texts: Sequence[str], n: int, *, short: bool = False) -> Iterator[Ngrams]:
    """Every run of `n` words inside one text, slice by slice.

    short: a text of at least one word, but fewer than `n`, counts as one n-gram of what there is.
    """
    ends = np.cumsum(np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts)))
    powers = [np.uint64(pow(_NGRAM_MULTIPLIER, k, 1 << 64)) for k in range(n)]
    padding = np.zeros(n - 1, np.uint64)
    open_words, open_document, begun = padding[:0], -1, False  # the last document so far: its words still needed
    end = 0
    for words, starts, piece in word_hashes("\n".join(texts)):
        begin, end = end, end + len(piece)
        first, last = np.searchsorted(ends, [begin, end - 1], side="right").tolist()
        counts = np.diff(np.searchsorted(starts, ends[first : last + 1] - begin), prepend=0)
        if open_document == first:
            counts[0] += len(open_words)
            words = np.concatenate([open_words, words, padding])
        else:
            if short and len(open_words) and not begun:
                yield _one(open_words, powers, open_document)
            begun = False
            words = np.concatenate([words, padding])
        total = len(words) - len(padding)
        sums = np.zeros(total, np.uint64)
        for k, power in enumerate(powers):  # word * M^k: order matters, and n shifted sums cost less than any sort
            sums += words[k : k + total] * power
        stops = np.cumsum(counts)
        whole = np.ones(total, bool)  # not running into the next document
        for k in range(1, n):
            whole[(stops - k)[counts >= k]] = False
        found = np.maximum(counts - (n - 1), 0)
        if short:
            few = (counts > 0) & (counts < n)
            few[-1] = False  # may go on in the next slice
            few[0] &= not begun
            at, many = (stops - counts)[few], counts[few]
            sums[at] = sum(
                np.where(k < many, words[at + k] * power, np.uint64(0)) for k, power in enumerate(powers[:-1])
            )
            whole[at] = True
            found[few] = 1
        if whole.any():
            yield Ngrams(mix(sums[whole]), first, found)
        begun = bool(found[-1]) or (begun and len(counts) == 1)
        held = min(int(counts[-1]), n - 1)
        open_words, open_document = words[total - held : total], last
    if short and len(open_words) and not begun:
        yield _one(open_words, powers, open_document)


def _one(words: U64, powers: list[np.uint64], document: int) -> Ngrams:
    total = int(np.sum(words * np.array(powers[: len(words)], np.uint64), dtype=np.uint64))
    return Ngrams(mix(np.array([total], np.uint64)), document, np.ones(1, np.int64))


def word_hashes(text: str) -> Iterator[tuple[U64, I64, str]]:
    """(hash [words], where in the slice its first character is [words], the slice): one slice of `text` at a time."""
    begin = 0
    while begin < len(text):
        end = min(begin + _SLICE, len(text))
        if end < len(text):  # cut behind white space, so that no word is cut (unless it is longer than a slice)
            end = max(text.rfind("\n", begin, end), text.rfind(" ", begin, end)) + 1 or end
        piece = text[begin:end]
        yield *_slice_words(piece), piece
        begin = end


def code_points(text: str) -> npt.NDArray[Any]:
    """[characters]: of the smallest type that numpy can have them in without a loop."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _slice_words(text: str) -> tuple[U64, I64]:
    """(hash [words], position of its first character [words])."""
    points = code_points(text)
    kinds, values = _classify(points)
    edge = np.zeros(1, np.uint8)
    alone = kinds == 2
    starts = np.flatnonzero((kinds == 1) & (np.concatenate([edge, kinds[:-1]]) != 1) | alone)
    ends = np.flatnonzero((kinds == 1) & (np.concatenate([kinds[1:], edge]) != 1) | alone) + 1
    # A word's hash is a difference of prefix sums of value * M^position, with the power at its start divided out.
    powers, inverses = _powers(_SLICE)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[: len(points)], dtype=np.uint64)])
    return mix((sums[ends] - sums[starts]) * inverses[starts]), starts


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
    values[far] = mix(points[far].astype(np.uint64))
    return kinds, values


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], U64]:
    characters = [chr(point) for point in range(_TABLE_SIZE)]
    kinds = np.array([c.isalnum() or c == "_" for c in characters], np.uint8)
    folded = np.array([ord(c.lower()) if len(c.lower()) == 1 else ord(c) for c in characters], np.uint64)
    return kinds, mix(folded)


@cache
def _powers(count: int) -> tuple[U64, U64]:
    """M^(i+1) and its inverse modulo 2^64, for each place in a slice of so many characters."""
    inverse = pow(_WORD_MULTIPLIER, -1, 1 << 64)
    powers = np.multiply.accumulate(np.full(count, _WORD_MULTIPLIER, np.uint64))
    return powers, np.multiply.accumulate(np.full(count, inverse, np.uint64))


def mix(x: U64) -> U64:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
