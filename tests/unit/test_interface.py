"""Which address a host shows to others; on this machine's own interfaces. Several hosts: tests/faults/test_hosts.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fmscale.errors import MachineError
from launcher import interface
from launcher.interface import own_address, resolve, socket_environment


def seen(monkeypatch: pytest.MonkeyPatch, name: str, means: list[str], **interfaces: list[str]) -> None:
    """This host is called `name`, which means that, and has these interfaces."""

    def lookup(host: str, *_: Any, **__: Any) -> list[Any]:
        if host == name and not means:
            raise socket.gaierror(-2, "Name or service not known")
        return [(None, None, None, "", (address, 0)) for address in (means if host == name else [host])]

    def family(address: str) -> Any:
        return socket.AF_INET6 if ":" in address else socket.AF_INET

    there = {
        device: [SimpleNamespace(family=family(address), address=address) for address in addresses]
        for device, addresses in interfaces.items()
    }
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: there)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {device: SimpleNamespace(isup=True) for device in there})


LO = ["127.0.0.1", "::1"]


def test_the_loopback_of_this_machine() -> None:
    assert own_address(interface="lo") == "127.0.0.1"
    assert own_address(towards="127.0.0.1") == "127.0.0.1"
    assert own_address(towards="localhost") == "127.0.0.1"
    for address in ("127.0.0.1", "127.3.2.1"):
        assert socket_environment(address) == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


def test_the_name_says_which_of_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, "n1", ["10.2.0.1"], lo=LO, eth0=["10.1.0.1"], ib0=["10.2.0.1", "fe80::1%ib0"])
    assert own_address() == own_address(towards="n1") == own_address(towards="n1.cluster.example") == "10.2.0.1"
    assert socket_environment("10.2.0.1") == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=ib0"}
    assert own_address(interface="eth0") == "10.1.0.1"


@pytest.mark.parametrize("means", [[], ["127.0.1.1"], ["127.0.1.1", "::1"]])
def test_the_only_address_is_taken_where_the_name_says_nothing(
    monkeypatch: pytest.MonkeyPatch, means: list[str]
) -> None:
    seen(monkeypatch, "n1", means, lo=LO, eth0=["10.1.0.1", "fd00::1"], docker0=["fe80::2%docker0"])
    assert own_address() == "10.1.0.1"


@pytest.mark.parametrize(("means", "said"), [([], r"n1 means nothing here"), (["127.0.1.1"], r"n1 means 127\.0\.1\.1")])
def test_two_addresses_and_a_name_that_says_nothing(
    monkeypatch: pytest.MonkeyPatch, means: list[str], said: str
) -> None:
    seen(monkeypatch, "n1", means, lo=LO, eth0=["10.1.0.1"], ib0=["10.2.0.1"])
    with pytest.raises(MachineError, match=rf"several addresses(?s:.*)eth0 \(10\.1\.0\.1\), ib0 .*{said}") as caught:
        own_address()
    assert "choose one with `interface`" in str(caught.value)


def test_no_address_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, "n1", ["127.0.1.1"], lo=LO)
    with pytest.raises(MachineError, match=r"no address that others could reach(?s:.*)found: lo \(127\.0\.0\.1\)"):
        own_address()


def test_a_name_that_leads_to_nobody_is_refused_even_with_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other hosts go by the same name, and would wait for an address that nobody has."""
    seen(monkeypatch, "n1", ["10.9.9.9"], lo=LO, eth0=["10.1.0.1"])
    with pytest.raises(MachineError, match=r"own name leads to an address that it does not have: n1(?s:.*)10\.9\.9\.9"):
        own_address()
    assert own_address(interface="eth0") == "10.1.0.1", "who says which is believed"


def test_another_hosts_name_that_leads_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, "n2", ["127.0.1.1"], lo=LO, eth0=["10.1.0.1"])
    monkeypatch.setattr(socket, "gethostname", lambda: "n1")
    with pytest.raises(MachineError, match=r"leads to this one: n2(?s:.*)127\.0\.1\.1, this host's loopback"):
        own_address(towards="n2")


def test_interfaces_that_are_not_there_down_or_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, "n1", [], lo=LO, eth0=["10.1.0.1"], ib0=["fe80::1%ib0"], ib1=[])
    with pytest.raises(MachineError, match=r"no network interface `ib7`(?s:.*)eth0 \(10\.1\.0\.1\), ib0(?s:.*)ib7"):
        own_address(interface="ib7")
    for bare in ("ib0", "ib1"):
        with pytest.raises(MachineError, match=rf"`{bare}` has no address(?s:.*)link-local"):
            own_address(interface=bare)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"eth0": SimpleNamespace(isup=False)})
    with pytest.raises(MachineError, match=r"no network interface `eth0`, or it is down"):
        own_address(interface="eth0")


def test_an_address_of_no_interface_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, "n1", [], lo=LO, eth0=["10.1.0.1"])
    with pytest.raises(MachineError, match=r"no network interface of this host has the address 10\.1\.0\.2"):
        socket_environment("10.1.0.2")


def test_ipv6_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, "n1", ["fd00::1"], lo=LO, eth0=["fe80::1%eth0", "fd00::1"])
    assert own_address() == own_address(interface="eth0") == "fd00::1"
    assert socket_environment("fd00::1")["NCCL_SOCKET_FAMILY"] == "AF_INET6"


def test_a_name_service_that_does_not_answer_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(interface, "RESOLVE_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(30) and [])
    started = time.monotonic()
    with pytest.raises(MachineError, match=r"means nothing on this host: n9(?s:.*)no answer .* within 0\.2 s"):
        resolve("n9")
    assert time.monotonic() - started < 5
    over.set()


def test_a_name_that_is_none() -> None:
    for name in ("no-such-host.invalid", "x" * 300):
        with pytest.raises(MachineError, match=r"means nothing on this host(?s:.*)/etc/hosts or DNS"):
            resolve(name)


def test_neither_ray_nor_torch_is_imported() -> None:
    code = "import sys, launcher.interface; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
