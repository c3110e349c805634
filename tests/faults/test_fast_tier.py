"""Real runs with a fast tier: killed, they go on from its newest checkpoint to the same numbers; without it, from the
run directory's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fmscale.observe.events import read_events
from fmscale.observe.terms import load_term
from fmscale.training.checkpoint_format import data_name
from tests.runs import Run, assert_same_curve
from tests.unit.test_fast_tier import flip

pytestmark = [pytest.mark.processes, pytest.mark.slow]

TWO = ["parallel.dp=2", "engine=zero", "eval.every_steps=0", "checkpoint.asynchronous=false"]
"""A save stands before the next step, so that what is there at a kill is no chance."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Run:
    """The same training without a fast tier."""
    run = Run(tmp_path_factory.mktemp("reference"), "plain", words, TWO)
    run.train()
    return run


def with_fast_tier(tmp_path: Path, words: Path, *more: str) -> Run:
    """Saves at 3 (fast), 4, 6 (fast), 8, ..."""
    (tmp_path / "fast").mkdir()
    fast = [f"checkpoint.fast_dir={tmp_path / 'fast'}", "checkpoint.fast_every_steps=3"]
    return Run(tmp_path, "killed", words, [*TWO, *fast, *more])


def killed(tmp_path: Path, words: Path) -> Run:
    """A rank dies before step 8 and nobody starts it again."""
    run = with_fast_tier(tmp_path, words)
    run.start("launch.max_restarts=0", env={"FAULTS": "step.8/1:kill"})
    assert run.finish() != 0, run.output()
    assert [path.name for path in tmp_path.glob("fast/*/*")] == ["step-00000006.t0001"]
    return run


def test_a_killed_run_goes_on_from_the_fast_checkpoint(tmp_path: Path, words: Path, undisturbed: Run) -> None:
    run = killed(tmp_path, words)
    run.train()
    assert load_term(run.directory, 2).parent == "step-00000006.t0001"
    assert (run.directory / "checkpoints" / "step-00000006.t0001").is_dir()
    assert_same_curve(run, undisturbed)
    assert list(tmp_path.glob("fast/*")) == []  # the last save is the run directory's, and nothing is left behind


@pytest.mark.parametrize("backend", ["ray", "torchrun"])
def test_a_run_that_comes_back_by_itself_takes_it_too(
    tmp_path: Path, words: Path, undisturbed: Run, backend: str
) -> None:
    run = with_fast_tier(tmp_path, words, f"launch.backend={backend}")
    run.train(env={"FAULTS": "step.8/1:kill", "FAULTS_ONCE": str(tmp_path)})
    assert load_term(run.directory, 2).parent == "step-00000006.t0001"
    assert_same_curve(run, undisturbed)
    assert list(tmp_path.glob("fast/*")) == []


def spoil(fast_dir: Path) -> None:
    (directory,) = fast_dir.glob("*/*")
    flip(directory / data_name(1))


LOSSES = {
    "emptied": (lambda fast_dir: shutil.rmtree(next(fast_dir.iterdir())), ""),
    "gone": (shutil.rmtree, "there are no fast checkpoints in"),
    "damaged": (spoil, "step-00000006.t0001 is passed over in the fast tier"),
}


@pytest.mark.parametrize(("lose", "told"), LOSSES.values(), ids=LOSSES)
def test_without_it_the_run_goes_on_from_its_own(
    tmp_path: Path, words: Path, undisturbed: Run, lose: Callable[[Path], None], told: str
) -> None:
    run = killed(tmp_path, words)
    lose(tmp_path / "fast")
    run.train()
    assert load_term(run.directory, 2).parent == "step-00000004.t0001"
    assert_same_curve(run, undisturbed)
    assert told in "\n".join(event.get("text", "") for event in read_events(run.directory))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["ckpt.before_commit", "ckpt.after_commit"])
def test_killed_again_while_the_fast_checkpoint_is_copied(
    tmp_path: Path, words: Path, undisturbed: Run, fault: str
) -> None:
    run = killed(tmp_path, words)
    run.train(env={"FAULTS": f"{fault}:kill", "FAULTS_ONCE": str(tmp_path)}, timeout_s=300)  # two starts of Ray
    assert (tmp_path / f"{fault}_kill").exists()
    assert load_term(run.directory, 2).parent == "step-00000006.t0001"  # the first start opened none
    assert_same_curve(run, undisturbed)
