"""A rank that dies is replaced by a warm spare: the driver, Ray and the other ranks keep their processes."""

from __future__ import annotations

import itertools
from pathlib import Path

import psutil
import pytest

from fmscale.observe.events import read_events
from fmscale.observe.failure import Failure, of_rank
from tests.runs import ON_RAY, Run, assert_same_curve

pytestmark = pytest.mark.processes


def test_ranks_die_one_after_the_other_and_nobody_else_starts_anew(
    runs_root: Path, words: Path, reference_run: Run
) -> None:
    run = Run(runs_root, "warm", words, ON_RAY)
    run.start()
    run.wait_for_step(30)
    (driver,) = run.pids("driver")
    for killed, step in enumerate((40, 80)):
        run.wait_for_step(step)
        (survivor,) = run.pids("rank", 1 - killed)
        (doomed,) = run.pids("rank", killed)
        psutil.Process(doomed).suspend()  # so that the run is not over before a spare is ready
        run.wait_for(lambda: run.pids("spare"))
        run.kill("rank", killed)
        run.wait_for_steps(1, after_term=killed + 1)
        assert run.pids("driver") == [driver]
        assert run.pids("rank", 1 - killed) == [survivor]
    assert run.finish() == 0, run.output()
    assert_same_curve(run, reference_run)
    kinds = [event["kind"] for event in read_events(run.directory)]
    assert kinds.count("start") == 1
    assert [event["dead"] for event in read_events(run.directory) if event["kind"] == "mended"] == [[0], [1]]
    assert run.leftovers() == []


def interrupted_in_an_engines_start(run: Run) -> tuple[Failure | None, bool]:
    """Rank 0 is killed in training; as its spare and rank 1 start their engines, rank 1 is killed. What that spare said
    when it lost rank 1, and whether its process was rank 0 to the end."""
    run.start(env={"FAULTS": "engine.start/1:kill@2"})
    run.wait_for_steps(20, after_term=0)
    run.wait_for(lambda: run.pids("spare"))
    run.kill("rank", 0)
    run.wait_for(lambda: sum(event["kind"] == "incident" for event in read_events(run.directory)) == 2)
    (survivor,) = run.pids("rank", 0)
    (tag,) = [event["incarnation"] for event in read_events(run.directory) if event["kind"] == "start"]
    run.wait_for_steps(1, after_term=1)
    same = run.pids("rank", 0) == [survivor]
    assert run.finish() == 0, run.output()
    assert [event["dead"] for event in read_events(run.directory) if event["kind"] == "mended"] == [[0], [1]]
    return of_rank(run.directory, f"{tag}.1", 0), same


@pytest.mark.slow
def test_a_rank_that_loses_its_peer_in_an_engines_start_starts_another_one(
    runs_root: Path, words: Path, reference_run: Run
) -> None:
    """It waits in vain where groups meet, is called off, and what DeepSpeed knew of groups is forgotten."""
    run = Run(runs_root, "engine-start", words, ON_RAY)
    said, same = interrupted_in_an_engines_start(run)
    assert said is not None
    assert said.is_echo
    assert "in initialize" in said.trace, "it was interrupted within deepspeed.initialize"
    assert same, "the survivor keeps its process"
    assert_same_curve(run, reference_run)


@pytest.mark.parametrize("settings", [["engine=pipe", "parallel.pp=2", "parallel.dp=1"], ["parallel.zero=3"]])
@pytest.mark.slow
def test_so_do_other_engines(tmp_path: Path, words: Path, settings: list[str]) -> None:
    all_settings = [*ON_RAY, *settings, "train.steps=60", "checkpoint.every_steps=10"]
    quiet, killed = (Run(tmp_path, name, words, all_settings) for name in ("quiet", "killed"))
    quiet.train()
    said, same = interrupted_in_an_engines_start(killed)
    assert said is not None
    assert said.is_echo
    assert "in build_engine" in said.trace
    assert same
    assert_same_curve(killed, quiet)


@pytest.mark.parametrize("engine", ["plain", "pipe"])
@pytest.mark.slow
def test_under_other_engines(runs_root: Path, words: Path, engine: str) -> None:
    ranks = ["parallel.pp=2", "parallel.dp=1"] if engine == "pipe" else ["parallel.dp=2"]
    settings = ["launch.backend=ray", "launch.spares=1", f"engine={engine}", *ranks]
    settings += ["train.steps=80", "checkpoint.every_steps=10"]
    quiet, killed = (Run(runs_root, f"{name}-{engine}", words, settings) for name in ("quiet", "killed"))
    quiet.train()
    killed.start()
    for number, rank in enumerate(itertools.islice(itertools.cycle((1, 0)), 2)):
        killed.wait_for_steps(20, after_term=number)
        killed.kill("rank", rank)
    assert killed.finish() == 0, killed.output()
    assert_same_curve(killed, quiet)
    assert [event["kind"] for event in read_events(killed.directory)].count("start") == 1
