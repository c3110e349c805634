"""A real Slurm on this machine for tests: one slurmctld and two slurmd, as root, in a directory of the test's own.

Its nodes are two slurmd on one host, told apart by a loopback address each (FMSCALE_ADDRESS in the site's `setup`).
Debian's 22.05 needs `auth/none` where no munge runs, and `config_overrides` for more CPUs than the host has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONF = """\
ClusterName=fmscaletest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait={kill_wait_s}
SlurmdTimeout=20
MinJobAge=3600
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10
"""
ADDRESS = (
    "export FMSCALE_ADDRESS=127.$((1 + SLURM_JOB_ID / 250 % 250)).$((SLURM_JOB_ID % 250 + 1)).${SLURMD_NODENAME#n}"
)
"""Of the site's `setup`: a loopback address a node and job."""


def require_slurm() -> None:
    """Skip, and say so loudly, where there is no Slurm or this is not root."""
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"NO SLURM: {', '.join(lacking)} not found; apt-get install slurmctld slurmd slurm-client")
    if os.getuid():
        pytest.skip("NO SLURM: its daemons are started by root only")


class SlurmCluster:
    def __init__(self, directory: Path, kill_wait_s: int = 30) -> None:
        self.directory, self._conf = directory, directory / "slurm.conf"
        directory.mkdir(parents=True)
        for name in ("state", "spool-n1", "spool-n2"):
            (directory / name).mkdir()
        host = socket.gethostname().split(".")[0]
        self._conf.write_text(
            CONF.format(directory=directory, host=host, ports=_three_ports(), kill_wait_s=kill_wait_s)
        )
        self.environment = {**os.environ, "SLURM_CONF": str(self._conf)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            self.start_node(node)
        deadline = time.monotonic() + 60
        while (states := self.node_states()) != {"n1": "idle", "n2": "idle"}:
            assert time.monotonic() < deadline, f"{states}\n{self.logs()}"
            time.sleep(0.1)

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to its slurmd; what runs there goes on."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def stop(self) -> None:
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for process in psutil.process_iter():  # steps that outlive their slurmd
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "slurmstepd" and str(self._conf) in str(_environ(process).get("SLURM_CONF", "")):
                    process.send_signal(signal.SIGKILL)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def node_states(self) -> dict[str, str]:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"], env=self.environment, capture_output=True, text=True
        )
        return dict(line.split() for line in done.stdout.splitlines())

    def job_state(self, job: str) -> str:
        return self.run("squeue", "-h", "-j", job, "-t", "all", "-o", "%T").strip()

    def restarts(self, job: str) -> int:
        shown = self.run("scontrol", "-o", "show", "job", job)
        return int(shown.split("Restarts=")[1].split()[0])

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )

    def _start(self, name: str, *command: str) -> None:
        log = open(self.directory / f"{name}.out", "ab")  # noqa: SIM115 - the child's
        self._daemons[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)


def _three_ports() -> list[int]:
    """Of which the last two follow each other, as a port range of Slurm's must."""
    for first in range(17000 + os.getpid() % 5000, 30000, 3):
        sockets = [socket.socket() for _ in range(3)]
        try:
            for number, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + number))
            return [first, first + 1, first + 2]
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise AssertionError("no three free ports in a row")


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}
