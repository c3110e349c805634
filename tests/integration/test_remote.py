"""Real runs whose checkpoints stand in an object store too: the machine is lost, the store fails for a time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fmscale.observe.events import read_events
from fmscale.observe.metrics import summary
from tests.runs import Run, assert_same_curve
from tests.s3_server import BUCKET, SECRET, Proxy, Request, s3_server

pytestmark = pytest.mark.processes

RANKS = ["parallel.dp=2", "engine=zero"]
REMOTE = [*RANKS, f"checkpoint.remote=s3://{BUCKET}/runs", "checkpoint.remote_timeout_s=20", "checkpoint.keep=2"]


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def undisturbed(runs_root: Path, words: Path) -> Run:
    run = Run(runs_root, "local", words, RANKS)
    run.train()
    return run


def test_a_lost_machine_goes_on_from_the_store(runs_root: Path, words: Path, server: Proxy, undisturbed: Run) -> None:
    run = Run(runs_root, "lost", words, REMOTE)
    run.start(env={**server.environment(), "FAULTS": "step.11/0:hang"})
    run.wait_for(lambda: (8, None) in uploads(run))
    lose(run)

    server.forget()
    run.start("optim.lr=0.5", env=server.environment())
    assert run.finish() == 2
    assert "this run exists with other settings" in run.output(), "an empty machine is no way round"
    shutil.rmtree(run.directory)

    server.forget()
    run.train(env=server.environment())
    assert_same_curve(run, undisturbed)
    assert next(line["step"] for line in run.steps() if line["term"] > 1) == 9, "after the checkpoint in the store"
    assert summary(run.directory)["heldout_loss"] == summary(undisturbed.directory)["heldout_loss"]
    (fetched,) = (event for event in read_events(run.directory) if event["kind"] == "fetch")
    files = run.directory / "checkpoints" / fetched["name"]
    size = sum(path.stat().st_size for path in files.iterdir() if path.name != "COMMIT.json") if files.exists() else 0
    assert size in (0, fetched["bytes"]), "each byte is fetched once"
    assert uploads(run)[-1] == (16, None)
    text = "".join(path.read_text() for path in run.directory.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml"))
    assert SECRET not in text + run.output()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_machine_goes_on_by_the_edited_order(runs_root: Path, words: Path, server: Proxy) -> None:
    """An edit that no checkpoint has seen when it is lost, and that holds from a step after the one that is."""

    def edited(name: str, *more: str) -> Run:
        run = Run(runs_root, name, words, [*RANKS, "launch.backend=torchrun", *more])
        run.train("train.steps=4", env=server.environment())
        edit = [sys.executable, "-m", "launcher.cli", "order", "edit", str(run.directory), "skip", "2"]
        subprocess.run([*edit, "--from-step", "7"], check=True, cwd=Path(__file__).parents[2])
        return run

    server.forget()
    reference, run = edited("edited"), edited("edited-lost", *REMOTE)
    reference.train()
    run.start(env={**server.environment(), "FAULTS": "step.6/0:hang"})
    run.wait_for(lambda: any(line["step"] == 5 for line in run.steps()))
    lose(run)
    run.train(env=server.environment())
    assert_same_curve(run, reference)
    assert (run.directory / "ledger.jsonl").read_bytes() == (reference.directory / "ledger.jsonl").read_bytes()


def lose(run: Run) -> None:
    """Its processes, and its directory."""
    family = [run.process, *psutil.Process(run.process.pid).children(recursive=True)] if run.process else []
    for process in family:
        process.kill()
    psutil.wait_procs(family[1:], timeout=20)
    run.finish()
    shutil.rmtree(run.directory)


@pytest.mark.slow
def test_a_failing_store_stops_no_training_and_is_said_until_it_is_mended(
    runs_root: Path, words: Path, server: Proxy
) -> None:
    run = Run(runs_root, "failing", words, [*REMOTE, "checkpoint.remote_timeout_s=1", "train.steps=100"])
    server.forget()
    failing: list[str] = []

    def fails_for_the_first(request: Request) -> str | None:
        match = re.search(r"step-\d+", request.path)
        if request.method != "PUT" or not match:
            return None
        failing.append(match[0])
        return "503" if match[0] == failing[0] else None

    server.fate = fails_for_the_first
    run.train(env=server.environment())
    assert [line["step"] for line in run.steps()] == list(range(1, 101))
    said = [event["text"] for event in read_events(run.directory) if event["kind"] == "remark"]
    assert any(f"{failing[0]}.t0001 is not in the object store" in text and "SlowDown" in text for text in said), said
    assert any("takes checkpoints again" in text for text in said), said
    assert uploads(run)[-1] == (100, None)


@pytest.mark.slow
def test_a_last_checkpoint_that_does_not_arrive_fails_the_run_and_the_same_command_mends_it(
    runs_root: Path, words: Path, server: Proxy
) -> None:
    run = Run(runs_root, "last", words, [*REMOTE, "checkpoint.remote_timeout_s=1", "train.steps=4"])
    server.forget()
    server.fate = lambda request: "403" if request.method == "PUT" and "step-" in request.path else None
    run.start(env=server.environment())
    assert run.finish() != 0
    assert "AWS_SESSION_TOKEN" in run.output()
    server.forget()
    run.train(env=server.environment())
    assert uploads(run)[-1] == (4, None)


def uploads(run: Run) -> list[tuple[int, str | None]]:
    """(step, error) of each."""
    if not (run.directory / "events.jsonl").exists():
        return []
    lines = (run.directory / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [(int(event["name"][5:13]), event["error"]) for event in events if event["kind"] == "upload"]
