"""Code that people write and read: rules by the shapes of lines, as data sets of code apply them."""

from __future__ import annotations

import re

import numpy as np

from data_pipeline.columns import Columns
from data_pipeline.ranges import between, in_range, least
from data_pipeline.rule import Verdicts, broken

_GENERATED = re.compile(r"@generated|do not (?:edit|modify)|auto-?generated|generated (?:by|from|using)", re.IGNORECASE)
_HEAD = 1000
"""Characters in which a generated file says so."""


@in_range(max_mean_line=least(1), max_line=least(1), min_alphanumeric=between(0, 1))
def code_quality(
    columns: Columns,
    *,
    max_mean_line: float = 100.0,
    max_line: int = 1000,
    min_alphanumeric: float = 0.25,
    generated: bool = True,
) -> Verdicts:
    """Drops `code_quality/mean_line`, `long_line`, `few_letters`, `generated` (found: characters, or the share).

    max_mean_line, max_line: characters of a line on average, and of the longest (Chen et al. 2021, section 3.1).
    min_alphanumeric: share of letters and digits among all characters (Kocetkov et al. 2022, "The Stack", filters as
    StarCoder's, Li et al. 2023, section 4). generated: whether a file that says in its head that it was generated goes.
    """
    texts = columns.texts
    breaks = np.array([text.count("\n") for text in texts], np.int64)
    lines = breaks + np.array([not text.endswith("\n") for text in texts], bool)
    characters = np.array([len(text) for text in texts], np.int64)
    longest = np.array([max(map(len, text.split("\n")), default=0) for text in texts], np.int64)
    others = np.array([len(text) - len(_OTHERS.sub("", text)) for text in texts], np.int64)
    mean = (characters - breaks) / np.maximum(lines, 1)
    share = 1 - others / np.maximum(characters, 1)
    head = np.array([generated and _GENERATED.search(text, 0, _HEAD) is not None for text in texts], bool)
    return broken(
        ("mean_line", mean > max_mean_line, mean),
        ("long_line", longest > max_line, longest),
        ("few_letters", share < min_alphanumeric, share),
        ("generated", head, head),
    )


_OTHERS = re.compile(r"[\W_]+")
