"""Words and runs of them, against plain Python."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import ngrams as module
from data_pipeline.ngrams import ngram_hashes, ngrams, word_hashes

# Letters with case and accents, other scripts, digits, underscores, punctuation of each kind, white space.
TEXT = st.text(alphabet="aAbBéÉдДß_09 \n\t.,-'\u2014\u3002\uff0c\u65e5\u672c\u306e\u0e01\ud55c\U0001f600", max_size=60)
WORD = re.compile(r"[\u3041-\u9fff]|[a-zA-Z0-9_éÉдДß\u0e01\ud55c\U0001f600]+")


def split(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that any text crosses."""
    monkeypatch.setattr(module, "_SLICE", 64)


@pytest.mark.usefixtures("short_slices")
@settings(deadline=None)
@given(st.lists(TEXT, max_size=5), st.integers(1, 4))
def test_ngrams_are_equal_where_words_are(texts: list[str], n: int) -> None:
    """One hash per window of words, inside a text only; equal hashes exactly for equal words."""
    expected = [
        (tuple(found[i : i + n]), owner)
        for owner, text in enumerate(texts)
        for found in [split(text)]
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


@pytest.mark.usefixtures("short_slices")
@settings(deadline=None)
@given(st.lists(TEXT, max_size=8), st.integers(1, 5))
def test_a_short_text_is_one_ngram_if_that_is_asked_for(texts: list[str], n: int) -> None:
    """As many as without it, but one for a text of 1 to n - 1 words, the same for the same words."""
    plain = ngram_hashes(texts, n)
    lots = list(ngrams(texts, n, short=True))
    hashes = np.concatenate([np.empty(0, np.uint64), *(lot.hashes for lot in lots)])
    owners = np.concatenate([np.empty(0, np.int64), *(lot.owners() for lot in lots)])
    assert owners.tolist() == sorted(owners.tolist())
    few = [0 < len(split(text)) < n for text in texts]
    of_few = np.array(few, bool)[owners]
    assert np.array_equal(hashes[~of_few], plain[0])
    assert np.array_equal(owners[~of_few], plain[1])
    assert owners[of_few].tolist() == np.flatnonzero(few).tolist()
    short = [tuple(split(text)) for text, is_few in zip(texts, few, strict=True) if is_few]
    assert len(set(zip(short, hashes[of_few].tolist(), strict=True))) == len(set(short)) == len(set(hashes[of_few]))


@pytest.mark.usefixtures("short_slices")
@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab \n,\u65e5", max_size=40).map(lambda text: text * 8), min_size=1, max_size=4))
def test_words_longer_than_a_slice_do_not_depend_on_company(texts: list[str]) -> None:
    together = list(ngrams(texts, 2, short=True))
    hashes = np.concatenate([np.empty(0, np.uint64), *(lot.hashes for lot in together)])
    alone = [lot.hashes for text in texts for lot in ngrams([text], 2, short=True)]
    assert np.array_equal(hashes, np.concatenate([np.empty(0, np.uint64), *alone]))


def test_ngrams_of_a_long_text_take_a_slice_of_memory() -> None:
    text = "a b c d " * (1 << 19)
    list(ngrams(["a b"], 5, short=True))  # tables that stay
    tracemalloc.start()
    count = sum(len(lot.hashes) for lot in ngrams([text], 5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == (4 << 19) - 4
    assert peak < 20 << 20, "all n-grams at once are 16 MB, with their owners 32"


def words_of(text: str) -> tuple[list[int], list[int]]:
    """(hashes, positions) of the words of a text that is one slice."""
    ((hashes, starts, _),) = word_hashes(text)
    return hashes.tolist(), starts.tolist()


@settings(deadline=None)
@given(TEXT.filter(bool))
def test_words_are_where_they_are(text: str) -> None:
    """At their first character, whatever the bytes of those before."""
    hashes, starts = words_of(text)
    assert starts == [match.start() for match in WORD.finditer(text)]
    assert len(set(hashes)) == len(set(split(text)))


@pytest.mark.parametrize("filler", ["", "\u65e5"], ids=["ascii", "wide"])
def test_letters_digits_and_their_case(filler: str) -> None:
    """Of every character below Hebrew: what python calls alphanumeric joins, and upper case is lower case."""
    for character in map(chr, range(0x590)):
        found, _ = words_of(f"{filler} x{character}x")
        joins = character.isalnum() or character == "_"
        assert len(found) == len(filler) + 2 - joins, repr(character)
        lower = character.lower()
        if joins and len(lower) == 1 and len(lower.encode()) == len(character.encode()):
            assert found == words_of(f"{filler} X{lower}X")[0], repr(character)


def test_long_words_are_told_apart_by_every_character() -> None:
    word = "".join(chr(97 + i * i % 26) for i in range(140))
    many = [word[:size] for size in range(1, 140)] + [word[:i] + "0" + word[i + 1 :] for i in range(140)]
    hashes, _ = words_of(" ".join(many))
    assert len(set(hashes)) == len(set(many)) == 279
    assert hashes == [words_of(f"{' ' * place}{other.upper()} ")[0][0] for place, other in enumerate(many)]
