"""Steps that wait for data: noticed, with the part of the way that they wait for and what helps.

Waiting counts over the last WINDOW steps of this process; its first steps, which nobody could read ahead of, do not
count. Above LIMIT the run says so once for each part, and again when that has become twice as bad.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from fmscale.corpus.rows import Spent

LIMIT = 0.01
WINDOW = 50
SETTLED = 5
"""Steps at a start that nobody could read ahead of."""

REMEDIES = {
    "read_s": "reading shards is slow: keep the corpora on a disk of the node, or {more}",
    "verify_s": "hashing chunks at their first use is slow: {more}",
    "decode_s": "putting rows together is slow: {more}",
    "collate_s": "making arrays takes a core that is busy: give each rank a core of its own",
    "transfer_s": "copying from shared memory is slow: the node's memory is busy, lower data.readers_per_node",
    "queue_s": "readers are busy, dead or asked too late: {more}",
}
"""By part; `more` is what makes more readers work further ahead."""
MORE = {
    "ray": "raise data.prefetch_batches, then data.readers_per_node",
    "torchrun": "raise data.prefetch_batches, or have readers of their own with launch.backend=ray",
}


class StallWatch:
    def __init__(self, backend: Literal["ray", "torchrun"]) -> None:
        """backend: launch.backend; under torchrun one thread of the rank reads ahead, and there are no readers."""
        self._more = MORE[backend]
        self._steps: deque[tuple[float, float, Spent]] = deque(maxlen=WINDOW)
        self._seen = 0
        self._told: dict[str, float] = {}

    def step(self, step_time_s: float, wait_s: float, spent: Spent) -> str | None:
        """What to tell the user after this step, if anything."""
        self._seen += 1
        if self._seen <= SETTLED:
            return None
        self._steps.append((step_time_s, wait_s, spent))
        waited, time_s = sum(wait for _, wait, _ in self._steps), sum(step for step, _, _ in self._steps)
        if len(self._steps) < WINDOW or waited <= LIMIT * time_s:
            return None
        parts = Spent()
        for _, _, each in self._steps:
            parts += each
        part, seconds = max(parts.named("").items(), key=lambda item: item[1])
        share = waited / time_s
        if share < 2 * self._told.get(part, 0.0):
            return None
        self._told[part] = share
        remedy = REMEDIES[part].format(more=self._more)
        return (
            f"the last {WINDOW} steps waited {100 * share:.1f} % of their time for data, "
            f"{100 * seconds / max(waited, 1e-12):.0f} % of it for `{part.removesuffix('_s')}`: {remedy}"
        )
