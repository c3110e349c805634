"""MinHash keys: found as the theory says and as datasketch finds, whatever stands beside a document."""

from __future__ import annotations

import tracemalloc
from functools import cache

import datasketch
import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import minhash, ngrams
from data_pipeline.minhash import NO_KEY, curve, signatures

PAIRS, WORDS, NEAR = 6000, 120, 0.75
TO_COMPARE = 3000
"""Pairs given to datasketch too, which takes its time."""
Shingles = set[tuple[int, ...]]


@cache
def near_duplicates() -> tuple[list[list[int]], list[list[int]]]:
    """Documents of random words, and each again with up to 10 words replaced, put in, or taken out."""
    rng = np.random.default_rng(5)
    some, others = rng.integers(0, 10**6, (PAIRS, WORDS)).tolist(), []
    for document in some:
        other = list(document)
        for _ in range(int(rng.integers(0, 11))):
            at, kind = int(rng.integers(len(other))), int(rng.integers(3))
            other[at : at + (kind != 1)] = [int(rng.integers(10**6))] * (kind != 2)
        others.append(other)
    return some, others


def shingles(document: list[int]) -> Shingles:
    return set(zip(*(document[k:] for k in range(5)), strict=False))


@cache
def jaccard() -> npt.NDArray[np.float64]:
    """[pairs]: exact."""
    sets = [(shingles(a), shingles(b)) for a, b in zip(*near_duplicates(), strict=True)]
    return np.array([len(a & b) / len(a | b) for a, b in sets])


@cache
def found_by_us() -> npt.NDArray[np.bool_]:
    keys = [signatures([" ".join(map(str, document)) for document in side]) for side in near_duplicates()]
    return (keys[0] == keys[1]).any(1)


def found_by_datasketch() -> npt.NDArray[np.bool_]:
    index = datasketch.MinHashLSH(num_perm=112, params=(14, 8))
    some, others = ([sketch(document) for document in side[:TO_COMPARE]] for side in near_duplicates())
    for number, one in enumerate(some):
        index.insert(number, one)
    return np.array([number in index.query(one) for number, one in enumerate(others)])


def sketch(document: list[int]) -> datasketch.MinHash:
    made = datasketch.MinHash(num_perm=112, hashfunc=xxhash.xxh32_intdigest)
    made.update_batch([str(shingle).encode() for shingle in shingles(document)])
    return made


def quality(found: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(recall, precision) of pairs at least so similar as NEAR; `found` may be probabilities."""
    near = jaccard()[: len(found)] >= NEAR
    return float(found[near].sum() / near.sum()), float(found[near].sum() / found.sum())


def test_pairs_are_found_as_often_as_the_curve_says() -> None:
    expected = curve(jaccard())
    for low, high in ((0.5, 0.65), (0.65, 0.75), (0.75, 0.85), (0.85, 1.1)):
        level = (jaccard() >= low) & (jaccard() < high)
        deviation = np.sqrt((expected[level] * (1 - expected[level])).sum())
        assert deviation < 0.016 * level.sum()
        assert abs(found_by_us()[level].sum() - expected[level].sum()) < 3 * deviation, (low, high)
    assert quality(found_by_us()) == pytest.approx(quality(expected), abs=0.02)


def test_recall_and_precision_are_those_of_datasketch() -> None:
    assert quality(found_by_us()[:TO_COMPARE]) == pytest.approx(quality(found_by_datasketch()), abs=0.02)


def test_strangers_have_no_key_in_common() -> None:
    keys = signatures([" ".join(map(str, document)) for document in near_duplicates()[0]])
    assert all(len(np.unique(band)) == PAIRS for band in keys.T)
    assert len(np.unique(keys)) == keys.size, "nor in different bands"


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices and blocks that any text crosses."""
    monkeypatch.setattr(ngrams, "_SLICE", 64)
    monkeypatch.setattr(minhash, "_COLUMNS", 5)


@pytest.mark.usefixtures("short_slices")
@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="ab \n.日", max_size=150), max_size=6),
    st.sampled_from([(14, 8, 5), (3, 1, 1), (2, 5, 3)]),
)
def test_a_documents_keys_are_its_own(texts: list[str], shape: tuple[int, int, int]) -> None:
    bands, rows, ngram = shape
    together = signatures(texts, bands=bands, rows=rows, ngram=ngram)
    alone = [signatures([text], bands=bands, rows=rows, ngram=ngram) for text in texts]
    assert np.array_equal(together, np.concatenate([np.empty((0, bands), np.uint64), *alone]))
    for text, keys in zip(texts, together, strict=True):
        assert (keys == NO_KEY).all() if not text.strip(" \n.") else (keys != NO_KEY).all()


def test_short_documents_are_alike_if_their_words_are() -> None:
    texts = [
        "Good morning!",
        "good  morning",
        "good evening",
        "morning good",
        "good",
        "...",
        "",
        "good morning to you all",
    ]
    keys = signatures(texts)
    alike = [[bool((a == b).any()) for b in keys[:5]] for a in keys[:5]]
    assert alike == [[a == b or {a, b} == {0, 1} for b in range(5)] for a in range(5)]
    assert (keys[5:7] == NO_KEY).all()
    assert not (keys[7] == keys[:5]).any()


def test_minima_are_those_of_plain_python() -> None:
    """Of each hash function as the docstring has it, over all shingles."""
    text = "one two three four five six seven eight " * 2
    hashes = ngrams.ngram_hashes([text], 5)[0]
    (xors,), (factors,) = ([values[:, 0].tolist()] for values in minhash._functions(6))
    expected = [
        min(((int(shingle) >> 32 ^ xor) * factor) % 2**32 for shingle in hashes)
        for xor, factor in zip(xors, factors, strict=True)
    ]
    assert minhash.shingle_minima([text], 6, 5)[:, 0].tolist() == expected
    assert all(factor % 2 for factor in factors)


def test_a_long_document_takes_no_more_memory_than_a_slice() -> None:
    text = "a b c d " * (1 << 18)
    signatures(["a b"])
    tracemalloc.start()
    signatures([text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
