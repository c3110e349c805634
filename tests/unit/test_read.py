"""Reading: every record comes out with its text or its reason; damage and change are found before use."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline import read
from data_pipeline.document import Document, text_id
from data_pipeline.inputs import pin
from data_pipeline.read import BAD_REASONS, EXPLAIN, Fields, check_bad_share, read_piece
from fmscale.errors import DataError


def read_all(path: Path, fields: Fields | None = None, max_bad_run: int = 100, task_bytes: int = 0) -> list[Document]:
    pinned = pin([str(path)], task_bytes)
    return [
        document
        for task in pinned.tasks
        for piece in task
        for document in read_piece(pinned.files[piece.file], piece, fields or Fields(), max_bad_run)
    ]


LINES: list[tuple[bytes, str]] = [
    (b'{"text": "kept", "id": "mine", "group": "g", "score": 0.5}', ""),
    (b'{"text": "gr\xc3\xbc\xc3\x9fe"}', ""),
    (b'{"text": "caf\xe9"}', "bad_utf8"),
    (b'{"text": "half', "bad_json"),
    (b'{"n": ' + b"9" * 5000 + b"}", "bad_json"),
    (b"[" * 100_000, "bad_json"),
    (b'["text"]', "not_an_object"),
    (b'{"body": "elsewhere"}', "no_text"),
    (b'{"text": null}', "no_text"),
    (b'{"text": 3}', "no_text"),
    (b'{"text": "\\ud83d"}', "lone_surrogate"),
    (b'{"text": "\\ud83d\\ude00"}', ""),
    (b'{"text": " \\n\\t"}', "empty"),
    (b"", "blank_line"),
    (b"   \r", "blank_line"),
    (b'{"text": "windows"}\r', ""),
    (b'{"text": "last, no newline", "id": 12}', ""),
]


@pytest.mark.parametrize("task_bytes", [0, 60])
def test_every_record_is_read_or_has_a_reason(tmp_path: Path, task_bytes: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line for line, _ in LINES))
    documents = read_all(tmp_path, task_bytes=task_bytes)
    assert [document.dropped for document in documents] == [reason for _, reason in LINES]
    assert [document.record for document in documents] == list(range(len(LINES)))
    assert [d.text for d in documents if not d.dropped] == [
        "kept",
        "grüße",
        "\U0001f600",
        "windows",
        "last, no newline",
    ]
    assert documents[0].id == "mine"
    assert documents[0].meta == {"id": "mine", "group": "g", "score": 0.5}
    assert documents[1].id == text_id("grüße") == "xxh3:7aa2929b69e937bd52614dba5b542590", "golden"
    assert documents[-1].id == "12"
    assert {document.dropped for document in documents} - {""} <= EXPLAIN.keys()


def test_a_group_can_be_required(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "site": "x"}\n{"text": "c", "site": [1]}\n')
    documents = read_all(tmp_path, Fields(group="site"))
    assert [document.dropped for document in documents] == ["no_group", "", "no_group"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfplain")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "c"}'))
    assert [document.text for document in read_all(tmp_path)] == ["a", "b", "plain", "c"]


def test_plain_text_is_one_document_in_the_group_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "books/deep").mkdir(parents=True)
    (tmp_path / "books/deep/one.txt").write_text("line\nline\n")
    (tmp_path / "books/two.rst.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "void.md").touch()
    documents = read_all(tmp_path, Fields(group="topic"))
    assert [(d.id, d.text, d.meta, d.dropped) for d in documents] == [
        (text_id("line\nline\n"), "line\nline\n", {"topic": "books"}, ""),
        (text_id("packed"), "packed", {"topic": "books"}, ""),
        ("latin.txt", "", {"topic": "latin.txt"}, "bad_utf8"),
        (text_id(""), "", {"topic": "void.md"}, "empty"),
    ]


def test_archives_of_several_members(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {i} " + "x" * (i % 50)}).encode() + b"\n" for i in range(5000)]
    members = [gzip.compress(b"".join(lines[:7])), gzip.compress(b"".join(lines[7:])), b"\0" * 700]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(members))
    assert [document.text for document in read_all(tmp_path)] == [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("cut", [3, 15, 200, -9, -1])
def test_an_archive_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(b"".join(json.dumps({"text": f"{i * i}"}).encode() + b"\n" for i in range(500)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:cut])
    with pytest.raises(
        DataError, match=r"compressed input is damaged\n.*whole \.gz file\n  found: a\.jsonl\.gz: it ends"
    ):
        read_all(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.jsonl.zst"])
def test_an_archive_of_no_bytes_is_refused(tmp_path: Path, name: str) -> None:
    """What a download that failed leaves, and `gzip -t` refuses. An archive of no text is another matter."""
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"compressed input is damaged\n.*\n  found: {name}: it is empty"):
        read_all(tmp_path)
    if name == "a.jsonl.gz":
        (tmp_path / name).write_bytes(gzip.compress(b""))
        assert read_all(tmp_path) == []


def test_a_flipped_byte_in_an_archive_is_refused(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b'{"text": "some text"}\n' * 50))
    whole[-6] ^= 1  # its checksum
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    with pytest.raises(DataError, match=r"damaged\n.*\n  found: a\.jsonl\.gz: .*incorrect data check"):
        read_all(tmp_path)


def test_zstandard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"anything")
    with pytest.raises(DataError, match=r"needs the zstandard package\n.*\n  found: a\.jsonl\.zst\n  do: pip install"):
        read_all(tmp_path)


def test_zstandard_is_read_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    zstandard = importlib.import_module("zstandard")
    frame = zstandard.ZstdCompressor().compress(b'{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(frame + frame)
    assert [document.text for document in read_all(tmp_path)] == ["a", "b", "a", "b"]
    (tmp_path / "a.jsonl.zst").write_bytes(frame[:-2])
    with pytest.raises(DataError, match="damaged"):
        read_all(tmp_path)


@pytest.mark.parametrize("change", ["same size", "shorter", "gone"])
def test_input_that_changed_since_it_was_pinned_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    pinned = pin([str(path)])
    if change == "gone":
        path.unlink()
    else:
        path.write_text('{"text": "a"}\n{"text": "c"}\n' if change == "same size" else '{"text": "a"}\n')
    with pytest.raises(
        DataError, match=r"changed while .* prepared\n  expected: a\.jsonl with 28 bytes and hash [0-9a-f]{32}"
    ):
        list(read_piece(pinned.files[0], pinned.tasks[0][0], Fields(), 100))


def test_a_run_of_bad_records_stops_early(tmp_path: Path) -> None:
    good, bad = '{"text": "a"}\n', '{"body": "a"}\n'
    (tmp_path / "a.jsonl").write_text(good + bad * 3 + good + bad * 3)
    assert len(read_all(tmp_path, max_bad_run=3)) == 8
    with pytest.raises(
        DataError, match=r"3 bad records in one go\n  expected: .*`text`\n  found: a\.jsonl, record 3: no_text"
    ):
        read_all(tmp_path, max_bad_run=2)


def test_too_large_a_share_of_bad_records_is_refused() -> None:
    dropped = Counter({"bad_json": 30, "no_text": 25, "empty": 900})
    check_bad_share(dropped, 5500, 0.01, 10)
    check_bad_share(dropped, 10, 0.01, 55)
    with pytest.raises(
        DataError,
        match=r"too many bad records\n  expected: at most 1\.00% of 5499 .*\n  found: bad_json 30, no_text 25",
    ):
        check_bad_share(dropped, 5499, 0.01, 10)


def test_a_line_without_end_in_an_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_RECORD_BYTES", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"x" * 5000))
    with pytest.raises(DataError, match=r"too long to be a record\n.*\n  found: a\.jsonl\.gz"):
        read_all(tmp_path)


def test_every_reason_of_bad_records_is_explained() -> None:
    assert set(BAD_REASONS) <= EXPLAIN.keys()
