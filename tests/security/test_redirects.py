"""S8: inputs over HTTP reach public hosts and those that were named; a list or a redirect leads nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from data_pipeline import store
from data_pipeline.inputs import pin
from data_pipeline.web import PRIVATE_HOSTS, Client
from fmscale.errors import DataError
from tests.crawl_files import read_all
from tests.security.canary import refused

SECRET = b'{"text": "what only this host may see"}\n'


@dataclass
class Server:
    """Answers with SECRET, or with a redirect to `elsewhere`."""

    port: int = 0
    elsewhere: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(elsewhere: str = "") -> Iterator[Server]:
    server = Server(elsewhere=elsewhere)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            server.asked.append(self.path)
            if server.elsewhere:
                self.send_response(302)
                self.send_header("Location", server.elsewhere)
            else:
                self.send_response(200)
            self.send_header("Content-Length", "0" if server.elsewhere else str(len(SECRET)))
            self.end_headers()
            if self.command == "GET" and not server.elsewhere:
                self.wfile.write(SECRET)

        do_GET = do_HEAD = _answer  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            return None

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.port = http.server_address[1]
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSE_S", 0.001)
    monkeypatch.delenv(PRIVATE_HOSTS, raising=False)


@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://[fe80::1]/",
        "http://10.0.0.1:8265/api/jobs/",
        "http://192.168.1.1/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://0.0.0.0/",
        "http://[::1]:8265/",
    ],
)
def test_a_redirect_into_the_network_of_this_host_is_not_followed(elsewhere: str) -> None:
    with serving(elsewhere) as server:
        said = refused(lambda: pin([f"http://127.0.0.1:{server.port}/a.jsonl"]), DataError)
    assert "an input's address leads to where inputs may not be" in said
    assert f"{PRIVATE_HOSTS}=ITS_NAME" in said
    assert len(said.splitlines()) <= 6


def test_a_redirect_to_another_port_of_this_host_is_not_followed() -> None:
    with serving() as inner, serving(f"http://127.0.0.1:{inner.port}/a.jsonl") as outer:
        said = refused(lambda: pin([f"http://127.0.0.1:{outer.port}/a.jsonl"]), DataError)
        outer.elsewhere = f"http://localhost:{inner.port}/a.jsonl"
        refused(lambda: pin([f"http://127.0.0.1:{outer.port}/a.jsonl"]), DataError)
    assert "leads to 127.0.0.1" in said
    assert inner.asked == [], "it was never spoken to"


def test_a_server_that_turns_after_it_was_pinned_is_not_followed() -> None:
    with serving() as server, serving() as inner:
        url = f"http://127.0.0.1:{server.port}/a.jsonl"
        pinned = pin([url])
        server.elsewhere = f"http://127.0.0.1:{inner.port}/a.jsonl"
        file = pinned.files[0]
        said = refused(lambda: list(store.blocks(url, file.name, file.bytes, file.stamp, 0, file.bytes)), DataError)
        assert inner.asked == []
    assert "leads to 127.0.0.1" in said


def test_what_an_input_names_is_read_and_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        for host in ("127.0.0.1", "localhost"):
            assert [document.text for document in read_all(f"http://{host}:{server.port}/a.jsonl")] == [
                "what only this host may see"
            ]
    with serving() as inner, serving(f"http://127.0.0.1:{inner.port}/a.jsonl") as outer:
        monkeypatch.setenv(PRIVATE_HOSTS, "mirror.corp, 127.0.0.1")
        assert len(read_all(f"http://127.0.0.1:{outer.port}/a.jsonl")) == 1, "the user vouches for that server"


def test_endless_redirects_end() -> None:
    with serving() as server:
        server.elsewhere = f"http://127.0.0.1:{server.port}/a.jsonl"
        refused(lambda: pin([f"http://127.0.0.1:{server.port}/a.jsonl"]), DataError)
        assert len(server.asked) < 200


def test_a_name_with_a_private_address_has_to_be_vouched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the recipe of somebody else may have it, whose DNS says 127.0.0.1."""
    url = "http://rebinding.example:8265/a.jsonl"
    assert not Client.of(url).allows("127.0.0.1", 8265)
    assert not Client.of(url).allows("10.1.2.3", 8265)
    assert Client.of(url).allows("93.184.216.34", 8265)
    assert Client.of(url).allows("2606:2800:220:1::1", 443)
    monkeypatch.setenv(PRIVATE_HOSTS, "rebinding.example")
    assert Client.of(url).allows("10.1.2.3", 8265)
    assert not Client.of(url).allows("169.254.169.254", 80), "never"
    assert not Client.of(url).allows("224.0.0.1", 80)
    assert not Client.of("http://169.254.169.254/x").allows("169.254.169.254", 80), "not even by its own name"
    assert Client.of("https://10.0.0.7/x").allows("10.0.0.7", 443)
    assert not Client.of("https://10.0.0.7/x").allows("10.0.0.7", 8265)
