"""A real Slurm for the tests of this directory, and runs that are submitted to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import ON_RAY, PATIENCE_S, Run
from tests.slurm_cluster import ADDRESS, SlurmCluster, require_slurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    require_slurm()
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster")
    cluster.start()
    yield cluster
    cluster.stop()


class SlurmRun(Run):
    """A run that trains as a job of `cluster`."""

    def __init__(self, cluster: SlurmCluster, root: Path, name: str, corpus: Path, settings: list[str]) -> None:
        super().__init__(root, name, corpus, settings)
        self.cluster, self.job = cluster, ""
        self.site = root / "site.yaml"
        root.mkdir(parents=True, exist_ok=True)
        self.site.write_text(f"warning_s: 60\nsetup: ['{ADDRESS}']\n")
        self.environment = {**cluster.environment, "XDG_STATE_HOME": str(root / "state")}

    def submit(self, *options: str, nodes: int = 2) -> None:
        words = [
            "submit",
            *self.arguments(),
            "--on",
            "slurm",
            "--nodes",
            str(nodes),
            "--site",
            str(self.site),
            *options,
        ]
        said = self.command(*words)
        self.job = said.split()[1]

    def command(self, *words: str, code: int = 0) -> str:
        """`fmscale ...` on the cluster's login node; what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "launcher.cli", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.directory / "logs").glob("slurm-*.out")))

    def output(self) -> str:
        return f"{self.log[-6000:]}\n{self.cluster.logs()}\n{super().output()}"

    def wait_for(self, what: Callable[[], Any], timeout_s: float = PATIENCE_S, pause_s: float = 0.1) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, f"nothing after {timeout_s} s\n{self.output()}"
            state = self.cluster.job_state(self.job)
            assert state not in ("FAILED", "TIMEOUT", "OUT_OF_MEMORY") or what(), f"{state}\n{self.output()}"
            time.sleep(pause_s)

    def wait_for_state(self, *states: str, timeout_s: float = PATIENCE_S) -> None:
        self.wait_for(lambda: self.cluster.job_state(self.job) in states, timeout_s)

    def end(self) -> None:
        """To the last step."""
        self.wait_for_state("COMPLETED")
        assert self.steps()[-1]["step"] == 160, self.output()

    def job_processes(self) -> list[psutil.Process]:
        """What runs of the job on this machine, whoever's child it is."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            if (
                environment.get("SLURM_JOB_ID") == self.job
                and environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            ):
                found.append(process)
        return found

    def require_nothing_left(self) -> None:
        """Neither processes nor shared memory nor sessions of Ray."""
        deadline = time.monotonic() + 20
        while left := [p for p in self.job_processes() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
            assert time.monotonic() < deadline, (
                f"left behind: {[(p.pid, p.cmdline()[:6]) for p in left if p.is_running()]}"
            )
            time.sleep(0.2)
        scratch = Path("/tmp") / f"fmscale-{os.getuid()}"
        assert [path.name for path in scratch.glob(f"{self.job}.*")] == []


@pytest.fixture
def slurm_run(slurm: SlurmCluster, tmp_path: Path, words: Path) -> Iterator[Callable[..., SlurmRun]]:
    """make(NAME, *SETTINGS): a run of its own directory; what is left of its job is cancelled afterwards."""
    made: list[SlurmRun] = []

    def make(name: str, *settings: str) -> SlurmRun:
        made.append(SlurmRun(slurm, tmp_path / name, name, words, [*ON_RAY, *settings]))
        return made[-1]

    yield make
    for run in made:
        if run.job and slurm.job_state(run.job) in ("PENDING", "RUNNING"):
            slurm.run("scancel", run.job)
            run.wait_for(lambda run=run: slurm.job_state(run.job) not in ("PENDING", "RUNNING", "COMPLETING"))  # type: ignore[misc]
