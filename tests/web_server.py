"""A web server of files held in memory, with and without ranges, and with the moods that servers have."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Site:
    """What happens to each request is `fate` of (number from 1, method, path): None, a status, or one of

    short    the body ends half-way          lie       Content-Length says a byte too many
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tell_length: bool = True
    tell_stamp: bool = True
    gzip_coding: bool = False
    fate: Callable[[int, str, str], str | int | None] = field(default=lambda number, method, path: None)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path with query, Range)"""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


@contextlib.contextmanager
def web_server() -> Iterator[Site]:
    site = Site()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            with lock:
                site.requests.append((self.command, self.path, self.headers.get("Range", "")))
                number = len(site.requests)
            path = self.path.partition("?")[0].lstrip("/")
            fate = site.fate(number, self.command, path)
            if isinstance(fate, int):
                return self.send_error(fate)
            if path.endswith("/") or not path:
                return self._listing(path)
            if any(name.startswith(f"{path}/") for name in site.files):
                self.send_response(301)
                self.send_header("Location", f"/{path}/")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if path not in site.files:
                return self.send_error(404)
            body = site.files[path]
            etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            status, extra = 200, {"Content-Type": "application/octet-stream"}
            if site.tell_stamp:
                extra["ETag"] = etag
            if wanted and site.ranges:
                start, stop = int(wanted[1]), int(wanted[2]) + 1
                status = 206
                extra["Content-Range"] = f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"
                body = body[start:stop]
            if site.gzip_coding:
                extra["Content-Encoding"] = "gzip"  # as servers say of a .gz file that they hand out as it is
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            if site.tell_length:
                self.send_header("Content-Length", str(len(body) + (fate == "lie")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if fate == "short" else body)
            return None

        do_GET = do_HEAD = _any  # noqa: N815

        def _listing(self, path: str) -> None:
            names = {name[len(path) :].partition("/")[0] for name in site.files if name.startswith(path)}
            folders = {name for name in names if path + name not in site.files}
            links = "".join(f'<a href="{n}{"/" if n in folders else ""}">{n}</a>\n' for n in sorted(names))
            body = f"<html>{links}</html>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
