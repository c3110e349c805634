"""Ray on one node of an allocation: `ray start`, out of reach of Slurm's signals, found and killed by a tag.

Slurm sends SIGTERM, and whatever else, to every process of a step at once. Ray would die of it before the ranks have
saved. So its processes are started with SIGTERM blocked (a mask is inherited, and Ray installs handlers only) and the
others ignored; what is to end them is SIGKILL, from here.

Nothing is fixed that two jobs on one node could share: ports are the system's choice (the client server's, which Ray
does not leave to it, is looked for from the job's number on), the session lies below a directory of the job's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from fmscale.errors import MachineError
from fmscale.observe.pids import kernel_start
from launcher.allocation.place import Allocation
from launcher.driver_process import die_with_parent, sweep
from launcher.ray_cluster import OBJECT_STORE_BYTES, PATIENCE
from launcher.seats import TOPOLOGY_LABEL, topology_of

OWNER = "owner"
"""File in a session's directory: process id and start of who will remove it."""
NODE, RAY = "FMSCALE_NODE", "FMSCALE_RAY_NODE"
"""Environment variables: a job on a node, and one start of Ray there."""
LONGEST_SCRATCH = 30
"""Bytes, see LONGEST_DIRECTORY in launcher/ray_cluster.py; the job's number and the node's come on top."""
IGNORED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
KEPT_LOGS = ("raylet.*", "gcs_server.*", "monitor.*", "dashboard*.log", "log_monitor.*")
KEPT_BYTES = 200_000
"""Of the end of each."""


class RayNode:
    """Starts at most once; `end` may be called at any time."""

    def __init__(self, allocation: Allocation, number: int, scratch: Path, slots: int) -> None:
        """number: of starts of Ray on this node so far. scratch: a directory of this node's own.

        slots: CPUs that Ray offers, one a rank, so that ranks stand evenly on the nodes; 0: what the job has here.
        """
        self._allocation, self._slots = allocation, slots
        self._tag = f"{allocation.tag}.{allocation.restart}.{allocation.step}.{number}"
        parent = scratch_directory(scratch)
        self.directory = parent / f"{allocation.job}.{allocation.restart}.{allocation.step}.{allocation.node}.{number}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, own_address: str, head: str | None) -> None:
        """own_address: that the other nodes reach this one under. head: HOST:PORT to join; None: be the head."""
        self.directory.mkdir(mode=0o700)
        (self.directory / OWNER).write_text(f"{os.getpid()} {kernel_start(os.getpid())}")
        cpus = self._slots or max(int(os.environ.get("SLURM_CPUS_ON_NODE", "1")), len(os.sched_getaffinity(0)))
        flags = [
            f"--node-ip-address={own_address}",
            f"--temp-dir={self.directory}",
            f"--num-cpus={cpus}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
            "--block",
        ]
        ports = ("node-manager", "object-manager", "metrics-export", "dashboard-agent-grpc", "dashboard-agent-listen")
        flags += [f"--{name}-port=0" for name in (*ports, "runtime-env-agent", "min-worker", "max-worker")]
        if topology := topology_of(os.environ):
            flags.append(f"--labels={TOPOLOGY_LABEL}={topology}")
        if head is None:
            client = free_port(20000 + self._allocation.job * 7 % 10000)
            flags += ["--head", "--port=0", f"--ray-client-server-port={client}", "--include-dashboard=false"]
        else:
            flags.append(f"--address={head}")
        logs = self._allocation.job_dir.parent / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"node-{self._allocation.node_name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *flags],
                env={**PATIENCE, "RAY_raylet_start_wait_time_s": "120", **os.environ, RAY: self._tag},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_out_of_reach,
                process_group=0,
            )

    @property
    def address(self) -> str | None:
        """HOST:PORT of the cluster, once the head can be joined."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "ray_current_cluster").read_text().strip() or None
        return None

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def end(self) -> None:
        """Leave no process of it and no directory; its logs go to the run's."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        sweep(RAY, self._tag)
        with contextlib.suppress(OSError):  # a full disk must not keep a job from ending
            self._keep_logs()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _keep_logs(self) -> None:
        kept = self._allocation.job_dir.parent / "logs" / "ray" / self.directory.name
        for pattern in KEPT_LOGS:
            for path in (self.directory / "session_latest" / "logs").glob(pattern):
                with path.open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - KEPT_BYTES))
                    text = file.read()
                if text:
                    kept.mkdir(parents=True, exist_ok=True)
                    (kept / path.name).write_bytes(text)


def scratch_directory(scratch: Path) -> Path:
    """The directory of this user's jobs below the node's `scratch`; mode 0700. Raises MachineError."""
    directory = scratch / f"fmscale-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise MachineError(
            "the directory for Ray's sessions belongs to somebody else",
            expected=f"{directory} owned by user {os.getuid()}",
            found=f"owner {directory.stat().st_uid}{', a symbolic link' if directory.is_symlink() else ''}",
            do="have it removed, or set the site's `scratch` to another directory",
        )
    directory.chmod(0o700)
    return directory


def clear_leftovers(allocation: Allocation, scratch: Path) -> None:
    """Kill what earlier steps of this job have left on this node; remove sessions that nobody will remove any more."""
    sweep(NODE, allocation.tag)
    for old in scratch_directory(scratch).iterdir():
        with contextlib.suppress(OSError, ValueError):  # another job may be removing it, or writing its first file
            pid, started = (old / OWNER).read_text().split()
            if kernel_start(int(pid)) != float(started):
                shutil.rmtree(old, ignore_errors=True)


def free_port(first: int, tries: int = 500) -> int:
    """The first port from `first` on that nobody listens at. Raises MachineError after `tries`."""
    for port in range(first, first + tries):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                trial.bind(("", port))
                return port
    raise MachineError(
        "no port is free for Ray's client server",
        expected=f"one of {first} to {first + tries - 1}",
        found="all taken",
        do="look at this node with `ss -ltnp`",
    )


def _out_of_reach() -> None:
    die_with_parent()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
