"""Gopher's quality rules: length, kinds of words, symbols, lines that are list items or break off (Rae et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipeline.characters import ALPHA, LEXICAL
from data_pipeline.columns import Columns, ratio
from data_pipeline.ranges import TEXTS, at_most, between, in_range, least
from data_pipeline.rolling import Known
from data_pipeline.rule import Verdicts, broken


def _enough_stop_words(given: Mapping[str, Any]) -> tuple[str, str] | None:
    there = len(set(given["stop_words"]))
    if given["min_stop_words"] <= there:
        return None
    return f"min_stop_words: no more than there are stop_words, {there}", f"min_stop_words: {given['min_stop_words']}"


@in_range(
    at_most("min_doc_words", "max_doc_words"),
    at_most("min_avg_word_length", "max_avg_word_length"),
    _enough_stop_words,
    min_doc_words=least(0),
    max_doc_words=least(1),
    min_avg_word_length=least(0),
    max_avg_word_length=least(1),
    max_symbol_word_ratio=least(0),
    max_bullet_lines_ratio=least(0),
    max_ellipsis_lines_ratio=least(0),
    max_non_alpha_words_ratio=between(0, 1),
    min_stop_words=least(0),
    stop_words=TEXTS,
)
def gopher_quality(
    columns: Columns,
    *,
    min_doc_words: int = 50,
    max_doc_words: int = 100_000,
    min_avg_word_length: float = 3.0,
    max_avg_word_length: float = 10.0,
    max_symbol_word_ratio: float = 0.1,
    max_bullet_lines_ratio: float = 0.9,
    max_ellipsis_lines_ratio: float = 0.3,
    max_non_alpha_words_ratio: float = 0.8,
    min_stop_words: int = 2,
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with"),
) -> Verdicts:
    """Rae et al. 2021 (arXiv:2112.11446), appendix A.1.1, "Quality filtering".

    Length and mean length count words that are not mere punctuation; shares are of all words. min_stop_words:
    different ones of `stop_words`, as they are written. max_non_alpha_words_ratio: the least share of words with a
    letter (datatrove's name for it). Lines as str.splitlines has them; bullets are `•` and `-`.
    """
    words, lines = columns.words, columns.broken_lines
    count = words.counts
    lexical = words.kinds & LEXICAL > 0
    proper = words.sums(lexical)
    mean = ratio(words.sums(words.lengths * lexical), proper)
    hashes = [text.count("#") for text in columns.judged]
    ellipses = [text.count("...") + text.count("…") for text in columns.judged]
    first, last = columns.pieces_in(lines)
    solid = np.flatnonzero(last > first)
    head, end = columns.codes[columns.pieces.start[first[solid]]], columns.pieces.stop[last[solid] - 1]
    bullet, broken_off = np.zeros(len(first), bool), np.zeros(len(first), bool)
    bullet[solid] = (head == ord("•")) | (head == ord("-"))
    dots = [columns.codes[np.maximum(end - back, 0)] == ord(".") for back in (1, 2, 3)]
    dots[-1] &= end - 3 >= lines.start[solid]
    broken_off[solid] = (columns.codes[end - 1] == ord("…")) | (dots[0] & dots[1] & dots[2])
    bullets, ends = (ratio(lines.sums(which), lines.counts) for which in (bullet, broken_off))
    alpha = ratio(words.sums(words.kinds & ALPHA > 0), count)
    where, which = Known(stop_words).find(columns.word_hashes)
    present = np.zeros((len(columns), len(stop_words)), bool)
    present[words.document[where], which] = True
    stops = present.sum(1)
    return broken(
        ("short_doc", proper < min_doc_words, proper),
        ("long_doc", proper > max_doc_words, proper),
        ("below_avg", (mean < min_avg_word_length) & (proper > 0), mean),
        ("above_avg", mean > max_avg_word_length, mean),
        ("too_many_hashes", ratio(hashes, count) > max_symbol_word_ratio, ratio(hashes, count)),
        ("too_many_ellipsis", ratio(ellipses, count) > max_symbol_word_ratio, ratio(ellipses, count)),
        ("too_many_bullets", bullets > max_bullet_lines_ratio, bullets),
        ("too_many_end_ellipsis", ends > max_ellipsis_lines_ratio, ends),
        ("below_alpha", (alpha < max_non_alpha_words_ratio) & (count > 0), alpha),
        ("few_stop_words", stops < min_stop_words, stops),
    )
