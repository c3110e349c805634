"""Runs as jobs of a real Ray cluster: two raylets, a dashboard, a token. Submitted, followed, stopped, resubmitted;
a raylet lost and another one come."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from data_pipeline.run import prepare
from fmscale.errors import ConfigError, MachineError
from fmscale.observe import pids
from fmscale.observe.events import read_events
from fmscale.observe.metrics import series
from fmscale.training.checkpoint import CheckpointStore
from launcher.driver_process import die_with_parent, sweep
from launcher.jobs.project import CONSTRAINTS, copy_project
from launcher.jobs.ray_jobs import RUN, RUN_DIR, RayJobs, submission_ids
from launcher.jobs.skypilot import SkyPilot, task
from launcher.jobs.spec import JobSpec
from tests.integration.test_prepare import digests, recipe_of
from tests.job_specs import HOSTILE
from tests.raw_text import write_raw
from tests.ray_jobs_cluster import PATIENCE_S, TAG, RayCluster, free_port, until
from tests.runs import TINY, Run, assert_same_curve

pytestmark = pytest.mark.processes

SETTINGS = ["launch.backend=ray", "engine=zero", "parallel.dp=2", "checkpoint.every_steps=0", "eval.every_steps=0"]
SETTINGS += ["schedule.kind=wsd", "schedule.decay_steps=1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def jobs(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayJobs:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token_file))
    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return RayJobs(cluster.dashboard)


def spec_of(root: Path, words: Path, name: str, *settings: str) -> JobSpec:
    config = root / "tiny.yaml"
    config.write_text(TINY)
    place = ["run.root=runs", f"run.name={name}", f"data.sources.words.corpus={words}"]
    return JobSpec(
        name=name,
        run_dir=root / "runs" / name,
        arguments=("train", "tiny.yaml", *place, *SETTINGS, *settings),
        directory=root,
        nodes=2,
    )


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    return series(run_dir) if (run_dir / "metrics.jsonl").exists() else []


def status_of(cluster: RayCluster, token: str, path: str = "/api/jobs/") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(cluster.dashboard + path, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_job_api_is_closed_without_the_token(
    cluster: RayCluster, jobs: RayJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4. Ray answers 401 without a token and 403 to a wrong one; we say which it was. A token that Ray's client has
    found by itself goes nowhere."""
    assert cluster.token_file.stat().st_mode & 0o777 == 0o600
    assert status_of(cluster, "") == 401
    assert status_of(cluster, "0" * 64) == 403
    assert status_of(cluster, cluster.token) == 200
    assert jobs.jobs() == {}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(MachineError, match="the cluster does not take this token") as refused:
        jobs.jobs()
    assert "0" * 64 not in str(refused.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    found = {"authorization": f"Bearer {cluster.token}"}
    monkeypatch.setattr("ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled", lambda headers: found)
    with pytest.raises(MachineError, match="the cluster asks for a token"):
        jobs.jobs()


def test_a_job_that_ray_does_not_know(jobs: RayJobs) -> None:
    assert jobs.state("never-1").state == "unknown"
    for ask in (lambda: jobs.cancel("never-1"), lambda: list(jobs.logs("never-1", follow=True))):
        with pytest.raises(ConfigError, match="the cluster knows no such job"):
            ask()


def test_submitted_followed_stopped_and_resubmitted(
    cluster: RayCluster, jobs: RayJobs, tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank stands still for longer than Ray's own 3 s between SIGTERM and SIGKILL; the run saves all the same. The
    second job goes on where the first has stopped, with the same batches, and nothing secret is in what Ray shows."""
    monkeypatch.setenv("WANDB_API_KEY", "canary-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-key")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    monkeypatch.setenv("FAULTS", "step.6/1:stop")
    spec = spec_of(tmp_path, words, "job", "train.steps=3000")
    run_dir = spec.run_dir
    job = jobs.submit(spec)
    assert job == "job-1"

    def stopped() -> psutil.Process | None:
        for entry in pids.read(run_dir):
            if entry["role"] == "rank" and entry["rank"] == 1 and pids.alive(entry):
                process = psutil.Process(entry["pid"])
                return process if process.status() == psutil.STATUS_STOPPED else None
        return None

    rank = until(stopped, lambda: "".join(jobs.logs(job, follow=False)))
    assert jobs.state(job).state == "running"
    assert steps_of(run_dir)[-1]["step"] == 5
    jobs.cancel(job)
    until(lambda: [event for event in read_events(run_dir) if event["kind"] == "stop_requested"])
    time.sleep(5)  # not a wait: the time that Ray would have left the run
    assert jobs.state(job).state == "running"
    rank.send_signal(signal.SIGCONT)
    said = "".join(jobs.logs(job, follow=True))
    assert jobs.state(job).state == "cancelled"
    assert "joined the Ray cluster at 127.77.0.1:" in said
    assert "2 nodes, 2 CPUs, 0 GPUs" in said
    assert "SIGTERM: saving and stopping" in said
    assert "Traceback" not in said
    (commit,) = CheckpointStore(run_dir / "checkpoints").list()
    assert commit.step == steps_of(run_dir)[-1]["step"]

    request = urllib.request.Request(
        cluster.dashboard + "/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"}
    )
    with urllib.request.urlopen(request) as answer:
        shown = answer.read().decode()
    assert "canary" not in shown
    assert cluster.token not in shown
    (known,) = [each for each in json.loads(shown) if each["submission_id"] == job]
    assert known["metadata"] == {RUN: "job", RUN_DIR: str(run_dir)}
    assert known["runtime_env"]["env_vars"]["WANDB_ENTITY"] == "us"

    monkeypatch.delenv("FAULTS")
    last = commit.step + 5
    again = jobs.submit(spec_of(tmp_path, words, "job", f"train.steps={last}"))
    assert again == "job-2"
    said = "".join(jobs.logs(again, follow=True))
    assert jobs.state(again).state == "done", said
    assert jobs.jobs() == {again: jobs.state(again), job: jobs.state(job)}
    lines = steps_of(run_dir)
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    assert [line["term"] for line in lines] == [1] * commit.step + [2] * 5
    order = [sys.executable, "-m", "launcher.cli", "order", str(run_dir / "config.yaml")]
    order += ["--from", "1", "--steps", str(last), "--dp", "2", "--json"]
    done = subprocess.run(order, capture_output=True, text=True, check=True)
    planned = [each["batch_hash"] for each in json.loads(done.stdout)]
    assert [line["batch_hash"] for line in lines] == planned


def test_an_argument_that_is_shell_stays_an_argument(cluster: RayCluster, jobs: RayJobs, tmp_path: Path) -> None:
    """S13; and a job that fails says how."""
    spec = JobSpec(name=HOSTILE, run_dir=tmp_path, arguments=("runs", "show", HOSTILE), directory=tmp_path)
    job = jobs.submit(spec)
    assert job == "touch-canary-touch-canary-touch-canary-1"
    said = "".join(jobs.logs(job, follow=True))
    assert f"found: {HOSTILE}" in said
    assert jobs.state(job).state == "failed"
    assert jobs.state(job).detail == "exit code 2"
    assert not list(cluster.directory.rglob("canary"))
    assert not Path("canary").exists()


def test_two_submitters_at_once_get_two_numbers(jobs: RayJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one believed that no job was there."""
    spec = JobSpec(name="twice", run_dir=tmp_path, arguments=("--help",), directory=tmp_path)
    assert jobs.submit(spec) == "twice-1"
    monkeypatch.setattr("launcher.jobs.ray_jobs.submission_ids", lambda name, taken: submission_ids(name, set()))
    assert jobs.submit(spec) == "twice-2"
    for job in ("twice-1", "twice-2"):
        until(lambda job=job: jobs.state(job).state == "done", lambda job=job: str(jobs.state(job)))


@pytest.mark.slow
def test_a_raylet_is_lost_and_another_one_comes(
    jobs: RayJobs, cluster: RayCluster, tmp_path: Path, words: Path, runs_root: Path
) -> None:
    """The run waits for the place of its second rank, and its curve is that of an undisturbed run."""
    settings = ["train.steps=120", "checkpoint.every_steps=20"]
    job = jobs.submit(spec_of(tmp_path, words, "lost", *settings))
    run_dir = tmp_path / "runs" / "lost"
    until(lambda: len(steps_of(run_dir)) >= 50, lambda: "".join(jobs.logs(job, follow=False)))
    cluster.kill_node(1)
    until(lambda: [e for e in read_events(run_dir) if e["kind"] == "incident"], lambda: str(jobs.state(job)))
    cluster.add_node()
    said = "".join(jobs.logs(job, follow=True))
    assert jobs.state(job).state == "done", said
    assert "restart 1 of 10" in said
    alone = Run(runs_root, "alone", words, [*SETTINGS, *settings])
    alone.train()
    assert_same_curve(Run(tmp_path / "runs", "lost", words), alone)


@pytest.mark.slow
def test_a_job_brings_its_own_packages(
    cluster: RayCluster, jobs: RayJobs, tmp_path: Path, words: Path, runs_root: Path
) -> None:
    """--packages pinned: the working copy wants other versions of a package, and of one that others need, than nodes
    have, and the ranks on both of them compute with those. Some minutes and gigabytes: Ray copies the environment of
    each node."""
    copy, here = tmp_path / "copy", spec_of(tmp_path, words, "own", "train.steps=40")
    copy_project(copy)
    versions = (copy / CONSTRAINTS).read_text()
    wanted = {"xxhash": "3.5.0", "idna": "3.10"}
    for name, version in wanted.items():
        assert f"{name}=={metadata.version(name)}\n" in versions
        versions = re.sub(rf"(?m)^{name}==.*$", f"{name}=={version}", versions)
    (copy / CONSTRAINTS).write_text(versions)
    settings = [str(tmp_path / "tiny.yaml"), *here.arguments[2:], f"run.root={here.run_dir.parent}"]
    command = [sys.executable, "-m", "launcher.cli", "submit", *settings, "--nodes", "2", "--on", "ray"]
    command += ["--address", cluster.dashboard, "--packages", "pinned"]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def libraries() -> list[str]:
        """The mapped library of each rank, once both are there."""
        ranks = [entry["pid"] for entry in pids.read(here.run_dir) if entry["role"] == "rank" and pids.alive(entry)]
        with contextlib.suppress(OSError):
            maps = [re.search(r"/\S*/xxhash/\S*\.so", Path(f"/proc/{pid}/maps").read_text()) for pid in ranks]
            return sorted(found[0] for found in maps if found) if len(ranks) == 2 and all(maps) else []
        return []

    found = until(libraries, lambda: "".join(jobs.logs("own-1", follow=False)), timeout_s=900)
    assert [re.search(r"/(\d)/ray/session_\S*/runtime_resources/pip/", path)[1] for path in found] == ["1", "2"]
    for path in found:
        for name, version in wanted.items():
            assert (Path(path).parents[1] / f"{name}-{version}.dist-info").is_dir()
    said = "".join(jobs.logs("own-1", follow=True))
    assert jobs.state("own-1").state == "done", said
    assert "restart" not in said
    alone = Run(runs_root, "alone-own", words, [*SETTINGS, "train.steps=40"])
    alone.train()
    assert_same_curve(Run(tmp_path / "runs", "own", words), alone)


@pytest.mark.slow
def test_a_preparation_as_a_job_leaves_the_same_bytes(jobs: RayJobs, tmp_path: Path) -> None:
    """Its paths are absolute: other commands than `train` travel as they are."""
    write_raw(tmp_path / "raw")
    here = recipe_of(tmp_path / "raw", tmp_path / "here")
    prepare(here, workers=0)
    settings = [f"inputs=[{tmp_path / 'raw'}]", f"output={tmp_path / 'there'}"]
    names = ("tokenizer", "chunk_tokens", "heldout_chunk_tokens", "task_bytes", "heldout_fraction", "heldout_by")
    settings += [f"{name}={getattr(here, name)}" for name in names]
    arguments = ("data", "prepare", *settings)
    job = jobs.submit(JobSpec(name="corpus", run_dir=tmp_path, arguments=arguments, directory=tmp_path))
    said = "".join(jobs.logs(job, follow=True))
    assert jobs.state(job).state == "done", said
    assert digests(tmp_path / "there") == digests(tmp_path / "here")


@pytest.mark.slow
def test_train_joins_what_ray_start_left_on_this_node(cluster: RayCluster, tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "auto", words, [*SETTINGS, "train.steps=6"])
    mine = cluster.environment | {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(cluster.directory / "1")}
    run.train(env=mine)
    assert f"joined the Ray cluster at {cluster.address}: " in (tmp_path / "auto.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({"RAY_ADDRESS": "http://127.0.0.1:8265"}, "is not the address of a Ray cluster's control process"),
        ({"RAY_ADDRESS": "127.77.0.1:1"}, "the Ray cluster of RAY_ADDRESS does not answer"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "the Ray cluster does not let this process in"),
        ({"FMSCALE_RAY_NODES": "none"}, "FMSCALE_RAY_NODES is no number of nodes"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_told_at_once(
    cluster: RayCluster, tmp_path: Path, words: Path, change: dict[str, str], words_of_it: str
) -> None:
    run = Run(tmp_path, "shut", words, [*SETTINGS, "train.steps=6"])
    started = time.monotonic()
    run.start(env=cluster.environment | {"RAY_ADDRESS": cluster.address} | change)
    code = run.finish()
    said = (tmp_path / "shut.log").read_text()
    assert code == (2 if "http" in str(change) or "none" in change.values() else 6), said
    assert words_of_it in said
    assert "restart" not in said
    assert "Traceback" not in said
    assert time.monotonic() - started < 60


def node_of_skypilot(
    value: dict[str, Any], rank: int, addresses: list[str], port: int, log: Path
) -> subprocess.Popen[bytes]:
    """A task's script on node `rank`, in the environment that SkyPilot gives it."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mine = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "\n".join(addresses), "PATH": here}
    mine |= {
        "SKYPILOT_NUM_NODES": str(len(addresses)),
        "RAY_AUTH_TOKEN": "c" * 64,
        "TMPDIR": "/tmp",
        TAG: str(log.parent),
    }
    mine |= value["envs"] | {"FMSCALE_RAY_PORT": str(port)}
    environment = {name: text for name, text in os.environ.items() if name not in ("RAY_ADDRESS", "FAULTS")} | mine
    with log.open("wb") as out:
        command = ["bash", "-c", value["run"]]
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, preexec_fn=die_with_parent)


@pytest.mark.slow
def test_the_script_of_a_skypilot_task_on_two_nodes(tmp_path: Path, words: Path) -> None:
    """Started in the wrong order, asked to stop, started again: 85, then 0, and each step once."""
    run_dir = tmp_path / "runs" / "sky"
    options = SkyPilot(mount=str(tmp_path.parent.parent))
    addresses = ["127.78.0.1", "127.78.0.2"]
    for attempt, (steps, code) in enumerate([(3000, 85), (0, 0)]):
        steps = steps or steps_of(run_dir)[-1]["step"] + 5
        spec = replace(spec_of(tmp_path, words, "sky", f"train.steps={steps}"), cpus_per_node=1)
        value, port = yaml.safe_load(task(spec, options)), free_port()
        logs = [tmp_path / f"{attempt}-{rank}.log" for rank in (0, 1)]
        second = node_of_skypilot(value, 1, addresses, port, logs[1])
        until(lambda log=logs[1]: log.exists())
        first = node_of_skypilot(value, 0, addresses, port, logs[0])
        try:
            if code:
                until(lambda: len(steps_of(run_dir)) >= 5, logs[0].read_text)
                first.send_signal(signal.SIGTERM)
            assert first.wait(PATIENCE_S) == code, logs[0].read_text()
            assert second.wait(PATIENCE_S) == 0, logs[1].read_text()
        finally:
            first.kill()
            second.kill()
            sweep(TAG, str(tmp_path))
        assert "2 nodes, " in logs[0].read_text()
    assert [line["step"] for line in steps_of(run_dir)] == list(range(1, steps + 1))
