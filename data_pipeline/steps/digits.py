"""Where digits stand in a text, found at a GB/s, so that slower patterns are tried in few places only."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from functools import cached_property

DIGIT = ord("0")
_MASK = bytes(
    DIGIT if c in b"0123456789" else ord("h") if c in b"abcdefABCDEF" else ord("-") if c in b" -()/\xa0" else c
    for c in range(256)
)
_SEPARATORS = "\u202f\u2010\u2011\u2012\u2013"
"""A space and dashes beyond Latin-1."""
LETTERS = r"A-Za-z\u00c0-\u052f"
"""Of a class in a pattern: Latin, Greek, Cyrillic. Scripts without spaces between words may stand beside a number."""
WORD = rf"{LETTERS}0-9_"
_DENSE = re.compile(rb"0[0.-]{6,}")


class Digits:
    """A text, and lazily what is known of its digits."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def mask(self) -> bytes:
        """A byte a character: `0` for digits, `h` for a to f, `-` for what may separate digits, others as they are."""
        text = self.text
        for separator in _SEPARATORS:
            text = text.replace(separator, "-")
        return text.encode("latin-1", "replace").translate(_MASK)

    def dense(self, least: int) -> Iterator[tuple[int, int]]:
        """[start, stop) of each longest run of digits, separators and dots that has at least so many digits.

        A run begins with a digit; `+` and `(` right before it belong to it, two of them at most.
        """
        bounds = iter(self._dense)
        for start, stop in zip(bounds, bounds, strict=True):
            if self.mask.count(DIGIT, start, stop) >= least:
                yield start, stop

    @cached_property
    def _dense(self) -> array[int]:
        bounds, end = array("q"), 0
        for found in _DENSE.finditer(self.mask):
            start, stop = found.span()
            if self.mask.count(DIGIT, start, stop) >= 7:
                while start > max(found.start() - 2, end) and self.text[start - 1] in "+(":
                    start -= 1
                bounds.extend((start, stop))
                end = stop
        return bounds
