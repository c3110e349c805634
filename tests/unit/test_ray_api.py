"""Every way in which a job API can be closed, at real servers: nobody, an old one, another one; and the token's file.

A real dashboard with a token is in tests/integration/test_ray_jobs.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest

from fmscale.errors import ConfigError, MachineError
from launcher.jobs.ray_api import connect, read_token, require_address
from launcher.jobs.ray_jobs import RayJobs

OURS = version("ray")


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def answering(answers: dict[str, object]) -> Iterator[tuple[str, list[str]]]:
    """A server of these answers by path, 404 otherwise: (address, the Authorization headers that it saw)."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            answer = answers.get(self.path)
            body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_server_with_our_versions_is_one_to_talk_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """And RAY_ADDRESS, which Ray's client would follow elsewhere, does not count."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    metadata = {"data": {"pythonVersion": platform.python_version()}}
    with answering({"/api/version": {"ray_version": OURS}, "/api/v0/cluster_metadata": metadata}) as (address, seen):
        assert connect(address).get_address() == address
    assert set(seen) == {"Bearer secret"}
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


def test_nobody_there_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(MachineError, match="the job API cannot be reached") as refused:
        connect(address)
    assert f"Ray's dashboard to answer at {address}" in str(refused.value)


def test_an_older_dashboard_or_another_server_is_told_apart() -> None:
    with answering({"/api/version": {"ray_version": "2.9.0"}}) as (address, _):
        with pytest.raises(MachineError, match="the cluster runs another Ray") as refused:
            connect(address)
        assert f"found: 2.9.0 at {address}" in str(refused.value)
    with answering({"/api/version": {"ray_version": "1.13.0"}}) as (address, _):
        with pytest.raises(MachineError, match="the job API answers as ours would not") as refused:
            connect(address)
        assert "1.13.0" in str(refused.value)
    for answers in ({}, {"/api/version": "<html>"}, {"/api/version": ["a"]}):
        with (
            answering(answers) as (address, _),
            pytest.raises(MachineError, match="the job API answers as ours would not"),
        ):
            connect(address)


def test_a_request_that_is_not_done_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"data": {"pythonVersion": platform.python_version()}}
    with answering({"/api/version": {"ray_version": OURS}, "/api/v0/cluster_metadata": metadata}) as (address, _):
        with pytest.raises(MachineError, match="the job API has not done what it was asked to") as refused:
            RayJobs(address).jobs()
        assert "Request failed with status code 404" in str(refused.value)
        assert "takes jobs from everybody" not in capsys.readouterr().err, "nobody else reaches a loopback address"
        connect(address.replace("127.0.0.1", socket.gethostname()))
        assert "takes jobs from everybody" in capsys.readouterr().err


def test_another_python_is_refused() -> None:
    metadata = {"data": {"pythonVersion": "3.9.7"}}
    with answering({"/api/version": {"ray_version": OURS}, "/api/v0/cluster_metadata": metadata}) as (address, _):
        with pytest.raises(MachineError, match="the cluster runs another Python") as refused:
            connect(address)
        assert "found: 3.9.7" in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["", "head:8265", "ray://head:10001", "http://", "http://head:port", "http://head:8265/x", "http://h?a=b", "auto"],
)
def test_what_is_no_address_of_a_dashboard(address: str) -> None:
    with pytest.raises(ConfigError, match="this is no address of a job API"):
        require_address(address)


def test_an_address_with_a_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="a user or a password") as refused:
        require_address("https://me:canary@head:8265")
    assert "canary" not in str(refused.value)
    for address in ("https://head", "http://10.0.0.1:8265/", "http://[::1]:8265"):
        require_address(address)


def test_the_token_comes_from_the_environment_or_from_a_file_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_token() == ""
    file = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with pytest.raises(ConfigError, match="the token cannot be read") as refused:
        read_token()
    assert "No such file" in str(refused.value)
    file.write_text("canary\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read the token") as refused:
        read_token()
    assert "has mode 0640" in str(refused.value)
    assert "canary" not in str(refused.value)
    file.chmod(0o600)
    assert read_token() == "canary"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert read_token() == "another"
