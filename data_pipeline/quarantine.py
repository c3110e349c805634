"""Damaged input that scans gave up: listed with file, bytes and reason; too much of it ends the preparation."""

from __future__ import annotations

from typing import Any

from data_pipeline.damage import DamagedInput
from data_pipeline.plan import Work


def quarantined(work: Work) -> list[dict[str, Any]]:
    """For the manifest: file, bytes, what is wrong with them."""
    return [
        {"file": work.plan().inputs.files[piece.file].name, "start": piece.start, "stop": piece.stop, **error}
        for _, piece, error in _lost(work)
    ]


def check_quarantine(work: Work) -> None:
    """Raise DamagedInput if more was given up than `max_bad_input` allows; the tasks concerned are then read again by
    the next try, which finds the input mended or fails alike."""
    plan = work.plan()
    lost = _lost(work)
    bytes_lost = sum(piece.stop - piece.start for _, piece, _ in lost)
    if bytes_lost <= plan.recipe.max_bad_input * plan.inputs.bytes:
        return
    for task in {task for task, _, _ in lost}:
        work.scan_file(0, task).unlink(missing_ok=True)
    first = lost[0][2]
    others = f" (and {len(lost) - 1} more like it)" if len(lost) > 1 else ""
    raise DamagedInput(
        first["what"],
        expected=f"{first['expected']}; or at most {plan.recipe.max_bad_input:.2%} of input damaged (max_bad_input)",
        found=f"{first['found']}{others}: {bytes_lost:,} of {plan.inputs.bytes:,} bytes",
        do=first["do"],
    )


def _lost(work: Work) -> list[tuple[int, Any, dict[str, str]]]:
    plan = work.plan()
    return [
        (task, plan.inputs.tasks[task][place], error)
        for task in work.tasks
        for place, error in sorted(work.quarantined(task).items())
    ]
