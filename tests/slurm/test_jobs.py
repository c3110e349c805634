"""`fmscale submit --on slurm` against a real Slurm: whatever is done to a job, the run's curve stays the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmscale.observe.metrics import eval_series
from tests.runs import Run, assert_same_curve
from tests.slurm.conftest import SlurmRun
from tests.slurm_cluster import SlurmCluster
from tests.word_corpora import texts

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[2]
Make = Callable[..., SlurmRun]


def test_a_job_on_two_nodes_trains_as_one_machine_does(slurm_run: Make, reference_run: Run) -> None:
    run = slurm_run("two-nodes")
    run.submit()
    assert "has not ended" in run.command("submit", *run.arguments(), "--site", str(run.site), code=5)
    run.end()
    assert_same_curve(run, reference_run)
    ready = re.search(r"2 nodes, 2 CPUs, 0 GPUs, ([\d.]+) s after the job's step began", run.log)
    assert ready is not None, run.log
    print(f"ready after {ready[1]} s")
    nodes = {line.split()[0] for line in run.log.splitlines() if line.startswith("node n")}
    assert "sleep" not in (run.directory / "job" / "job.sbatch").read_text()
    status = json.loads(run.command("jobs", "status", run.job, "--json"))
    assert (status["state"], status["step"]) == ("done", 160), nodes
    assert "done:" in run.command("jobs", "logs", run.name)
    assert run.command("jobs", "list") == "no job waits or runs\n"
    run.require_nothing_left()


def test_a_requeued_job_goes_on_and_a_cancelled_one_does_not(slurm_run: Make, slurm: SlurmCluster) -> None:
    run = slurm_run("requeued", "train.steps=100000")
    run.submit()
    run.wait_for_step(10)
    slurm.run("scontrol", "requeue", run.job)
    run.wait_for(lambda: slurm.restarts(run.job) == 1)
    before = run.steps()[-1]["step"]
    run.wait_for_step(before + 5)
    assert {line["term"] for line in run.steps()} == {1, 2}, "one run, saved once and gone on with"
    assert re.search(r"stopped before step \d+: SIGTERM", run.log), run.log
    assert "asked to save and stop" in run.command("jobs", "cancel", run.name)
    run.wait_for_state("CANCELLED")
    run.require_nothing_left()
    time.sleep(8)  # longer than Slurm takes to start what was put back
    assert slurm.job_state(run.job) == "CANCELLED"
    assert json.loads(run.command("jobs", "status", run.job, "--json"))["state"] == "cancelled"


def assert_gone_on_with(run: SlurmRun) -> None:
    """It trains on as the same run, in its second term; then it is cancelled, and nothing is left."""
    before = run.steps()[-1]["step"]
    run.wait_for_step(before + 5)
    assert {line["term"] for line in run.steps()} == {1, 2}
    run.cluster.run("scancel", run.job)
    run.wait_for_state("CANCELLED")
    run.require_nothing_left()


@pytest.mark.slow
def test_the_time_limit_saves_and_goes_back_into_the_queue(slurm_run: Make, slurm: SlurmCluster) -> None:
    run = slurm_run("time-limit", "train.steps=100000", "launch.grace_s=30")
    run.submit("--time", "4")  # Slurm gives notice a minute early at times
    run.wait_for(lambda: slurm.restarts(run.job) == 1, timeout_s=400)
    assert "back into the queue" in run.log
    assert_gone_on_with(run)


@pytest.mark.slow
def test_a_preempted_job_makes_room_and_comes_back(slurm_run: Make, slurm: SlurmCluster) -> None:
    run = slurm_run("preempted", "train.steps=100000")
    run.submit()
    run.wait_for_step(10)
    urgent = slurm.run(
        "sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5"
    ).strip()
    run.wait_for(lambda: slurm.restarts(run.job) == 1, timeout_s=240)
    run.wait_for(lambda: slurm.job_state(urgent) == "COMPLETED", timeout_s=240)
    assert_gone_on_with(run)


@pytest.mark.slow
def test_a_killed_slurmd_costs_time_and_its_orphans_leave(slurm_run: Make, slurm: SlurmCluster) -> None:
    run = slurm_run("node-lost", "train.steps=100000")
    run.submit()
    run.wait_for_step(10)
    slurm.kill_node("n1")  # where the supervisor is
    try:
        run.wait_for(lambda: slurm.restarts(run.job) == 1, timeout_s=240)
    finally:
        slurm.start_node("n1")
    before = run.steps()[-1]["term"]
    run.wait_for_steps(5, after_term=before)
    steps = [line["step"] for line in run.steps()]
    assert steps == list(range(1, len(steps) + 1)), "none is lost, none twice"
    slurm.run("scancel", run.job)
    run.wait_for_state("CANCELLED")
    run.require_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["supervisor", "node", "raylet", "gcs_server"])
def test_a_killed_process_of_the_job_costs_time_alone(
    victim: str, slurm_run: Make, slurm: SlurmCluster, reference_run: Run
) -> None:
    run = slurm_run(f"killed-{victim}")
    run.submit()
    run.wait_for_step(40)
    marks = {"supervisor": "launcher.cli", "node": "launcher.allocation.node"}
    found = [p for p in run.job_processes() if p.name() == victim or marks.get(victim, "-") in p.cmdline()]
    assert found, f"no {victim} among {run.job_processes()}"
    os.kill(found[0].pid, signal.SIGKILL)
    run.end()
    assert_same_curve(run, reference_run)
    assert len({line["term"] for line in run.steps()}) > 1
    run.require_nothing_left()


@pytest.mark.slow
def test_two_jobs_on_the_same_nodes_do_not_meet(slurm_run: Make, slurm: SlurmCluster, reference_run: Run) -> None:
    first, second = slurm_run("at-once-1"), slurm_run("at-once-2")
    first.submit("--cpus-per-node", "1")
    second.submit("--cpus-per-node", "1")
    first.wait_for_step(1)
    assert slurm.job_state(second.job) == "RUNNING", "at once"
    for run in (first, second):
        run.end()
        assert_same_curve(run, reference_run)
        run.require_nothing_left()


def test_ranks_under_srun_alone_train_and_evaluate_as_under_ray(
    slurm_run: Make, slurm: SlurmCluster, reference_run: Run
) -> None:
    run = slurm_run("srun", "launch.backend=torchrun")
    run.submit()
    run.end()
    assert_same_curve(run, reference_run)
    assert not any("ray" in path.name for path in (run.directory / "logs").iterdir())
    run.require_nothing_left()
    assert_evaluates(run, slurm)


def assert_evaluates(run: SlurmRun, slurm: SlurmCluster) -> None:
    """slurm/evaluate.sbatch on both nodes finds what the run's own last evaluation found."""
    exported = f"--export=ALL,FMSCALE_PYTHON={sys.executable},FMSCALE_JOBS={run.root / 'evaluation'}"
    place = ["--nodes=2", f"--chdir={ROOT}", f"--output={run.root}/evaluation.out", exported]
    run.job = slurm.run(
        "sbatch", "--parsable", *place, str(ROOT / "slurm" / "evaluate.sbatch"), str(run.directory)
    ).strip()
    output = run.root / "evaluation.out"
    run.wait_for(lambda: slurm.job_state(run.job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"))
    assert slurm.job_state(run.job) == "COMPLETED", output.read_text()
    assert output.read_text().count("-> ") == 1, "one of them tells it"
    record = evaluation_by_both(run)
    assert record["total"]["loss"] == pytest.approx(eval_series(run.directory)[-1]["heldout_loss"], rel=1e-6)
    run.require_nothing_left()


def evaluation_by_both(run: SlurmRun) -> dict[str, Any]:
    """What the only evaluation of the run found."""
    (file,) = (run.directory / "evaluations").iterdir()
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["by"] == {"processes": 2, "device": "cpu"}
    return record


@pytest.mark.slow
def test_a_rank_killed_under_srun_ends_the_step_which_starts_anew(slurm_run: Make, reference_run: Run) -> None:
    run = slurm_run("srun-killed", "launch.backend=torchrun")
    run.submit()
    run.wait_for_step(40)
    run.kill("rank", 1)
    run.end()
    assert_same_curve(run, reference_run)
    assert "start 1 of 3" in run.log
    run.require_nothing_left()


@pytest.mark.slow
def test_the_job_by_hand(slurm_run: Make, slurm: SlurmCluster, reference_run: Run) -> None:
    run = slurm_run("by-hand")
    script = str(ROOT / "slurm" / "pretrain.sbatch")
    place = [f"--chdir={ROOT}", f"--output={run.root}/slurm-%j.out", f"--export=ALL,FMSCALE_PYTHON={sys.executable}"]
    run.job = slurm.run("sbatch", "--parsable", "--nodes=2", *place, script, *run.arguments()).strip()
    run.end()
    assert_same_curve(run, reference_run)
    run.require_nothing_left()
    shutil.rmtree(ROOT / "runs" / f"slurm-{run.job}")
    name = f"{run.name}-evaluated-{run.job}"
    where = ["--on", "slurm", "--nodes", "2", "--site", str(run.site), "--name", name]
    run.job = run.command("submit", "--do", "evaluate", *where, "--", str(run.directory), "--rows", "8").split()[1]
    run.wait_for_state("COMPLETED")
    assert evaluation_by_both(run)["total"]["rows"] == 8
    assert "total" in run.command("jobs", "logs", name)
    shutil.rmtree("runs/" + name)


@pytest.mark.slow
def test_a_preparation_runs_on_the_nodes_of_a_job(slurm_run: Make, tmp_path: Path) -> None:
    run = slurm_run("preparation")
    raw, model = tmp_path / "raw", tmp_path / "t.model"
    raw.mkdir()
    for number in range(4):
        lines = [
            json.dumps({"id": f"{number}.{n}", "text": text}) for n, text in enumerate(texts(200, first=number * 200))
        ]
        (raw / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    run.command("tokenizer", "train", str(raw), "--output", str(model), "--vocab-size", "600")
    recipe = [f"inputs=[{raw}]", f"tokenizer={model}", f"output={tmp_path / 'corpus'}", "chunk_tokens=1024"]
    where = ["--on", "slurm", "--nodes", "2", "--site", str(run.site), "--name", "prepare"]
    said = run.command("submit", "--do", "data prepare", *recipe, *where)
    run.job = said.split()[1]
    run.wait_for_state("COMPLETED")
    run.command("data", "verify", str(tmp_path / "corpus"))
    assert "2 nodes" in run.command("jobs", "logs", "prepare")
    run.require_nothing_left()
