"""How ranks find each other: again after a meeting that came to nothing, and what they say where they do not."""

from __future__ import annotations

import datetime
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from fmscale.config import load
from fmscale.errors import ConfigError, MachineError
from fmscale.training.meeting import call_the_roll, join, join_store, leave, open_store, store_of_environment
from fmscale.training.place import RankPlace
from tests.ranks import run_ranks


def _meet_twice(rank: int, world: int, directory: Path) -> list[int]:
    """Rank 0 waits in vain for a peer; then for one that knows nothing of that."""
    dist.destroy_process_group()

    def meet(name: str, timeout_s: float) -> dist.ProcessGroup:
        store = dist.FileStore(str(directory / name), world)  # type: ignore[attr-defined]
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        place = RankPlace(rank=rank, world=world, local_rank=rank, device="cpu", store=store)
        return join(load([], [f"launch.timeout_s={timeout_s}", "launch.hang_s=0"]), place, torch.device("cpu"))

    if rank == 0:
        try:
            meet("in-vain", 0.5)
        except Exception as error:
            leave(type(error), error, None)
        else:
            raise AssertionError("it met nobody")
    group = meet("again", 20.0)
    seen = [-1] * world
    dist.all_gather_object(seen, rank, group=group)
    leave(None, None, None)
    return seen


@pytest.mark.processes
def test_a_process_whose_meeting_failed_meets_new_peers(tmp_path: Path) -> None:
    assert run_ranks(_meet_twice, 2, tmp_path) == [[0, 1], [0, 1]]


NOBODY = "203.0.113.7"
"""An address for documentation (RFC 5737): no host has it."""


def place(rank: int, world: int = 2, address: str = "127.0.0.1") -> RankPlace:
    return RankPlace(rank=rank, world=world, local_rank=0, device="cpu", address=address)


def test_the_store_listens_at_one_address_only() -> None:
    store = open_store("127.0.0.1", 1, 20.0)
    mine = [c for c in psutil.Process().net_connections() if c.status == "LISTEN" and c.laddr.port == store.port]
    assert [connection.laddr.ip for connection in mine] == ["127.0.0.1"]
    joined = join_store("127.0.0.1", store.port, 1, 20.0)
    store.set("said", "yes")
    assert joined.get("said") == b"yes"
    assert joined.timeout == datetime.timedelta(seconds=20)


def test_a_store_where_it_cannot_be() -> None:
    with pytest.raises(MachineError, match=rf"cannot open the meeting point(?s:.*){NOBODY}:0(?s:.*)Cannot assign"):
        open_store(NOBODY, 1, 5.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=rf"127\.0\.0\.1:{port}(?s:.*)in use(?s:.*)another MASTER_PORT"):
            open_store("127.0.0.1", 1, 5.0, port)


def test_a_host_where_nobody_listens_is_told_apart_from_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(MachineError, match=rf"cannot be reached: 127\.0\.0\.1:{port}(?s:.*)a host that refuses"):
        join_store("127.0.0.1", port, 2, 0.5)
    with pytest.raises(MachineError, match=r"cannot be reached: no-such\.invalid:9(?s:.*)a name that means nothing on"):
        join_store("no-such.invalid", 9, 2, 0.5)
    assert time.monotonic() - started < 30


def test_a_rank_may_come_before_the_store_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    opened = []
    thread = threading.Timer(0.5, lambda: opened.append(open_store("127.0.0.1", 2, 20.0, port)))
    thread.start()
    assert join_store("127.0.0.1", port, 2, 20.0).port == port
    thread.join()


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that takes connections, says `param`, and keeps them."""
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    connection.sendall(request.param)
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


@pytest.mark.parametrize(
    "stranger", [b"", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" * 4], ids=["silent", "ssh"], indirect=True
)
def test_a_stranger_at_the_stores_address_is_no_hang(stranger: int) -> None:
    started = time.monotonic()
    with pytest.raises(MachineError, match=rf"what answers at 127\.0\.0\.1:{stranger} is no meeting point of ranks"):
        join_store("127.0.0.1", stranger, 2, 2.0)
    assert time.monotonic() - started < 10


def environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_ranks_that_were_not_told_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, MASTER_PORT="29500")
    with pytest.raises(ConfigError, match=r"does not know where the ranks meet(?s:.*)no MASTER_ADDR"):
        store_of_environment(place(0), 1.0)
    environment(monkeypatch, MASTER_ADDR="localhost", MASTER_PORT="http")
    with pytest.raises(ConfigError, match=r"found: MASTER_PORT=http"):
        store_of_environment(place(1), 1.0)


def test_a_first_host_that_other_hosts_could_never_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, MASTER_ADDR="localhost", MASTER_PORT="29500", LOCAL_WORLD_SIZE="1")
    with pytest.raises(MachineError, match=r"other hosts cannot reach the first one(?s:.*)it leads to 127\.0\.0\.1"):
        store_of_environment(place(0), 1.0)
    environment(monkeypatch, MASTER_ADDR="no-such.invalid", MASTER_PORT="29500", LOCAL_WORLD_SIZE="1")
    with pytest.raises(MachineError, match=r"means nothing on itself: MASTER_ADDR=no-such\.invalid"):
        store_of_environment(place(0), 1.0)


def test_rank_0_says_who_did_not_come() -> None:
    store = open_store("127.0.0.1", 4, 20.0)
    call_the_roll(store, place(2, 4), 0.3)
    with pytest.raises(
        MachineError, match=r"ranks 1, 3 did not come(?s:.*)all 4 ranks(?s:.*)rank 0 \(.*2 \("
    ) as caught:
        call_the_roll(store, place(0, 4), 0.3)
    assert f"{socket.gethostname()} 127.0.0.1" in str(caught.value)
    for rank in (1, 3, 0):
        call_the_roll(store, place(rank, 4), 0.3)
