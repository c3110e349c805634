"""Which cluster a run joins, and the addresses that it refuses without asking Ray. Real ones: test_ray_jobs.py."""

from __future__ import annotations

import socket

import pytest

from fmscale.errors import ConfigError, MachineError
from launcher.ray_join import INSIDE, _of_this_node, _require_reachable, _wait_for, _wanted_nodes, join, there


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "FMSCALE_RAY_NODES", *INSIDE):
        monkeypatch.delenv(name, raising=False)


def test_a_cluster_is_there_by_name_or_around_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert there() == ""
    for name in INSIDE:
        monkeypatch.setenv(name, "01000000")
        assert there() == "auto"
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert there() == "10.0.0.1:6379"
        monkeypatch.delenv("RAY_ADDRESS")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001", "https://me:canary@head"])
def test_an_address_of_something_else(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a Ray cluster's control process") as refused:
        _require_reachable(address)
    assert "canary" not in str(refused.value)


def test_nobody_at_the_address() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(MachineError, match="the Ray cluster of RAY_ADDRESS does not answer") as refused:
            _require_reachable(address)
        assert address in str(refused.value)
        listener.listen()
        _require_reachable(address)


def test_how_many_nodes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _wanted_nodes() == 1
    monkeypatch.setenv("FMSCALE_RAY_NODES", "16")
    assert _wanted_nodes() == 16
    for text in ("0", "-1", "many", ""):
        monkeypatch.setenv("FMSCALE_RAY_NODES", text)
        with pytest.raises(ConfigError, match="FMSCALE_RAY_NODES is no number of nodes"):
            _wanted_nodes()


def test_auto_is_a_cluster_of_this_node_and_never_any_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray finds on a machine depends on who else uses it: so it is said here."""
    from ray._private import services

    def found(started: str | None, *running: str) -> None:
        monkeypatch.setattr(services, "find_bootstrap_address", lambda directory: started)
        monkeypatch.setattr(services, "find_gcs_addresses", lambda: set(running))

    found("10.0.0.1:6379", "10.0.0.1:6379", "10.0.0.2:6379")
    assert _of_this_node() == "10.0.0.1:6379"
    found(None, "10.0.0.2:6379")
    assert _of_this_node() == "10.0.0.2:6379"
    found(None)
    with pytest.raises(MachineError, match="no Ray cluster runs on this machine"):
        _of_this_node()
    found(None, "10.0.0.1:6379", "10.0.0.2:6379")
    with pytest.raises(MachineError, match="which Ray cluster to join is not clear") as refused:
        _of_this_node()
    assert "several: 10.0.0.1:6379, 10.0.0.2:6379" in str(refused.value)


def test_nodes_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True}, {"Alive": False}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert _wait_for(1) == 1
    monkeypatch.setattr("launcher.ray_join.NODES_S", 0.0)
    with pytest.raises(MachineError, match="nodes of the Ray cluster are missing") as refused:
        _wait_for(2)
    assert "found: 1" in str(refused.value)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0"), "runs another Ray or Python"),
        (ConnectionError("This node has an IP address of 10.0.0.9"), "the Ray cluster of RAY_ADDRESS cannot be joined"),
    ],
)
def test_what_ray_says_of_another_version_or_another_machine(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, words: str
) -> None:
    """Neither can be had here: Ray's own words stand for them."""

    def init(**options: object) -> None:
        raise raised

    monkeypatch.setattr("ray.init", init)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(MachineError, match=words) as refused:
            join(f"127.0.0.1:{server.getsockname()[1]}")
        assert str(raised).split("\n")[-1].strip() in str(refused.value)
        assert len(str(refused.value).splitlines()) <= 6
