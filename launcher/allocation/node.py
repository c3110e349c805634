"""A node of a Slurm job: keeps Ray running there; on the first node also the command that the job is for.

    srun python -m launcher.allocation.node RUN_DIR/job -- train RUN_DIR/job/config.yaml

The first node opens a cluster and says its address in the step's directory; the others join. Where Ray ends it is
started again: on the first node as another cluster, whose address is said anew, and the driver of the run that follows
reads it. When the command has ended, its exit code is said, and every node leaves.

Signals: SIGTERM and SIGUSR1 reach the command, which saves and stops; nodes without it wait for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fmscale.errors import MachineError, RunHeldError, StopRequested
from launcher.allocation.place import LOOK_EVERY_S, Allocation, allocation_of, exit_with
from launcher.allocation.ray_node import NODE, RayNode, clear_leftovers
from launcher.driver_process import die_with_parent, sweep
from launcher.interface import own_address, socket_environment
from launcher.ray_join import ADDRESS_FILE, BEGAN, NODES

START_S = 120.0
"""Longest wait for Ray on the first node."""
RAY_STARTS = 10
"""On one node; then the node gives up, and with it the step."""
HELD_S = 90.0
"""How long a run that is held is asked for again: an orphan of this job holds it, which leaves when it sees us."""
OWN_ADDRESS = "FMSCALE_ADDRESS"
"""Environment variable: this node's address, where the site's `setup` knows better than we can find out."""
ADDRESS, TOKEN, ENDED = "address", "token", "ended"


@dataclass
class Node:
    allocation: Allocation
    scratch: Path
    slots: int
    own_address: Callable[[str], str]
    """What the others reach this node under, given the head's host ("" on the head)."""
    ray: RayNode | None = None
    starts: int = 0
    began: float = field(default_factory=time.time)
    asked: list[int] = field(default_factory=list)
    """Signals that came."""
    command: subprocess.Popen[bytes] | None = None

    def run(self, arguments: list[str]) -> int:
        """The command's exit code on the first node, 0 on the others. Raises MachineError."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._pass_on)
        os.environ[NODE] = self.allocation.tag
        try:
            return self._lead(arguments) if self.allocation.task == 0 else self._follow()
        finally:
            if self.command is not None and self.command.poll() is None:
                self.command.kill()
            if self.ray is not None:
                self.ray.end()
            sweep(NODE, self.allocation.tag)

    # --- the first node

    def _lead(self, arguments: list[str]) -> int:
        allocation = self.allocation
        allocation.make_directory()
        token = allocation.directory / TOKEN
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self._use_token()
        began = time.monotonic()
        self._start_head()
        print(f"Ray's head stands on {allocation.node_name} after {time.monotonic() - began:.1f} s", flush=True)
        code = self._command(arguments)
        allocation.say(ENDED, str(code))
        token.unlink(missing_ok=True)
        return code

    def _start_head(self) -> None:
        self._start(self.own_address(""), None)
        assert self.ray is not None
        deadline = time.monotonic() + START_S
        while (address := self.ray.address) is None:
            if self.ray.has_ended():  # a busy machine is too slow for Ray's own limits; another try, as on the others
                self.ray.end()
                self._start(self.own_address(""), None)
            if time.monotonic() > deadline:
                raise MachineError(
                    f"Ray does not start on node {self.allocation.node_name}",
                    expected=f"its address within {START_S:g} s",
                    found="none",
                    do=f"see {self.allocation.job_dir.parent / 'logs'}",
                )
            time.sleep(LOOK_EVERY_S)
        self.allocation.say(ADDRESS, json.dumps({"number": self.starts, "address": address}))

    def _command(self, arguments: list[str]) -> int:
        """Run it to its end; again as long as an orphan of this job holds the run."""
        deadline = time.monotonic() + HELD_S
        environment = {ADDRESS_FILE: str(self.allocation.directory / ADDRESS), NODES: str(self.allocation.nodes)}
        environment[BEGAN] = str(self.began)
        while not self.asked:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "launcher.cli", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                preexec_fn=_begin,
            )
            code = self._watch(self.command)
            if code != RunHeldError.exit_code or self.allocation.restart + self.allocation.step == 0:
                return code if code >= 0 else 128 - code
            if time.monotonic() > deadline:
                return code
        return StopRequested.exit_code

    def _watch(self, command: subprocess.Popen[bytes]) -> int:
        """The command's exit code. Ray is started anew where it ends; an orphan ends itself."""
        looked = 0.0
        while True:
            try:
                return command.wait(0.2)
            except subprocess.TimeoutExpired:
                pass
            if self.ray is not None and self.ray.has_ended():
                self.ray.end()
                self._start_head()
            if time.monotonic() - looked > 1.0:
                looked = time.monotonic()
                if self.asked:  # it may not have listened yet; to be told again changes nothing
                    command.send_signal(self.asked[0])
                if self.allocation.superseded():
                    command.kill()
                    raise _orphaned(self.allocation)

    # --- the others

    def _follow(self) -> int:
        allocation = self.allocation
        head: dict[str, str | int] | None = None
        while (ended := allocation.said(ENDED)) is None:
            said = json.loads(allocation.wait_for(ADDRESS, START_S, self._not_orphaned))
            if head is None:
                self._use_token()
            running = self.ray is not None and not self.ray.has_ended()
            if said != head or not running:
                if self.ray is not None:
                    self.ray.end()
                head = said
                host, _, _ = str(said["address"]).rpartition(":")
                self._start(self.own_address(host), str(said["address"]))
            self._not_orphaned()
            assert self.ray is not None
            assert self.ray.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.ray.process.wait(0.2)
        print(f"node {allocation.node_name} leaves: the command ended with {ended}", flush=True)
        return 0

    # --- both

    def _start(self, address: str, head: str | None) -> None:
        self.starts += 1
        if self.starts > RAY_STARTS:
            raise MachineError(
                f"Ray ends again and again on node {self.allocation.node_name}",
                expected=f"at most {RAY_STARTS} starts of it",
                found="one more",
                do=f"see {self.allocation.job_dir.parent / 'logs'}: node-{self.allocation.node_name}.log and ray/",
            )
        for name, value in socket_environment(address).items():
            os.environ.setdefault(name, value)
        self.ray = RayNode(self.allocation, self.starts, self.scratch, self.slots)
        self.ray.start(address, head)

    def _use_token(self) -> None:
        token = self.allocation.directory / TOKEN
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")

    def _not_orphaned(self) -> None:
        if self.allocation.superseded():
            raise _orphaned(self.allocation)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        if self.command is not None and self.command.returncode is None:
            self.command.send_signal(number)


def _begin() -> None:
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until it has a handler; Slurm sends it to all that run


def _orphaned(allocation: Allocation) -> MachineError:
    return MachineError(
        f"job {allocation.job} goes on without node {allocation.node_name}",
        expected="to be its newest start",
        found=f"a newer one beside {allocation.directory}",
        do="nothing: what runs here ends, and the run goes on there",
    )


def main(argv: list[str]) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("job_dir", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"))
    parser.add_argument("--interface", default="")
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("arguments", nargs="+", metavar="-- ARGUMENTS")
    options = parser.parse_args(argv)
    allocation, told = allocation_of(options.job_dir), os.environ.get(OWN_ADDRESS)
    clear_leftovers(allocation, options.scratch)
    node = Node(
        allocation=allocation,
        scratch=options.scratch,
        slots=options.slots,
        own_address=lambda towards: told or own_address(options.interface, towards),
    )
    return node.run(options.arguments)


if __name__ == "__main__":
    exit_with(main)
