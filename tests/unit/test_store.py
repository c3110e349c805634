"""Inputs behind URLs: found, named, pinned and read as files here are; what stores are asked, what is told of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from data_pipeline import limits, store
from data_pipeline.inputs import Inputs, pin
from data_pipeline.read import Fields, read_piece
from fmscale.errors import ConfigError, DataError
from tests.crawl_files import packed, page, read_all
from tests.web_server import Site, web_server


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(store, "PAUSE_S", 0.001)
    with web_server() as running:
        yield running


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def files(parquet: Path) -> dict[str, bytes]:
    """One of each kind, by name."""
    pq.write_table(pa.table({"text": ["p1", "p2"]}), parquet)
    return {
        "a.jsonl": line("j1") + line("j2"),
        "deep/b.jsonl.gz": gzip.compress(line("z1")),
        "deep/c.warc.gz": packed([page(0), page(1)], "gz"),
        "deep/er/d.parquet": parquet.read_bytes(),
        "e.txt": b"plain",
        "f.png": b"\x89PNG",
        ".hidden.txt": b"no input",
    }


@pytest.mark.parametrize("protocol", ["memory", "http", "http without ranges"])
def test_a_directory_elsewhere_is_read_like_one_here(
    protocol: str, site: Site, memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 100)
    made = files(tmp_path / "x.parquet")
    site.ranges = "without" not in protocol
    for name, content in made.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(content)
        memory.pipe_file(f"/raw/{name}", content)
        site.files[f"raw/{name}"] = content
    url = "memory://raw" if protocol == "memory" else site.url("raw/")
    here, there = pin([str(tmp_path / "raw")]), pin([url])
    assert [(f.name, f.kind, f.compression, f.bytes) for f in there.files] == [
        (f.name, f.kind, f.compression, f.bytes) for f in here.files
    ]
    assert there.left_out == here.left_out == {".png": 1}
    assert Inputs.from_json(there.to_json()) == there
    assert all(piece.hash == "" for task in there.tasks for piece in task)
    assert all(file.stamp for file in there.files)
    told: dict[str, str] = {}
    documents = []
    for task in there.tasks:
        for piece in task:
            file = there.files[piece.file]
            documents += read_piece(
                file, piece, Fields(), 100, lambda digest, name=file.name: told.setdefault(name, digest)
            )
    local = read_all(tmp_path / "raw")
    assert [(d.id, d.text, d.source, d.record, d.meta) for d in documents] == [
        (d.id, d.text, d.source, d.record, d.meta) for d in local
    ]
    assert told == {name: xxhash.xxh3_128_hexdigest(made[name]) for name in told}, (
        "the bytes' own hash, told at the end"
    )
    assert len(told) == 5
    assert pin([url]) == there, "pinned again, the same"


def test_globs_lists_and_single_files(site: Site, memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for name in ("x/1.jsonl", "x/2.jsonl", "x/3.log", "y/1.jsonl", "y/sub/2.jsonl"):
        memory.pipe_file(f"/{name}", line(name))
        site.files[name] = line(name)
    (tmp_path / "1.jsonl").write_bytes(line("here"))
    for root in ("memory://", site.url("")):
        patterns = [
            f"{root}x/*.jsonl",
            f"file://{tmp_path}/*.jsonl",
            f"{root}x/3.log",
            f"{root}y/**/*.jsonl",
            f"{root}x/1.jsonl",
        ]
        found = pin(patterns)
        assert [(f.name, f.kind) for f in found.files] == [
            ("1.jsonl", "jsonl"),
            ("2.jsonl", "jsonl"),
            ("1.jsonl", "jsonl"),
            ("3.log", "text"),
            ("1.jsonl", "jsonl"),
            ("sub/2.jsonl", "jsonl"),
        ], root
        assert found.files[2].is_local
        assert not found.files[0].is_local


def test_what_matches_nothing(site: Site, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/x/a.png", b"x")
    with pytest.raises(DataError, match=r"matches no file\n.*\n  found: memory://x/\*\.jsonl\n"):
        pin(["memory://x/*.jsonl"])
    with pytest.raises(DataError, match=r"holds no text\n.*\n  found: memory://x with 1 \.png\n"):
        pin(["memory://x"])
    with pytest.raises(
        DataError, match=r"cannot be read from its store\n  expected: memory://z\n  found: FileNotFoundError"
    ):
        pin(["memory://z"])
    with pytest.raises(DataError, match=r"cannot be read from its store\n  expected: http://.*/gone\.txt\n"):
        pin([site.url("gone.txt?secret=1")])
    assert len(site.requests) <= 2, "no such file: asked once, by HEAD and by GET"


def test_a_server_that_does_not_say_how_long(site: Site) -> None:
    site.files["a.txt"], site.tell_length = b"x", False
    with pytest.raises(
        DataError, match=r"does not say how long an input is\n  expected: a Content-Length\n  found: http"
    ):
        pin([site.url("a.txt")])


def test_secrets_stay_out_of_names_messages_and_hashes(site: Site) -> None:
    site.files["a.jsonl"] = line("x")
    signed = pin([site.url("a.jsonl?X-Amz-Signature=SECRET&x=1")])
    assert signed.files[0].name == "a.jsonl"
    assert "SECRET" not in signed.files[0].hash + signed.files[0].stamp
    assert signed.files[0].hash == pin([site.url("a.jsonl")]).files[0].hash, "another signature, the same file"
    assert [d.text for d in read_piece(signed.files[0], signed.tasks[0][0], Fields(), 0)] == ["x"]
    assert site.requests[-1][1] == "/a.jsonl?X-Amz-Signature=SECRET&x=1"
    site.files.clear()
    with pytest.raises(DataError) as error:
        list(read_piece(signed.files[0], signed.tasks[0][0], Fields(), 0))
    assert "SECRET" not in str(error.value)
    with pytest.raises(DataError) as error:
        pin([site.url("a.jsonl?X-Amz-Signature=SECRET")])
    assert "SECRET" not in str(error.value)
    with pytest.raises(ConfigError, match=r"holds a user or a password\n.*\n  found: https://host/a\.txt\n") as refused:
        pin(["https://me:SECRET@host/a.txt?SECRET"])
    assert "SECRET" not in str(refused.value)


def test_a_gzip_file_that_its_server_calls_a_coding(site: Site) -> None:
    """Then it may be unpacked on the way, and its length says nothing."""
    site.files["a.jsonl.gz"] = gzip.compress(line("x") * 99)
    assert len(read_all(site.url("a.jsonl.gz"))) == 99
    site.gzip_coding = True
    with pytest.raises(DataError, match="does not say how long"):
        pin([site.url("a.jsonl.gz")])


@pytest.mark.parametrize("ranges", [True, False])
def test_a_long_file_comes_in_blocks(site: Site, monkeypatch: pytest.MonkeyPatch, ranges: bool) -> None:
    """No request asks for more than a block; without ranges the file is sent once for the test of them, and once."""
    monkeypatch.setattr(store, "BLOCK_BYTES", 1000)
    site.files["a.jsonl"], site.ranges = b"".join(line(f"text {number}") for number in range(500)), ranges
    pinned = pin([site.url("a.jsonl")])
    site.requests.clear()
    assert len(list(read_piece(pinned.files[0], pinned.tasks[0][0], Fields(), 0))) == 500
    gets = [asked for method, _, asked in site.requests if method == "GET"]
    if ranges:
        size = len(site.files["a.jsonl"])
        assert gets == [f"bytes={at}-{min(at + 1000, size) - 1}" for at in range(0, size, 1000)]
    else:
        assert gets == ["bytes=0-999", "bytes=1000-1999", ""]
    assert limits.BLOCK_BYTES > 1000
