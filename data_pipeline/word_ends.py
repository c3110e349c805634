"""What is cut off at both ends of a piece of text between white space: marks, 's, units behind a digit.

It goes in rounds over a whole batch, one word at each end a round, in which only pieces take part that still lose
something; long runs of marks lose half of the rest a round. Nothing is cut off a fixed string (fixed_words.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from data_pipeline import fixed_words
from data_pipeline.characters import AFTER, BEFORE, DIGIT, ENDED, LETTER, OTHER, U16, UPPER
from data_pipeline.rolling import U64, Places, Rolling, hashes_of

Codes = npt.NDArray[np.uint32]
Bools = npt.NDArray[np.bool_]

_ROUNDS = 64
"""A piece that has not lost all marks at its ends by then is built to be such (`a's's's`): it keeps the rest."""
_UNITS = """
    km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa
    mbar mb MB kb KB gb GB tb TB T G M K км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па
    мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ"""
_LONGEST_UNIT = 4
_RUN_LENGTH = 4
"""Marks in a row that are worth more than a round each."""
_TAIL, _HEAD, _HEAD_ONE, _RUN = np.uint8(0b111), np.uint8(0b11000), np.uint8(0b1000), np.uint8(0b100000)
_TAIL_GOES_ON, _HEAD_GOES_ON = np.uint8(64), np.uint8(128)
"""Bits of a character: how many are cut off together where it comes last (0 to 4), and where it comes first (0 to 3,
times _HEAD_ONE); it is one of several full stops in a row; it is cut off with the one before it, at the end, at the
start.
"""


class Ends:
    """The marks of one batch, and what of them is cut off where they come first or last.

    codes: uint32 [characters]; kinds: their bits; rolling: their hashes.
    """

    def __init__(self, codes: Codes, kinds: U16, rolling: Rolling) -> None:
        self.codes, self.kinds, self.rolling = codes, kinds, rolling
        self.marks = np.flatnonzero(kinds & OTHER)
        dots = self.marks[codes[self.marks] == ord(".")]
        apart = np.diff(dots, prepend=-2, append=len(codes) + 2) > 1
        begin, end = dots[apart[:-1]], dots[apart[1:]] + 1
        several = end - begin > 1
        self.dots = begin[several], end[several]
        """Start and stop of each run of full stops: they are cut off, and out, together."""
        self._bits = self._of_marks(dots)

    def _of_marks(self, dots: Places) -> npt.NDArray[np.uint8]:
        """uint8 [characters]: what is cut off where they come first or last."""
        codes, kinds, marks = self.codes, self.kinds, self.marks
        code, kind = codes[marks], kinds[marks]
        ends = np.zeros(len(codes), np.uint8)
        ends[marks] = _HEAD_ONE * (kind & BEFORE > 0) | (kind & AFTER > 0)
        plus = marks[code == ord("+")]
        ends[plus[kinds[plus + 1] & DIGIT == 0]] |= _HEAD_ONE
        behind_digit = marks[(kind & (BEFORE | AFTER) == BEFORE) & (code != ord("=")) & (code != ord("§"))]
        behind_digit = np.concatenate([behind_digit, plus])
        ends[behind_digit[kinds[behind_digit - 1] & DIGIT > 0]] |= 1
        before = kinds[dots - 1]
        ends[dots[(before & ENDED > 0) | ((before & UPPER > 0) & (kinds[dots - 2] & UPPER > 0))]] |= 1
        ends[between(*self.dots)] = _HEAD_ONE | _RUN | _TAIL_GOES_ON | _HEAD_GOES_ON | 1
        ends[self.dots[0]] &= ~(_TAIL_GOES_ON | _HEAD_GOES_ON)
        dot_dot_dot = ord("…")
        twice = marks[(code == dot_dot_dot) & (codes[marks - 1] != dot_dot_dot)]
        twice = twice[(codes[twice + 1] == dot_dot_dot) & (codes[twice + 2] != dot_dot_dot)]
        self._together(ends, twice, 2)
        apostrophes = marks[(code == ord("'")) | (code == ord("’"))]
        self._together(ends, apostrophes[codes[apostrophes + 1] | 32 == ord("s")], 2)
        dollars = marks[code == ord("$")]
        for country in ("US", "C", "A"):
            length = len(country)
            start = dollars[dollars >= length] - length
            for step, letter in enumerate(country):
                start = start[codes[start + step] == ord(letter)]
            ends[start] |= _HEAD_ONE * np.uint8(length + 1)
            ends[between(start + 1, start + length + 1)] |= _HEAD_GOES_ON
            self._together(ends, start[kinds[start - 1] & DIGIT > 0], length + 1)
        digit = kinds & DIGIT > 0
        units = np.flatnonzero(digit[:-1] & ~digit[1:]) + 1
        units = units[kinds[units] & LETTER > 0]
        known = _units()
        for length in range(1, _LONGEST_UNIT + 1):
            hashes = self.rolling.hashes(units, np.minimum(units + length, len(codes)))
            self._together(ends, units[known[np.searchsorted(known, hashes)] == hashes], length)
        return ends

    @staticmethod
    def _together(ends: npt.NDArray[np.uint8], start: Places, length: int) -> None:
        ends[start + length - 1] = ends[start + length - 1] & ~_TAIL | np.uint8(length)
        for step in range(1, length):
            ends[start + step] |= _TAIL_GOES_ON

    def strip(self, start: Places, stop: Places) -> tuple[Places, Places]:
        """What is left of each piece when everything has been cut off at its ends (nothing, where start is stop)."""
        first, last = start.copy(), stop.copy()
        live = self._strip_rules(first, last)
        for _ in range(_ROUNDS):
            a, b = first[live], last[live]
            head, tail = self._head(a, b), self._tail(a, b)
            loses = head + tail > 0
            loses[loses] = ~fixed_words.are_fixed(self.rolling, a[loses], b[loses])
            live, a, b, head, tail = (column[loses] for column in (live, a, b, head, tail))
            both = np.flatnonzero((head > 0) & (tail > 0))
            # What is left without the one may be fixed: then the other stays with it, and that is the end.
            without_head = both[fixed_words.are_fixed(self.rolling, a[both] + head[both], b[both])]
            tail[without_head] = 0
            without_tail = both[(tail[both] > 0) & fixed_words.are_fixed(self.rolling, a[both], b[both] - tail[both])]
            head[without_tail] = 0
            first[live], last[live] = a + head, np.maximum(b - tail, a + head)
            live = live[last[live] > first[live]]
            if not len(live):
                break
            self._strip_runs(first, last, live)
        return first, last

    def _head(self, start: Places, stop: Places) -> Places:
        """int [n]: characters cut off at the start of [start, stop): a mark, full stops in a row, US$, or none."""
        ends = self._bits[start]
        head = ((ends & _HEAD) // _HEAD_ONE).astype(np.intp)
        run = np.flatnonzero(ends & _RUN)
        at = np.searchsorted(self.dots[1], start[run], side="right")
        head[run] = np.minimum(self.dots[1][at], stop[run]) - start[run]
        return head

    def _tail(self, start: Places, stop: Places) -> Places:
        """int [n]: characters cut off at the end of [start, stop): as `_head`, or 's, or a unit behind a digit."""
        ends = self._bits[stop - 1]
        tail = (ends & _TAIL).astype(np.intp)
        run = np.flatnonzero(ends & _RUN)
        at = np.searchsorted(self.dots[0], stop[run] - 1, side="right") - 1
        tail[run] = stop[run] - np.maximum(self.dots[0][at], start[run])
        tail[tail > stop - start] = 0
        return tail

    def _strip_rules(self, first: Places, last: Places) -> Places:
        """Cuts up pieces that are one mark over and over (`=====`); gives those that are something else."""
        rule = (last - first > 2) & (self._bits[first] & (_HEAD | _RUN) == _HEAD_ONE)
        rule[rule] = self.codes[first[rule]] == self.codes[last[rule] - 1]
        rule[rule] = ~np.isin(self.codes[first[rule]], [ord("'"), ord("’")])  # which may be doubled: a fixed string
        a, b = first[rule], last[rule]
        rule[rule] = self.rolling.hashes(a, b - 1) == self.rolling.hashes(a + 1, b)
        first[rule] = last[rule]
        return np.flatnonzero(~rule)

    def _strip_runs(self, first: Places, last: Places, live: Places) -> None:
        """Takes from both ends of long pieces as many marks as leave them longer than any fixed string."""
        live = live[last[live] - first[live] > 2 * fixed_words.LONGEST]
        heads, tails = (np.ones(len(live), bool) for _ in range(2))
        for step in range(_RUN_LENGTH):
            heads &= self._bits[first[live] + step] & _HEAD == _HEAD_ONE
            tails &= self._bits[last[live] - 1 - step] & _TAIL == 1
        for piece in live[heads | tails].tolist():
            a, b = int(first[piece]), int(last[piece])
            most = (b - a - fixed_words.LONGEST) // 2
            heads, tails = self._bits[a : a + most] & _HEAD == _HEAD_ONE, self._bits[b - most : b] & _TAIL == 1
            first[piece] += most if heads.all() else int(heads.argmin())
            last[piece] -= most if tails.all() else int(tails[::-1].argmin())

    def words_cut_off(self, start: Places, stop: Places, first: Places, last: Places) -> Places:
        """Where words begin that `strip` has cut off: in [start, first] and [last, stop), but for `start`."""
        heads, tails = between(start + 1, np.minimum(first + 1, stop)), between(last, stop)
        heads = heads[self._bits[heads] & _HEAD_GOES_ON == 0]
        return np.append(heads, tails[self._bits[tails] & _TAIL_GOES_ON == 0])


def between(start: Places, stop: Places) -> Places:
    """All places in [start, stop), one stretch after another; none where stop is not behind start."""
    lengths = np.maximum(stop - start, 0)
    behind = np.cumsum(lengths)
    return np.repeat(start - behind + lengths, lengths) + np.arange(behind[-1] if len(behind) else 0)


@cache
def _units() -> U64:
    """Sorted, with a last one that is none."""
    return np.append(np.sort(hashes_of(_UNITS.split())), ~np.uint64(0))
