"""A real Ray cluster for tests: a head with dashboard and job API, further raylets, a token, all on this machine.

Each node has a loopback address, a session directory and a death of its own. Ports are free ones; the processes carry
a tag in their environment, by which all that is left is found at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launcher.driver_process import die_with_parent, sweep

TAG = "FMSCALE_TEST_CLUSTER"
PATIENCE_S = 300.0
"""How long anything is waited for before a test gives up."""


def until(what: Callable[[], Any], words: Callable[[], str] = str, timeout_s: float = PATIENCE_S) -> Any:
    """What `what()` returns once that is true; `words()` says what there was to see if it never is."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"nothing after {timeout_s:g} s\n{words()}"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class RayCluster:
    """One that has started: `address` of its control process, `dashboard` for jobs."""

    cpus: int = 1
    """Of each node."""
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fmrj", dir="/tmp")))
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""
    dashboard: str = ""
    tag: str = field(default_factory=lambda: secrets.token_hex(8))
    _numbers: int = 0

    @property
    def token_file(self) -> Path:
        return self.directory / "token"

    @property
    def token(self) -> str:
        return self.token_file.read_text()

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that belongs to the cluster."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        mine = {TAG: self.tag, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file), "PATH": path}
        mine |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_health_check_period_ms": "500", "RAY_worker_niceness": "0"}
        others = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "PYTHONPATH", "FAULTS", "FAULTS_ONCE")
        return {**{name: value for name, value in os.environ.items() if name not in others}, **mine}

    def start(self) -> None:
        """A head and a second node."""
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(32))
        port = free_port()
        self.dashboard = f"http://127.0.0.1:{port}"
        flags = ["--head", "--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        self._node([*flags, f"--ray-client-server-port={free_port()}"])
        known = self.directory / "1" / "ray" / "ray_current_cluster"
        self.address = until(lambda: self._lives() and known.exists() and known.read_text().strip(), self.logs)
        self.add_node()
        until(lambda: self.alive() == 2, self.logs)

    def add_node(self) -> None:
        """Another raylet; whoever needs it waits until it has joined."""
        self._node([f"--address={self.address}"])

    def kill_node(self, number: int) -> None:
        """SIGKILL to the raylet of a node, the first being 0, and to all below it: the machine is gone."""
        node = psutil.Process(self.nodes[number].pid)
        for process in [node, *node.children(recursive=True)]:
            process.kill()
        self.nodes[number].wait()

    def alive(self) -> int:
        """Nodes that the control process takes for alive."""
        script = (
            "import sys; from ray._raylet import GcsClient; "
            "print(sum(n.state == 0 for n in GcsClient(address=sys.argv[1]).get_all_node_info().values()))"
        )
        command = [sys.executable, "-c", script, self.address]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return int(done.stdout) if done.returncode == 0 else 0

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.directory.glob("*.log")))

    def close(self) -> None:
        for node in self.nodes:
            node.send_signal(signal.SIGKILL)
            node.wait()
        sweep(TAG, self.tag)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _lives(self) -> bool:
        assert self.nodes[-1].poll() is None, f"a node did not start\n{self.logs()}"
        return True

    def _node(self, flags: list[str]) -> None:
        self._numbers += 1
        place = [
            f"--node-ip-address=127.77.0.{self._numbers}",
            f"--temp-dir={self.directory / str(self._numbers) / 'ray'}",
        ]
        ports = ["node-manager-port", "object-manager-port", "metrics-export-port", "runtime-env-agent-port"]
        ports += ["dashboard-agent-grpc-port", "dashboard-agent-listen-port"]
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            "--disable-usage-stats",
            *flags,
            *place,
        ]
        command += [f"--num-cpus={self.cpus}", "--object-store-memory=100000000", *(f"--{port}=0" for port in ports)]
        with (self.directory / f"{self._numbers}.log").open("wb") as log:
            node = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.nodes.append(node)
