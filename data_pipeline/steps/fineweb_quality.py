"""FineWeb's own quality rules: lines without full stop, short lines, repeated lines, lists (Penedo et al. 2024)."""

from __future__ import annotations

import numpy as np

from data_pipeline.characters import TERMINAL
from data_pipeline.columns import Columns, ratio
from data_pipeline.ranges import CHARACTERS, between, in_range, least
from data_pipeline.rule import Verdicts, broken


@in_range(
    line_punct_thr=between(0, 1),
    stop_chars=CHARACTERS,
    short_line_thr=least(0),
    short_line_length=least(0),
    char_duplicates_ratio=least(0),
    new_line_ratio=least(0),
)
def fineweb_quality(
    columns: Columns,
    *,
    line_punct_thr: float = 0.12,
    line_punct_exclude_zero: bool = False,
    stop_chars: tuple[str, ...] = (),
    short_line_thr: float = 0.67,
    short_line_length: int = 30,
    char_duplicates_ratio: float = 0.01,
    new_line_ratio: float = 0.3,
) -> Verdicts:
    """Penedo et al. 2024 (arXiv:2406.17557), section 3.6; short_line_thr and new_line_ratio as in datatrove.

    Of lines that are not blank: the least share that ends in one of `stop_chars` (characters; none: all that end
    sentences in Unicode), and with `line_punct_exclude_zero` no such line at all is fine; the most that have up to
    `short_line_length` characters; the most characters, of all but line feeds, in lines that stood before. Last, line
    feeds over words.
    """
    lines = columns.lines
    stops = np.array(sorted(map(ord, stop_chars)), np.uint32) if stop_chars else TERMINAL
    first, last = columns.pieces_in(lines)
    solid = last > first
    number = lines.sums(solid)
    stopped = lines.sums(solid & np.isin(columns.codes[lines.stop - 1], stops))
    short = ratio(lines.sums(solid & (lines.lengths <= short_line_length)), number)
    twice = ratio(lines.sums((solid & columns.line_repeats) * lines.lengths), lines.sums(lines.lengths))
    feeds = ratio([text.count("\n") for text in columns.judged], columns.words.counts)
    ends = ratio(stopped, number)
    spared = line_punct_exclude_zero & (stopped == 0)
    return broken(
        ("empty", number == 0, 0),
        ("line_punct_ratio", (ends < line_punct_thr) & ~spared, ends),
        ("short_line_ratio", short > short_line_thr, short),
        ("char_dup_ratio", twice > char_duplicates_ratio, twice),
        ("list_ratio", feeds > new_line_ratio, feeds),
    )
