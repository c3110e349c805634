"""Ranks on real raylets: peers on one node, fewer ranks after a node is lost, all of them when there is room again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmscale.config import from_yaml
from fmscale.corpus.replay import replay
from fmscale.observe.events import read_events
from fmscale.training.checkpoint import CheckpointStore
from tests.raylets import Raylets
from tests.runs import ON_RAY, Run, assert_same_curve

pytestmark = pytest.mark.processes

ELASTIC = [*ON_RAY, "launch.min_dp=1", "launch.elastic_wait_s=2", "launch.spares=0"]
TOLERANCE = 2e-4
"""Relative, of a loss after up to 160 steps; 1e-5 over the first 5 of them (docs/engines.md)."""


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.directory) if event["kind"] == kind]


def sizes(run: Run) -> list[tuple[int, int]]:
    return [(event["from"], event["to"]) for event in events(run, "resized")]


def raylet_of(run: Run, rank: int) -> int:
    (pid,) = run.pids("rank", rank)
    return psutil.Process(pid).ppid()


def require_the_batches_of_the_order(run: Run) -> None:
    """Each step once, with the hash that `fmscale order` tells; so no row is lost and none is trained twice."""
    lines, config = run.steps(), from_yaml((run.directory / "config.yaml").read_text())
    assert [line["step"] for line in lines] == list(range(1, config.train.steps + 1))
    told = replay(config, 1, config.train.steps, config.parallel.dp)
    assert [line["batch_hash"] for line in lines] == [each["batch_hash"] for each in told]


def hold_until(run: Run, kind: str, count: int, rank: int = 0) -> None:
    """While FAULTS keeps a rank stopped before a step, wait for events; then let it go on."""
    stopped = run.wait_until_stopped(rank)
    run.wait_for(lambda: len(events(run, kind)) >= count)
    stopped.resume()


def lose_a_node(cluster: Raylets, run: Run) -> None:
    """The node of rank 1, after step 30; told of once the run has noticed."""
    other = cluster.add(2)
    run.start(env=cluster.environment)
    run.wait_for_step(30)
    cluster.kill(other)
    run.wait_for(lambda: events(run, "incident"))


def test_a_node_is_lost_and_comes_back(runs_root: Path, words: Path, reference_run: Run) -> None:
    with Raylets() as cluster:
        other = cluster.add(2)
        run = Run(runs_root, "lost-and-back", words, ELASTIC)
        run.start(env={**cluster.environment, "FAULTS": "step.110/0:stop"})
        run.wait_for_step(30)
        assert [raylet_of(run, rank) for rank in (0, 1)] == [cluster.head, other], "in the order of addresses"
        (first,) = run.pids("rank", 0)
        cluster.kill(other)
        run.wait_until_stopped(0)
        assert sizes(run) == [(2, 1)]
        back = cluster.add(3)
        hold_until(run, "resize_requested", 1)
        run.wait_for(lambda: len(sizes(run)) == 2)
        assert run.pids("rank", 0) == [first], "who is not lost keeps its process"
        run.wait_for(lambda: run.pids("rank", 1))
        assert raylet_of(run, 1) == back
        assert run.finish() == 0, run.output()
    assert sizes(run) == [(2, 1), (1, 2)]
    why = [event["why"] for event in events(run, "resized")]
    assert why == ["no room came within 2 s", "there is room for 2 data-parallel ranks"]
    assert len(events(run, "incident")) == 1, "more ranks are no incident"
    said = (runs_root / "lost-and-back.log").read_text()
    assert "goes on with 1 of 2 data-parallel ranks: no room came within 2 s" in said
    assert "goes on with 2 of 2 data-parallel ranks: there is room for 2" in said
    assert from_yaml((run.directory / "config.yaml").read_text()).parallel.dp == 2
    require_the_batches_of_the_order(run)
    ours, theirs = ([line["loss"] for line in each.steps()] for each in (run, reference_run))
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    assert ours[:25] == theirs[:25], "to the bit, as long as there are as many ranks"
    assert run.leftovers() == []


@pytest.mark.parametrize(
    ("topologies", "order"), [(("", ""), [0, 1]), (("s2.n1", "s1.n1"), [1, 0])], ids=["addresses", "switches"]
)
@pytest.mark.slow
def test_pipeline_peers_share_a_node_and_data_ranks_follow_the_network(
    runs_root: Path, words: Path, topologies: Sequence[str], order: list[int]
) -> None:
    settings = [*ON_RAY, "engine=pipe", "parallel.pp=2", "launch.spares=0", "train.steps=12"]
    with Raylets(cpus=0) as cluster:
        nodes = [cluster.add(9 + i, cpus=2, topology=topology) for i, topology in enumerate(topologies)]  # .9, .10
        run = Run(runs_root, f"peers-{order[0]}", words, settings)
        run.start(env={**cluster.environment, "FAULTS": "step.6/0:stop"})
        stopped = run.wait_until_stopped(0)
        assert [raylet_of(run, rank) for rank in range(4)] == [nodes[i] for i in order] * 2  # rank = stage * 2 + data
        stopped.resume()
        assert run.finish() == 0, run.output()


@pytest.mark.slow
def test_three_nodes_two_and_three_again_under_zero_3(runs_root: Path, words: Path, tmp_path: Path) -> None:
    """Two ranks divide the batch of 8, three do not. The node that comes stands between the two that are left, so that
    ranks are numbered anew; a spare on a node that is lost goes with it."""
    settings = [*ELASTIC, "parallel.dp=3", "parallel.zero=3", "launch.spares=1", "launch.min_dp=2"]
    with Raylets() as cluster:
        next_one, last = cluster.add(5), cluster.add(9)
        run = Run(runs_root, "three", words, settings)
        run.start(env={**cluster.environment, "FAULTS": "step.100/0:stop", "FAULTS_ONCE": str(tmp_path)})
        run.wait_for_step(30)
        assert raylet_of(run, 2) == last
        run.wait_for(lambda: len(run.pids("spare")) == 3)
        cluster.kill(last)
        run.wait_until_stopped(0)
        middle = cluster.add(3)
        hold_until(run, "resize_requested", 1)
        run.wait_for(lambda: len(sizes(run)) == 2 and len({*run.pids("rank")}) == 3)
        assert [raylet_of(run, rank) for rank in range(3)] == [cluster.head, middle, next_one]
        assert run.finish() == 0, run.output()
    assert sizes(run) == [(3, 2), (2, 3)]
    require_the_batches_of_the_order(run)


@pytest.mark.slow
def test_it_starts_with_what_there_is_and_a_kill_of_the_driver_changes_nothing(
    runs_root: Path, words: Path, tmp_path: Path
) -> None:
    with Raylets() as cluster:
        run = Run(runs_root, "fewer", words, ELASTIC)
        faults = {"FAULTS": "step.50/0:stop,step.90/0:stop", "FAULTS_ONCE": str(tmp_path)}
        run.start(env={**cluster.environment, **faults})
        run.wait_until_stopped(0)
        assert sizes(run) == [(2, 1)]
        assert [event["why"] for event in events(run, "resized")] == ["the cluster has no room for more"]
        assert events(run, "incident") == []
        cluster.add(2)
        hold_until(run, "resize_requested", 1)
        run.wait_for(lambda: len(sizes(run)) == 2)
        run.wait_until_stopped(0)  # at step 90
        run.kill("driver")
        assert run.finish() == 0, run.output()
    assert sizes(run)[:2] == [(2, 1), (1, 2)]
    assert [event["cause"] for event in events(run, "incident")] == ["driver lost"]
    require_the_batches_of_the_order(run)


@pytest.mark.slow
def test_a_pipeline_loses_a_node_with_all_stages_of_a_data_rank(runs_root: Path, words: Path) -> None:
    settings = [*ELASTIC, "engine=pipe", "parallel.pp=2", "train.steps=60", "checkpoint.every_steps=10"]
    with Raylets(cpus=2) as cluster:
        other = cluster.add(2, cpus=2)
        run = Run(runs_root, "pipeline", words, settings)
        run.start(env=cluster.environment)
        run.wait_for_step(15)
        assert [raylet_of(run, rank) for rank in range(4)] == [cluster.head, other] * 2
        cluster.kill(other)
        assert run.finish() == 0, run.output()
    assert sizes(run) == [(2, 1)]
    require_the_batches_of_the_order(run)


@pytest.mark.slow
def test_without_elasticity_another_node_is_waited_for(runs_root: Path, words: Path, reference_run: Run) -> None:
    with Raylets() as cluster:
        run = Run(runs_root, "waits", words, [*ON_RAY, "launch.spares=0"])
        lose_a_node(cluster, run)
        cluster.add(3)
        assert run.finish() == 0, run.output()
    assert sizes(run) == []
    assert_same_curve(run, reference_run)


@pytest.mark.slow
def test_a_run_that_waits_for_room_can_be_stopped(runs_root: Path, words: Path) -> None:
    with Raylets() as cluster:
        run = Run(runs_root, "waiting", words, [*ELASTIC, "launch.elastic_wait_s=100"])
        lose_a_node(cluster, run)
        assert run.process is not None
        run.process.send_signal(signal.SIGTERM)
        assert run.finish(30) == 85, run.output()
    said = (runs_root / "waiting.log").read_text()
    assert "stopped by SIGTERM, between two attempts" in said
    assert f"newest checkpoint of step {CheckpointStore(run.directory / 'checkpoints').list()[-1].step}" in said


DRAIN = """
import sys, time
import ray
from ray.core.generated import autoscaler_pb2
ray.init(logging_level="ERROR")
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
accepted, why = client.drain_node(sys.argv[1], reason, "spot", int(time.time() * 1000) + 600_000)
assert accepted, why
"""


@pytest.mark.slow
def test_a_draining_node_is_left_between_two_steps(runs_root: Path, words: Path) -> None:
    with Raylets() as cluster:
        other = cluster.add(2)
        run = Run(runs_root, "drained", words, ELASTIC)
        run.start(env={**cluster.environment, "FAULTS": "step.40/0:stop"})
        run.wait_until_stopped(0)
        environment = {**os.environ, **cluster.environment}
        subprocess.run([sys.executable, "-c", DRAIN, cluster.nodes[other]], env=environment, check=True, timeout=120)
        hold_until(run, "resize_requested", 1)
        assert run.finish() == 0, run.output()
    assert sizes(run) == [(2, 1)]
    assert events(run, "resized")[0]["why"].startswith("Ray drains node ")
    assert events(run, "incident") == []
    assert max(line["term"] for line in run.steps()) == 2
    require_the_batches_of_the_order(run)
