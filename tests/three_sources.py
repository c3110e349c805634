"""The run whose global batches must stay the same whatever reads them: three sources, and everything else changes.

    publish(root)                          # three corpora of documents, each with a packing plan
    config = three_sources(root)           # 1,000 steps over them
    config = three_sources(root, steps=31) # the same plan on a smaller scale, for real training

Weights change once at an edge and once along a curve, one source enters and one leaves, the batch ramps from 6 to 10
to 16 rows, sequences grow from a quarter of a row to a half to the whole; every source is read through several times.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.pack import pack
from fmscale.config import BatchConfig, Config, SeqLenConfig, StageConfig
from fmscale.corpus.shards import Corpus
from tests.corpora import document_corpus, run_config

ROW = 32
"""U, tokens."""
CHUNKS = {"web": (150, 256), "books": (90, 128), "code": (25, 512)}
"""Chunks of each corpus, and tokens of a chunk."""
BATCHES = ((0.0, 6), (0.104, 10), (0.4487, 16))
"""From which part of the rows, how many a batch."""
LENGTHS = ((0.0, ROW // 4), (0.0777, ROW // 2), (0.5173, ROW))
ROWS = 1200 + 4000 + 6400
"""Of 1,000 steps: about 200, 400 and 400 of the three sizes."""


def publish(root: Path) -> Path:
    """Write the corpora below `root`: documents of 1 to 90 tokens, tasks of different sizes."""
    for seed, (name, (chunks, chunk_tokens)) in enumerate(CHUNKS.items()):
        rng = np.random.default_rng(seed)
        tasks = [rng.integers(1, 91, part * chunks * chunk_tokens // 300).tolist() for part in (1, 2, 4)]
        document_corpus(root / name, tasks, chunk_tokens, seed, heldout_chunks=1)
        pack(Corpus.open(root / name), ROW)
    return root


def three_sources(root: Path, steps: int = 1000, **changes: Any) -> Config:
    """The run's config. changes: as `run_config` takes them, and packing, attention, name."""
    rows = ROWS * steps // 1000
    packing, attention = changes.pop("packing", "concat"), changes.pop("attention", "causal")
    plain = {"global_batch": BATCHES[0][1], "micro_batch": 1, "seq_len": ROW, "window_chunks": 16}
    config = run_config(root, {"web": 0.8, "books": 0.2, "code": 0.0}, **{**plain, **changes})
    data = replace(
        config.data,
        packing=packing,
        seq_len_schedule=[SeqLenConfig(from_tokens=part * rows * ROW, seq_len=n) for part, n in LENGTHS],
        stages=[
            StageConfig(from_tokens=0.1555 * rows * ROW, weights={"web": 0.5, "books": 0.4, "code": 0.1}),
            StageConfig(
                from_tokens=0.3003 * rows * ROW, weights={"web": 0.45, "books": 0.4, "code": 0.15}, curve="cosine"
            ),
            StageConfig(from_tokens=0.7311 * rows * ROW, weights={"web": 0.6, "code": 0.4}),
        ],
    )
    train = replace(
        config.train,
        steps=steps,
        batch_ramp=[BatchConfig(from_tokens=part * rows * ROW, global_batch=n) for part, n in BATCHES[1:]],
    )
    model = replace(config.model, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, attention=attention)
    schedule = replace(config.schedule, warmup_steps=2)
    return replace(config, data=data, train=train, model=model, schedule=schedule)
