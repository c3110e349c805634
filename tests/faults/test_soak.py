"""Ten random kills in a row; `make soak-kill` does a hundred."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.soak import soak
from tests.runs import ON_RAY, Run, assert_same_curve

pytestmark = pytest.mark.processes

STEPS = 240
SETTINGS = [*ON_RAY, f"train.steps={STEPS}", "checkpoint.every_steps=10", "eval.every_steps=40"]


def test_ten_random_kills_change_nothing(runs_root: Path, words: Path) -> None:
    seed = random.randrange(1000)
    print(f"seed {seed}")
    reference, run = (Run(runs_root, name, words, SETTINGS) for name in ("soak-reference", "soak"))
    reference.train()
    soak(run, kills=10, steps=STEPS, seed=seed, tell=print)
    assert_same_curve(run, reference)
    assert run.leftovers() == []
