"""Hosts that do not answer are told from those that do, and named in the place of a library's words."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from fmscale.errors import ConfigError
from fmscale.training.contacts import ANSWER_S, Contact, Contacts, HostLost
from fmscale.training.place import RankPlace
from tests.ranks import run_ranks


@contextlib.contextmanager
def silence() -> Iterator[Contact]:
    """A port from which nothing comes back: its queue is full, and the kernel drops who else comes."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield Contact("gone", *server.getsockname())


def _two_hosts(rank: int, world: int) -> list[str]:
    """Ranks 0 and 1 at one address, rank 2 at another."""
    group = dist.new_group(backend="gloo")
    address = "127.0.0.2" if rank == 2 else "127.0.0.1"
    place = RankPlace(rank=rank, world=world, local_rank=0, device="cpu", address=address)
    with Contacts(place, group, 20.0) as contacts:
        dist.barrier()
        others = [contact.address for contact in contacts._others.values()]
        assert contacts.silent() == []
        dist.barrier()
        with silence() as gone:
            contacts._others["gone"] = gone
            started = time.monotonic()
            assert contacts.silent() == [gone]
            assert time.monotonic() - started < ANSWER_S + 1.0
        dist.barrier()
    return others


@pytest.mark.processes
def test_ranks_know_one_port_of_each_other_host() -> None:
    assert run_ranks(_two_hosts, 3) == [["127.0.0.2"], ["127.0.0.2"], ["127.0.0.1"]]


@pytest.fixture
def alone() -> Contacts:
    """A rank that knows of no other host yet."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        return Contacts(RankPlace(rank=0, world=1, local_rank=0, device="cpu", address="127.0.0.1"), group, 20.0)
    finally:
        dist.destroy_process_group()


def test_a_run_on_one_host_keeps_no_port_open(alone: Contacts) -> None:
    assert alone._port is None
    assert alone.silent() == []


def test_a_host_that_refuses_is_there(alone: Contacts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    alone._others["here"] = Contact("here", "127.0.0.1", port)
    with pytest.raises(RuntimeError, match="closed by peer"), alone:
        raise RuntimeError("closed by peer")


def test_a_silent_host_is_named_and_the_librarys_words_are_kept(alone: Contacts) -> None:
    expected = r"has lost gone\n  expected: an answer from 127\.0\.0\.1 within launch\.timeout_s=20"
    with silence() as alone._others["gone"], pytest.raises(HostLost, match=expected) as caught, alone:
        raise RuntimeError("gloo/unbound_buffer.cc:81\nTimed out waiting 5000ms for recv operation")
    assert "found: gloo/unbound_buffer.cc:81 Timed out waiting 5000ms for recv operation\n  do:" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_what_has_words_of_ours_keeps_them(alone: Contacts) -> None:
    with silence() as alone._others["gone"]:
        with pytest.raises(ConfigError, match="ours"), alone:
            raise ConfigError("ours")
        with alone:
            pass
