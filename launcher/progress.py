"""A run's progress in the terminal that started it, followed from the run's own files.

The driver reads what rank 0 appends to metrics.jsonl, eval.jsonl and events.jsonl: whatever is shown has been written
down first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from fmscale.config import Config
from fmscale.corpus.quarantine import Lost
from fmscale.observe.events import EVENT_FILE
from fmscale.observe.metrics import EVAL_FILE, STEP_FILE
from fmscale.observe.sinks import ConsoleSink, Sinks


class Follower:
    """Feeds new lines of a run to the console; lines from before it was made are skipped."""

    def __init__(self, config: Config) -> None:
        self._terminal = ConsoleSink(total_steps=config.train.steps, every_steps=config.logging.console_every_steps)
        self.console = Sinks([self._terminal])  # a terminal that is gone ends no run
        self._files = [_Tail(config.run_dir / name) for name in (STEP_FILE, EVAL_FILE, EVENT_FILE)]

    def update(self) -> None:
        steps, evals, events = self._files
        for event in events.new_lines():
            if (text := _remark(event)) is not None:
                self.note(text)
        for line in steps.new_lines():
            self.console.step(line)
        for line in evals.new_lines():
            self.console.eval(line)

    def note(self, text: str) -> None:
        """A line between the others."""
        with contextlib.suppress(OSError):  # nobody may be reading any more
            self._terminal.note(text)

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        self.console.close()


def _remark(event: dict[str, Any]) -> str | None:
    """What an event tells the person at the terminal, if anything."""
    if event.get("kind") == "quarantine":
        values = {field.name: event[field.name] for field in fields(Lost) if field.name in event}
        return str(Lost(**{**values, "rows": tuple(values["rows"])}))
    return str(event["text"]) if event.get("kind") == "remark" else None


class _Tail:
    """Whole JSON lines appended to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for text in whole.splitlines():
            try:
                yield json.loads(text)
            except ValueError:  # a line torn by a crash; `runs show` counts it
                continue
