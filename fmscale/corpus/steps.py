"""Which rows each step trains, and at what sequence length: arithmetic on two short schedules.

    plan = step_plan(config)
    plan.step(1000)            # Step(number=1000, first_row=..., rows=..., seq_len=...)
    plan.step_from(first_row)  # the step that begins there
    plan.rows_after(1000)      # rows that the first 1000 steps train

A batch is counted in rows of U tokens, so its tokens do not depend on the sequence length: a step of length L cuts each
row into U / L sequences. A schedule's entry holds from the first step that begins at its row or later. Any step is
found in the time of a binary search, whatever its number.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fmscale.config import Config


class Step(NamedTuple):
    number: int
    """1, 2, 3 ..."""
    first_row: int
    rows: int
    """Rows of the global batch."""
    seq_len: int
    """L: tokens of a sequence."""


class _Stretch(NamedTuple):
    """Steps with batches of one size."""

    before: int
    """Steps before its first one."""
    first_row: int
    rows: int


@dataclass(frozen=True)
class StepPlan:
    batches: tuple[tuple[int, int], ...]
    """(from row, rows of a global batch), the first from row 0, rising."""
    lengths: tuple[tuple[int, int], ...]
    """(from row, tokens of a sequence), likewise."""

    def __post_init__(self) -> None:
        for schedule in (self.batches, self.lengths):
            rows = [row for row, _ in schedule]
            assert rows[0] == 0, f"a schedule begins at row {rows[0]}"
            assert rows == sorted(set(rows)), f"entries of a schedule do not rise: {rows}"

    @staticmethod
    def constant(rows: int, seq_len: int) -> StepPlan:
        return StepPlan(batches=((0, rows),), lengths=((0, seq_len),))

    def step(self, number: int) -> Step:
        """Step `number` >= 1."""
        assert number >= 1, f"steps are counted from 1, not {number}"
        stretch = self._stretches[bisect_right(self._stretches, number - 1, key=lambda each: each.before) - 1]
        first = stretch.first_row + (number - 1 - stretch.before) * stretch.rows
        return Step(number, first, stretch.rows, _value_at(self.lengths, first))

    def step_from(self, row: int) -> Step:
        """The step whose first row is `row`, which is the edge of a global batch."""
        step = self.step_with(row)
        assert step.first_row == row, f"row {row} is inside step {step.number}"
        return step

    def step_with(self, row: int) -> Step:
        """The step that trains `row`."""
        assert row >= 0, f"rows are counted from 0, not {row}"
        stretch = self._stretches[bisect_right(self._stretches, row, key=lambda each: each.first_row) - 1]
        return self.step(stretch.before + (row - stretch.first_row) // stretch.rows + 1)

    def rows_after(self, steps: int) -> int:
        """Rows that the first `steps` steps train."""
        return self.step(steps + 1).first_row

    def edge(self, row: int) -> int:
        """The first edge of a global batch at `row` or after it."""
        step = self.step_with(row)
        return row if step.first_row == row else step.first_row + step.rows

    def describe(self) -> list[tuple[str, int, int]]:
        """(what, first step, value) of each change after step 1, for people: an entry that another overtakes within
        one step, or that leaves the value as it is, is none."""
        begun = {stretch.before + 1 for stretch in self._stretches[1:]}
        begun |= {self.step_with(self.edge(row)).number for row, _ in self.lengths[1:]}
        steps = [(self.step(number - 1), self.step(number)) for number in sorted(begun)]
        batches = [("global batch", new.number, new.rows) for old, new in steps if new.rows != old.rows]
        return batches + [
            ("sequence length", new.number, new.seq_len) for old, new in steps if new.seq_len != old.seq_len
        ]

    @cached_property
    def _stretches(self) -> tuple[_Stretch, ...]:
        stretches = [_Stretch(0, 0, self.batches[0][1])]
        for row, size in self.batches[1:]:
            last = stretches[-1]
            steps = max(0, -(-(row - last.first_row) // last.rows))
            if not steps:  # two entries within one step: the later one holds
                stretches.pop()
            stretches.append(_Stretch(last.before + steps, last.first_row + steps * last.rows, size))
        return tuple(stretches)


def _value_at(schedule: Sequence[tuple[int, int]], row: int) -> int:
    return schedule[bisect_right(schedule, row, key=lambda entry: entry[0]) - 1][1]


def step_plan(config: Config) -> StepPlan:
    """The steps of the run that `config` describes. Tokens of its schedules count from the run's beginning."""
    unit = config.data.seq_len
    batches = {0: config.train.global_batch}
    batches |= {row_of(stage.from_tokens, unit): stage.global_batch for stage in config.train.batch_ramp}
    lengths = {0: unit}
    lengths |= {row_of(stage.from_tokens, unit): stage.seq_len for stage in config.data.seq_len_schedule}
    return StepPlan(batches=tuple(sorted(batches.items())), lengths=tuple(sorted(lengths.items())))


def row_of(tokens: float, row_tokens: int) -> int:
    """The first row that begins at token `tokens` of the run or after it."""
    return math.ceil(tokens / row_tokens) if tokens < 2**53 else -(-int(tokens) // row_tokens)
