"""Ray's own processes die: the raylet, the control process, and the raylet of one of two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fmscale.observe.events import read_events
from tests.runs import ON_RAY, Run, assert_same_curve

pytestmark = pytest.mark.processes


def incidents(run: Run) -> list[str]:
    return [event["words"] for event in read_events(run.directory) if event["kind"] == "incident"]


@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_process_of_ray_dies_and_is_noticed_at_once(
    runs_root: Path, words: Path, reference_run: Run, name: str
) -> None:
    run = Run(runs_root, name, words, ON_RAY)
    run.start()
    run.wait_for_step(60)
    driver = psutil.Process(run.pids("driver")[0])
    (victim,) = [process for process in driver.children() if process.name() == name]
    victim.kill()
    started = time.monotonic()
    driver.wait(30)
    print(f"the driver left after {time.monotonic() - started:.2f} s")
    assert time.monotonic() - started < 15
    assert run.finish() == 0, run.output()
    assert any(f"a process of Ray is gone: {name}" in cause for cause in incidents(run)), incidents(run)
    assert_same_curve(run, reference_run)
    assert run.leftovers() == []


TWO_NODES = """
import os, tempfile, time, ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_one_of_two_nodes_is_lost_and_the_other_carries_on(runs_root: Path, words: Path, reference_run: Run) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}
    nodes = subprocess.Popen([sys.executable, "-c", TWO_NODES], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert nodes.stdout is not None
        environment["RAY_ADDRESS"] = nodes.stdout.readline().strip()
        run = Run(runs_root, "two-nodes", words, ON_RAY)
        run.start(env=environment)
        run.wait_for_step(40)
        run.wait_for(lambda: run.pids("spare"))
        of_rank = {rank: psutil.Process(run.pids("rank", rank)[0]).ppid() for rank in (0, 1)}
        assert of_rank[0] != of_rank[1], "both ranks stand on one node"
        head = min(p.pid for p in psutil.Process(nodes.pid).children(recursive=True) if p.name() == "raylet")
        (victim,) = [raylet for raylet in of_rank.values() if raylet != head]
        os.kill(victim, 9)
        assert run.finish(240) == 0, run.output()
        assert_same_curve(run, reference_run)
    finally:
        for process in [*psutil.Process(nodes.pid).children(recursive=True), nodes]:
            process.kill()
        nodes.wait()
