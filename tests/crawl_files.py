"""Crawl files of our own pages, byte for byte as wanted: WARC records, HTTP answers, and how they are packed."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import zstandard

from data_pipeline.document import Document
from data_pipeline.inputs import pin
from data_pipeline.read import Fields, read_piece


def http(body: bytes, headers: str = "Content-Type: text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body


def record(
    block: bytes,
    kind: str = "response",
    number: int = 0,
    headers: str = "",
    content_type: str = "application/http; msgtype=response",
    length: int | str | None = None,
    url: str = "https://example.org/page",
) -> bytes:
    """One record. length: what its Content-Length says, if not the truth."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:08d}>\r\n"
        f"WARC-Date: 2024-05-18T01:58:10Z\r\nWARC-Target-URI: {url}\r\nContent-Type: {content_type}\r\n{headers}"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def page(number: int, words: int = 30) -> bytes:
    return record(
        http(f"<html><body><p>{f'page {number} has words. ' * words}</p></body></html>".encode()), number=number
    )


def packed(records: Iterable[bytes], how: str) -> bytes:
    """how: plain, gz (a member a record, as crawlers write), one.gz (all in one), or zst (a frame a record)."""
    records = list(records)
    if how == "gz":
        return b"".join(gzip.compress(each, mtime=0) for each in records)
    if how == "one.gz":
        return gzip.compress(b"".join(records), mtime=0)
    if how == "zst":
        return b"".join(zstandard.ZstdCompressor().compress(each) for each in records)
    return b"".join(records)


def suffix(how: str) -> str:
    return {"plain": "", "gz": ".gz", "one.gz": ".gz", "zst": ".zst"}[how]


def read_all(
    path: Path | str, fields: Fields | None = None, max_bad_run: int = 100, task_bytes: int = 0
) -> list[Document]:
    """Every record of every file that `path` means."""
    pinned = pin([str(path)], task_bytes)
    return [
        document
        for task in pinned.tasks
        for piece in task
        for document in read_piece(pinned.files[piece.file], piece, fields or Fields(), max_bad_run)
    ]
