"""Laws of the learning rate: where it starts, peaks and ends, and that it never jumps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fmscale.config import ScheduleConfig
from fmscale.training.schedule import cosine, learning_rate, linear, wsd

KINDS: Any = st.sampled_from(["cosine", "linear", "wsd"])


@given(
    kind=KINDS,
    steps=st.integers(2, 300),
    warmup=st.integers(0, 300),
    ratio=st.just(0.0) | st.floats(0.001, 1),
    decay=st.integers(0, 300),
)
def test_rises_to_the_peak_then_falls_to_the_ratio(
    kind: Any, steps: int, warmup: int, ratio: float, decay: int
) -> None:
    assume(warmup < steps)
    assume(warmup + decay <= steps)
    config = ScheduleConfig(kind=kind, warmup_steps=warmup, decay_steps=decay, final_lr_ratio=ratio)
    rates = [learning_rate(step, steps, 3e-4, config) for step in range(steps)]
    rise, fall = rates[:warmup], rates[max(0, warmup - 1) :]
    assert rise == sorted(rise)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(fall)), "ratio 1 wavers by rounding"
    assert min(rates) > 0 or ratio == 0
    assert max(rates) <= 3e-4 * (1 + 1e-12)
    if warmup:
        assert rates[0] == pytest.approx(3e-4 / warmup)
        assert rates[warmup - 1] == pytest.approx(3e-4)
    assert rates[-1] == pytest.approx(3e-4 * ratio)
    assert learning_rate(steps + 10, steps, 3e-4, config) == pytest.approx(rates[-1]), "constant after the end"


def test_values_by_hand() -> None:
    # 10 updates of warm-up, then 100 of decay: update 59 is the 50th of them, half way.
    assert cosine(59, 110, 10, 0.1) == pytest.approx(0.55)
    assert linear(59, 110, 10, 0.1) == pytest.approx(0.55)
    assert cosine(34, 110, 10, 0.0) == pytest.approx(0.8535533905932737)  # (1 + cos(pi / 4)) / 2
    assert wsd(59, 110, 10, 20, 0.1) == 1.0
    assert wsd(99, 110, 10, 20, 0.1) == pytest.approx(0.55)


def test_wsd_is_the_same_run_until_its_decay() -> None:
    assert [wsd(s, 200, 10, 20, 0.0) for s in range(180)] == [wsd(s, 400, 10, 20, 0.0) for s in range(180)]


def test_decay_steps_of_zero_is_a_fifth() -> None:
    config = ScheduleConfig(kind="wsd", warmup_steps=0, decay_steps=0, final_lr_ratio=0.0)
    assert [learning_rate(s, 10, 1.0, config) for s in range(10)] == pytest.approx([1.0] * 8 + [0.5, 0.0])


def test_a_run_that_is_all_warm_up() -> None:
    config = ScheduleConfig(warmup_steps=4)
    assert [learning_rate(s, 4, 1.0, config) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
