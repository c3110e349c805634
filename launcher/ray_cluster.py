"""Ray under a run: join the cluster that is there (`ray_join.py`), or start one here that dies with this process.

A local cluster listens behind a token of its own (file mode 0600; ShadowRay, CVE-2023-48022, is an open jobs port), has
no dashboard, and keeps its session below a private directory that the next start sweeps if this process was killed.
Its processes carry PR_SET_PDEATHSIG (Ray sets it on Linux), so a kill -9 of this process leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from fmscale.errors import MachineError
from launcher.ray_join import join, there

OBJECT_STORE_BYTES = 256 * 2**20
"""Shared memory of a local cluster: batches in flight are a few megabytes, see `fmscale/corpus/readers.py`."""

LONGEST_DIRECTORY = 32
"""Bytes: a Unix socket's path has at most 107, of which Ray's session takes 66 and the process id up to 8."""

PATIENCE = {"RAY_worker_niceness": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""Ray's settings of a local cluster: its workers, which are our ranks, are as important as any other process (Ray's
niceness is 15), and whoever lost the control process gives up after 5 s (Ray: 60), so that the run starts again."""

ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: Ray takes 127.0.0.1 for this node's address, and its processes then listen there alone. Named after the systems on
which Ray does that by itself; to be told 127.0.0.1 as an address it refuses."""

DIRECTORY = "FMSCALE_RAY_DIR"
"""Environment variable: the private directory of a local cluster; set together with the token's variables."""


@contextlib.contextmanager
def private_environment() -> Iterator[None]:
    """Inside the block, this process and its children start and join local clusters behind a token of their own.

    Ray reads these variables when it is imported: so whoever starts a process that uses Ray enters this first.
    """
    if there() or os.environ.get(DIRECTORY):
        yield
        return
    assert "ray" not in sys.modules, "Ray was imported before its token was set"
    directory = _private_directory()
    token = directory / "token"
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    os.environ[DIRECTORY] = str(directory)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")
    os.environ[ONE_MACHINE] = "0"
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        del os.environ[DIRECTORY], os.environ[ONE_MACHINE]
        shutil.rmtree(directory, ignore_errors=True)


class RayLost(MachineError):
    """A process that a cluster of this machine cannot do without is gone, or does not start."""


class Cluster:
    """The processes of a local cluster that this process started; of a joined one, none."""

    def __init__(self) -> None:
        children = psutil.Process().children()
        self._processes = {child: child.name() for child in children if child.name() in ("gcs_server", "raylet")}

    def require_alive(self) -> None:
        """Raises RayLost: Ray itself would wait for minutes, and what it lost it cannot bring back."""
        for process, name in self._processes.items():
            if is_gone(process):
                raise RayLost(
                    f"a process of Ray is gone: {name}",
                    expected=f"process {process.pid} to live as long as the run",
                    found="it was killed, or died",
                    do="nothing: Ray and the ranks start anew from the newest checkpoint",
                )


def is_gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


@contextlib.contextmanager
def cluster(min_cpus: int) -> Iterator[Cluster]:
    """Ray is connected inside the block; a local cluster ends with it.

    min_cpus: CPU slots that a local cluster must offer, even on a machine with fewer cores.
    Raises RayLost where it does not start; what `join` does.
    """
    with private_environment():
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address := there():
            join(address, **quiet)
        else:
            local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            local |= {"_temp_dir": os.environ[DIRECTORY], **_shared_memory()}
            # Ray counts cores by affinity and container quota; only where ranks need more slots is it told otherwise.
            known = len(os.sched_getaffinity(0))
            _start(num_cpus=min_cpus if min_cpus > known else None, **local, **quiet)
            if ray.cluster_resources().get("CPU", 0) < min_cpus:
                ray.shutdown()
                _start(num_cpus=min_cpus, **local, **quiet)
        try:
            yield Cluster()
        finally:
            ray.shutdown()


def _start(**settings: Any) -> None:
    """A cluster of this machine. Raises RayLost: a machine that is too busy for it may not be so the next time."""
    import ray

    try:
        ray.init(**settings)
    except Exception as error:  # a bare one where the raylet does not answer in time
        ray.shutdown()
        raise RayLost(
            "Ray does not start on this machine",
            expected="its processes to answer within 30 s",
            found=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            do="run the same command again, with less beside it: what is done is kept",
        ) from error


def _private_directory() -> Path:
    """A directory of this process alone, mode 0700; those of dead processes are removed."""
    parent = Path(tempfile.gettempdir()) / f"fmscale-ray-{os.getuid()}"
    if len(str(parent)) > LONGEST_DIRECTORY:
        parent = Path("/tmp") / parent.name
    with contextlib.suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    there = parent.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
        raise MachineError(
            "the directory for Ray's sockets belongs to somebody else",
            expected=f"{parent} owned by user {os.getuid()}",
            found=f"owner {there.st_uid}{', a symbolic link' if parent.is_symlink() else ''}",
            do="remove it, or set TMPDIR to a directory of your own",
        )
    parent.chmod(0o700)  # from here on nobody else puts anything there; what they have put there goes
    directory = parent / str(os.getpid())
    for old in parent.iterdir():
        if old == directory or not (old.name.isdigit() and psutil.pid_exists(int(old.name))):
            if old.is_symlink():
                old.unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory


def _shared_memory() -> dict[str, Any]:
    """Where the object store lies: /dev/shm, or the private directory where that is too small (Docker: 64 MB)."""
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free >= OBJECT_STORE_BYTES:
        return {}
    return {"_plasma_directory": os.environ[DIRECTORY]}
