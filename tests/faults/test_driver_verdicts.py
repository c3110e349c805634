"""What the driver judges by itself and what the supervisor makes of it: one budget, one cause, one roll-back."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import GetTimeoutError

from fmscale.config import load
from fmscale.errors import RunHeldError
from fmscale.observe.events import read_events
from fmscale.observe.failure import first_cause, of_rank, record
from fmscale.training.lease import Lease
from launcher import restarts
from launcher.elastic import Elastic
from launcher.group import Ending
from launcher.incarnation import judged_by_driver, rolled_back, starts_from
from launcher.members import Members
from launcher.placement import NodeLost
from launcher.recovery import Recovery
from launcher.restarts import classify
from tests.checkpoints import start, two_checkpoints
from tests.runs import ON_RAY, Run


@pytest.mark.slow
@pytest.mark.processes
def test_a_budget_that_the_driver_refuses_is_told_as_that(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "refused", words, [*ON_RAY, "launch.max_restarts=0"])
    run.start(env={"FAULTS": "step.7:raise"})
    assert run.finish() == 7
    said = (tmp_path / "refused.log").read_text()
    assert "the run used up its restarts" in said
    assert "failed: RuntimeError: injected by FAULTS" in said
    assert [event["cause"] for event in read_events(run.directory) if event["kind"] == "incident"] == ["exception"]


@pytest.mark.processes
@pytest.mark.slow
def test_a_roll_back_happens_once_however_many_ranks_are_lost(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "back", words, [*ON_RAY, "train.steps=40", "checkpoint.every_steps=10", "checkpoint.keep=9"])
    run.train()
    run.start("--roll-back", "step-00000010.t0001", "train.steps=160")
    for term in (2, 3):
        run.wait_for_steps(15, after_term=term - 1)
        run.kill("rank", term % 2)
    assert run.finish() == 0, run.output()
    parents = [term.parent for term in Lease(run.directory).terms()]
    assert parents[:2] == [None, "step-00000010.t0001"]
    assert parents.count("step-00000010.t0001") == 1, parents


def test_a_roll_back_is_done_once_any_term_has_begun_with_it(tmp_path: Path) -> None:
    first, second = two_checkpoints(tmp_path)
    term = Lease(tmp_path).newest_term()
    assert not rolled_back(tmp_path, first.name, first_term=term)
    start(tmp_path, first)
    assert rolled_back(tmp_path, first.name, first_term=term)
    start(tmp_path, second)
    assert rolled_back(tmp_path, first.name, first_term=term), "also once another term has gone on from there"
    assert not rolled_back(tmp_path, first.name, first_term=term + 1)


def test_what_was_recovered_from_is_no_cause_of_what_came_later(tmp_path: Path) -> None:
    record(tmp_path, "tag.0", 1, RuntimeError("once"))
    assert first_cause(tmp_path, "tag", after=-1).message == "once"  # type: ignore[union-attr]
    assert first_cause(tmp_path, "tag", after=0) is None
    record(tmp_path, "tag", -1, RuntimeError("the driver's own"))
    for after in (-1, 0, 5):
        assert first_cause(tmp_path, "tag", after=after).message == "the driver's own"  # type: ignore[union-attr]
    assert of_rank(tmp_path, "tag.0", 1).message == "once"  # type: ignore[union-attr]
    assert of_rank(tmp_path, "tag.0", 0) is None


def test_an_incarnation_starts_from_its_checkpoint_or_from_the_one_to_roll_back_to(tmp_path: Path) -> None:
    assert starts_from(tmp_path, None) == 0
    assert starts_from(tmp_path, "step-00000700.t0002") == 700
    assert judged_by_driver(tmp_path, "tag") == []


def test_a_driver_whose_run_was_taken_over_does_not_take_it_back(tmp_path: Path) -> None:
    config = load([], [f"run.root={tmp_path}", "run.name=taken"])
    lock = config.run_dir / "lease" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("a")
    elastic = Elastic(config, SimpleNamespace(nodes=[], world=1, dp=1))  # type: ignore[arg-type]
    recovery = Recovery(config, "tag", elastic, None)  # type: ignore[arg-type]
    (lock.parent / "another").write_text("b")
    os.replace(lock.parent / "another", lock)
    with pytest.raises(RunHeldError, match=r"another process took this run over(?s:.*)found: a newer one"):
        recovery.judge(Ending(attempt="tag.0", dead=[1]))
    assert [event for event in read_events(config.run_dir) if event["kind"] == "restart"] == []


def test_a_place_that_nobody_can_take_is_a_lost_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = Members.__new__(Members)
    members.config = load([], [f"run.root={tmp_path}", "run.name=lost"])

    def never(self: Members, answer: object, each: object) -> None:
        raise GetTimeoutError("nothing yet")

    monkeypatch.setattr(Members, "soon", never)
    with pytest.raises(
        NodeLost, match=r"a rank's process does not start(?s:.*)within 120 s(?s:.*)nothing yet"
    ) as caught:
        members._whereabouts(None, lost=lambda: False, meanwhile=lambda: None)
    record(tmp_path, "tag", -1, caught.value)
    failure = first_cause(tmp_path, "tag")
    assert classify(restarts.Ending(exit_code=1, step=5, failure=failure)).cause == "node lost"
