"""WARC and WET files (ISO 28500): pages as HTML or as extracted text; requests and other records are passed over.

FastWARC finds the records; what it takes without a word is checked here. It sees the file decompressed by archive.py,
so a file cut short is found; a record must be as long as its Content-Length says; and where each record is a gzip
member of its own, as the standard recommends, no record may reach into the next member. A page's HTML travels as
text, decoded (charset.py), to the step that takes its main text out (steps/extract.py); `meta` has url, date,
content_type, encoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.archive import inflate
from data_pipeline.damage import damaged
from data_pipeline.document import Document
from data_pipeline.inputs import InputFile, Piece
from data_pipeline.limits import MAX_DOCUMENT_BYTES
from data_pipeline.optional import require
from data_pipeline.readers.charset import decode
from data_pipeline.readers.payload import BadPayload, TooLong, decoded
from data_pipeline.records import Fields, bad, from_text

HTML_TYPES = ("text/html", "application/xhtml+xml")
_HEADER_SLACK = 1 << 20
"""An HTTP header may stand before a body of MAX_DOCUMENT_BYTES."""
_SKIPPED = "skipped_record"


def documents(file: InputFile, piece: Piece, blocks: Iterable[bytes], fields: Fields) -> Iterator[Document]:
    """Every record's. Raises DamagedInput: cut short, a wrong Content-Length, bytes that are no WARC record."""
    warc = require("fastwarc.warc", "a WARC input")
    ends: deque[int] = deque()
    stream = _Stream(inflate(file, blocks, ends) if file.compression else blocks)
    members = _Members(file.name, ends) if file.compression else None
    number = -1
    try:
        for number, record in enumerate(warc.ArchiveIterator(stream, parse_http=False, stream_detect=False)):
            if members:
                members.see(number, record.stream_pos)
            yield _document(record, file, piece.file, number, fields)
        if members and number > 0:
            members.see(number + 1, stream.given)
    except OSError as error:
        raise damaged(file.name, "a WARC file", f"after {number + 1} records: {error}") from error
    if stream.given and number < 0:
        raise damaged(file.name, "a WARC file", f"no record in {stream.given} bytes")


def _document(record: Any, file: InputFile, index: int, number: int, fields: Fields) -> Document:
    headers = _lower(record.headers)
    if "warc-type" not in headers or not headers.get("content-length", "").strip().isdecimal():
        raise damaged(file.name, "a WARC file", f"the header of record {number} has no type or no length")
    kind = headers["warc-type"]
    said = record.content_length  # by its header; after `freeze`, what there was of it
    wanted = kind in ("response", "resource", "conversion") and said <= MAX_DOCUMENT_BYTES + _HEADER_SLACK
    if wanted:
        record.freeze()
    there = record.content_length if wanted else record.consume()
    if there != said:
        raise damaged(
            file.name, f"{said} bytes in record {number}, as its Content-Length says", f"it ends after {there}"
        )
    if kind not in ("response", "resource", "conversion"):
        return bad(file.name, index, number, _SKIPPED, kind)
    if not wanted:
        return bad(file.name, index, number, "too_long", said)
    try:
        return _page(record, headers, file.name, index, number, fields)
    except BadPayload as error:
        return bad(file.name, index, number, "bad_payload", str(error))
    except TooLong:
        return bad(file.name, index, number, "too_long")


def _page(record: Any, headers: dict[str, str], source: str, index: int, number: int, fields: Fields) -> Document:
    url = headers.get("warc-target-uri", "").strip("<>")
    host, path = _host_and_path(url)
    meta: dict[str, Any] = {"url": url, "date": headers.get("warc-date", ""), (fields.group or "group"): host}
    http: dict[str, str] = {}
    if record.is_http:
        try:
            record.parse_http(quirks_mode=True)
        except OSError as error:
            raise BadPayload(str(error)) from error
        http = _lower(record.http_headers)
        status = record.http_headers.status_code
        if status is not None and not 200 <= status < 300:
            return bad(source, index, number, "http_status", float(status))
    declared = (http if record.is_http else headers).get("content-type", "")
    body = decoded(record.reader.read(), http, MAX_DOCUMENT_BYTES, "warc-truncated" in headers)
    content_type = declared.partition(";")[0].strip().lower() or headers.get("warc-identified-payload-type", "")
    content_type = content_type or ("text/html" if _looks_like_html(body) else "")
    if content_type not in (*HTML_TYPES, "text/plain"):
        return bad(source, index, number, "not_text", content_type or "unknown")
    if path == "/robots.txt":
        return bad(source, index, number, _SKIPPED, "robots.txt")
    if fields.group and not host:
        return bad(source, index, number, "no_group")
    if headers["warc-type"] == "conversion":
        try:
            text, encoding = body.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            return bad(source, index, number, "bad_utf8")
    else:
        text, encoding = decode(body, _charset(declared))
    meta |= {"content_type": content_type, "encoding": encoding}
    if "warc-truncated" in headers:
        meta["truncated"] = headers["warc-truncated"]
    return from_text(text, meta, source, index, number, headers.get("warc-record-id"))


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _host_and_path(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.path
    except ValueError:  # an IPv6 address that is none
        return "", ""


def _charset(content_type: str) -> str | None:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'") or None
    return None


def _looks_like_html(body: bytes) -> bool:
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


class _Members:
    """Where each record is a gzip member of its own: that none reaches into the next, as a wrong length makes it."""

    def __init__(self, name: str, ends: deque[int]) -> None:
        self._name, self._ends = name, ends
        self._alone = False

    def see(self, number: int, start: int) -> None:
        """Record `number` begins at `start` of the decompressed bytes, or these end there."""
        if number == 1:  # the second begins where a member does: so do all, or members know nothing of records
            self._alone = start in self._ends
        inside = False
        while self._ends and self._ends[0] <= start:
            inside |= self._ends.popleft() < start
        if self._alone and inside:
            raise damaged(
                self._name,
                "records that end where their gzip members end",
                f"record {number - 1} goes on into the next member: its Content-Length is wrong",
            )


class _Stream:
    """What FastWARC reads from: `read` gives at most what it is asked for."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = memoryview(b"")
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._block = memoryview(block)
        part = bytes(self._block[:size] if size >= 0 else self._block)
        self._block = self._block[len(part) :]
        self.given += len(part)
        return part

    def tell(self) -> int:
        return self.given
