"""Input files behind URLs, through fsspec: which there are, what pins them, and their bytes, block after block.

A file is pinned by its size and stamp (its ETag, or what else the store changes with the content); both are asked for
again before the first byte is used and after the last. A block that does not come is asked for again with growing
pauses; what is hopeless (no such file, no permission) is not. URLs may carry secrets, so only `shown` forms of them are
ever told, and one with a password in it is refused.
"""

from __future__ import annotations

import posixpath
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from data_pipeline.damage import DamagedInput, changed
from data_pipeline.limits import BLOCK_BYTES
from data_pipeline.optional import require
from data_pipeline.web import MOST_REDIRECTS, Client, require_allowed
from fmscale.errors import ConfigError, DataError, FmscaleError

T = TypeVar("T")

TRIES = 6
PAUSE_S = 0.5
"""Before the second try; it doubles from one to the next."""
STALL_S = 60
"""Without a byte over HTTP, after which a request counts as failed. Other stores have limits of their own."""
_STAMPS = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "sha256", "blob_id", "generation")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created")
_OURS = (TypeError, AttributeError, NameError, LookupError, AssertionError)
"""Mistakes of a program, never a store's."""


@dataclass(frozen=True)
class Entry:
    url: str
    name: str
    bytes: int
    stamp: str


def is_url(pattern: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", pattern) is not None


def shown(url: str) -> str:
    """The URL without user, password and query."""
    return re.sub(r"(://)[^/?#]*@", r"\1", url).partition("?")[0]


def listing(url: str) -> tuple[list[Entry], bool]:
    """(files that `url` means, whether it is a directory). Raises ConfigError: a secret in it, no package for it."""
    fs, path = _open(url)
    fs.invalidate_cache()
    over_http = url.startswith("http")
    if re.search(r"[*[]" if over_http else r"[*?[]", path):
        found = _patiently(shown(url), lambda: fs.glob(path, detail=True))
        root, is_directory = posixpath.dirname(re.split(r"[*?[]", path)[0]), False
    elif over_http and not path.endswith("/"):
        found, root, is_directory = {path: {"type": "file", "size": None}}, posixpath.dirname(shown(path)), False
    else:
        info = {"type": "directory"} if over_http else _patiently(shown(url), lambda: fs.info(path))
        is_directory = info["type"] == "directory"
        root = path.rstrip("/") if is_directory else posixpath.dirname(path)
        found = _patiently(shown(url), lambda: fs.find(path, detail=True)) if is_directory else {path: info}
    files = {name: info for name, info in found.items() if info["type"] == "file"}
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda item: _entry(fs, root, *item), files.items()))
    hidden = re.compile(r"(^|/)\.")
    return [entry for entry in entries if not (is_directory and hidden.search(entry.name))], is_directory


def blocks(url: str, name: str, size: int, stamp: str, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop) of the file, one block ahead of what is used.

    Raises DamagedInput: the file is not the pinned one (size, stamp), is gone, or the store does not give it.
    """
    check(url, name, size, stamp)
    fs, path = _open(url)
    fetch = (
        _Http(fs, path, size).fetch if url.startswith("http") else lambda at, end: fs.cat_file(path, start=at, end=end)
    )
    pool = ThreadPoolExecutor(1)

    def block(at: int) -> bytes:
        end = min(at + BLOCK_BYTES, stop)
        return _patiently(name, partial(_whole, fetch, at, end))

    try:
        coming = pool.submit(block, start)
        for following in range(start + BLOCK_BYTES, stop + BLOCK_BYTES, BLOCK_BYTES):
            block_now = coming.result()
            if following < stop:
                coming = pool.submit(block, following)
            yield block_now
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    check(url, name, size, stamp)


def check(url: str, name: str, size: int, stamp: str) -> None:
    """Raise DamagedInput if the file is not the pinned one any more."""
    fs, path = _open(url)
    fs.invalidate_cache()
    info = _patiently(name, lambda: fs.info(path))
    if info.get("size") != size or _stamp(info) != stamp:
        raise changed(name, _words(size, stamp), _words(info.get("size"), _stamp(info)))


def _words(size: int | None, stamp: str) -> str:
    return f"{'an unknown number of' if size is None else size} bytes, {stamp or 'no stamp'}"


def _whole(fetch: Callable[[int, int], bytes], start: int, stop: int) -> bytes:
    data = fetch(start, stop)
    if len(data) != stop - start:
        raise OSError(f"{len(data)} bytes came instead of {stop - start} from {start} on")
    return data


def _open(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it)."""
    if "@" in urlsplit(url).netloc:
        raise ConfigError(
            "an input's URL holds a user or a password",
            expected="a URL without; credentials go where the store's own tools look for them (environment, profile)",
            found=shown(url),
            do="take them out: names and messages are shown to others",
        )
    protocol = url.partition("://")[0].lower()
    fsspec = require("fsspec", f"an input at {protocol}://")
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        aiohttp = require("aiohttp", f"an input at {protocol}://")
        # As it is stored, not unpacked on the way; and a long file may take its time, as long as bytes come.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
        options["client_kwargs"] = {"auto_decompress": False, "timeout": timeout}
        options["headers"] = {"Accept-Encoding": "identity"}
        options["max_redirects"] = MOST_REDIRECTS  # fsspec hands on to each request what it does not know
    try:
        if "client_kwargs" in options:
            options["get_client"] = Client.of(url)
        fs = fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"inputs at {protocol}:// cannot be read here",
            expected="a kind of store that fsspec knows, with its package installed",
            found=said(error),
            do="install that package (s3fs for s3, gcsfs for gs, huggingface_hub for hf), or copy the files here",
        ) from error
    return fs, fs._strip_protocol(url)


def _entry(fs: Any, root: str, path: str, info: Mapping[str, Any]) -> Entry:
    url = fs.unstrip_protocol(path)
    if info.get("size") is None:  # an HTTP server's list of links
        info = _patiently(shown(url), lambda: fs.info(path))
    if info.get("size") is None:
        raise DataError(
            "a server does not say how long an input is",
            expected="a Content-Length",
            found=shown(url),
            do="download the file and name the copy",
        )
    name = posixpath.relpath(unquote(shown(path)), unquote(root)) if root else path
    return Entry(url, name, int(info["size"]), _stamp(info))


def _stamp(info: Mapping[str, Any]) -> str:
    said = {name: info[name] for name in _STAMPS if info.get(name)} or {
        name: info[name] for name in _TIMES if info.get(name)
    }
    # A time is a number here: listings and single answers of a store may word it differently.
    return " ".join(
        f"{name}={value.timestamp() if hasattr(value, 'timestamp') else value}" for name, value in said.items()
    )


def _patiently(name: str, call: Callable[[], T]) -> T:
    """What `call` returns, in the end. Raises DamagedInput."""
    for attempt in range(TRIES):
        try:
            return call()
        except (FmscaleError, *_OURS):
            raise
        except Exception as error:  # each store has classes of its own
            require_allowed(name, error)
            if _is_final(error) or attempt == TRIES - 1:
                raise DamagedInput(
                    "an input cannot be read from its store",
                    name=name,
                    expected=name,
                    found=said(error) + ("" if _is_final(error) else f", at the last of {TRIES} tries"),
                    do="check that it is there and may be read (credentials expired?); run the command again",
                    passing=not _is_final(error),
                ) from None  # its traceback may show a URL
        time.sleep(random.uniform(0.5, 1.0) * PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def _is_final(error: BaseException) -> bool:
    """Whether a store will say the same again."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # fsspec gives every failure of HTTP's HEAD this name
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return 400 < status < 500 and status not in (408, 409, 425, 429)  # 400: aiohttp's word for an answer cut short
    missing = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
    return missing or "Credentials" in type(error).__name__


def said(error: BaseException) -> str:
    """The error's words in one line, without what a URL in it may hide."""
    words = " ".join(str(error).split())
    words = re.sub(r"(\w://)[^/\s'\"]*@", r"\1", words)
    words = re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", words)
    return f"{type(error).__name__}: {words[:200]}"


class _Http:
    """Ranges of a file on a web server; from one that gives none, its bytes in order, from the start if need be."""

    def __init__(self, fs: Any, url: str, size: int) -> None:
        self._fs, self._url, self._size = fs, url, size
        self._in_order: Any = None
        self._at = 0
        self._has_ranges = True

    def fetch(self, start: int, stop: int) -> bytes:
        if self._has_ranges:
            with self._fs.open(self._url, block_size=BLOCK_BYTES, cache_type="none", size=self._size) as file:
                file.seek(start)
                try:
                    data: bytes = file.read(stop - start)
                    return data
                except ValueError:  # fsspec's word for a server that answers a range with the whole
                    self._has_ranges = False
        try:
            if self._in_order is None or self._at > start:
                self._in_order, self._at = self._fs.open(self._url, block_size=0), 0
            while self._at < start:
                self._read(min(start - self._at, BLOCK_BYTES))
            parts = []
            while self._at < stop:
                parts.append(self._read(stop - self._at))
            return b"".join(parts)
        except Exception:
            self._in_order = None
            raise

    def _read(self, size: int) -> bytes:
        data: bytes = self._in_order.read(size)
        if not data:
            raise OSError(f"the server's answer ended after {self._at} of {self._size} bytes")
        self._at += len(data)
        return data
