"""Objects in a bucket by the S3 protocol: conditional put, multipart upload, reads by range, patience with bad days.

A request that fails by the server's or the network's fault is repeated after a growing, jittered pause until the
deadline that the caller set; one that the server refuses is not. Keys are relative to the URL. botocore signs and finds
credentials (AWS_* variables, profiles, instance roles) and the endpoint (AWS_ENDPOINT_URL); its own retries are off.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from fmscale.errors import ConfigError
from fmscale.s3_request import Patience, check_url, code_of, status_of

PART_BYTES = 16 << 20
"""Of a multipart upload and of a read by range; larger where a file would have more than `MAX_PARTS` of them."""
MAX_PARTS = 10_000
SLOWEST = 64 << 10
"""Bytes a second below which a server counts as stalled."""


class Check(Protocol):
    """Knows what a file must be. This is the whole surface."""

    def update(self, data: bytes) -> None:
        """The next bytes of it."""

    def holds(self) -> bool:
        """Whether those were all of them, and right."""


class Bucket:
    """What stands below `url`. Not for several threads at once."""

    def __init__(
        self, url: str, *, timeout_s: float = 20.0, part_bytes: int = PART_BYTES, pause_s: float = 0.1
    ) -> None:
        """timeout_s: how long a connection may be silent. pause_s: before the first repetition; later ones wait longer.

        Raises ConfigError as `check_url` does.
        """
        self.url, self._part_bytes = url.rstrip("/"), part_bytes
        self._timeout_s = timeout_s
        self._bucket, self._prefix = check_url(url)
        self._patience = Patience(self.url, pause_s)
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session

        style = {"addressing_style": "path"} if os.environ.get("AWS_ENDPOINT_URL") else None
        settings = Config(
            connect_timeout=min(10.0, timeout_s), read_timeout=timeout_s, retries={"total_max_attempts": 1}, s3=style
        )
        try:
            session = Session()
            session.register_component("data_loader", _loader())
            self._client: Any = session.create_client("s3", config=settings)
        except (BotoCoreError, ValueError) as error:  # the latter for an endpoint that is no URL
            raise ConfigError(
                "botocore cannot be set up",
                expected="settings of AWS that it can read: variables AWS_*, and the files that they name",
                found=str(error),
                do="correct AWS_ENDPOINT_URL (http(s)://HOST:PORT), AWS_PROFILE or ~/.aws, whichever that names",
            ) from error

    def within(self, seconds: float) -> None:
        """Give up what fails for longer than `seconds` from now."""
        self._patience.deadline = time.monotonic() + seconds

    @property
    def deadline(self) -> float:
        """Monotonic time."""
        return self._patience.deadline

    @property
    def retries(self) -> int:
        """Requests that were repeated."""
        return self._patience.retries

    # --- writing

    def put_new(self, key: str, content: bytes) -> bytes | None:
        """Create `key` with `content` unless it exists: None, or what stands there instead.

        An answer that was lost does no harm: what stands there is then this very content, which counts as created.
        Raises MachineError, as every method here does, when the store does not do it in time or refuses.
        """

        def call() -> bool:
            try:
                self._put(key, content, IfNoneMatch="*")
                return True
            except self._client.exceptions.ClientError as error:
                if status_of(error) == 412:
                    return False
                raise

        if self._patience.run("create", key, call):
            return None
        there = self.get(key)
        return None if there == content else there if there is not None else b""

    def put(self, key: str, content: bytes) -> None:
        """Write a small object, over what may stand there."""
        self._patience.run("write", key, lambda: self._put(key, content))

    def put_file(self, key: str, path: Path, size: int, check: Check) -> bool:
        """Write the file at `path`; False, and nothing is written, if it has not this size or does not pass `check`."""
        part_bytes = max(self._part_bytes, math.ceil(size / MAX_PARTS))
        with open(path, "rb") as file:
            if size <= part_bytes:
                content = file.read(size + 1)
                check.update(content)
                if good := (len(content) == size and check.holds()):
                    self._patience.run("write", key, lambda: self._put(key, content))
                return good
            names = self._names(key)
            started = self._patience.run(
                "write", key, lambda: self._call("create_multipart_upload", **names, **_CHECKED)
            )
            names["UploadId"] = started["UploadId"]
            parts: list[dict[str, Any]] = []
            try:
                while content := file.read(part_bytes):
                    check.update(content)
                    parts.append(self._patience.run("write", key, lambda: self._part(names, len(parts) + 1, content)))
                if good := (file.tell() == size and check.holds()):
                    self._patience.run("write", key, lambda: self._complete(key, names, parts, size))
            except BaseException:
                self._abort(names)
                raise
            if not good:
                self._abort(names)
            return good

    def _put(self, key: str, content: bytes, **more: str) -> None:
        self._call("put_object", **self._names(key), Body=content, **_CHECKED, **more)

    def _part(self, names: dict[str, str], number: int, content: bytes) -> dict[str, Any]:
        said = self._call("upload_part", **names, PartNumber=number, Body=content, **_CHECKED)
        checksum = {"ChecksumSHA256": said["ChecksumSHA256"]} if "ChecksumSHA256" in said else {}
        return {"PartNumber": number, "ETag": said["ETag"], **checksum}

    def _complete(self, key: str, names: dict[str, str], parts: list[dict[str, Any]], size: int) -> None:
        try:
            self._call("complete_multipart_upload", **names, MultipartUpload={"Parts": parts})
        except self._client.exceptions.ClientError as error:
            if code_of(error) != "NoSuchUpload" or self.list(key).get(key) != size:  # else: done, the answer was lost
                raise

    def _abort(self, names: dict[str, str]) -> None:
        with contextlib.suppress(Exception):  # the error that led here counts; `abort_uploads` finds what is left
            self._call("abort_multipart_upload", **names)

    def abort_uploads(self) -> None:
        """Free the parts of uploads that a killed process left."""
        pages = self._patience.run("tidy", "", lambda: self._call("list_multipart_uploads", **self._below("")))
        for upload in pages.get("Uploads", []):
            self._abort({"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]})

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._patience.run("delete", key, functools.partial(self._call, "delete_object", **self._names(key)))

    # --- reading

    def list(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of all objects whose key begins with `prefix`."""
        found: dict[str, int] = {}
        more: dict[str, str] = {}
        names, strip = self._below(prefix), len(self._key(""))
        while True:
            page = self._patience.run("list", prefix, functools.partial(self._call, "list_objects_v2", **names, **more))
            found.update({entry["Key"][strip:]: entry["Size"] for entry in page.get("Contents", [])})
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def get(self, key: str) -> bytes | None:
        """The whole of a small object; None if there is none."""

        def call() -> bytes | None:
            try:
                return self._read(self._call("get_object", **self._names(key)))
            except self._client.exceptions.ClientError as error:
                if status_of(error) == 404 and code_of(error) != "NoSuchBucket":
                    return None
                raise

        return self._patience.run("read", key, call)

    def fetch(self, key: str, path: Path, size: int, check: Check) -> None:
        """Write the object, of `size` bytes, to the new file `path`, fsynced. `check` sees the bytes pass; ask it."""
        with open(path, "xb") as file:
            for start in range(0, size, self._part_bytes):
                span = f"bytes={start}-{min(size, start + self._part_bytes) - 1}"
                block = self._patience.run("read", key, functools.partial(self._read_range, key, span))
                check.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    def _read_range(self, key: str, span: str) -> bytes:
        return self._read(self._call("get_object", **self._names(key), Range=span))

    def _read(self, answer: dict[str, Any]) -> bytes:
        """The body, whole: one that is cut short or trickles is an OSError."""
        length, body = int(answer["ContentLength"]), answer["Body"]
        until = time.monotonic() + self._timeout_s + length / SLOWEST
        blocks = bytearray()
        try:
            while len(blocks) < length:
                # read1 comes back with what is there; `read` would wait for a server that sends a byte a second.
                block = body._raw_stream.read1(min(1 << 20, length - len(blocks)))
                if not block:
                    raise OSError(f"the body ended after {len(blocks):,} of {length:,} bytes")
                blocks += block
                if time.monotonic() > until:
                    raise TimeoutError(f"{len(blocks):,} of {length:,} bytes came in time")
        except BaseException:
            body.close()
            raise
        return bytes(blocks)

    # --- one request

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _names(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(key)}

    def _below(self, prefix: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Prefix": self._key(prefix)}

    def _call(self, operation: str, **arguments: Any) -> Any:
        return getattr(self._client, operation)(**arguments)


@functools.cache
def _loader() -> Any:
    """Of the service's description, which takes a third of a second to parse."""
    from botocore.loaders import create_loader

    return create_loader()


_CHECKED = {"ChecksumAlgorithm": "SHA256"}
"""The server compares the bytes that came with this; whether they are the right ones, a `Check` says."""
