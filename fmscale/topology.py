"""Rank arithmetic: who holds which rows and which stage. Pure integers; no torch, no process group.

Ranks are numbered stage-major, as DeepSpeed's `PipeDataParallelTopology` does: rank = stage * dp + data rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PADDING = -1
"""Row index of a row that only fills up a micro-batch: no targets, no weight, in no hash."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    dp: int
    pp: int = 1

    @property
    def world_size(self) -> int:
        return self.dp * self.pp

    def data_rank(self, rank: int) -> int:
        return rank % self.dp

    def stage(self, rank: int) -> int:
        return rank // self.dp

    def data_role(self, rank: int) -> DataRole:
        """What `rank` needs of each batch: its share of rows, and inputs or labels at the ends of the pipeline."""
        stage = self.stage(rank)
        return DataRole(data_rank=self.data_rank(rank), inputs=stage == 0, labels=stage == self.pp - 1)


@dataclass(frozen=True, kw_only=True)
class DataRole:
    data_rank: int
    inputs: bool
    labels: bool


def rows_per_rank(global_batch: int, dp: int, micro_batch: int) -> int:
    """Rows that every rank is handed for one global batch, padding included: a whole number of micro-batches."""
    return math.ceil(math.ceil(global_batch / dp) / micro_batch) * micro_batch


def rank_rows(first_row: int, global_batch: int, dp: int, data_rank: int, micro_batch: int) -> npt.NDArray[np.int64]:
    """Rows [first_row, first_row + global_batch) that `data_rank` trains, then PADDING up to `rows_per_rank`.

    Ranks hold contiguous runs whose lengths differ by one at most; together they hold each row once.
    """
    start, stop = (global_batch * r // dp for r in (data_rank, data_rank + 1))
    rows = np.full(rows_per_rank(global_batch, dp, micro_batch), PADDING, np.int64)
    rows[: stop - start] = np.arange(first_row + start, first_row + stop)
    return rows
