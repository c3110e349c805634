"""How far a long stage is: a bar on a terminal, otherwise a plain line now and then. On stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

PLAIN_EVERY_S = 10.0


class Done(NamedTuple):
    """What a task has done."""

    bytes: int
    """Of input."""
    documents: int


class Advance(Protocol):
    """Is told what has just been done."""

    def __call__(self, amount: int, documents: int = 0) -> None: ...


Amount = TypeVar("Amount", int, Done)


def follow(title: str, amounts: Iterable[Amount], total: int) -> Iterator[Amount]:
    """Pass on `amounts` (bytes done, or bytes and documents, of `total` bytes) while showing their sums and rates."""
    with progress(title, total) as advance:
        for amount in amounts:
            if isinstance(amount, Done):
                advance(amount.bytes, amount.documents)
            else:
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
    done, counted = 0, 0

    def advance(amount: int, documents: int = 0) -> None:
        nonlocal done, counted, shown
        done, counted = done + amount, counted + documents
        now = time.monotonic()
        if now - shown >= PLAIN_EVERY_S and done < total:
            say(now)
            shown = now

    def say(now: float) -> None:
        seconds = max(now - started, 1e-9)
        line = f"{title}: {done / 1e6:.1f} of {total / 1e6:.1f} MB in {seconds:.1f} s, {done / 1e6 / seconds:.1f} MB/s"
        left = f", {seconds * (total - done) / done:.0f} s left" if 0 < done < total else ""
        rate = f", {counted / seconds:,.0f} documents/s" if counted else ""
        print(line + rate + left, file=sys.stderr)

    yield advance
    say(time.monotonic())


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    columns += [TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
    started, counted = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(amount: int, documents: int = 0) -> None:
            nonlocal counted
            counted += documents
            rate = f"{counted / max(time.monotonic() - started, 1e-9):,.0f} documents/s" if counted else ""
            bar.update(task, advance=amount, rate=rate)

        yield advance
