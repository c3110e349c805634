"""What a run trains in given steps, computed from its corpora alone: rows of each rank, and the batch hash.

The same arithmetic and the same bytes as training, without a model: a run's metrics.jsonl can be checked against it,
and a run that was never made can be looked into.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fmscale.config import Config
from fmscale.corpus.batch import batch_hash, hash_hex
from fmscale.corpus.loader import RowReader
from fmscale.corpus.mixture import MAX_ROWS
from fmscale.corpus.sources import open_run_data
from fmscale.corpus.steps import step_plan
from fmscale.errors import ConfigError
from fmscale.topology import PADDING, rank_rows


def replay(config: Config, first_step: int, steps: int, dp: int) -> list[dict[str, Any]]:
    """Records {step, seq_len, rows_per_rank, batch_hash} of `steps` steps from `first_step` (1 is a run's first) on.

    rows_per_rank: [dp] lists of row numbers, padding left out. batch_hash: 32 hex digits, as in metrics.jsonl. Edits
    are taken from the run directory's ledger, if any. Raises DataError or ConfigError.
    """
    plan, last = step_plan(config), first_step + steps - 1
    if plan.rows_after(last) > MAX_ROWS:
        raise ConfigError(
            "the steps are beyond all that can be counted",
            expected=f"steps up to {plan.step_with(MAX_ROWS).number - 1:,}, which is {MAX_ROWS:,} rows",
            found=f"steps up to {last:,}" if last < 10**18 else "a number of 19 digits or more",
            do="ask for steps of the run",
        )
    data = open_run_data(config)
    reader = RowReader(data, config.model.attention == "document")
    records = []
    for number in range(first_step, first_step + steps):
        step = data.order.steps.step(number)
        shares = [rank_rows(step.first_row, step.rows, dp, rank, config.train.micro_batch) for rank in range(dp)]
        digest = batch_hash(reader.read(np.arange(step.first_row, step.first_row + step.rows), step.seq_len))
        records.append(
            {
                "step": number,
                "seq_len": step.seq_len,
                "rows_per_rank": [share[share != PADDING].tolist() for share in shares],
                "batch_hash": hash_hex(digest),
            }
        )
    return records
