"""kill -9 of real processes of real runs changes nothing in the series of losses and batch hashes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.runs import ON_RAY, Run, assert_same_curve

pytestmark = [pytest.mark.processes, pytest.mark.slow]  # test_soak.py kills all of these too


def test_a_rank_and_a_reader_die_and_the_run_comes_back_by_itself(
    runs_root: Path, words: Path, reference_run: Run
) -> None:
    step, rank = random.randint(30, 110), random.randint(0, 1)
    print(f"rank {rank} is killed at step {step}")
    run = Run(runs_root, "rank-killed", words, ON_RAY)
    run.start()
    run.wait_for_step(3)
    run.kill("reader")
    run.wait_for_step(step)
    run.kill("rank", rank)
    assert run.finish() == 0, run.output()
    assert "restart 1 of 10" in (runs_root / "rank-killed.log").read_text()
    assert run.leftovers() == []
    assert_same_curve(run, reference_run)


def test_everything_dies_and_the_same_command_goes_on(runs_root: Path, words: Path, reference_run: Run) -> None:
    step = random.randint(30, 110)
    print(f"everything is killed at step {step}")
    run = Run(runs_root, "all-killed", words, ON_RAY)
    run.start()
    run.wait_for_step(step)
    run.kill_everything()
    run.train()
    assert_same_curve(run, reference_run)
    assert run.leftovers() == []
