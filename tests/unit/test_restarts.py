"""How endings are named, and which of them a restart follows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.errors import FmscaleError, RestartBudgetError
from fmscale.observe.failure import Failure
from launcher.restarts import ADVICE, BUDGETS, REPEATING, Ending, Incident, Restarts, classify

TORCHRUN = """
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : node
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 4242)
  error_file: <N/A>
"""


def failure(kind: str = "ValueError", message: str = "the cause", rank: int = 1, exit_code: int = 1) -> Failure:
    return Failure(rank=rank, time=0.0, kind=kind, exit_code=exit_code, message=message, trace="")


ECHO = failure("RuntimeError", "[pair.cc:547] gloo: Connection closed by peer", rank=0)
OOM_OF_TORCH = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
LOST_NODE = "The actor is dead because its node has died. Node Id: 7f"


@pytest.mark.parametrize(
    ("ending", "cause", "words"),
    [
        ({"failure": failure()}, "exception", "rank 1 failed: ValueError: the cause"),
        ({"failure": failure("MemoryError", "")}, "out of memory", "rank 1 found no memory: MemoryError: "),
        (
            {"failure": failure("RuntimeError", OOM_OF_TORCH)},
            "out of memory",
            "rank 1 found no memory: RuntimeError: [en",
        ),
        (
            {"failure": failure("OutOfMemoryError", "CUDA out of memory.")},
            "out of memory",
            "rank 1 found no memory: Out",
        ),
        ({"failure": ECHO, "oom_kills": 1}, "out of memory", "a rank was killed by the kernel or by Ray because mem"),
        (
            {"oom_kills": 2, "rank": 3, "rank_exit": -9},
            "out of memory",
            "rank 3 was killed by the kernel or by Ray bec",
        ),
        (
            {"words": "Task was killed due to the node running low on memory. OOM"},
            "out of memory",
            "a rank was killed by",
        ),
        ({"failure": ECHO, "rank": 1, "rank_exit": -9}, "killed", "rank 1 was killed by SIGKILL"),
        ({"failure": ECHO, "words": TORCHRUN.format(code=-9)}, "killed", "rank 1 was killed by SIGKILL"),
        ({"rank": 1, "rank_exit": -9, "words": TORCHRUN.format(code=-15)}, "killed", "rank 1 was killed by SIGKILL"),
        ({"rank": 0, "words": TORCHRUN.format(code=-9)}, "killed", "rank 1 was killed by SIGKILL"),
        ({"failure": ECHO, "rank": 1, "rank_exit": 0}, "left early", "rank 1 left with exit code 0 before the la"),
        ({"words": TORCHRUN.format(code=-11)}, "crash", "rank 1 crashed with SIGSEGV"),
        ({"words": TORCHRUN.format(code=-63)}, "killed", "rank 1 was killed by signal 63"),
        (
            {"failure": ECHO, "words": TORCHRUN.format(code=0)},
            "left early",
            "rank 1 left with exit code 0 before the la",
        ),
        ({"words": TORCHRUN.format(code=3)}, "exception", "rank 1 ended with exit code 3 and no word"),
        ({"failure": ECHO}, "peer lost", "a rank was killed or hung (rank 0 lost it: RuntimeError: [pair.cc:547] gloo"),
        ({"exit_code": 0}, "left early", "the ranks left before the last step"),
        ({"exit_code": -9}, "driver lost", "the driver was killed by SIGKILL"),
        ({"exit_code": 1}, "driver lost", "a process was killed (driver exit code 1)"),
        ({"failure": ECHO, "words": LOST_NODE, "rank": 2}, "node lost", "rank 2 went with its node"),
        (
            {"words": "gcs_rpc_client.h: Failed to connect to GCS within 60 seconds."},
            "ray lost",
            "Ray's control process",
        ),
        (
            {"failure": ECHO, "hang": "rank 1 (in read of step 3) is stuck"},
            "hang",
            "rank 1 (in read of step 3) is stuck",
        ),
        ({"failure": failure("MachineError", "no room", exit_code=6)}, "disk", "rank 1 failed: MachineError: no room"),
        (
            {"failure": failure("MachineError", "no", exit_code=6), "moved": False},
            "fatal",
            "rank 1 failed: MachineError",
        ),
        ({"failure": failure("DataError", "bad", exit_code=3)}, "fatal", "rank 1 failed: DataError: bad"),
        (
            {"failure": failure("StopRequested", "stopped before step 8", exit_code=85)},
            "stopped",
            "stopped before step",
        ),
        ({"failure": failure(rank=-1)}, "exception", "the driver failed: ValueError: the cause"),
        ({"failure": failure("", "")}, "exception", "rank 1 failed: : "),
    ],
)
def test_an_ending_has_one_cause(ending: dict[str, Any], cause: str, words: str) -> None:
    incident = classify(Ending(**{"exit_code": 1, "step": 7, "committed": 4, **ending}))
    assert incident.cause == cause
    assert incident.words.startswith(words)
    assert (incident.step, incident.committed) == (7, 4)
    assert Incident.from_event({**json.loads(json.dumps(incident.to_event())), "kind": "incident"}) == incident


def incident(cause: str = "killed", step: int = 1, committed: int = 0, words: str = "words") -> Incident:
    return Incident(cause=cause, words=words, step=step, committed=committed)


def test_what_no_restart_mends_ends_the_run_with_its_own_words_and_code() -> None:
    wrong = classify(Ending(exit_code=1, step=3, failure=failure("DataError", "a shard\n  found: x", exit_code=3)))
    with pytest.raises(FmscaleError, match="a shard\n  found: x") as caught:
        Restarts(10).judge(wrong)
    assert caught.value.exit_code == 3


def test_a_run_that_was_asked_to_stop_is_not_started_again() -> None:
    asked = failure("StopRequested", "stopped before step 8\n  found: x", exit_code=85)
    with pytest.raises(FmscaleError, match="stopped before step 8\n  found: x") as caught:
        Restarts(10).judge(classify(Ending(exit_code=1, step=7, failure=asked)))
    assert caught.value.exit_code == 85


@pytest.mark.parametrize("cause", sorted(REPEATING))
def test_the_same_step_in_the_same_way_twice_stops_with_advice(cause: str) -> None:
    """Even with other incidents and new checkpoints in between."""
    restarts = Restarts(10)
    restarts.judge(incident(cause, 5, 0, "rank 0 failed: ValueError: x"))
    restarts.judge(incident("killed", 2))
    restarts.judge(incident(cause, 6, 0, "rank 0 failed: ValueError: x"))
    with pytest.raises(RestartBudgetError, match="failed twice at the same step in the same way") as caught:
        restarts.judge(incident(cause, 5, 4, "rank 1 failed: ValueError: x"))
    message = str(caught.value)
    assert "found: rank 1 failed: ValueError: x" in message
    assert ADVICE.get(cause, "another restart would repeat it") in message
    assert "step 6 to finish" in message
    assert caught.value.exit_code == 7
    assert len(message.splitlines()) <= 6


@pytest.mark.parametrize("cause", ["killed", "node lost", "ray lost", "driver lost", "peer lost"])
def test_blows_from_outside_may_fall_on_one_step_often(cause: str) -> None:
    restarts = Restarts(10)
    for _ in range(10):
        restarts.judge(incident(cause, 5))
    with pytest.raises(RestartBudgetError, match=r"used up its restarts(?s:.*)launch\.max_restarts=10 without a new"):
        restarts.judge(incident(cause, 5))


def test_another_exception_at_the_same_step_is_no_repetition() -> None:
    restarts = Restarts(10)
    restarts.judge(incident("exception", 5, words="rank 0 failed: ValueError: x"))
    restarts.judge(incident("exception", 5, words="rank 0 failed: ValueError: y"))


@pytest.mark.parametrize(("cause", "budget"), sorted(BUDGETS.items()))
def test_a_cause_has_a_budget_of_its_own(cause: str, budget: int) -> None:
    restarts = Restarts(10)
    for step in range(budget):
        restarts.judge(incident(cause, step))
    restarts.judge(incident("killed", 1))
    with pytest.raises(RestartBudgetError, match=f"used up its restarts(?s:.*)at most {budget} after `{cause}`"):
        restarts.judge(incident(cause, budget))
    restarts.judge(incident(cause, budget, committed=1))


def test_no_restarts_at_all() -> None:
    with pytest.raises(RestartBudgetError, match=r"launch\.max_restarts=0"):
        Restarts(0).judge(incident())


causes = st.sampled_from(["killed", "hang", "exception", "out of memory"])


@given(st.lists(st.tuples(causes, st.booleans()), max_size=40), st.integers(0, 6))
def test_a_run_that_gets_on_is_never_ended_by_its_age(history: list[tuple[str, bool]], most: int) -> None:
    """Between two new checkpoints there are never more than `most` restarts; with one before each, there is no end."""
    restarts, committed, since = Restarts(most), 0, 0
    for number, (cause, progress) in enumerate(history):
        if progress:
            committed, since = committed + 1, 0
        try:
            restarts.judge(incident(cause, number, committed))
        except RestartBudgetError:
            assert since >= min(most, BUDGETS.get(cause, most))
            return
        since += 1
        assert since <= most
    assert restarts.count == len(history)


@given(st.lists(causes, max_size=12))
def test_a_budget_is_one_whoever_restarts(history: list[str]) -> None:
    """Incidents that crossed as events of a file count as one's own."""
    alone, driver = Restarts(5), Restarts(5)
    supervisor = Restarts(5)
    for number, cause in enumerate(history):
        each = incident(cause, number)
        outcomes = []
        judge = (driver, supervisor)[number % 2]
        other = (driver, supervisor)[1 - number % 2]
        for restarts in (alone, judge):
            try:
                restarts.judge(each)
                outcomes.append("")
            except RestartBudgetError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
        if not outcomes[0]:
            other.recall([json.loads(json.dumps({"kind": "incident", "host": "h", **each.to_event()}))])
