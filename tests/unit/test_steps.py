"""Which rows a step trains: a loop that counts is the reference for what is computed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.config import BatchConfig, Config, DataConfig, SeqLenConfig, TrainConfig
from fmscale.corpus.steps import Step, StepPlan, row_of, step_plan


def counted(plan: StepPlan, steps: int) -> list[Step]:
    """Step by step, each by what holds at its first row."""
    found, row = [], 0
    for number in range(1, steps + 1):
        rows, seq_len = (
            [value for start, value in schedule if start <= row][-1] for schedule in (plan.batches, plan.lengths)
        )
        found.append(Step(number, row, rows, seq_len))
        row += rows
    return found


def schedule(values: list[int]) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    later = st.lists(st.tuples(st.integers(1, 120), st.sampled_from(values)), max_size=5, unique_by=lambda e: e[0])
    return st.tuples(st.sampled_from(values), later).map(lambda pair: ((0, pair[0]), *sorted(pair[1])))


plans = st.builds(StepPlan, schedule([1, 2, 3, 8, 13]), schedule([16, 32, 64]))


@given(plans)
def test_steps_are_those_that_counting_finds(plan: StepPlan) -> None:
    expected = counted(plan, 60)
    assert [plan.step(number) for number in range(1, 61)] == expected
    for step in expected:
        assert plan.rows_after(step.number) == step.first_row + step.rows
        assert plan.step_from(step.first_row) == step
        for row in range(step.first_row, step.first_row + step.rows):
            assert plan.step_with(row) == step
            assert plan.edge(row) == (row if row == step.first_row else step.first_row + step.rows)


@given(plans)
def test_the_changes_that_are_told_are_those_that_counting_finds(plan: StepPlan) -> None:
    pairs = list(pairwise(counted(plan, 500)))  # entries are of rows up to 120
    batches = [("global batch", new.number, new.rows) for old, new in pairs if new.rows != old.rows]
    lengths = [("sequence length", new.number, new.seq_len) for old, new in pairs if new.seq_len != old.seq_len]
    assert plan.describe() == batches + lengths


def test_a_row_inside_a_step_begins_none() -> None:
    with pytest.raises(AssertionError, match="row 9 is inside step 2"):
        StepPlan.constant(8, 64).step_from(9)


def test_a_far_step_costs_no_more() -> None:
    plan = StepPlan(((0, 8), (10**9, 16)), ((0, 64),))
    assert plan.step(10**12).first_row == 10**9 + (10**12 - 1 - 10**9 // 8) * 16


def test_schedules_of_the_settings_go_by_tokens() -> None:
    config = Config(
        data=DataConfig(
            seq_len=64, seq_len_schedule=[SeqLenConfig(seq_len=16), SeqLenConfig(from_tokens=1000, seq_len=64)]
        ),
        train=TrainConfig(global_batch=4, batch_ramp=[BatchConfig(from_tokens=700, global_batch=8)]),
    )
    plan = step_plan(config)
    assert plan.batches == ((0, 4), (11, 8)), "token 700 is in row 10: row 11 is the first to begin behind it"
    assert plan.lengths == ((0, 16), (16, 64))
    assert [tuple(plan.step(n)) for n in range(1, 6)] == [
        (1, 0, 4, 16),
        (2, 4, 4, 16),
        (3, 8, 4, 16),
        (4, 12, 8, 16),
        (5, 20, 8, 64),
    ]
    assert plan.describe() == [("global batch", 4, 8), ("sequence length", 5, 64)]
    assert step_plan(
        replace(config, data=DataConfig(seq_len=64), train=TrainConfig(global_batch=4))
    ) == StepPlan.constant(4, 64)


def test_tokens_beyond_what_a_float_counts_are_counted() -> None:
    assert row_of(128.0, 64) == 2
    assert row_of(129.0, 64) == 3
    assert row_of(float(2**60), 64) == 2**54
