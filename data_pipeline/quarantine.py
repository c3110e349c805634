"""Damaged input that scans gave up: listed with file, bytes and reason; too much of it ends the preparation.

A file with bad records and not a single good one counts as damaged too, whatever a share of bad records may be: it is
something else than the recipe takes it for, and would be lost as a handful of records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_pipeline.damage import DamagedInput
from data_pipeline.inputs import InputFile, Piece
from data_pipeline.join import counts_of
from data_pipeline.plan import Work
from data_pipeline.read import BAD_REASONS, EXPECTED, EXPLAIN

NEITHER = ("skipped_record", "blank_line")
"""Reasons that speak neither for nor against a file: it has such records whatever it is."""
REMEDIES = {
    "no_text": "set text_field to the input's own name",
    "no_group": "set group_field to the input's own name, or heldout_by=document",
    "bad_utf8": "convert it to UTF-8",
    "bad_json": "write one JSON object a line, each line ended by LF",
    "not_an_object": "write one JSON object a line; an array of documents is none",
}


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
    files = {piece.file for _, piece, _ in lost}
    others = f" (and {len(files) - 1} more like it)" if len(files) > 1 else ""
    raise DamagedInput(
        first["what"],
        expected=f"{first['expected']}; or at most {plan.recipe.max_bad_input:.2%} of input damaged (max_bad_input)",
        found=f"{first['found']}{others}: {bytes_lost:,} of {plan.inputs.bytes:,} bytes",
        do=first["do"],
    )


def _lost(work: Work) -> list[tuple[int, Piece, dict[str, str]]]:
    """(task, piece, what is wrong with it, as an error's fields) in the order of the input."""
    return list(_pieces_lost(work, _without_a_good_record(work)))


def _pieces_lost(work: Work, all_bad: dict[int, dict[str, str]]) -> Iterator[tuple[int, Piece, dict[str, str]]]:
    for task in work.tasks:
        given_up = work.quarantined(task)
        for place, piece in enumerate(work.plan().inputs.tasks[task]):
            if error := given_up.get(place) or all_bad.get(piece.file):
                yield task, piece, error


def _without_a_good_record(work: Work) -> dict[int, dict[str, str]]:
    """By file, over all of its pieces that were read: why its records are bad, where all are."""
    records, dropped = Counter[int](), Counter[tuple[int, str]]()
    for task in work.tasks:
        counts = counts_of(work, 0, task)
        records.update(counts.records)  # `+=` would look through all of them each time
        dropped.update(counts.dropped)
    found: dict[int, dict[str, str]] = {}
    for number in {number for number, reason in dropped if reason in BAD_REASONS}:
        bad = Counter({reason: dropped[number, reason] for reason in BAD_REASONS if dropped[number, reason]})
        if records[number] == bad.total() + sum(dropped[number, reason] for reason in NEITHER):
            found[number] = _all_bad(work.plan().inputs.files[number], bad, work.plan().recipe.text_field)
    return found


def _all_bad(file: InputFile, bad: Counter[str], text_field: str) -> dict[str, str]:
    reasons = [f"{reason} {count} ({EXPLAIN[reason]})" for reason, count in bad.most_common(3)]
    remedy = REMEDIES.get(bad.most_common(1)[0][0], "mend it")
    return {
        "what": "an input file has not a single good record",
        "expected": EXPECTED.get(file.kind, "records with a string in `{}`").format(text_field),
        "found": f"{file.name}, {bad.total()} bad and none that is good: {', '.join(reasons)}",
        "do": f"{remedy}, or leave the file out of inputs",
    }
