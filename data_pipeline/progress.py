"""How far a long stage is: a bar on a terminal, otherwise a plain line now and then. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

PLAIN_EVERY_S = 10.0


def follow(title: str, amounts: Iterable[int], total: int) -> Iterator[int]:
    """Pass on `amounts` (bytes done, one at a time, of `total`) while showing their sum and rate."""
    return _bar(title, amounts, total) if sys.stderr.isatty() else _lines(title, amounts, total)


def _lines(title: str, amounts: Iterable[int], total: int) -> Iterator[int]:
    started = shown = time.monotonic()
    done = 0
    for amount in amounts:
        done += amount
        yield amount
        now = time.monotonic()
        if now - shown >= PLAIN_EVERY_S and done < total:
            _say(title, done, total, now - started)
            shown = now
    _say(title, done, total, time.monotonic() - started)


def _say(title: str, done: int, total: int, seconds: float) -> None:
    rate = done / 1e6 / max(seconds, 1e-9)
    print(f"{title}: {done / 1e6:.1f} of {total / 1e6:.1f} MB in {seconds:.1f} s, {rate:.1f} MB/s", file=sys.stderr)


def _bar(title: str, amounts: Iterable[int], total: int) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        for amount in amounts:
            progress.advance(task, amount)
            yield amount
