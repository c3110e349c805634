"""Repeated n-grams against counting them one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.repeats import at_most_repeated, most_repeated, ngrams, repeated, repeated_characters
from tests.rule_oracles import duplicated_n_grams

documents = st.lists(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), max_size=6) | st.lists(
    st.lists(st.sampled_from("ab"), max_size=60), max_size=3
)


def columns_of(many: list[list[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hash of each word, its document, characters of all words before each)."""
    words = [word for document in many for word in document]
    hashes = np.array([hash(word) & (2**64 - 1) for word in words], np.uint64)
    owner = np.repeat(np.arange(len(many)), [len(document) for document in many])
    return hashes, owner, np.append(0, np.cumsum([len(word) for word in words], dtype=np.int64))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=40))
def test_what_stood_before_in_the_same_document(pairs: list[tuple[int, int]]) -> None:
    found = repeated(np.array([b for _, b in pairs], np.uint64), np.array([a for a, _ in pairs], np.intp))
    assert found.tolist() == [pair in pairs[:place] for place, pair in enumerate(pairs)]


@given(documents, st.integers(1, 3), st.integers(0, 4))
def test_ngrams_that_repeat(many: list[list[str]], n: int, more: int) -> None:
    hashes, owner, _ = columns_of(many)
    grams = ngrams(n, hashes, owner)
    for _ in range(more):
        grams = grams.longer()
    n += more
    expected, start = {}, 0
    for words in many:
        texts = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        expected |= {start + at: start + texts.index(text) for at, text in enumerate(texts) if texts.count(text) > 1}
        start += len(words)
    assert grams.n == n
    assert dict(zip(grams.row.tolist(), grams.row[grams.first].tolist(), strict=True)) == expected


@given(documents, st.integers(1, 4))
def test_the_most_frequent_and_what_was_read_before(many: list[list[str]], n: int) -> None:
    hashes, owner, before = columns_of(many)
    grams = ngrams(n, hashes, owner)
    where, times = most_repeated(grams, owner, len(many))
    exactly = repeated_characters(grams, before, owner, len(many))
    at_most = at_most_repeated(grams, before, owner, len(many))
    start = 0
    for document, words in enumerate(many):
        counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
        if most := counts.most_common(1):
            (gram, count), place = most[0], where[document] - start
            assert times[document] == count
            assert where[document] == -1 if count == 1 else tuple(words[place : place + n]) == gram
        assert exactly[document] == duplicated_n_grams(words, n)
        assert at_most[document] >= exactly[document]
        start += len(words)


def test_a_text_that_says_one_thing_a_million_times() -> None:
    hashes = np.full(1_000_000, 7, np.uint64)
    before = np.arange(1_000_001)
    owner = np.zeros(1_000_000, np.intp)
    grams = ngrams(2, hashes, owner)
    while grams.n < 10:
        grams = grams.longer()
    assert most_repeated(grams, owner, 1)[1].tolist() == [999_991]
    assert repeated_characters(grams, before, owner, 1).tolist() == [999_990]
