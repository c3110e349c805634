"""A server of the S3 protocol (moto's) behind a proxy that does to requests what networks and servers do to them."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BUCKET = "bucket"
SECRET = "wJalrXUtnFEMI-K7MDENG"

ERRORS = {
    "403": (403, "ExpiredToken", "The provided token has expired."),
    "429": (429, "TooManyRequests", "Slow down."),
    "500": (500, "InternalError", "We encountered an internal error."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
}


@dataclass(frozen=True)
class Request:
    number: int
    """From 1, since `forget`."""
    method: str
    path: str
    conditional: bool


@dataclass
class Proxy:
    """What happens to each request: None, a key of ERRORS, or one of

    cut       the answer's body ends half-way             lost     done, and the connection is closed unanswered
    stall     no answer for a long time                   trickle  the answer comes at 20 bytes a second
    refuse    closed before it reaches the server         blind    If-None-Match is ignored
    kill, done-kill   SIGKILL to `victim` before or after it reaches the server
    """

    port: int
    fate: Callable[[Request], str | None] = field(default=lambda request: None)
    victim: int = 0
    requests: list[Request] = field(default_factory=list)
    received: int = 0
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    one_condition_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def forget(self) -> None:
        self.requests.clear()
        self.received = self.sent = 0
        self.fate = lambda request: None

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def s3_server() -> Iterator[Proxy]:
    import moto.s3.models
    from moto.server import ThreadedMotoServer

    moto.s3.models.S3_UPLOAD_PART_MIN_SIZE = 1  # so that small files have many parts
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    backend = server.get_host_and_port()[1]
    state = Proxy(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client was killed
                super().handle_one_request()

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            conditional = "If-None-Match" in self.headers
            with state.lock:
                request = Request(len(state.requests) + 1, self.command, self.path, conditional)
                state.requests.append(request)
                state.received += len(body)
            fate = state.fate(request)
            if fate == "kill":
                _kill(state.victim)
            if fate in ("kill", "refuse"):
                return self._hang_up()
            if fate == "stall":
                state.over.wait(60)
                return self._hang_up()
            if fate in ERRORS:
                status, code, message = ERRORS[fate]
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
                return self._answer(status, [("Content-Type", "application/xml")], text)
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            if fate == "blind":
                headers.pop("If-None-Match", None)
            with state.one_condition_at_a_time if conditional else contextlib.nullcontext():
                onward = http.client.HTTPConnection("127.0.0.1", backend)
                onward.request(self.command, self.path, body, headers)
                answer = onward.getresponse()
                content = answer.read()
                onward.close()
            if fate == "done-kill":
                _kill(state.victim)
            if fate in ("lost", "done-kill"):
                return self._hang_up()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("content-length", "connection")]
            if self.command == "HEAD":
                kept.append(("Content-Length", answer.getheader("Content-Length") or "0"))
            self._answer(answer.status, kept, content, fate)
            return None

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fate: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with state.lock:
                state.sent += len(content)
            if fate == "trickle":
                for at in range(0, len(content), 5):
                    self.wfile.write(content[at : at + 5])
                    if state.over.wait(0.25):
                        break
                return
            self.wfile.write(content[: len(content) // 2] if fate == "cut" else content)
            if fate == "cut":
                self._hang_up()

        def _hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments: Any) -> None:
            return None

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    state.port = proxy.server_address[1]
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", backend)
    connection.request("PUT", f"/{BUCKET}")
    assert connection.getresponse().status == 200
    try:
        yield state
    finally:
        state.over.set()
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.02)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def server(shared_server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """Reached by this process and by those that it starts."""
    for name, value in shared_server.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    shared_server.forget()
    return shared_server
