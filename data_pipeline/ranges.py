"""What values a step's parameters may have, declared beside the step and checked before anything is read.

    @in_range(at_most("min_words", "max_words"), min_words=least(0), max_upper=between(0, 1))
    def shouting(documents, *, min_words=0, max_words=0, max_upper=1.0): ...

Types go by the defaults (registry.py); a range says which values of a type mean something: a limit that nothing or
everything breaks is a slip of the pen, and to find it after a night of reading is late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fmscale.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
MAX_NGRAM = 1000
"""Words of an n-gram: the work grows with it, and no paper has more than 50."""


@dataclass(frozen=True)
class Range:
    says: str
    """In words, for the message."""
    holds: Callable[[Any], bool]


Together = Callable[[Mapping[str, Any]], tuple[str, str] | None]
"""What parameters must be together: (expected, found) where they are not."""


def between(low: float, high: float) -> Range:
    return Range(f"{low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def least(low: float) -> Range:
    return Range(f"{low:g} or more", lambda value: _is_number(value) and low <= value < 1e15)


def pairs(limit: Range) -> Range:
    """[[n, limit], ...]: n-grams and a share of them."""
    words = between(1, MAX_NGRAM)
    return Range(
        f"[[n, limit], ...], each n a whole number, {words.says}, each limit {limit.says}",
        lambda value: all(
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and isinstance(pair[0], int)
            and words.holds(pair[0])
            and limit.holds(pair[1])
            for pair in value
        ),
    )


TEXT = Range("a text that is not empty", lambda value: isinstance(value, str) and value != "")
TEXTS = Range("a list of texts that are not empty", lambda value: all(map(TEXT.holds, value)))
CHARACTERS = Range(
    "a list of single characters", lambda value: all(isinstance(each, str) and len(each) == 1 for each in value)
)


def at_most(low: str, high: str, *, unless: float | None = None) -> Together:
    """The parameter `low` is not above `high`; `unless`: the value of `high` that is no limit."""

    def broken(given: Mapping[str, Any]) -> tuple[str, str] | None:
        if given[high] == unless or given[low] <= given[high]:
            return None
        return f"{low} not above {high}", f"{low}: {given[low]}, {high}: {given[high]}"

    return broken


def in_range(*together: Together, **ranges: Range) -> Callable[[F], F]:
    """Marks a step of which these parameters have ranges, and what several of them must be together."""

    def mark(function: F) -> F:
        function.ranges, function.together = ranges, together  # type: ignore[attr-defined]
        return function

    return mark


def check_ranges(
    step: str, function: Callable[..., Any], parameters: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Raise ConfigError for a parameter out of its range, or one of those `given` with a number that is not finite."""
    for key, value in given.items():
        if not _is_finite(value):
            raise _out_of_range(step, f"{key}: a finite number", f"{key}: {value}")
    ranges: Mapping[str, Range] = getattr(function, "ranges", {})
    for key, wanted in ranges.items():
        if not wanted.holds(parameters[key]):
            raise _out_of_range(step, f"{key}: {wanted.says}", f"{key}: {parameters[key]}")
    together: Sequence[Together] = getattr(function, "together", ())
    for broken in together:
        if said := broken(parameters):
            raise _out_of_range(step, *said)


def _out_of_range(step: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"a parameter of step {step} is out of range",
        expected=expected,
        found=found,
        do="correct the recipe, or leave the parameter out",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True
