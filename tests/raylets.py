"""A real Ray cluster of several nodes on this machine: raylets that tests add and kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType

import psutil

SCRIPT = """
import json, sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 << 20, "include_dashboard": False}
cluster, first = Cluster(), True
for line in sys.stdin:
    wanted = json.loads(line)
    if first:  # Ray's own patience with a silent node is 15 s
        wanted["_system_config"] = {
            "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4
        }
    first = False
    node = cluster.add_node(**small, **wanted)
    raylet = node.all_processes["raylet"][0].process.pid
    print(json.dumps([cluster.address, raylet, node.node_id]), flush=True)
"""


class Raylets:
    """Inside the block `environment` leads to the cluster; its first node, the head, has `cpus` CPUs at 127.9.0.1."""

    def __init__(self, cpus: int = 1) -> None:
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "c" * 64, "RAY_worker_niceness": "0"}
        self._cpus = cpus

    def add(self, number: int, cpus: int = 1, topology: str = "") -> int:
        """A node at 127.9.0.`number`, once it is there; its raylet's process id."""
        wanted = {"num_cpus": cpus, "node_ip_address": f"127.9.0.{number}"}
        labels = {"labels": {"fmscale.topology": topology}} if topology else {}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({**wanted, **labels}), file=self._process.stdin, flush=True)
        address, raylet, node = json.loads(self._process.stdout.readline())
        self.environment["RAY_ADDRESS"] = address
        self.nodes[raylet] = node
        return int(raylet)

    def kill(self, raylet: int) -> None:
        """kill -9"""
        os.kill(raylet, 9)

    def __enter__(self) -> Raylets:
        self.nodes: dict[int, str] = {}
        """Ray's node ids by raylet."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.head = self.add(1, self._cpus)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
            process.kill()
        self._process.wait()
