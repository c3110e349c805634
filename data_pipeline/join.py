"""What has to be decided over all tasks at the end of a phase; done by one process, in memory of some bytes a document.

join(work, phase)   counts judged (phase 0), the pass of the phase carried out, `alive-PHASE` written
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import numpy.typing as npt

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
        dropped = Counter[str]()
        for each in counts:
            for (_, reason), count in each.dropped.items():
                dropped[reason] += count
        check_bad_share(dropped, int(offsets[-1]), recipe.max_bad_share, recipe.max_bad_run)
        work.save_array("offsets", offsets)
    ends = phases(recipe)[phase].ends
    if ends is None:
        holdout.join(work, phase)
        return
    offsets = work.map_array("offsets")
    pairs = [load(work.scan_file(phase, task), "rows", "files") for task in work.tasks]
    rows: list[npt.NDArray[np.int64]] = [pair[0] for pair in pairs]
    left = passes.of(ends).left(work, phase, rows)
    alive = np.zeros(int(offsets[-1]), bool)
    alive[np.concatenate([offsets[task] + own for task, own in zip(work.tasks, rows, strict=True)])] = left
    work.save_array(f"alive-{phase}", alive)
    files, numbers = np.unique(np.concatenate([pair[1] for pair in pairs])[~left], return_counts=True)
    reason = passes.of(ends).reason
    gone = [[int(file), reason, int(count)] for file, count in zip(files, numbers, strict=True)]
    durable.replace(work.joined_file(phase), json.dumps({"dropped": gone}).encode())


def part(work: Work, number: int, phase: int) -> Done:
    """One part of the pass that `phase` ends with: any process may do it."""
    ends = phases(work.plan().recipe)[phase].ends
    assert ends is not None
    passes.of(ends).part(work, phase, number)
    return Done(0, 0)


def counts_of(work: Work, phase: int, task: int) -> Counts:
    """What scan() counted."""
    return Counts.from_json(from_array(load(work.scan_file(phase, task), "counts")[0]))


def dropped_by(work: Work, phase: int) -> Counter[tuple[int, str]]:
    """What the pass at the end of `phase` took out, by file and reason."""
    lines = json.loads(work.joined_file(phase).read_bytes())["dropped"]
    return Counter({(file, reason): count for file, reason, count in lines})
