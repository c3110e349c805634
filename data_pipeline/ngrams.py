"""Words of texts as 64-bit hashes, and runs of n of them: what de-duplication and decontamination compare.

A word is a run of letters, digits and `_`, whatever its case; each kana or CJK ideograph is one; all else separates.

All in numpy over batches of documents, no Python loop over words, in slices of the text: the generators here hold some
30 MB of arrays at most whatever the length of a document. A hash is a function of the words alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def _belongs(character: str) -> bool:
    """Whether it is part of a word; the same in every Unicode version that Python has shipped, below _TABLE_SIZE."""
    return character.isalnum() or character == "_"


_KINDS = bytes(point >= 0x80 or _belongs(chr(point)) for point in range(256))
"""Of each byte of UTF-8: 1 inside words, 0 between. Those of characters beyond ASCII are looked at again."""
_SINGLE_FIRST, _SINGLE_LAST = 0x3041, 0x9FFF
"""Kana and CJK ideographs are written without spaces between words."""
_SEPARATORS = ((0x2000, 0x3040), (0xFF00, 0xFF0F), (0xFF1A, 0xFF20))
"""Punctuation and symbols beyond the table: general, mathematical, CJK, full-width."""
_TABLE_SIZE = 0x590
"""Latin, Greek, Cyrillic, Armenian: what has two cases, but for rare scripts."""
_LONG = 64
"""Bytes from which on a word is hashed by itself."""
_MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
"""The first `size` of 8 bytes."""
_EDGE = np.uint8(0)
_WORD_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
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
    data = text.encode()
    folded, kinds = data.lower(), np.frombuffer(data.translate(_KINDS), np.uint8)
    if len(data) == len(text):
        turns = np.flatnonzero(np.diff(kinds, prepend=_EDGE, append=_EDGE))
        starts, ends = turns[::2], turns[1::2]
        return _hash(folded, starts, ends), starts
    raw = np.frombuffer(data, np.uint8)
    leads = np.flatnonzero(raw >= 0xC0)
    points, widths = _decode(raw, leads)
    folded, kinds, alone = _fold(folded, kinds, leads, points, widths)
    turn = np.diff(kinds, prepend=_EDGE, append=_EDGE)  # 1 where a run of ones begins, -1 (255) where one has ended
    begins, done = turn == 1, turn == 255
    begins[alone] = done[alone + 3] = True  # words are apart: the n-th start and the n-th end are of the same one
    starts, ends = np.flatnonzero(begins), np.flatnonzero(done)
    places = np.cumsum(raw.view(np.int8) > -65, dtype=np.int32)  # characters up to and with that of each byte
    return _hash(folded, starts, ends), places[starts] - np.int64(1)


def _hash(folded: bytes, starts: I64, ends: I64) -> U64:
    """Of each word's bytes, which hold no NUL: 8 at a time, so that one of up to 8 has a hash of its own."""
    eight = np.ndarray(len(folded) + 1, "<u8", folded + bytes(8), strides=(1,))  # the 8 bytes from each place on
    lengths = ends - starts
    hashes = mix(eight[starts] & _MASKS[np.minimum(lengths, 8)])
    at, longer = 8, np.flatnonzero(lengths > 8)
    while len(longer) and at < _LONG:
        more = eight[starts[longer] + at] & _MASKS[np.minimum(lengths[longer] - at, 8)]
        hashes[longer] = mix(hashes[longer] * _WORD_MULTIPLIER + more)
        at += 8
        longer = longer[lengths[longer] > at]
    for word in longer.tolist():
        hashes[word] = xxhash.xxh3_64_intdigest(folded[starts[word] : ends[word]])
    return hashes


def _decode(raw: npt.NDArray[np.uint8], leads: I64) -> tuple[npt.NDArray[np.uint32], I64]:
    """(code point, bytes) of the characters beyond ASCII that begin at `leads`."""
    first = raw[leads]
    widths = 2 + (first >= 0xE0) + (first >= 0xF0).astype(np.int64)
    points = first & (0xFF >> (widths + 1)).astype(np.uint32)
    for k in (1, 2, 3):
        some = slice(None) if k == 1 else np.flatnonzero(widths > k)
        points[some] = points[some] << np.uint32(6) | raw[leads[some] + k] & np.uint8(0x3F)
    return points, widths


def _fold(
    folded: bytes, kinds: npt.NDArray[np.uint8], leads: I64, points: npt.NDArray[np.uint32], widths: I64
) -> tuple[bytes, npt.NDArray[np.uint8], I64]:
    """With the characters beyond ASCII: (bytes in lower case, kinds, where those are that are words by themselves)."""
    table, lower = _tables()
    near = points < _TABLE_SIZE
    separates = np.zeros(len(points), bool)
    separates[near] = ~table[points[near]]
    for begin, end in _SEPARATORS:
        separates |= (points >= begin) & (points <= end)
    single = (points >= _SINGLE_FIRST) & (points <= _SINGLE_LAST)
    inside = kinds.copy()
    for k in range(4):
        inside[leads[(separates | single) & (widths > k)] + k] = 0
    small = lower[points[near]]
    changed = small != points[near]
    if changed.any():
        buffer = np.frombuffer(bytearray(folded), np.uint8)
        at, small = leads[near][changed], small[changed]
        buffer[at], buffer[at + 1] = 0xC0 | small >> 6, 0x80 | small & 0x3F
        folded = buffer.tobytes()
    return folded, inside, leads[single]


@cache
def _tables() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint32]]:
    """(whether it belongs to a word, its lower case) of each of the first code points.

    A letter whose lower case takes more characters or bytes than itself stays: U+0130, U+023A, U+023E.
    """
    characters = [chr(point) for point in range(_TABLE_SIZE)]
    lower = [low if len(low := c.lower()) == 1 and len(low.encode()) == len(c.encode()) else c for c in characters]
    return np.array([_belongs(c) for c in characters]), np.array([ord(c) for c in lower], np.uint32)


def mix(x: U64) -> U64:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
