"""What a budget of damaged chunks allows, and that the one which an error advises is enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.corpus.quarantine import allowed_by, budget_for


@given(st.integers(1, 20_000).flatmap(lambda chunks: st.tuples(st.integers(1, chunks), st.just(chunks))))
def test_the_budget_that_is_advised_is_enough_as_it_is_shown(case: tuple[int, int]) -> None:
    bad, chunks = case
    assert allowed_by(float(f"{budget_for(bad, chunks):g}"), chunks) >= bad


@pytest.mark.parametrize(
    ("budget", "chunks", "allowed"), [(0.29, 100, 29), (0.0006, 5000, 3), (0.01, 99, 0), (0.0, 9, 0), (1.0, 9, 9)]
)
def test_a_share_allows_the_chunks_that_it_is_of(budget: float, chunks: int, allowed: int) -> None:
    assert allowed_by(budget, chunks) == allowed
