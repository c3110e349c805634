"""Stores that fail while inputs are read: waited out if it may help, told by name if not, never half a file."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import s3fs

from data_pipeline import store
from data_pipeline.damage import DamagedInput
from data_pipeline.document import Document
from data_pipeline.inputs import Inputs, pin
from data_pipeline.read import Fields, read_piece
from tests.s3_server import BUCKET, SECRET, Proxy, Request
from tests.web_server import Site, web_server

LINES = b"".join(json.dumps({"text": f"text {number}"}).encode() + b"\n" for number in range(300))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSE_S", 0.002)
    monkeypatch.setattr(store, "BLOCK_BYTES", 1000)


@pytest.fixture
def bucket(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """With a few files in it; s3fs keeps its own retries short."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    for name in ("crawl/a.jsonl", "crawl/b.jsonl", "crawl/deep/c.jsonl"):
        fs.pipe_file(f"{BUCKET}/{name}", LINES)
    server.forget()
    return server


@pytest.fixture
def site() -> Iterator[Site]:
    with web_server() as running:
        running.files["a.jsonl"] = LINES
        yield running


def read(pinned: Inputs) -> list[Document]:
    return [
        document
        for task in pinned.tasks
        for piece in task
        for document in read_piece(pinned.files[piece.file], piece, Fields(), 0)
    ]


def test_a_bucket_is_read_by_directory_glob_and_name(bucket: Proxy) -> None:
    for pattern, names in (
        (f"s3://{BUCKET}/crawl", ["a.jsonl", "b.jsonl", "deep/c.jsonl"]),
        (f"s3://{BUCKET}/crawl/*.jsonl", ["a.jsonl", "b.jsonl"]),
        (f"s3://{BUCKET}/crawl/**/c.jsonl", ["deep/c.jsonl"]),
        (f"s3://{BUCKET}/crawl/a.jsonl", ["a.jsonl"]),
    ):
        pinned = pin([pattern])
        assert [file.name for file in pinned.files] == names
        assert [d.text for d in read(pinned)] == [f"text {number}" for number in range(300)] * len(names)
        assert pin([pattern]) == pinned
    assert SECRET not in json.dumps(pinned.to_json())


@pytest.mark.parametrize("fate", ["503", "429", "500", "cut", "lost", "refuse"])
def test_a_store_that_fails_now_and_then_costs_time_only(bucket: Proxy, fate: str) -> None:
    pinned = pin([f"s3://{BUCKET}/crawl/a.jsonl"])
    bucket.forget()
    bucket.fate = lambda request: fate if request.number % 3 == 1 else None
    assert len(read(pinned)) == 300


def test_a_store_that_stays_down_is_told_and_may_be_tried_again(bucket: Proxy) -> None:
    pinned = pin([f"s3://{BUCKET}/crawl/a.jsonl"])
    bucket.forget()
    bucket.fate = lambda request: "503" if request.method == "GET" and request.number > 4 else None
    with pytest.raises(
        DamagedInput,
        match=r"cannot be read from its store\n  expected: a\.jsonl\n  found: .*, at the last of 6 tries\n",
    ) as error:
        read(pinned)
    assert error.value.passing
    assert error.value.name == "a.jsonl"
    assert SECRET not in str(error.value)


def test_a_refusal_is_not_repeated(bucket: Proxy) -> None:
    pinned = pin([f"s3://{BUCKET}/crawl/a.jsonl"])
    bucket.forget()
    bucket.fate = lambda request: "403" if request.method == "GET" else None
    with pytest.raises(DamagedInput, match=r"found: PermissionError: .*\n  do: .*credentials expired\?") as error:
        read(pinned)
    assert not error.value.passing
    assert [request.method for request in bucket.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("when", ["before", "between", "gone"])
def test_a_file_that_is_replaced_or_vanishes_is_not_used(bucket: Proxy, when: str) -> None:
    pinned = pin([f"s3://{BUCKET}/crawl/a.jsonl"])
    fs = s3fs.S3FileSystem()
    other = LINES.replace(b"text", b"TEXT")

    def replace(request: Request) -> None:
        if request.number == 4:
            bucket.fate = lambda later: None
            fs.pipe_file(f"{BUCKET}/crawl/a.jsonl", other)

    if when == "before":
        fs.pipe_file(f"{BUCKET}/crawl/a.jsonl", other)
    elif when == "gone":
        fs.rm(f"{BUCKET}/crawl/a.jsonl")
    else:
        bucket.forget()
        bucket.fate = replace
    words = (
        r"cannot be read from its store\n  expected: a\.jsonl\n  found: FileNotFoundError"
        if when == "gone"
        else r"changed while .* prepared\n  expected: a\.jsonl with \d+ bytes, ETag=.*\n  found: \d+ bytes, ETag="
    )
    with pytest.raises(DamagedInput, match=words):
        read(pinned)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fate", ["short", "lie", 503, 429])
def test_a_web_server_that_fails_now_and_then_costs_time_only(site: Site, ranges: bool, fate: str | int) -> None:
    site.ranges = ranges
    pinned = pin([site.url("a.jsonl")])
    site.requests.clear()
    site.fate = lambda number, method, path: fate if number % 3 == 2 and (method == "GET" or fate == 503) else None
    assert [d.text for d in read(pinned)] == [f"text {number}" for number in range(300)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_content_length_that_is_always_wrong(site: Site, ranges: bool) -> None:
    site.ranges = ranges
    site.fate = lambda number, method, path: "lie"
    pinned = pin([site.url("a.jsonl")])
    assert pinned.files[0].bytes == len(LINES) + 1
    with pytest.raises(DamagedInput, match=r"cannot be read from its store\n.*\n  found: .*, at the last of 6 tries"):
        read(pinned)


@pytest.mark.parametrize(
    ("ranges", "found"),
    [
        (True, "180 bytes came instead of 190 from 6000 on"),
        (False, "the server's answer ended after 6180 of 6190 bytes"),
    ],
)
def test_a_file_that_shrinks_while_it_is_read(site: Site, ranges: bool, found: str) -> None:
    site.ranges = ranges
    pinned = pin([site.url("a.jsonl")])

    def cut(number: int, method: str, path: str) -> None:
        if method == "GET":
            site.files["a.jsonl"] = LINES[:-10]

    site.fate = cut
    with pytest.raises(
        DamagedInput,
        match=rf"cannot be read from its store\n.*\n  found: OSError: {found}, at the last of 6 tries\n",
    ):
        read(pinned)


def test_a_server_that_stamps_nothing_has_the_size_of_its_files_watched(site: Site) -> None:
    site.tell_stamp = False
    pinned = pin([site.url("a.jsonl")])
    assert len(read(pinned)) == 300
    site.files["a.jsonl"] = LINES[:-10]
    with pytest.raises(
        DamagedInput,
        match=r"changed while .* prepared\n  expected: a\.jsonl with 6190 bytes, no stamp\n  found: 6180 bytes, no st",
    ):
        read(pinned)
    site.tell_length = False
    with pytest.raises(DamagedInput, match="found: an unknown number of bytes, no stamp"):
        read(pinned)


def test_a_web_page_that_is_gone_is_asked_for_once(site: Site) -> None:
    pinned = pin([site.url("a.jsonl")])
    site.files.clear()
    site.requests.clear()
    with pytest.raises(DamagedInput, match="FileNotFoundError"):
        read(pinned)
    assert len(site.requests) <= 2


def test_a_server_that_comes_back_during_the_listing(site: Site) -> None:
    site.fate = lambda number, method, path: 503 if number < 5 else None
    assert pin([site.url("a.jsonl")]).files[0].bytes == len(LINES)
