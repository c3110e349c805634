"""Exact de-duplication and sets of n-grams, against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import overlap
from data_pipeline.overlap import (
    NgramSet,
    unique_in_place,
    which_in,
)

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=40)


@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 30), max_size=40))
def test_look_ups_in_sorted_hashes_equal_numpys(members: list[int], hashes: list[int]) -> None:
    spread = np.uint64(2**64 // 31)
    some, sought = np.array(members, np.uint64) * spread, np.array(hashes, np.uint64) * spread
    unique = unique_in_place(some.copy())
    assert np.array_equal(unique, np.unique(some))
    assert np.array_equal(which_in(sought, unique), np.isin(sought, some))


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that any set crosses."""
    monkeypatch.setattr(overlap, "_SLICE", 64)


@pytest.mark.usefixtures("short_slices")
@given(st.sets(st.integers(0, 2**64 - 1), max_size=150), st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_a_set_meets_exactly_its_members(members: set[int], strangers: list[int]) -> None:
    table = np.array(sorted(members), np.uint64)
    ngrams = NgramSet(table)
    half = [value for i, value in enumerate(sorted(members)) if i % 2]
    ngrams.meet(np.array(strangers, np.uint64))
    ngrams.meet(np.array(half, np.uint64))
    assert table[ngrams.met].tolist() == sorted(members & {*strangers, *half})
