"""The body of an HTTP response as a crawler stored it -> the bytes that the server meant, within a limit.

Codings that the header names are undone in the order of RFC 9110, 8.4, chunks first (RFC 9112, 7.1). Many crawlers
store bodies already decoded and keep the header: a body that does not look coded is taken as it is.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import zstandard

from data_pipeline.archive import MAX_WINDOW_BYTES
from data_pipeline.optional import require

_ZSTD_FEED_BYTES = 1 << 10
"""At once: what becomes 32 MiB at most."""


class BadPayload(Exception):
    """Not an error of ours to show: the reader makes a reason of it, and of its words the value."""


class TooLong(Exception):
    """The body would be longer than the limit."""


def decoded(data: bytes, headers: Mapping[str, str], limit: int, cut_short: bool) -> bytes:
    """The body without its codings. headers: names in lower case. cut_short: the crawler says that it stopped early.

    Raises TooLong, and BadPayload: a coding that is not known, or does not hold what it should.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower() and re.match(rb"[0-9A-Fa-f]+[ \t]*[;\r\n]", data):
        data = _read(_stream_io().ChunkedReader(io.BytesIO(data)), "chunked", limit)
    for coding in reversed(headers.get("content-encoding", "").lower().split(",")):
        data = _undo(data, coding.strip(), limit, cut_short)
    if len(data) > limit:
        raise TooLong
    return data


def _undo(data: bytes, coding: str, limit: int, cut_short: bool) -> bytes:
    match coding:
        case "" | "identity" | "none" | "utf-8":  # the last is a common mistake of servers
            return data
        case "gzip" | "x-gzip":
            return _inflate(data, 31, limit, cut_short) if data.startswith(b"\x1f\x8b") else data
        case "deflate":  # zlib's format by the RFC, without its header by what some servers do
            zlib_header = len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
            return _inflate(data, 15, limit, cut_short) if zlib_header else _raw_or_plain(data, limit, cut_short)
        case "zstd":
            return _zstd(data, limit, cut_short) if data.startswith(b"\x28\xb5\x2f\xfd") else data
        case "br":
            if data.lstrip()[:1] == b"<":
                return data
            return _read(_stream_io().BrotliReader(io.BytesIO(data)), coding, limit)
    raise BadPayload(f"coding {coding[:20]}")


def _inflate(data: bytes, wbits: int, limit: int, cut_short: bool) -> bytes:
    parts, size = [], 0
    while data:
        member = zlib.decompressobj(wbits)
        try:
            parts.append(member.decompress(data, limit + 1 - size))
        except zlib.error as error:
            raise BadPayload(str(error)) from error
        size += len(parts[-1])
        if size > limit:
            raise TooLong
        if not member.eof:
            if cut_short:
                break
            raise BadPayload("gzip, cut short" if wbits == 31 else "deflate, cut short")
        data = member.unused_data if member.unused_data.startswith(b"\x1f\x8b") else b""
    return b"".join(parts)


def _raw_or_plain(data: bytes, limit: int, cut_short: bool) -> bytes:
    try:
        return _inflate(data, -15, limit, cut_short)
    except BadPayload:
        return data


def _zstd(data: bytes, limit: int, cut_short: bool) -> bytes:
    parts, size = [], 0
    frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
    try:
        for at in range(0, len(data), _ZSTD_FEED_BYTES):
            parts.append(frame.decompress(data[at : at + _ZSTD_FEED_BYTES]))
            size += len(parts[-1])
            if size > limit:
                raise TooLong
            if frame.eof:
                break
    except zstandard.ZstdError as error:
        raise BadPayload(f"zstd: {error}") from error
    if not (frame.eof or cut_short):
        raise BadPayload("zstd, cut short")
    return b"".join(parts)


def _read(reader: Any, coding: str, limit: int) -> bytes:
    """All that one of FastWARC's readers gives."""
    parts, size = [], 0
    try:
        while part := reader.read(1 << 20):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise TooLong
    except OSError as error:
        raise BadPayload(f"{coding}: {error}") from error
    return b"".join(parts)


def _stream_io() -> ModuleType:
    return require("fastwarc.stream_io", "a WARC input")
