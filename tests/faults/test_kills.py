"""kill -9 of real processes of real runs changes nothing in the series of losses and batch hashes."""

import random
from pathlib import Path

import pytest

from tests.runs import Run, assert_same_curve

pytestmark = pytest.mark.processes
ON_RAY = ["launch.backend=ray", "engine=zero", "parallel.dp=2"]


def test_a_rank_and_a_reader_die_and_the_run_comes_back_by_itself(
    runs_root: Path, words: Path, reference_run: Run
) -> None:
    step = random.randint(5, 12)
    run = Run(runs_root, "rank-killed", words, ON_RAY)
    run.start()
    run.wait_for_step(2)
    run.kill("reader")
    run.wait_for_step(step)
    run.kill("rank", random.randint(0, 1))
    assert run.finish() == 0, f"killed at step {step}\n{run.output()}"
    assert "restart 1 of 10" in run.output()
    assert run.leftovers() == []
    assert_same_curve(run, reference_run)


def test_everything_dies_and_the_same_command_goes_on(runs_root: Path, words: Path, reference_run: Run) -> None:
    step = random.randint(5, 12)
    run = Run(runs_root, "all-killed", words, ON_RAY)
    run.start()
    run.wait_for_step(step)
    run.kill_everything()
    run.train()
    assert_same_curve(run, reference_run)
    assert run.leftovers() == []
