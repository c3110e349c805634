"""All that is slow only once in a process, done before it counts: imports, the first engine, the first step.

A process that has been through `warm_up` builds a run's engine in a fraction of a second. Most of what it saves is
torch._dynamo and torch._inductor, which the first optimizer of a process imports.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import torch

from fmscale.config import Config
from fmscale.corpus.batch import batch_of
from fmscale.topology import Topology
from fmscale.training.engine import build_engine

_ROWS, _TOKENS = 2, 16


def warm_up(config: Config) -> None:
    """Make one step on noise with a tiny model under the run's engine and precision, alone and on the CPU.

    Leaves no process group and no thread behind; what a run draws is keyed, so used generators do not matter to it.
    """
    torch.set_num_threads(config.train.threads_per_rank)
    if config.logging.wandb.mode != "disabled":
        importlib.import_module("wandb")
    tiny = replace(
        config,
        model=replace(config.model, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=64, vocab_size=128),
        data=replace(config.data, seq_len=_TOKENS, seq_len_schedule=[]),
        parallel=replace(config.parallel, dp=1, pp=1),
        train=replace(config.train, global_batch=_ROWS, micro_batch=_ROWS, batch_ramp=[]),
    )
    tokens = np.arange(_ROWS * (_TOKENS + 1), dtype=np.uint16).reshape(_ROWS, -1) % 128
    starts = tokens % 8 == 0
    documents = config.model.attention == "document"
    batch = batch_of(np.arange(_ROWS), tokens, starts=starts, documents=documents)
    engine = build_engine(tiny, Topology(dp=1, pp=1), 0, torch.device("cpu"))
    engine.train_batch(batch, lr=1e-4)
    engine.close()
