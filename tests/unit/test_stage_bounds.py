"""Pipeline stages: every layer in one, none empty, and no other cut has a cheaper dearest stage."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from fmscale.training.engine_pipe import stage_bounds


def _dearest(costs: list[int], bounds: list[int]) -> int:
    return max(sum(costs[a:b]) for a, b in pairwise(bounds))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.data())
def test_no_cut_is_better(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    bounds = stage_bounds(costs, stages)
    assert bounds[0] == 0
    assert bounds[-1] == len(costs)
    assert len(bounds) == stages + 1
    assert all(a < b for a, b in pairwise(bounds)), "a stage without a layer"
    others = ([0, *inner, len(costs)] for inner in combinations(range(1, len(costs)), stages - 1))
    assert _dearest(costs, bounds) == min(_dearest(costs, other) for other in others)


def test_a_large_vocabulary_leaves_no_stage_empty() -> None:
    """Embedding, four blocks, norm and a head a hundred times a block, on four stages."""
    assert len(set(stage_bounds([0, 1, 1, 1, 1, 0, 100], 4))) == 5
