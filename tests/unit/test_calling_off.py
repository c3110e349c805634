"""A rank that waits at the store is called off by the name of its attempt, and by no other."""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from fmscale.observe.failure import of_rank, record
from fmscale.training.calling_off import called_off, hang_up, may_be_called_off
from fmscale.training.meeting import join_store, open_store

A_MINUTE = datetime.timedelta(seconds=60)


@pytest.mark.parametrize("server_too", [False, True])
def test_who_waits_for_a_peer_gets_an_echo_of_its_end(tmp_path: Path, server_too: bool) -> None:
    """server_too: rank 0 has the store in its own process, and waits at it all the same."""
    server = open_store("127.0.0.1", 2, 60.0)
    store = server if server_too else join_store("127.0.0.1", server.port, 2, 60.0)
    over = threading.Event()

    def owner() -> None:
        time.sleep(0.3)
        with called_off(tmp_path, "tag.3"):
            over.wait(30)

    thread = threading.Thread(target=owner)
    thread.start()
    started = time.monotonic()
    with (
        pytest.raises(dist.DistNetworkError) as caught,  # type: ignore[attr-defined]
        may_be_called_off(tmp_path, "tag.3", store),
    ):
        store.wait(["the address of one that died"], A_MINUTE)
    assert 0.3 <= time.monotonic() - started < 30
    over.set()
    thread.join()
    assert list(tmp_path.iterdir()) == []
    record(tmp_path, "tag.3", 0, caught.value)
    said = of_rank(tmp_path, "tag.3", 0)
    assert said is not None
    assert said.is_echo


def test_another_attempts_name_is_none_of_its_business(tmp_path: Path) -> None:
    store = open_store("127.0.0.1", 2, 60.0)
    with called_off(tmp_path, "tag.2"), may_be_called_off(tmp_path, "tag.3", store):
        time.sleep(0.5)
        store.set("here", "yes")
        assert store.get("here") == b"yes"
    assert not [thread for thread in threading.enumerate() if thread.name == "called off"]


def test_without_a_store_there_is_nobody_to_hang_up_on(tmp_path: Path) -> None:
    with called_off(tmp_path, "tag.3"), may_be_called_off(tmp_path, "tag.3", None):
        assert not [thread for thread in threading.enumerate() if thread.name == "called off"]


def test_only_connections_to_that_port_are_closed_and_none_is_left_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        hung, kept = (socket.create_connection(server.getsockname()) for server in (one, other))
        at_other, _ = other.accept()
        before = len(os.listdir("/proc/self/fd"))
        hang_up(one.getsockname()[1])
        assert len(os.listdir("/proc/self/fd")) == before
        assert hung.recv(1) == b""
        kept.sendall(b"x")
        assert at_other.recv(1) == b"x"
        for connection in (hung, kept, at_other):
            connection.close()


def test_a_directory_that_takes_no_file_is_no_failure_of_the_owner(tmp_path: Path) -> None:
    with called_off(tmp_path / "gone", "tag.3"):
        pass
    assert not (tmp_path / "gone").exists()
