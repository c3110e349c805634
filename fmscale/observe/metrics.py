"""metrics.jsonl and eval.jsonl: the run's numbers, one line a step, and the one series that they add up to.

Lines are only ever appended, each with its term. After a crash the steps since the checkpoint are done again, after a
roll-back other steps take their numbers; `series` picks the run's lineage (fmscale/observe/terms.py): a line counts if
its term owns its step, and of several such the last one. Trackers are fed from here and may lose what they like.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from fmscale.observe.events import JsonLines, read_events, read_lines, utc_now
from fmscale.observe.terms import lineage, newest_term

STEP_FILE, EVAL_FILE = "metrics.jsonl", "eval.jsonl"


class MetricsLog:
    """Appends to RUN/metrics.jsonl and RUN/eval.jsonl for one term; one process per run does."""

    def __init__(self, run_dir: Path, term: int) -> None:
        self._term = term
        self._steps, self._evals = JsonLines(run_dir / STEP_FILE), JsonLines(run_dir / EVAL_FILE)

    def step(self, line: dict[str, Any]) -> dict[str, Any]:
        """Append one line; `line["step"]` counts finished steps, so the first is 1. Returns it with term and time."""
        return self._append(self._steps, line)

    def eval(self, line: dict[str, Any]) -> dict[str, Any]:
        """Append the result of an evaluation after `line["step"]` steps. Returns it with term and time."""
        return self._append(self._evals, line)

    def _append(self, lines: JsonLines, line: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(line["step"], int), "a metrics line has an integer step"
        whole = {"step": line["step"], "term": self._term, **line, "time": utc_now()}
        lines.append(whole)
        return whole

    @property
    def lost(self) -> int:
        """Lines that could not be written (disk full, say)."""
        return self._steps.lost + self._evals.lost

    def fsync(self) -> None:
        """Call at each checkpoint, before its commit: a step that a checkpoint holds has its line."""
        self._steps.fsync()
        self._evals.fsync()

    def close(self) -> None:
        self.fsync()
        self._steps.close()
        self._evals.close()


def series(run_dir: Path) -> list[dict[str, Any]]:
    """One line per step of the run as it stands, rising by step. Raises CheckpointError for a damaged term record."""
    return _select(run_dir, read_lines(run_dir / STEP_FILE))


def eval_series(run_dir: Path) -> list[dict[str, Any]]:
    """One line per evaluation of the run as it stands, rising by step."""
    return _select(run_dir, read_lines(run_dir / EVAL_FILE))


def last_step(run_dir: Path) -> int:
    """The last step of the series; -1 before the first."""
    steps = series(run_dir)
    return int(steps[-1]["step"]) if steps else -1


def _select(run_dir: Path, lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    spans = {span.term.term: span for span in lineage(run_dir)}
    best: dict[int, dict[str, Any]] = {}
    for line in lines:
        step, term = line.get("step"), line.get("term")
        if not isinstance(step, int) or not isinstance(term, int):
            continue
        if spans and (term not in spans or not spans[term].holds(step)):
            continue
        if step not in best or term >= best[step]["term"]:
            best[step] = line
    return [best[step] for step in sorted(best)]


def summary(run_dir: Path) -> dict[str, Any]:
    """The run in a few numbers; None where there is nothing to tell.

    restarts: starts after the first, by whomever, and lost ranks that were replaced. goodput: time in steps that
    count / wall time from the first event to the last sign of life.
    """
    steps, evals, events = series(run_dir), eval_series(run_dir), read_events(run_dir)
    last: dict[str, Any] = steps[-1] if steps else {}
    times = [datetime.fromisoformat(line["time"]) for line in (*events, *steps, *evals) if "time" in line]
    wall_s = (max(times) - min(times)).total_seconds() if times else 0.0
    useful_s = sum(line.get("step_time_s", 0.0) for line in steps)
    counts = [event.get("kind") for event in events]
    return {
        "step": last.get("step", 0),
        "rows": last.get("rows", 0),
        "tokens": last.get("tokens", 0),
        "loss": last.get("loss"),
        "heldout_loss": evals[-1].get("heldout_loss") if evals else None,
        "heldout_bits_per_byte": evals[-1].get("heldout_bits_per_byte") if evals else None,
        "tokens_per_s": last.get("tokens", 0) / useful_s if useful_s else None,
        "terms": newest_term(run_dir),
        "restarts": max(0, counts.count("start") - 1) + counts.count("mended"),
        "incidents": counts.count("incident"),
        "checkpoints": counts.count("checkpoint"),
        "wall_s": wall_s,
        "goodput": useful_s / wall_s if wall_s else None,
    }
