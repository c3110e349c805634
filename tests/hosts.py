"""Several hosts on one machine: network namespaces with addresses, names, /etc/hosts and host names of their own.

    with hosts(2) as (first, second):
        first.start([sys.executable, "-c", "..."])        # as on that host: its network, its name
        second.cut()                                      # its cable is pulled; `mend` plugs it in again

All are plugged into one switch (a bridge in a namespace of its own), so nothing of this machine's network is touched
or reachable. Files, processes and /dev/shm are this machine's: a shared file system. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

NETWORK, SECOND_NETWORK = "10.77.0", "10.76.0"
_numbers = itertools.count()
_LIKE_A_HOST = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']


@dataclass
class Host:
    name: str
    """Its own host name."""
    namespace: str
    address: str
    """On the network that all hosts share, interface eth0."""
    switch: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """In the background; options are those of Popen."""
        inside = ["ip", "netns", "exec", self.namespace, *_LIKE_A_HOST, self.name, *command]
        process = subprocess.Popen(inside, text=True, **options)
        self.processes.append(process)
        return process

    def run(self, command: Sequence[str], timeout_s: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """To its end: exit code and output."""
        inside = ["ip", "netns", "exec", self.namespace, *_LIKE_A_HOST, self.name, *command]
        return subprocess.run(inside, text=True, capture_output=True, timeout=timeout_s, **options)

    def knows(self, names: Mapping[str, str]) -> None:
        """Replace its /etc/hosts, for what is started from then on: {name: address}."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (Path("/etc/netns") / self.namespace / "hosts").write_text("\n".join(lines) + "\n")

    def cut(self) -> None:
        """Pull the cable: no carrier, whoever it is that sends."""
        _ip("-n", self.switch, "link", "set", f"{self.name}-0", "down")

    def mend(self) -> None:
        _ip("-n", self.switch, "link", "set", f"{self.name}-0", "up")

    def pids(self) -> list[int]:
        """Every process that lives in it."""
        return _pids(self.namespace)

    def end(self) -> None:
        """Leave no process in it."""
        _end(self.namespace, self.processes)
        self.processes.clear()


@contextlib.contextmanager
def hosts(count: int, second_network: Sequence[int] = ()) -> Iterator[list[Host]]:
    """`count` hosts named host1, host2, ... that know each other's names.

    second_network: numbers from 0 of hosts that are also plugged into another network, interface eth1.
    """
    if os.getuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("SKIPPED LOUDLY: no network namespaces can be made here (needs root, iproute2 and util-linux)")
    _sweep()
    tag = f"fm{os.getpid()}-{next(_numbers)}"
    names = [f"{tag}-sw", *(f"{tag}-h{number}" for number in range(1, count + 1))]
    made: list[Host] = []
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"SKIPPED LOUDLY: no network namespaces can be made here: {error.stderr.strip()}")
        networks = [(NETWORK, range(count)), (SECOND_NETWORK, second_network)]
        for number, (network, members) in enumerate(networks):
            _ip("-n", names[0], "link", "add", f"br{number}", "type", "bridge")
            _ip("-n", names[0], "link", "set", f"br{number}", "up")
            for member in members:
                ours, theirs = f"host{member + 1}-{number}", names[member + 1]
                peer = ["peer", "name", f"eth{number}", "netns", theirs]
                _ip("-n", names[0], "link", "add", ours, "type", "veth", *peer)
                _ip("-n", names[0], "link", "set", ours, "master", f"br{number}", "up")
                _ip("-n", theirs, "address", "add", f"{network}.{member + 1}/24", "dev", f"eth{number}")
                _ip("-n", theirs, "link", "set", f"eth{number}", "up")
        for member in range(count):
            made.append(Host(f"host{member + 1}", names[member + 1], f"{NETWORK}.{member + 1}", names[0]))
        for host in made:
            directory = Path("/etc/netns") / host.namespace
            directory.mkdir(parents=True)
            (directory / "resolv.conf").write_text("options timeout:1 attempts:1\n")  # nobody to ask
            host.knows({each.name: each.address for each in made})
        yield made
    finally:
        for host in made:
            host.end()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def _sweep() -> None:
    """Remove what a killed test process has left."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    for name in (line.split()[0] for line in done.stdout.splitlines() if line.strip()):
        owner = re.fullmatch(r"fm(\d+)-\d+-\w+", name)
        if owner and not psutil.pid_exists(int(owner[1])):
            _end(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def _pids(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    return [int(pid) for pid in done.stdout.split()]


def _end(namespace: str, processes: Sequence[subprocess.Popen[str]] = ()) -> None:
    """Leave no process in it."""
    deadline = time.monotonic() + 10
    while pids := _pids(namespace):
        assert time.monotonic() < deadline, f"left in {namespace}: {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in processes:  # else they stay as zombies
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    for process in processes:
        process.wait(10)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
