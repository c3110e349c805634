"""A run's progress in the terminal that started it, followed from the run's own files.

The driver reads what rank 0 appends to metrics.jsonl and eval.jsonl: whatever is shown has been written down first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from fmscale.config import Config
from fmscale.observe.metrics import EVAL_FILE, STEP_FILE
from fmscale.observe.sinks import ConsoleSink, Sinks


class Follower:
    """Feeds new lines of a run to the console; lines from before it was made are skipped."""

    def __init__(self, config: Config) -> None:
        console = ConsoleSink(total_steps=config.train.steps, every_steps=config.logging.console_every_steps)
        self.console = Sinks([console])  # a terminal that is gone ends no run
        self._files = [_Tail(config.run_dir / STEP_FILE), _Tail(config.run_dir / EVAL_FILE)]

    def update(self) -> None:
        steps, evals = self._files
        for line in steps.new_lines():
            self.console.step(line)
        for line in evals.new_lines():
            self.console.eval(line)

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        self.console.close()


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
