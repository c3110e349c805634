"""Exact de-duplication and n-grams, against plain Python."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import dedup
from data_pipeline.dedup import (
    TEXT_HASH_DTYPE,
    NgramSet,
    first_of_each,
    ngram_hashes,
    shared_with,
    unique_in_place,
    which_in,
)

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=40)
# Letters with case and accents, other scripts, digits, underscores, punctuation of each kind, white space.
TEXT = st.text(alphabet="aAbBéÉдДß_09 \n\t.,-'\u2014\u3002\uff0c\u65e5\u672c\u306e\u0e01\ud55c\U0001f600", max_size=60)
WORD = re.compile(r"[\u3041-\u9fff]|[a-zA-Z0-9_éÉдДß\u0e01\ud55c\U0001f600]+")


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


@given(PAIRS)
def test_the_first_of_each_stays(rows: list[tuple[int, int, bool]]) -> None:
    hashes = np.array([(high, low) for high, low, _ in rows], TEXT_HASH_DTYPE)
    candidate = np.array([c for _, _, c in rows], bool)
    seen: set[tuple[int, int]] = set()
    expected = []
    for high, low, is_candidate in rows:
        expected.append(is_candidate and (high, low) not in seen)
        if is_candidate:
            seen.add((high, low))
    assert first_of_each(hashes, candidate).tolist() == expected


@given(PAIRS)
def test_shared_with(rows: list[tuple[int, int, bool]]) -> None:
    hashes = np.array([(high, low) for high, low, _ in rows], TEXT_HASH_DTYPE)
    mine = np.array([c for _, _, c in rows], bool)
    others = {(high, low) for high, low, c in rows if not c}
    assert shared_with(hashes, mine, ~mine).tolist() == [c and (high, low) in others for high, low, c in rows]


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slices that any text crosses."""
    monkeypatch.setattr(dedup, "_SLICE", 64)
    dedup._powers.cache_clear()
    yield
    dedup._powers.cache_clear()


@pytest.mark.usefixtures("short_slices")
@given(st.lists(TEXT, max_size=5), st.integers(1, 4))
def test_ngrams_are_equal_where_words_are(texts: list[str], n: int) -> None:
    """One hash per window of words, inside a text only; equal hashes exactly for equal words."""
    expected = [
        (tuple(found[i : i + n]), owner)
        for owner, text in enumerate(texts)
        for found in [words(text)]
        for i in range(len(found) - n + 1)
    ]
    hashes, owners = ngram_hashes(texts, n)
    assert owners.tolist() == [owner for _, owner in expected]
    assert (
        len(set(zip(hashes.tolist(), (gram for gram, _ in expected), strict=True)))
        == len({gram for gram, _ in expected})
        == len(set(hashes.tolist()))
    )


def test_ngrams_do_not_depend_on_company_or_layout() -> None:
    text = "The quick, brown (fox) jumps -- over the LAZY dog's back; and away it runs! Für immer: 日本の道."
    plain = "the quick brown fox jumps over the lazy dog s back and away it runs für immer 日 本 の 道"
    alone = ngram_hashes([text], 13)[0]
    assert len(alone) == 21 - 13 + 1
    assert np.array_equal(alone, ngram_hashes([plain], 13)[0])
    hashes, owners = ngram_hashes(["x " * 50, text, "y"], 13)
    assert np.array_equal(hashes[owners == 1], alone)
    assert not np.isin(ngram_hashes([" ".join(reversed(plain.split()))], 13)[0], alone).any(), "order of words matters"


@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 30), max_size=40))
def test_look_ups_in_sorted_hashes_equal_numpys(members: list[int], hashes: list[int]) -> None:
    spread = np.uint64(2**64 // 31)
    some, sought = np.array(members, np.uint64) * spread, np.array(hashes, np.uint64) * spread
    unique = unique_in_place(some.copy())
    assert np.array_equal(unique, np.unique(some))
    assert np.array_equal(which_in(sought, unique), np.isin(sought, some))


@pytest.mark.usefixtures("short_slices")
@given(st.sets(st.integers(0, 2**64 - 1), max_size=150), st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_a_set_meets_exactly_its_members(members: set[int], strangers: list[int]) -> None:
    table = np.array(sorted(members), np.uint64)
    ngrams = NgramSet(table)
    half = [value for i, value in enumerate(sorted(members)) if i % 2]
    ngrams.meet(np.array(strangers, np.uint64))
    ngrams.meet(np.array(half, np.uint64))
    assert table[ngrams.met].tolist() == sorted(members & {*strangers, *half})
