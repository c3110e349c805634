"""Gopher's repetition rules: lines, paragraphs and n-grams that a document says again (Rae et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.columns import Columns, Counts, Pieces, ratio
from data_pipeline.ranges import in_range, least, pairs
from data_pipeline.repeats import (
    NGrams,
    at_most_repeated,
    most_repeated,
    ngrams,
    repeated,
    repeated_characters,
)
from data_pipeline.rule import Verdicts, broken


@in_range(
    dup_line_frac=least(0),
    dup_para_frac=least(0),
    dup_line_char_frac=least(0),
    dup_para_char_frac=least(0),
    top_n_grams=pairs(least(0)),
    dup_n_grams=pairs(least(0)),
)
def gopher_repetition(
    columns: Columns,
    *,
    dup_line_frac: float = 0.3,
    dup_para_frac: float = 0.3,
    dup_line_char_frac: float = 0.2,
    dup_para_char_frac: float = 0.2,
    top_n_grams: Sequence[tuple[int, float]] = ((2, 0.2), (3, 0.18), (4, 0.16)),
    dup_n_grams: Sequence[tuple[int, float]] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)),
) -> Verdicts:
    """Rae et al. 2021 (arXiv:2112.11446), appendix A.1.1, table A1; order and reading of the terms as in datatrove.

    Shares of lines and paragraphs that stood before in the document, and of its characters in them; `top_n_grams`
    [(n, limit)]: of characters in the most frequent n-gram, as often as it stands, spaces between words counted;
    `dup_n_grams`: of characters in n-grams read before, spaces not counted. A limit no share can pass (99) is none.
    """
    limits = _lines_and_paragraphs(columns, dup_line_frac, dup_para_frac, dup_line_char_frac, dup_para_char_frac)
    passed = ~np.any([over for _, over, _ in limits], axis=0)
    return broken(*limits, *_n_grams(columns, passed, top_n_grams, dup_n_grams))


Limit = tuple[str, npt.NDArray[np.bool_], npt.NDArray[np.float64]]


def _lines_and_paragraphs(
    columns: Columns, line: float, paragraph: float, line_characters: float, paragraph_characters: float
) -> list[Limit]:
    """Repeated ones over all; characters in repeated ones over all characters."""
    paragraphs, lines = columns.paragraphs, columns.lines
    again = repeated(columns.rolling.hashes(paragraphs.start, paragraphs.stop), paragraphs.document)
    start, stop = columns.bounds
    # A text that begins or ends with a line feed has an empty line there; a second empty one repeats the first.
    begins = (columns.lengths > 0) & (columns.codes[start] == ord("\n"))
    ends = (columns.lengths > 0) & (columns.codes[np.maximum(stop - 1, start)] == ord("\n"))
    shares = (
        ("dup_para_frac", paragraph, paragraphs.sums(again), paragraphs.counts),
        ("dup_para_char_frac", paragraph_characters, paragraphs.sums(again * paragraphs.lengths), columns.lengths),
        ("dup_line_frac", line, lines.sums(columns.line_repeats) + (begins & ends), lines.counts + begins + ends),
        ("dup_line_char_frac", line_characters, lines.sums(columns.line_repeats * lines.lengths), columns.lengths),
    )
    found = [(name, limit, ratio(part, whole)) for name, limit, part, whole in shares]
    return [(name, share > limit, share) for name, limit, share in found]


def _n_grams(
    columns: Columns,
    passed: npt.NDArray[np.bool_],
    top: Sequence[tuple[int, float]],
    duplicated: Sequence[tuple[int, float]],
) -> Iterator[Limit]:
    """Of the documents that have passed so far; what is said of the others is of no account."""
    words, passed = columns.words, passed.copy()
    document, documents = words.document, len(columns)
    before = np.append(0, np.cumsum(words.lengths))
    limits = [*((n, limit, True) for n, limit in top), *((n, limit, False) for n, limit in duplicated)]
    looked_at = passed.copy()
    grams = None
    for place, (n, limit, is_top) in enumerate(limits):
        if grams is None or n < grams.n:
            grams, looked_at = ngrams(n, columns.word_hashes, document), passed.copy()
        while grams.n < n:
            grams = grams.longer()
        grams = grams.only(looked_at[document[grams.row]])
        if is_top:
            characters = _top_characters(grams, words, before)
        else:
            characters = at_most_repeated(grams, before, document, documents)
            share = ratio(characters, columns.lengths)
            # With n the share falls: a document that is below all limits to come need not be looked at again.
            looked_at &= share > min(later for _, later, _ in limits[place:])
            near = looked_at & (share > limit)
            exactly = repeated_characters(grams.only(near[document[grams.row]]), before, document, documents)
            characters = np.where(near, exactly, characters)
        share = ratio(characters, columns.lengths)
        over = passed & (share > limit)
        yield f"top_{n}_gram" if is_top else f"duplicated_{n}_n_grams", over, share
        passed &= ~over
        looked_at &= ~over


def _top_characters(grams: NGrams, words: Pieces, before: Counts) -> Counts:
    """[documents]: characters of the most frequent n-gram, with spaces between its words, as often as it stands."""
    where, times = most_repeated(grams, words.document, len(words.counts))
    where = np.where(where < 0, words.first[:-1], where)
    some = words.counts >= grams.n
    characters = np.zeros(len(where), np.int64)
    characters[some] = (before[where[some] + grams.n] - before[where[some]] + grams.n - 1) * times[some]
    return characters
