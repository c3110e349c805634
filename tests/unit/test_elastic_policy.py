"""When ranks that train may be interrupted to take more of them; with a clock of the test's. For real: tests/faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from fmscale.config import Config, LaunchConfig, RunConfig
from fmscale.observe.events import read_events
from launcher.elastic import Elastic


@dataclass
class Cluster:
    """Stands for `Members` and `Placement`: a plan for 3 ranks whenever it is asked for, whose processes are slow."""

    elastic: bool = True
    most: int = 3
    dp: int = 2
    warm: bool = False
    lost_nodes: bool = False
    why: str = ""
    asked: list[float] = field(default_factory=list)
    discarded: int = 0
    given_back: int = 0
    now: float = 0.0
    seats: tuple[()] = ()
    plan: None = None

    @property
    def placement(self) -> Cluster:
        return self

    def look_for_more(self) -> SimpleNamespace:
        self.asked.append(self.now)
        return SimpleNamespace(dp=3, seats=())

    def prepare(self, plan: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(plan=plan, is_ready=lambda: self.warm, failure=lambda: self.why)

    def lost(self, slots: object) -> bool:
        return self.lost_nodes

    def take_over(self, prepared: SimpleNamespace) -> bool:
        self.dp = prepared.plan.dp
        return True

    def discard(self, prepared: object) -> None:
        self.discarded += 1

    def adopt(self, plan: None) -> None:
        self.given_back += 1

    def renew(self, meanwhile: object, at_once: bool) -> None:
        pass

    def fill(self, meanwhile: object) -> bool:
        return True


def elastic_of(cluster: Cluster, root: str = "runs") -> Elastic:
    config = Config(run=RunConfig(root=root), launch=LaunchConfig(min_dp=1, elastic_wait_s=10.0))
    return Elastic(config, cluster, clock=lambda: cluster.now)  # type: ignore[arg-type]


def reasons(cluster: Cluster, elastic: Elastic, seconds: int) -> list[str]:
    """What it says over so many seconds."""
    said = []
    for _ in range(seconds * 4):
        cluster.now += 0.25
        said.append(elastic.look())
    return [reason for reason in said if reason]


def test_ranks_are_interrupted_once_processes_are_warm_and_not_before_the_time_is_over() -> None:
    cluster = Cluster()
    elastic = elastic_of(cluster)
    assert reasons(cluster, elastic, 9) == []
    assert cluster.asked == []
    assert reasons(cluster, elastic, 30) == [], "its processes are not warm"
    assert [10.0 <= asked < 11.0 for asked in cluster.asked] == [True], "once"
    cluster.warm = True
    assert set(reasons(cluster, elastic, 3)) == {"there is room for 3 data-parallel ranks"}
    elastic.mend(lambda: None, at_once=True)
    assert cluster.dp == 3
    assert reasons(cluster, elastic, 30) == [], "as many as there may be"


def test_after_each_change_the_time_begins_anew() -> None:
    cluster = Cluster()
    elastic = elastic_of(cluster)
    for _ in range(3):
        assert reasons(cluster, elastic, 9) == []
        elastic.mend(lambda: None)
    assert cluster.asked == []


def test_what_was_prepared_is_given_up_with_a_node_and_taken_with_any_other_end_of_an_attempt() -> None:
    cluster = Cluster()
    elastic = elastic_of(cluster)
    reasons(cluster, elastic, 12)
    elastic.mend(lambda: None)
    assert (cluster.dp, cluster.discarded) == (2, 0), "still warming up"
    cluster.lost_nodes = True
    elastic.mend(lambda: None)
    assert (cluster.dp, cluster.discarded) == (2, 1)
    cluster.lost_nodes, cluster.warm = False, True
    reasons(cluster, elastic, 12)
    elastic.mend(lambda: None)
    assert (cluster.dp, cluster.discarded) == (3, 1)


def test_ranks_are_not_interrupted_for_processes_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(warm=True, why="a node does not have the run directory")
    elastic = elastic_of(cluster, str(tmp_path))
    elastic_run = tmp_path / RunConfig().name
    elastic_run.mkdir()
    assert reasons(cluster, elastic, 25) == []
    assert (len(cluster.asked), cluster.discarded, cluster.given_back) == (2, 2, 2), "again after launch.elastic_wait_s"
    said = "3 data-parallel ranks would have room, but cannot be: a node does not have the run directory"
    assert capsys.readouterr().err.splitlines() == [said] * 2
    assert [event["text"] for event in read_events(elastic_run)] == [said] * 2
    cluster.why = ""
    assert set(reasons(cluster, elastic, 15)) == {"there is room for 3 data-parallel ranks"}


def test_without_elasticity_nothing_is_looked_for() -> None:
    cluster = Cluster(elastic=False)
    assert reasons(cluster, elastic_of(cluster), 100) == []
    assert cluster.asked == []
