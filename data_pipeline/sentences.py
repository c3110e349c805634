"""How many sentences a document has, by its marks: as spaCy's `sentencizer` counts, on our words.

A sentence begins with a line, and with the first word, other than punctuation, behind a mark that ends sentences.
Abbreviations whose full stop belongs to the word (`e.g.`, `Mr.`) end none.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.characters import TERMINAL, UNMARKED
from data_pipeline.columns import Columns, Counts


def sentences(columns: Columns) -> Counts:
    """[documents]: sentences; a line feed ends one."""
    words, lines = columns.words, columns.lines
    final = (words.lengths == 1) & np.isin(columns.codes[words.start], TERMINAL)
    proper = np.flatnonzero(~final & (words.kinds & UNMARKED > 0))
    ended = np.append(0, np.cumsum(final))  # marks before each word
    first = np.searchsorted(words.start, lines.start)  # word of each line, or of a later one where there is none
    line = np.searchsorted(lines.start, words.start[proper], side="right") - 1
    since = np.maximum(ended[first[line]], ended[np.append(0, proper[:-1] + 1)] if len(proper) else 0)
    begins = np.zeros(len(words.start), bool)
    begins[proper] = ended[proper] > since
    solid = np.append(first[1:], len(words.start)) > first
    return words.sums(begins) + lines.sums(solid)
