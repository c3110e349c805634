"""Runs as jobs of a Ray cluster that is there already (Ray Jobs): submitted, asked after, followed and stopped.

    jobs = RayJobs("http://head:8265")
    job = jobs.submit(spec)                    # "NAME-1"; the same run again: "NAME-2", which goes on where it stopped
    for text in jobs.logs(job, follow=True): print(text, end="")
    jobs.cancel(job)                           # the run saves first

The project travels as the job's working directory (`project.py`), settings as one config (`shipped.py`). Ray shows
what it is given to everybody who may look at the cluster, so no secret is among it: of this machine's environment only
`PASSED` travels. A stop is SIGTERM to the entrypoint and all below it, and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S, 3
seconds unless the job says otherwise; ours says what the run needs to save (`launch.grace_s` and 30 s).
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmscale.errors import ConfigError, MachineError
from launcher.jobs import project
from launcher.jobs.ray_api import connect, told
from launcher.jobs.shipped import Shipped, shipped
from launcher.jobs.spec import JobSpec, JobState
from launcher.ray_join import NODES, RANK_START

PASSED = re.compile(
    r"(TORCH_)?NCCL_\w+|GLOO_SOCKET_IFNAME|AWS_ENDPOINT_URL|AWS_(DEFAULT_)?REGION|"
    r"WANDB_(MODE|ENTITY|PROJECT|BASE_URL)|FMSCALE_DEBUG|FAULTS(_ONCE)?"
)
"""Environment variables that travel, by their whole names: how to compute and whom to ask, never who one is."""

STATES: dict[str, Literal["waiting", "running", "done", "failed", "cancelled"]] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "cancelled",
}
RUN, RUN_DIR = "fmscale_run", "fmscale_run_dir"
"""Keys of a job's metadata."""
IN_PACKAGE = "job/config.yaml"
"""Where the config lies in the working directory."""
RECONNECT_S = 120.0
"""How long a cluster that does not answer is asked for a job's log."""
QUIET_S, PAUSE_S = 30.0, 0.5
"""After so long without a word the API is asked for a sign of life; between two connections."""
STOPPED_ON_REQUEST = 85
INSTALL_S = 900
"""How long a node may install packages, and a rank there take to start (Ray: 600; a CUDA build of torch is gigabytes).
It is what Ray gives a job to start on the head, unless RAY_JOB_START_TIMEOUT_SECONDS says otherwise there."""


@dataclass
class RayJobs:
    """A cluster that jobs can be handed to; see `spec.Backend`.

    Where ranks stand is Ray's business: of a spec's resources only `nodes` counts, which the run waits for.
    """

    address: str
    """Of Ray's dashboard: http(s)://HOST:8265."""
    environment: Literal["cluster", "pinned"] = "cluster"
    """cluster: the packages that its nodes have. pinned: the versions of constraints.txt, which each node installs
    once into an environment of the job's own."""
    name: str = "ray"

    def submit(self, spec: JobSpec) -> str:
        """The job's id. Raises ConfigError, MachineError."""
        load = shipped(spec)
        runtime_env = self.runtime_env(spec, load)
        client = connect(self.address)
        with tempfile.TemporaryDirectory() as directory:
            pack(load, Path(directory))
            runtime_env["working_dir"] = directory
            return self._submit(client, spec, entrypoint(spec, load), runtime_env)

    def runtime_env(self, spec: JobSpec, load: Shipped) -> dict[str, Any]:
        """As Ray takes it, without the working directory. Raises ConfigError."""
        variables = _variables(spec, load)
        if self.environment != "pinned":
            return {"env_vars": variables}
        return {"env_vars": {**variables, RANK_START: str(INSTALL_S)}, **self._packages()}

    def state(self, job: str) -> JobState:
        info = self._info(connect(self.address), job)
        return JobState(state="unknown", detail="Ray knows no such job") if info is None else _state(info)

    def jobs(self) -> dict[str, JobState]:
        """All of ours that the cluster remembers, the newest first."""
        client = connect(self.address)
        with told(self.address):
            known = [info for info in client.list_jobs() if RUN in (info.metadata or {})]
        known.sort(key=lambda info: -(info.start_time or 0))
        return {info.submission_id: _state(info) for info in known}

    def logs(self, job: str, follow: bool) -> Iterator[str]:
        """Raises ConfigError for a job that Ray does not know, MachineError where the stream is lost for good."""
        client = connect(self.address)
        self._require(client, job)
        if follow:
            yield from self._follow(client, job)
        else:
            with told(self.address):
                yield client.get_job_logs(job)

    def cancel(self, job: str) -> None:
        """Ask for it; the job ends once the run has saved. Nothing happens to one that has ended."""
        client = connect(self.address)
        self._require(client, job)
        with told(self.address):
            client.stop_job(job)

    def _packages(self) -> dict[str, Any]:
        """What Ray has pip install on each node, what those packages need at our versions too. Raises ConfigError.

        Ray makes an environment for each new list of packages, so the file of versions is named by what is in it.
        """
        pins = project.pinned()
        versions = f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{project.constraints_name()}"
        return {
            "pip": {"packages": [*pins, versions], "pip_check": False},
            "config": {"setup_timeout_seconds": INSTALL_S},
        }

    def _submit(self, client: Any, spec: JobSpec, command: str, runtime_env: dict[str, Any]) -> str:
        metadata = {RUN: spec.name, RUN_DIR: str(spec.run_dir)}
        with told(self.address):
            taken = {info.submission_id for info in client.list_jobs()}
        for job in submission_ids(spec.name, taken):
            try:
                with told(self.address):
                    client.submit_job(entrypoint=command, submission_id=job, runtime_env=runtime_env, metadata=metadata)
            except MachineError as error:
                if "already exists" not in str(error.__cause__):  # else somebody was quicker
                    raise
            else:
                return job
        raise AssertionError("there is always another number")

    def _info(self, client: Any, job: str) -> Any | None:
        """What Ray knows of the job; None: nothing."""
        with told(self.address):
            answer = client._do_request("GET", f"/api/jobs/{job}")
            if answer.status_code == 404:
                return None
            return client.get_job_info(job)

    def _require(self, client: Any, job: str) -> Any:
        info = self._info(client, job)
        if info is None:
            raise ConfigError(
                "the cluster knows no such job",
                expected=f"a job of {self.address}; `fmscale jobs` lists them",
                found=job,
                do="check its name; a cluster that was started anew has forgotten all (submit again: the run goes on)",
            )
        return info

    def _follow(self, client: Any, job: str) -> Iterator[str]:
        """Until the job has ended, over lost connections: each stream begins with the log's first character."""
        from aiohttp import ClientError

        seen, lost = 0, 0.0
        with asyncio.Runner() as runner:
            while True:
                at, broken = 0, False
                try:
                    for piece in self._stream(runner, client, job):
                        at += len(piece)
                        if at > seen:
                            yield piece[len(piece) - (at - seen) :]
                            seen = at
                except (ClientError, RuntimeError, OSError, MachineError):
                    broken = True
                try:
                    if self._has_ended(client, job):
                        if broken:
                            with told(self.address):
                                yield client.get_job_logs(job)[seen:]
                        return
                    lost = 0.0
                except MachineError:
                    lost = lost or time.monotonic()
                    if time.monotonic() - lost > RECONNECT_S:
                        raise
                time.sleep(PAUSE_S)

    def _stream(self, runner: asyncio.Runner, client: Any, job: str) -> Iterator[str]:
        """What one connection brings. Where nothing comes for a while the API is asked whether it is there at all."""
        stream = client.tail_job_logs(job)
        waiting = None
        try:
            while True:
                waiting = runner.get_loop().create_task(_next(stream))
                while not runner.run(_is_done(waiting)):
                    if self._has_ended(client, job):
                        raise ConnectionError("the job has ended, its log stream has not")
                if (piece := waiting.result()) is None:
                    return
                yield piece
        finally:
            runner.run(_close(stream, waiting))

    def _has_ended(self, client: Any, job: str) -> bool:
        info = self._info(client, job)
        return info is None or _state(info).state not in ("waiting", "running")


def entrypoint(spec: JobSpec, load: Shipped) -> str:
    """One command for one shell. `exec`: Ray signals the run itself and learns its exit code."""
    command = [spec.site.python or "python", "-m", "launcher.cli", *load.with_config_at(IN_PACKAGE)]
    return f"exec {shlex.join(command)}"


def pack(load: Shipped, into: Path) -> None:
    """What the job is to find in its working directory."""
    project.copy_project(into)
    if (versions := into / project.CONSTRAINTS).exists():
        shutil.copyfile(versions, into / project.constraints_name(into))
    if load.config is not None:
        (into / IN_PACKAGE).parent.mkdir()
        (into / IN_PACKAGE).write_text(load.text)


def submission_ids(name: str, taken: set[str]) -> Iterator[str]:
    """NAME-N, as it may stand in a URL and in a file's name; from the first number on after all that were there."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    numbers = [int(match[1]) for job in taken if (match := re.fullmatch(re.escape(stem) + r"-(\d+)", job or ""))]
    number = max(numbers, default=0)
    while True:
        number += 1
        yield f"{stem}-{number}"


def _variables(spec: JobSpec, load: Shipped) -> dict[str, str]:
    """Raises ConfigError for one that carries a password in a URL."""
    passed = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
    for name, value in passed.items():
        if re.search(r"://[^/]*@", value):
            raise ConfigError(
                "a variable that travels with the job has a password in it",
                expected=f"{name} without user and password: Ray shows it to all who look at the cluster",
                found="something before an @",
                do="leave it out, and set it on the cluster's nodes",
            )
    waited_for = {NODES: str(spec.nodes)} if spec.nodes > 1 else {}
    return {**passed, **waited_for, "RAY_JOB_STOP_WAIT_TIME_S": str(load.stop_s)}


def _state(info: Any) -> JobState:
    status, code = info.status.value, info.driver_exit_code
    detail = str(status)
    if code:
        detail = f"exit code {code}"
        if code == STOPPED_ON_REQUEST:
            detail += ": stopped on request, and saved; submitted again it goes on"
    elif status == "FAILED" and info.message:
        detail = info.message.strip().splitlines()[0][:200]
    return JobState(state=STATES.get(status, "unknown"), detail=detail)


async def _next(stream: AsyncIterator[str]) -> str | None:
    return await anext(stream, None)


async def _is_done(waiting: asyncio.Task[str | None]) -> bool:
    """Whether it is, within QUIET_S."""
    await asyncio.wait({waiting}, timeout=QUIET_S)
    return waiting.done()


async def _close(stream: Any, waiting: asyncio.Task[str | None] | None) -> None:
    if waiting is not None:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await stream.aclose()
