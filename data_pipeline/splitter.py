"""Where words start and stop in a batch of documents: the words of spaCy's English tokenizer, found in columns.

White space ends words. From a piece, what stands between two white spaces, marks are cut off at both ends, one word
each (word_ends.py), then it is cut at marks inside; links stay whole, and so do fixed strings (fixed_words.py). Each
step runs over the whole batch. docs/data-rules.md says what is compared.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from data_pipeline import fixed_words
from data_pipeline.characters import ALWAYS, DIGIT, INSIDE, LETTER, LOWER, OTHER, QUOTE, U16, UPPER
from data_pipeline.links import links
from data_pipeline.rolling import Places, Rolling
from data_pipeline.word_ends import Bools, Codes, Ends

PADDING = 4
"""White space that must stand behind the last character, for looking ahead."""
_MOST_JOINED = 5
"""Words that may turn out to be one fixed string."""
_DOT, _COMMA, _JOINT, _SIGN, _HYPHEN = (np.uint8(1 << bit) for bit in range(5))
"""Inside a piece: cut between a small and a capital letter; between letters; before a letter; between digits; also in
twos and threes."""


@cache
def _inner_kinds() -> npt.NDArray[np.uint8]:
    table = np.zeros(0x2016, np.uint8)
    for text, kinds in ((".", _DOT), (",", _COMMA), (":<>=/–~", _JOINT), ("+*^", _SIGN), ("—", _JOINT | _HYPHEN)):
        table[[*map(ord, text)]] = kinds
    table[ord("-")] = _JOINT | _SIGN | _HYPHEN
    return table


class Splitter:
    """The words of one batch.

    codes: uint32 [characters], the last PADDING of them white space; kinds: their bits; rolling: their hashes.
    """

    def __init__(self, codes: Codes, kinds: U16, rolling: Rolling) -> None:
        self.codes, self.kinds, self.rolling = codes, kinds, rolling
        self.ends = Ends(codes, kinds, rolling)

    def split(self, start: Places, stop: Places) -> tuple[Places, Places]:
        """Start and stop of each word in [start, stop), the pieces between white space, all in order."""
        if not len(start):
            return start, stop
        seen = np.bitwise_or.reduceat(self.kinds, start)
        mixed = (seen & OTHER > 0) | ((seen & DIGIT > 0) & (seen & LETTER > 0))
        plain, rest = np.flatnonzero(~mixed), np.flatnonzero(mixed)
        plain = plain[stop[plain] - start[plain] <= fixed_words.LONGEST]
        first, last = self.ends.strip(start[rest], stop[rest])
        begins = np.zeros(len(self.codes), bool)
        begins[start] = True
        begins[self.ends.words_cut_off(start[rest], stop[rest], first, last)] = True
        fixed, cuts = fixed_words.find(self.rolling.hashes(start[plain], stop[plain]))
        begins[(start[plain][fixed, None] + cuts)[cuts > 0]] = True
        fixed, cuts = fixed_words.find(self.rolling.hashes(first, last))
        begins[(first[fixed, None] + cuts)[cuts > 0]] = True
        whole = np.zeros(len(rest), bool)
        whole[fixed] = True
        begins[self._inner_cuts(first, last, whole)] = True
        return self._joined(np.flatnonzero(begins), start, stop)

    def _inner_cuts(self, first: Places, last: Places, whole: Bools) -> Places:
        """Where words begin inside [first, last), pieces without their ends; not in links and the `whole` ones."""
        codes, kinds = self.codes, self.kinds
        marks = self.ends.marks[kinds[self.ends.marks] & INSIDE > 0]
        code, before, after = codes[marks], kinds[marks - 1], kinds[marks + 1]
        table = _inner_kinds()[np.minimum(code, len(_inner_kinds()) - 1)]
        to_letter = after & LETTER > 0
        alone = kinds[marks] & ALWAYS > 0
        alone |= (table == _DOT) & (before & (LOWER | QUOTE) > 0) & (after & (UPPER | QUOTE) > 0)
        alone |= (table == _COMMA) & to_letter & (before & LETTER > 0)
        alone |= (table & _JOINT > 0) & to_letter & (before & (LETTER | DIGIT) > 0)
        signs = np.flatnonzero((table & _SIGN > 0) & (before & DIGIT > 0))
        alone[signs[(after[signs] & DIGIT > 0) | (codes[marks[signs] + 1] == ord("-"))]] = True
        cuts = [(marks[alone], marks[alone] + 1), self.ends.dots]
        twice = marks[(table & _HYPHEN > 0) & (before & LETTER > 0)]
        twice = twice[codes[twice + 1] == codes[twice]]
        for length in (2, 3):
            same = twice[(codes[twice + length - 1] == codes[twice]) & (kinds[twice + length] & LETTER > 0)]
            cuts.append((same, same + length))
        start, stop = (np.concatenate(places) for places in zip(*cuts, strict=True))
        piece = np.searchsorted(first, start, side="right") - 1
        inside = (piece >= 0) & (start > first[piece]) & (stop < last[piece]) & ~whole[piece]
        start, stop, piece = start[inside], stop[inside], piece[inside]
        domains = marks[(table == _DOT) & (after & LOWER > 0)]
        domains = domains[kinds[domains + 2] & LOWER > 0]
        is_cut, stays = np.zeros(len(first) + 1, bool), np.zeros(len(first) + 1, bool)
        is_cut[piece] = True
        stays[np.searchsorted(first, domains, side="right") - 1] = True
        maybe = np.flatnonzero(is_cut[:-1] & stays[:-1])
        stays[:] = False
        stays[maybe] = links(codes, kinds, first[maybe], last[maybe])
        cut = ~stays[piece]
        return np.concatenate([start[cut], stop[cut]])

    def _joined(self, words: Places, start: Places, stop: Places) -> tuple[Places, Places]:
        """Words that begin at `words`; several in a row that make up one fixed string (`:` and `)`) are one.

        Of such rows that overlap one another only the longest, or the first of the longest, counts, as in spaCy.
        """
        begins_piece = np.zeros(len(self.codes), bool)
        begins_piece[start] = True
        ends_piece = np.append(begins_piece[words[1:]], True)
        stops = np.append(words[1:], 0)
        stops[ends_piece] = stop
        taken, gone = np.zeros(len(words), bool), np.zeros(len(words), bool)
        cut = words[:0]
        for count, rows, cuts in self._fixed_rows(words, stops, ends_piece):
            first = ~(taken[rows] | taken[rows + count - 1]) & (np.diff(rows, prepend=-count) >= count)
            for step in range(count):
                taken[rows + step] = True
            first &= np.count_nonzero(cuts, axis=1) + 1 != count  # otherwise they are cut as they should be
            rows, cuts = rows[first], cuts[first]
            stops[rows] = stops[rows + count - 1]
            for step in range(1, count):
                gone[rows + step] = True
            cut = np.append(cut, (words[rows, None] + cuts)[cuts > 0])
        words, stops, cut = words[~gone], stops[~gone], np.sort(cut)
        at = np.searchsorted(words, cut)
        words, stops = np.insert(words, at, cut), np.insert(stops, at, stops[at - 1])
        return words, np.minimum(stops, np.append(words[1:], len(self.codes)))

    def _fixed_rows(self, words: Places, stops: Places, ends_piece: Bools) -> list[tuple[int, Places, Places]]:
        """[(how many words in a row, where such rows begin, how it is cut)] that are one fixed string, longest
        first."""
        found = []
        rows = np.flatnonzero(~ends_piece)
        for count in range(2, _MOST_JOINED + 1):
            rows = rows[stops[rows + count - 1] - words[rows] <= fixed_words.LONGEST]
            fixed, cuts = fixed_words.find(self.rolling.hashes(words[rows], stops[rows + count - 1]))
            ends = stops[rows[fixed] + count - 1]
            joined = (cuts.max(1, initial=0) == 0) | (self.codes[ends - 1] == ord("."))  # not `i` and `d`
            found.append((count, rows[fixed[joined]], cuts[joined]))
            rows = rows[~ends_piece[rows + count - 1]]
        return found[::-1]
