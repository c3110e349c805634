"""Inside a Slurm job: where a process stands, how the nodes meet, and what they say when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fmscale.errors import MachineError
from launcher import ray_join
from launcher.allocation import node as node_module
from launcher.allocation import ray_node
from launcher.allocation.node import Node
from launcher.allocation.place import Allocation, allocation_of
from launcher.allocation.rank_task import environment_of_rank
from launcher.allocation.ray_node import RayNode, free_port, scratch_directory

SRUN = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "11",
    "SLURM_NTASKS": "16",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_LOCALID": "3",
    "SLURMD_NODENAME": "n2",
}


@pytest.fixture
def allocation(tmp_path: Path) -> Allocation:
    found = allocation_of(tmp_path / "job", SRUN)
    found.make_directory()
    return found


def test_srun_says_where_a_process_stands(tmp_path: Path) -> None:
    found = allocation_of(tmp_path, {**SRUN, "SLURM_RESTART_COUNT": "2"})
    assert (found.job, found.restart, found.step, found.node, found.nodes) == (41, 2, 1, 1, 2)
    assert found.directory == tmp_path / "41.2.1"
    assert environment_of_rank(found) == {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}
    with pytest.raises(MachineError, match="started by srun, inside a Slurm job") as error:
        allocation_of(tmp_path, {})
    assert "no SLURM_JOB_ID" in str(error.value)


def test_srun_starts_ranks_of_two_commands_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher.allocation.rank_task", str(tmp_path), "--", "data", "prepare"]
    done = subprocess.run(command, env={**os.environ, **SRUN}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "srun starts ranks of `train` and `evaluate` only, not of `data`" in done.stderr


def test_a_later_step_of_the_same_job_supersedes(allocation: Allocation) -> None:
    assert stat.S_IMODE(allocation.directory.stat().st_mode) == 0o700
    assert not allocation.superseded()
    for name in ("41.0.0", "40.9.9", "42.0.0", "config.yaml", "41.0", "41.x.0"):
        (allocation.job_dir / name).mkdir()
        assert not allocation.superseded(), name
    for later in (replace(allocation, step=2), replace(allocation, restart=1, step=0)):
        later.make_directory()
        assert allocation.superseded()
        assert not later.superseded()
        later.directory.rmdir()


def test_what_the_first_node_says_is_heard_and_silence_is_told(allocation: Allocation) -> None:
    threading.Timer(0.2, lambda: allocation.say("address", "here")).start()
    assert allocation.wait_for("address", 30) == "here"
    with pytest.raises(MachineError, match="node n2 hears nothing from the first node of job 41") as error:
        allocation.wait_for("ended", 0.1)
    assert "whether all nodes see this directory" in str(error.value)


def test_scratch_of_somebody_else_is_refused(tmp_path: Path) -> None:
    made = scratch_directory(tmp_path)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.rmdir()
    (tmp_path / "elsewhere").mkdir()
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MachineError, match="belongs to somebody else"):
        scratch_directory(tmp_path)


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
        with pytest.raises(MachineError, match="no port is free for Ray's client server"):
            free_port(port, tries=1)


def fake_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, python: str) -> None:
    """Stands for `python -m ray.scripts.scripts start`; the flags are Python's sys.argv."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport os, sys, signal, time\n{python}\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(ray_node.sys, "executable", str(program))


def test_ray_is_out_of_reach_of_signals_and_leaves_nothing(
    allocation: Allocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it started is found by the tag, though it has left the process group; its logs are kept."""
    fake_ray(
        monkeypatch,
        tmp_path,
        """
import subprocess
place = next(a for a in sys.argv if a.startswith("--temp-dir=")).split("=")[1]
os.makedirs(place + "/session_latest/logs")
open(place + "/session_latest/logs/raylet.out", "w").write("what the raylet said")
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
open(place + "/ray_current_cluster", "w").write(f"127.0.0.1:{child.pid}")
time.sleep(600)
""",
    )
    ray = RayNode(allocation, 1, tmp_path, 2)
    ray.start("127.0.0.1", None)
    assert ray.process is not None
    while ray.address is None:
        assert not ray.has_ended()
    child = int(ray.address.partition(":")[2])
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        ray.process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        ray.process.wait(0.5)
    ray.end()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    logs = allocation.job_dir.parent / "logs" / "ray" / ray.directory.name
    assert (logs / "raylet.out").read_text() == "what the raylet said"


def node(allocation: Allocation, tmp_path: Path) -> Node:
    return Node(allocation=allocation, scratch=tmp_path, slots=1, own_address=lambda towards: "127.0.0.1")


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "START_S", 0.5)


def test_a_head_that_says_no_address_ends_the_step(
    allocation: Allocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> None:
    fake_ray(monkeypatch, tmp_path, "time.sleep(600)")
    with pytest.raises(MachineError, match="Ray does not start on node n2"):
        node(replace(allocation, task=0), tmp_path).run(["train"])


@pytest.mark.parametrize("task", [0, 11])
def test_ray_that_ends_again_and_again_ends_the_step(
    allocation: Allocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: int
) -> None:
    fake_ray(monkeypatch, tmp_path, "sys.exit(1)")
    allocation.say("address", json.dumps({"number": 1, "address": "127.0.0.1:1"}))
    with pytest.raises(MachineError, match="Ray ends again and again on node n2"):
        node(replace(allocation, task=task), tmp_path).run([])


def test_a_node_leaves_when_the_command_has_ended_or_a_newer_step_began(
    allocation: Allocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ray(monkeypatch, tmp_path, "time.sleep(600)")
    allocation.say("address", json.dumps({"number": 1, "address": "127.0.0.1:1"}))
    threading.Timer(0.5, lambda: allocation.say("ended", "85")).start()
    assert node(allocation, tmp_path).run([]) == 0
    orphan = replace(allocation, restart=0, step=0)
    orphan.make_directory()
    orphan.say("address", json.dumps({"number": 1, "address": "127.0.0.1:1"}))
    with pytest.raises(MachineError, match="job 41 goes on without node n2"):
        node(orphan, tmp_path).run([])


@pytest.mark.parametrize("answers", [True, False])
def test_the_allocations_address_is_used_once_it_answers(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_join, "ADDRESS_S", 30.0 if answers else 0.3)
    file, find = tmp_path / "address", ray_join._allocations_address
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        file.write_text(json.dumps({"number": 1, "address": address}))
        if answers:
            threading.Timer(0.3, head.listen).start()
            assert find(file) == address
        else:
            with pytest.raises(MachineError, match="the allocation's Ray cluster does not answer") as error:
                find(file)
            assert address in str(error.value)
