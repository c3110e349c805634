"""What has to be decided over all tasks at the end of a phase; done by one process, in memory of some bytes a document.

join(work, phase)   counts judged (phase 0), the pass of the phase carried out, `alive-PHASE` written
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from data_pipeline import holdout, passes
from data_pipeline.phases import phases
from data_pipeline.plan import Work, from_array, load
from data_pipeline.progress import Done
from data_pipeline.read import check_bad_share
from data_pipeline.scan import Counts
from fmscale import durable


def join(work: Work, phase: int) -> None:
    """Decide what goes on after `phase`. Raises DataError if too many records are bad."""
    recipe = work.plan().recipe
    if not phase:
        counts = [counts_of(work, phase, task) for task in work.tasks]
        offsets = np.cumsum([0, *(each.records.total() for each in counts)], dtype=np.int64)
        bad = Counter[str]()
        for each in counts:
            for (_, reason), count in each.dropped.items():
                bad[reason] += count
        check_bad_share(bad, int(offsets[-1]), recipe.max_bad_share, recipe.max_bad_run)
        work.save_array("offsets", offsets)
    ends = phases(recipe)[phase].ends
    if ends is None:
        holdout.join(work, phase)
        return
    offsets = work.map_array("offsets")
    left, sizes = passes.of(ends).left(work, phase)
    alive = np.zeros(int(offsets[-1]), bool)
    gone, begin = Counter[int](), 0
    for task in work.tasks:
        rows, files = load(work.scan_file(phase, task), "rows", "files")
        own = left[begin : begin + len(rows)]
        alive[int(offsets[task]) + rows.astype(np.int64)] = own
        gone.update(files[~own].tolist())
        begin += len(rows)
    work.save_array(f"alive-{phase}", alive)
    reason = passes.of(ends).reason
    dropped = [[file, reason, count] for file, count in sorted(gone.items())]
    durable.replace(work.joined_file(phase), json.dumps({"dropped": dropped, "clusters": sizes}).encode())


def part(work: Work, number: int, phase: int) -> Done:
    """One part of the pass that `phase` ends with: any process may do it."""
    if not work.part_file(phase, number).exists():
        pass_at_end_of(work, phase).part(work, phase, number)
    return Done(0, 0)


def pass_at_end_of(work: Work, phase: int) -> passes.Pass:
    recipe = work.plan().recipe
    ends = phases(recipe)[phase].ends
    return passes.of(ends) if ends else holdout.Holdout(recipe)


def counts_of(work: Work, phase: int, task: int) -> Counts:
    """What scan() counted."""
    return Counts.from_json(from_array(load(work.scan_file(phase, task), "counts")[0]))


def dropped_by(work: Work, phase: int) -> Counter[tuple[int, str]]:
    """What the pass at the end of `phase` took out, by file and reason."""
    lines = json.loads(work.joined_file(phase).read_bytes())["dropped"]
    return Counter({(file, reason): count for file, reason, count in lines})


def same_ids_of(work: Work) -> Counter[int]:
    """By file: documents left by the last pass whose id an earlier one has."""
    last = len(phases(work.plan().recipe)) - 1
    return Counter(dict(json.loads(work.joined_file(last).read_bytes())["same_ids"]))


def clusters_of(work: Work, phase: int) -> dict[int, int]:
    """Clusters of the same that the pass at the end of `phase` found, by size."""
    found = json.loads(work.joined_file(phase).read_bytes())["clusters"]
    return {int(size): count for size, count in found.items()}
