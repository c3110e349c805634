"""Where the time of a task goes, step by step, each without what it waits for from the steps before it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Clock:
    """Seconds of wall time by name. Parts may be nested: what is measured inside counts for the inner name alone.

    clock = Clock()
    stream = clock.measure("lower", map(str.lower, clock.measure("read", lines)))
    with clock.part("write"):
        ...
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = [0.0]  # of each part that is open: seconds that belong to parts inside it

    def measure(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Pass on `items`; what making each of them takes counts for `name`."""
        following = iter(items).__next__
        try:
            while True:
                started = self._begin()
                try:
                    item = following()
                finally:
                    self._end(name, started)
                yield item
        except StopIteration:
            return

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What the block takes counts for `name`."""
        started = self._begin()
        try:
            yield
        finally:
            self._end(name, started)

    def _begin(self) -> float:
        self._inside.append(0.0)
        return time.perf_counter()

    def _end(self, name: str, started: float) -> None:
        taken = time.perf_counter() - started
        self.seconds[name] += taken - self._inside.pop()  # type: ignore[assignment]
        self._inside[-1] += taken
