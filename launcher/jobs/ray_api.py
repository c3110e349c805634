"""The way to a cluster's job API: address, token, versions; every way in which it can be closed, told with its remedy.

    client = connect("http://head:8265")        a ray.job_submission.JobSubmissionClient whose requests have deadlines

The token comes from RAY_AUTH_TOKEN or the file of RAY_AUTH_TOKEN_PATH and goes into a header, never into an argument,
a message or a log. Variables that send Ray's own client elsewhere (RAY_ADDRESS) do not count here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import platform
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fmscale.errors import ConfigError, MachineError

CONNECT_S, ANSWER_S = 10.0, 120.0
"""Longest waits for a connection and for an answer's next bytes."""

ELSEWHERE = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables by which Ray's client overrides what it was told."""

TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray's client that tell each step of an upload."""


def connect(address: str) -> Any:
    """A client of the job API at `address`.

    Raises ConfigError for an address or a token file that cannot be used, MachineError where nobody answers, the token
    is not taken, or the cluster runs another Ray or Python.
    """
    require_address(address)
    token = read_token()
    with _as_told():
        from ray.job_submission import JobSubmissionClient

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)

        headers = {"Authorization": f"Bearer {token}"} if token else {}

        class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray is not typed
            """Ray's client waits for ever, and sends a token of its own (~/.ray/auth_token, the last cluster's of this
            process) to whatever address it is given."""

            def _do_request(self, *arguments: Any, **named: Any) -> Any:
                self._headers = dict(headers)
                return super()._do_request(*arguments, **{"timeout": (CONNECT_S, ANSWER_S), **named})

        with told(address):
            try:
                client = Client(address)
                version = client._do_request("GET", "/api/version").json()["ray_version"]
                _require_ray(address, str(version))
                known = client._do_request("GET", "/api/v0/cluster_metadata").json()
                _require_python(address, str(known["data"]["pythonVersion"]))
            except (RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:
                raise _foreign(address, _short(error)) from error
    if not token and not _is_loopback(address):
        print(f"note: {address} takes jobs from everybody who reaches it; docs/ray-clusters.md", file=sys.stderr)
    return client


def require_address(address: str) -> None:
    """Raise ConfigError unless it is http(s)://HOST[:PORT] and nothing else."""
    try:
        url = urlsplit(address)
        fits = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        fits = False
    else:
        fits = fits and not (url.path.strip("/") or url.query or url.fragment)
        if url.username or url.password:
            raise ConfigError(
                "the address has a user or a password in it",
                expected="http(s)://HOST:8265",
                found="something before an @",
                do="leave it out; the token goes into RAY_AUTH_TOKEN_PATH",
            )
    if not fits:
        raise ConfigError(
            "this is no address of a job API",
            expected="http(s)://HOST:8265, Ray's dashboard",
            found=address or "nothing",
            do="`ray start --head` prints it; on Kubernetes: kubectl port-forward service/NAME-head-svc 8265",
        )


def read_token() -> str:
    """The cluster's token as this user has it, "" without one. Raises ConfigError for a file that must not be used."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    name = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not name:
        return ""
    file = Path(name)
    try:
        mode, token = file.stat().st_mode, file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the token cannot be read",
            expected="RAY_AUTH_TOKEN_PATH: a file with the cluster's token",
            found=f"{file}: {getattr(error, 'strerror', None) or 'no text'}",
            do="correct the variable, or copy the file from the cluster's head",
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            "others can read the token",
            expected="mode 0600",
            found=f"{file} has mode {stat.S_IMODE(mode):04o}",
            do=f"chmod 600 {file}; if the machine is shared, have the cluster get a new token",
        )
    return token


@contextlib.contextmanager
def told(address: str) -> Iterator[None]:
    """Failures of requests inside the block, as ours."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        raise _not_admitted(address, error) from None
    except (ConnectionError, RequestException) as error:
        raise MachineError(
            "the job API cannot be reached",
            expected=f"Ray's dashboard to answer at {address}",
            found=f"{type(error).__name__}: {_short(error)}",
            do="check host and port (8265 is usual), and that a tunnel or port-forward is open",
        ) from error
    except RuntimeError as error:
        raise MachineError(
            "the job API has not done what it was asked to",
            expected=f"the dashboard at {address} to accept the request",
            found=_short(error),
            do="the dashboard's own log has more: dashboard*.log in Ray's session directory on the head",
        ) from error


def _not_admitted(address: str, error: Exception) -> MachineError:
    sent = "failed" in str(error).partition(":")[0]  # Ray says "required" without a token, "failed" for a wrong one
    return MachineError(
        "the cluster does not take this token" if sent else "the cluster asks for a token",
        expected=f"the token that {address} was started with",
        found="another one" if sent else "none in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        do="copy the token file of the cluster's head, chmod 600, and name it in RAY_AUTH_TOKEN_PATH",
    )


def _foreign(address: str, found: str) -> MachineError:
    return MachineError(
        "the job API answers as ours would not",
        expected=f"Ray {_ours()} at {address}",
        found=found,
        do="check the address; if it is the dashboard of an older Ray, run the cluster with our version",
    )


def _require_ray(address: str, version: str) -> None:
    if version != _ours():
        raise MachineError(
            "the cluster runs another Ray",
            expected=f"{_ours()}, as here",
            found=f"{version} at {address}",
            do=f"run the cluster with ray=={_ours()}, or submit from an environment with its version",
        )


def _require_python(address: str, version: str) -> None:
    here = platform.python_version()
    if version.split(".")[:2] != here.split(".")[:2]:
        raise MachineError(
            "the cluster runs another Python",
            expected=f"{'.'.join(here.split('.')[:2])}, as here",
            found=f"{version} at {address}",
            do="submit from an environment with the cluster's Python, or run the cluster with this one",
        )


def _ours() -> str:
    from importlib.metadata import version

    return version("ray")


def _short(error: BaseException) -> str:
    """One line; of a traceback of the other side its last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")] or [type(error).__name__]
    return lines[-1 if "Traceback" in str(error) else 0][:200]


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextlib.contextmanager
def _as_told() -> Iterator[None]:
    """Inside the block Ray's client goes where it is told to."""
    before = {name: os.environ.pop(name) for name in ELSEWHERE if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
