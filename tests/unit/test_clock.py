"""Time counts for the part it was spent in, not for those that waited for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from data_pipeline.clock import Clock


def slowly(numbers: Iterator[int], seconds: float) -> Iterator[int]:
    for number in numbers:
        time.sleep(seconds)
        yield number


def test_parts_inside_count_for_themselves() -> None:
    clock = Clock()
    started = time.perf_counter()
    inner = clock.measure("inner", slowly(iter(range(5)), 0.01))
    outer = clock.measure("outer", slowly(inner, 0.002))
    with clock.part("all"):
        assert list(outer) == list(range(5))
        with clock.part("rest"):
            time.sleep(0.02)
    total = time.perf_counter() - started
    assert clock.seconds["inner"] >= 0.05
    assert 0.01 <= clock.seconds["outer"] < clock.seconds["inner"]
    assert clock.seconds["rest"] >= 0.02
    assert clock.seconds.total() <= total
    assert clock.seconds.total() == pytest.approx(total, rel=0.2)


def test_errors_pass_and_are_timed() -> None:
    clock = Clock()

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("in the middle")

    stream = clock.measure("broken", broken())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="in the middle"):
        next(stream)
    assert list(clock.seconds) == ["broken"]
