"""The process that drives an incarnation: Ray's driver, or a torchrun. Started, told to begin, ended with all its own.

A torchrun may be started ahead of its time. Its ranks then get ready (imports, the first engine) and wait at their
standard input: one byte each, and they begin; its end, and they leave. So they neither begin nor stay when the process
that started them dies. Whatever is left of a driver is found by the tag in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil

from fmscale.config import Config
from fmscale.training.calling_off import MEETING
from fmscale.training.waiting import AHEAD, GO
from launcher.interface import socket_environment
from launcher.ray_cluster import DIRECTORY

INCARNATION, RUN, ROLL_BACK = "FMSCALE_INCARNATION", "FMSCALE_RUN", "FMSCALE_ROLL_BACK"
"""Environment variables that every process of an incarnation carries: its tag, the run's directory, and the checkpoint
to start from where that is not the newest (fmscale/training/agree.py, which imports torch)."""


class DriverProcess:
    def __init__(
        self, config: Config, tag: str, *, roll_back: str | None = None, ahead: bool = False, log: str = "driver.log"
    ) -> None:
        """ahead: its ranks wait for `go`. log: name of the file below logs/ that its standard error is added to."""
        self.tag, self._world, self._log = tag, config.world_size, config.run_dir / "logs" / log
        self._meeting = ""
        environment = {**os.environ, INCARNATION: tag, RUN: str(config.run_dir.resolve())}
        if roll_back:
            environment[ROLL_BACK] = roll_back
        if ahead:
            environment[AHEAD] = "1"
        if config.launch.backend == "torchrun":
            # Its ranks are all on this machine: they meet in a file of the user's alone and talk over the loopback, so
            # that nothing listens on a network. (torch's stores listen at every address and believe whoever comes.)
            self._meeting = tempfile.mkdtemp(prefix="meeting-", dir=os.environ.get(DIRECTORY))
            environment = socket_environment("127.0.0.1") | environment
            environment |= {MEETING: f"{self._meeting}/ranks", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        threads = str(config.train.threads_per_rank)
        self.started = time.monotonic()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as stderr:
            self._said = stderr.tell()
            self.process = subprocess.Popen(
                _command(config, self._meeting),
                env={**environment, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                stdin=subprocess.PIPE if ahead else None,
                stderr=stderr,
                preexec_fn=_begin,
                process_group=0,  # Ctrl-C in a terminal is for the supervisor: ranks are to save first
            )

    @property
    def log_name(self) -> str:
        return self._log.name

    def go(self) -> None:
        """Have the ranks of one that was started ahead begin."""
        assert self.process.stdin is not None, "it was not started ahead"
        with contextlib.suppress(BrokenPipeError):  # they are dead, and so is it
            self.process.stdin.write(GO * self._world)
            self.process.stdin.close()

    def end(self) -> int | None:
        """Leave nothing of it. Its exit code (-N: signal N), if it had ended by itself."""
        code = self.process.poll()
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        sweep(INCARNATION, self.tag)
        if self._meeting:
            shutil.rmtree(self._meeting, ignore_errors=True)
        return code

    def text(self) -> str:
        """What it wrote to its log; the last 64 kB of it."""
        with self._log.open("rb") as file:
            file.seek(max(self._said, file.seek(0, os.SEEK_END) - 65536))
            return file.read().decode(errors="replace")


def _command(config: Config, meeting: str) -> list[str]:
    run_dir = str(config.run_dir)
    if config.launch.backend == "ray":
        return [sys.executable, "-m", "launcher.driver", run_dir]
    flags = [f"--nproc-per-node={config.world_size}", "--max-restarts=0", "--local-addr=127.0.0.1"]
    flags += ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={meeting}/agent"]
    return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "fmscale.training.worker", run_dir]


def sweep(variable: str, value: str) -> None:
    """Kill every process of this machine that carries the variable, and wait until they are gone (at most 10 s).

    Looks again until it finds none: one that is killed may just have started another.
    """
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        left = []
        for process in psutil.process_iter():
            if process.pid == os.getpid():
                continue
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(variable) == value:
                    process.kill()
                    left.append(process)
        if not left:
            return
        psutil.wait_procs(left, timeout=deadline - time.monotonic())


def _begin() -> None:
    """Die with the supervisor; and SIGUSR1, which Slurm sends to every process of a job's step, ends nothing that has
    no handler for it yet: the supervisor has one and passes it on."""
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG; Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
