"""The supervisor with real processes: what it restarts, what it refuses to, and what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fmscale.errors import CheckpointError, ConfigError, MachineError
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from launcher import ray_cluster, snapshot, start
from launcher.supervise import finished
from tests.integration.test_train import config_of
from tests.runs import TINY, Run

pytestmark = pytest.mark.processes


def commits(run: Run) -> list[int]:
    return [commit.step for commit in CheckpointStore(run.directory / "checkpoints").list()]


def test_a_rank_that_leaves_without_finishing_is_no_success(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "left", words, ["train.steps=8"])
    run.train(env={"FAULTS": "step.6:exit", "FAULTS_ONCE": str(tmp_path)})
    # How it left stands in /proc until torchrun's agent has looked: on a busy machine that may come first.
    how = "left with exit code 0 before the last step|died without a word: it was killed, or it left"
    assert re.search(f"rank 0 ({how}), after step 5; restart 1 of 10", run.output()), run.output()
    assert [line["step"] for line in run.steps()] == list(range(1, 9))


def test_a_run_that_fails_twice_alike_stops_with_advice(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "twice", words)
    run.start(env={"FAULTS": "step.3:raise"})
    assert run.finish() == 7
    assert "failed twice at the same step in the same way" in run.output()
    assert "rank 0 failed: RuntimeError: injected" in run.output()


def test_the_budget_ends_and_a_save_that_was_killed_is_not_taken_for_the_end(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "budget", words, ["launch.max_restarts=0"])
    run.train("train.steps=4")
    run.start("train.steps=8", env={"FAULTS": "ckpt.before_rank:kill"})
    assert run.finish() == 7
    assert "used up its restarts" in run.output()
    assert len(run.steps()) == 8
    assert commits(run) == [4]
    assert not finished(config_of(tmp_path, words, "budget", "train.steps=8"))
    run.train("train.steps=8")
    assert commits(run)[-1] == 8
    before = len(list((run.directory / "lease").glob("term-*")))
    run.train("train.steps=8")
    assert "is done: 8 steps" in run.output()
    assert len(list((run.directory / "lease").glob("term-*"))) == before


@pytest.mark.slow
def test_taking_over_ends_the_old_holder_and_not_the_new_one(tmp_path: Path, words: Path) -> None:
    old = Run(tmp_path, "taken", words, ["train.steps=60", "checkpoint.every_steps=5"])
    new = Run(tmp_path, "taken", words, old.settings)
    old.start(env={"FAULTS": "step.20:hang"})
    old.wait_for(lambda: 15 in commits(old))
    refused = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "train", *new.arguments()], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 5
    assert old.process is not None
    assert f"process {old.process.pid} " in refused.stderr
    new.start("--take-over")
    assert new.finish() == 0, new.output()
    assert old.finish() == 5
    assert "another process took this run over" in (tmp_path / "taken.log").read_text()
    assert [term.term for term in Lease(old.directory).terms()] == [1, 2]


@pytest.mark.slow
def test_rolling_back_from_the_command_line(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "back", words, ["train.steps=8"])
    run.train()
    run.train("--roll-back", "step-00000004.t0001")
    assert [term.parent for term in Lease(run.directory).terms()] == [None, "step-00000004.t0001"]
    assert [line["term"] for line in run.steps()] == [1] * 4 + [2] * 4
    run.start("--roll-back", "step-00000005.t0001")
    assert run.finish() == 4
    assert "this run has no checkpoint of that name" in run.output()


def test_the_users_own_torchrun(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "own", words, ["parallel.dp=2", "train.steps=2000"])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "launcher.cli",
    ]
    with (tmp_path / "own.log").open("w") as log:
        run.process = subprocess.Popen([*command, "train", *run.arguments()], stdout=log, stderr=log)
    run.wait_for_step(2)
    ranks = run.pids("rank")
    assert len(ranks) == 2
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 20
    while run.pids("rank") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.pids("rank") == []


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_what_the_machine_lacks_is_said_at_once(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "gpus", words, ["launch.backend=ray", "launch.device=cuda", "parallel.dp=2"])
    run.start()
    assert run.finish() == 6
    assert "the Ray cluster cannot place all ranks at once" in run.output()
    assert "restart" not in (tmp_path / "gpus.log").read_text()


@pytest.mark.slow
def test_a_joined_cluster_whose_nodes_stand_elsewhere(tmp_path: Path, words: Path) -> None:
    """Relative paths, roll-back and the exit code of a damaged shard reach ranks that another process started."""
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    shutil.copytree(words, here / "corpus")
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "PYTHONPATH": os.getcwd()}
    head = (
        "import ray, time, tempfile; c = ray.init(num_cpus=2, include_dashboard=False, _temp_dir=tempfile.mkdtemp());"
        "print(c.address_info['gcs_address'], flush=True); time.sleep(600)"
    )
    ray_head = subprocess.Popen(
        [sys.executable, "-c", head], cwd=elsewhere, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert ray_head.stdout is not None
        environment["RAY_ADDRESS"] = ray_head.stdout.readline().strip()

        def train(*more: str) -> subprocess.CompletedProcess[str]:
            settings = ["run.root=runs", "run.name=joined", "data.sources.words.corpus=corpus", "launch.backend=ray"]
            command = [sys.executable, "-m", "launcher.cli", "train", "tiny.yaml", *settings, "train.steps=8", *more]
            return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=120)

        (here / "tiny.yaml").write_text(TINY)
        done = train()
        assert done.returncode == 0, done.stderr
        assert list(elsewhere.iterdir()) == []
        back = train("--roll-back", "step-00000004.t0001")
        assert back.returncode == 0, back.stderr
        assert [t.parent for t in Lease(here / "runs" / "joined").terms()] == [None, "step-00000004.t0001"]
        shard = next((here / "corpus").glob("train-*.tar"))
        raw = bytearray(shard.read_bytes())
        for place in range(1500, len(raw) - 10240, 2048):
            raw[place] ^= 1
        shard.write_bytes(raw)
        damaged = train("train.steps=12")
        assert damaged.returncode == 3, damaged.stderr
    finally:
        ray_head.kill()
        ray_head.wait()


def test_checkpoints_without_their_config_are_refused(tmp_path: Path, words: Path) -> None:
    config = config_of(tmp_path, words, "bare")
    (config.run_dir / "checkpoints" / "step-00000004.t0001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"checkpoints but no config\.yaml"):
        snapshot.enter(config)


def test_a_run_whose_time_is_over_starts_no_ranks(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "late", words, ["launch.time_limit_s=50", "launch.grace_s=10"])
    run.start(env={"SLURM_JOB_END_TIME": str(int(time.time()))})
    assert run.finish() == 85
    said = (tmp_path / "late.log").read_text()
    assert "stopped by the time limit, between two incarnations" in said
    assert "found: trained to step 0, newest checkpoint of step 0" in said
    assert "do: the same command goes on from there" in said


def test_a_roll_back_is_not_for_torchruns_ranks(tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="a roll-back is started by `fmscale train`"):
        start.start(config_of(tmp_path, words, "rank"), roll_back="step-00000004.t0001")


def test_a_foreign_directory_for_rays_sockets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp") / f"fm{os.getpid()}"
    monkeypatch.setattr(ray_cluster.tempfile, "gettempdir", lambda: str(short))
    short.mkdir()
    try:
        (short / f"fmscale-ray-{os.getuid()}").symlink_to(tmp_path)
        with pytest.raises(MachineError, match=r"belongs to somebody else(?s:.*)a symbolic link"):
            ray_cluster._private_directory()
    finally:
        shutil.rmtree(short)


def test_a_small_dev_shm_moves_the_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_cluster.DIRECTORY, str(tmp_path))
    monkeypatch.setattr(ray_cluster, "OBJECT_STORE_BYTES", 0)
    assert ray_cluster._shared_memory() == {}
    monkeypatch.setattr(ray_cluster, "OBJECT_STORE_BYTES", 1 << 60)
    assert ray_cluster._shared_memory() == {"_plasma_directory": str(tmp_path)}


def test_a_ray_that_does_not_start_is_an_error_that_may_pass() -> None:
    """Ray refuses an object store of a byte; on a machine that is too busy it gives up after 30 s in the same place."""
    script = "from launcher import ray_cluster as r; r.OBJECT_STORE_BYTES = 1; r.cluster(1).__enter__()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-4:-2] == [
        "launcher.ray_cluster.RayLost: Ray does not start on this machine",
        "  expected: its processes to answer within 30 s",
    ]
    assert done.stderr.splitlines()[-2].startswith("  found: ValueError: ")
    assert done.stderr.splitlines()[-1] == "  do: run the same command again, with less beside it: what is done is kept"
