"""Gopher's and FineWeb's rules: their verdicts and values are those of plain Python, and do not hang on the batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.columns import Columns
from data_pipeline.registry import STEPS, entries
from data_pipeline.rule import Rule, Verdicts
from data_pipeline.steps.fineweb_quality import fineweb_quality
from data_pipeline.steps.gopher_quality import gopher_quality
from data_pipeline.steps.gopher_repetition import gopher_repetition
from tests import rule_oracles
from tests.rule_oracles import Finding

LINES = [
    "the cat and the dog", "the cat and the dog.", "We have that with 12 items!", "- be it", "• of", "wait...",
    "and so…", "  indented line", "trailing space. ", "# # heading #", "12 34 5.6", "...", "", "   ", "of to be that",
    "a" * 40 + ".",
]  # fmt: skip
documents = st.lists(st.sampled_from(LINES), max_size=30).flatmap(
    lambda lines: st.sampled_from(["\n", "\n\n", "\n", "\r\n"]).map(lambda end: end.join(lines))
)
batches = st.lists(documents, min_size=1, max_size=5)
share = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.8, 1.0, 9.0])


def words_of(columns: Columns) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(len(columns))]
    words = columns.words
    for document, start, stop in zip(words.document.tolist(), words.start.tolist(), words.stop.tolist(), strict=True):
        found[document].append("".join(map(chr, columns.codes[start:stop])))
    return found


def findings(verdicts: Verdicts) -> list[Finding]:
    return [
        (verdicts.reasons[place], value) if place >= 0 else None
        for place, value in zip(verdicts.first.tolist(), verdicts.found.tolist(), strict=True)
    ]


def agree(rule: Rule, oracle: Any, batch: list[str]) -> None:
    columns = Columns(batch)
    expected = [oracle(text, words) for text, words in zip(batch, words_of(columns), strict=True)]
    assert findings(rule(Columns(batch))) == expected
    assert [findings(rule(Columns([text])))[0] for text in batch] == expected  # alone as in a batch


@settings(max_examples=60)
@given(
    batches, st.integers(0, 20), st.integers(5, 60), st.integers(0, 5), st.integers(3, 10), st.integers(0, 3), st.data()
)
def test_gopher_quality(
    batch: list[str], fewest: int, most: int, short: int, long: int, stops: int, data: st.DataObject
) -> None:
    limits: dict[str, Any] = {"min_doc_words": fewest, "max_doc_words": most, "min_stop_words": stops}
    limits |= {"min_avg_word_length": float(short), "max_avg_word_length": float(long)}
    for name in ("symbol_word", "bullet_lines", "ellipsis_lines", "non_alpha_words"):
        limits[f"max_{name}_ratio"] = data.draw(share)
    agree(
        lambda columns: gopher_quality(columns, **limits),
        lambda text, words: rule_oracles.gopher_quality(text, words, **limits),
        batch,
    )


@settings(max_examples=60)
@given(batches, st.data())
def test_gopher_repetition(batch: list[str], data: st.DataObject) -> None:
    limits = {name: data.draw(share) for name in ("dup_line_frac", "dup_para_frac")}
    limits |= {name: data.draw(share) for name in ("dup_line_char_frac", "dup_para_char_frac")}
    top = [(n, data.draw(share)) for n in data.draw(st.lists(st.integers(1, 4), max_size=3))]
    duplicated = [(n, data.draw(share)) for n in data.draw(st.lists(st.integers(1, 7), max_size=4))]
    agree(
        lambda columns: gopher_repetition(columns, **limits, top_n_grams=top, dup_n_grams=duplicated),
        lambda text, words: rule_oracles.gopher_repetition(text, words, top, duplicated, **limits),
        batch,
    )


@settings(max_examples=60)
@given(batches, st.booleans(), st.integers(0, 30), share, share, share, share)
def test_fineweb_quality(
    batch: list[str], exclude_zero: bool, length: int, ends: float, short: float, twice: float, feeds: float
) -> None:
    limits: dict[str, Any] = {"line_punct_thr": ends, "short_line_thr": short, "short_line_length": length}
    limits |= {"char_duplicates_ratio": twice, "new_line_ratio": feeds}
    agree(
        lambda columns: fineweb_quality(columns, line_punct_exclude_zero=exclude_zero, **limits),
        lambda text, words: rule_oracles.fineweb_quality(text, words, exclude_zero, **limits),
        batch,
    )


WORDS = ["stone", "river", "quiet", "garden", "window", "silver", "mountain", "letter", "orange", "summer", "winter"]


def prose(number: int, seed: int = 0) -> list[str]:
    """Words of which no five in a row repeat, and stop words."""
    draw = random.Random(seed)
    return ["the", "of", *(f"{draw.choice(WORDS)}{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(number - 2))]


def one(rule: Rule, text: str) -> str:
    verdicts = rule(Columns([text]))
    return verdicts.reasons[verdicts.first[0]] if verdicts.first[0] >= 0 else ""


def lines(*parts: list[str]) -> str:
    return "\n".join(" ".join(part) for part in parts)


def spaced(*paragraphs: str) -> str:
    return "\n\n".join(paragraphs)


P = prose(200)
ONES = [[word] for word in P]
BLOCKS = [P, P[2:12], ["xa"], P[50:60], ["ya"], P[80:90]]
STOPPED = [[*P[:9], f"{i}."] for i in range(3)]
OPEN = [[*P[:9], str(i)] for i in range(22)]
LONG = [[*P, f"{i}."] for i in range(10)]
SHORT = [[f"{i} a b c d e f."] for i in range(21)]
# Just inside each limit of the papers' and just outside: (rule, reason, inside, outside).
EDGES = [
    (gopher_quality, "short_doc", lines(P[:50]), lines(P[:49])),
    (gopher_quality, "long_doc", lines(P * 500), lines([*P * 500, "one"])),
    (gopher_quality, "below_avg", "and the " + "a bcdef " * 40, "and the " + "a bcde " * 40),
    (gopher_quality, "above_avg", f"of the {'y' * 15}{' xxxxxxxxxx' * 90}", f"of the {'y' * 26}{' xxxxxxxxxx' * 90}"),
    (gopher_quality, "too_many_hashes", lines(P[:90], ["#"] * 10), lines(P[:90], ["#"] * 11)),
    (gopher_quality, "too_many_ellipsis", lines(P[:90], ["..."] * 10), lines(P[:89], ["…"] * 10)),
    (gopher_quality, "too_many_bullets", lines(P, *[["-", "x"]] * 9), lines(P, *[["•", "x"]] * 10)),
    (gopher_quality, "too_many_end_ellipsis", lines(*[P[:50]] * 7, *[["a..."]] * 3), lines(*[P] * 6, *[["a… "]] * 3)),
    (gopher_quality, "below_alpha", lines(P[:80], ["12"] * 20), lines(P[:79], ["12"] * 20)),
    (gopher_quality, "few_stop_words", lines(P[:100]), lines(["The", "of", *P[2:100]])),
    (gopher_repetition, "dup_line_frac", lines(*ONES[:69], *[["x"]] * 31), lines(*ONES[:68], *[["x"]] * 32)),
    (gopher_repetition, "dup_line_char_frac", lines(*ONES, *[P[:52]] * 2), lines(*ONES, *[P[:72]] * 2)),
    (gopher_repetition, "dup_para_frac", spaced(*P[:69], *["x"] * 31), spaced(*P[:68], *["x"] * 32)),
    (gopher_repetition, "dup_para_char_frac", spaced(*P, *[lines(P[:50])] * 2), spaced(*P, *[lines(P[:90])] * 2)),
    (gopher_repetition, "top_2_gram", lines(P, ["aaaa bbbb"] * 5), lines(P, *[["aaaa bbbb", w] for w in P[:70]])),
    (gopher_repetition, "top_3_gram", lines(P), lines(P, *[["aa b cc", w] for w in P[:90]])),
    (gopher_repetition, "duplicated_5_n_grams", lines(P, P[2:30]), lines(P, P[2:60])),
    (gopher_repetition, "duplicated_10_n_grams", lines(*BLOCKS[:-1]), lines(*BLOCKS)),
    (fineweb_quality, "empty", "word.", " \n\t"),
    (fineweb_quality, "line_punct_ratio", lines(*STOPPED, *OPEN), lines(*STOPPED[:2], *OPEN)),
    (fineweb_quality, "short_line_ratio", lines(*SHORT[:20], *LONG), lines(*SHORT, *LONG)),
    (fineweb_quality, "char_dup_ratio", lines([*P, "."], [*P[1:], "."]), lines([*P, "."], *[[*P[:9], "a."]] * 2)),
    (fineweb_quality, "list_ratio", lines(*LONG), lines(*[["x" * 31 + f"{i}."] for i in range(9)])),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "reason", "inside", "outside"), EDGES, ids=[edge[1] for edge in EDGES])
def test_the_papers_limits_are_the_defaults(rule: Any, reason: str, inside: str, outside: str) -> None:
    assert one(rule, inside) != reason
    assert one(rule, outside) == reason


def test_the_rules_are_names_of_recipes() -> None:
    for name in ("gopher_quality", "gopher_repetition", "fineweb_quality"):
        assert entries([name])[0].is_rule
    assert not entries(["c4_quality"])[0].is_rule
    assert list(STEPS) == sorted(STEPS)
    defaults = dict(entries([{"gopher_repetition": {"dup_n_grams": [[5, 0.2]]}}])[0].parameters)
    assert defaults["dup_n_grams"] == [[5, 0.2]]
    assert findings(gopher_repetition(Columns(["a b c"]), **defaults)) == [("top_2_gram", 3 / 5)]


@pytest.mark.parametrize("rule", [gopher_quality, gopher_repetition, fineweb_quality])
def test_batches_without_words(rule: Rule) -> None:
    assert len(rule(Columns([])).first) == 0
    assert len(rule(Columns(["", " \n"])).first) == 2
    assert np.isfinite(rule(Columns(["", " \n"])).found).all()
