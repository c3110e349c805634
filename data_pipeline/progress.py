"""How far a long stage is: a bar on a terminal, otherwise a plain line now and then. On stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PLAIN_EVERY_S = 10.0

Advance = Callable[[int], None]
"""Is told the bytes that have just been done."""


def follow(title: str, amounts: Iterable[int], total: int) -> Iterator[int]:
    """Pass on `amounts` (bytes done, one at a time, of `total`) while showing their sum and rate."""
    with progress(title, total) as advance:
        for amount in amounts:
            advance(amount)
            yield amount


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Shows what the block reports of `total` bytes, and its rate."""
    with _bar(title, total) if sys.stderr.isatty() else _lines(title, total) as advance:
        yield advance


@contextlib.contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    started = shown = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, shown
        done += amount
        now = time.monotonic()
        if now - shown >= PLAIN_EVERY_S and done < total:
            _say(title, done, total, now - started)
            shown = now

    yield advance
    _say(title, done, total, time.monotonic() - started)


def _say(title: str, done: int, total: int, seconds: float) -> None:
    rate = done / 1e6 / max(seconds, 1e-9)
    print(f"{title}: {done / 1e6:.1f} of {total / 1e6:.1f} MB in {seconds:.1f} s, {rate:.1f} MB/s", file=sys.stderr)


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)
