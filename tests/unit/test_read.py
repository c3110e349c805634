"""Reading: every record comes out with its text or its reason; damage and change are found before use."""

from __future__ import annotations

import gzip
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from data_pipeline import cut
from data_pipeline.damage import DamagedInput
from data_pipeline.document import text_id
from data_pipeline.inputs import pin
from data_pipeline.read import BAD_REASONS, EXPLAIN, Fields, check_bad_share, read_piece
from data_pipeline.readers import lines
from fmscale.errors import DataError
from tests.crawl_files import read_all

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
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "void.md").touch()
    documents = read_all(tmp_path, Fields(group="topic"))
    assert [(d.id, d.text, d.meta, d.dropped) for d in documents] == [
        (text_id("line\nline\n"), "line\nline\n", {"topic": "books"}, ""),
        (text_id("packed"), "packed", {"topic": "books"}, ""),
        ("latin.txt", "", {"topic": "latin.txt"}, "bad_utf8"),
        (text_id("a\0b"), "a\0b", {"topic": "nul.txt"}, ""),
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


def test_zstandard_archives(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor().compress(b'{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(frame + frame)
    assert [document.text for document in read_all(tmp_path)] == ["a", "b", "a", "b"]
    (tmp_path / "a.jsonl.zst").write_bytes(frame[:-2])
    with pytest.raises(DamagedInput, match="damaged"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("same size", r"other bytes at 0 to \d+"),
        ("shorter", r"it ends [1-9]\d* bytes before byte \d+"),
        ("gone", "no such file"),
        ("no archive", r"other bytes at 0 to \d+"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt", "a.txt.gz"])
def test_input_that_changed_since_it_was_pinned_is_refused(tmp_path: Path, name: str, change: str, found: str) -> None:
    """Whatever else is wrong with it: the change comes first, and nothing of another file is used."""
    pack = gzip.compress if name.endswith(".gz") else bytes
    path = tmp_path / name
    path.write_bytes(pack(b'{"text": "a"}\n{"text": "b"}\n'))
    size = path.stat().st_size
    pinned = pin([str(path)])
    if change == "gone":
        path.unlink()
    elif change == "no archive":
        path.write_bytes(b"\0" * size)
    else:
        path.write_bytes(pack(b'{"text": "a"}\n{"text": "c"}\n' if change == "same size" else b'{"text": "a"}\n'))
    with pytest.raises(
        DamagedInput,
        match=rf"changed while .* prepared\n  expected: {name} with {size} bytes and hash \w{{32}}\n  found: {found}\n",
    ) as error:
        list(read_piece(pinned.files[0], pinned.tasks[0][0], Fields(), 0))
    assert (error.value.name, error.value.passing) == (name, False)


def test_a_file_that_cannot_be_read_any_more_may_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    pinned = pin([str(path)])
    path.unlink()
    path.mkdir()  # what even root cannot read
    with pytest.raises(
        DamagedInput, match=r"input file cannot be read\n  expected: a\.jsonl.*\n  found: Is a dir"
    ) as error:
        list(read_piece(pinned.files[0], pinned.tasks[0][0], Fields(), 100))
    assert error.value.passing


def test_damage_keeps_its_name_on_its_way_between_processes() -> None:
    error = DamagedInput("what", name="a.jsonl", expected="e", found="f", do="d", passing=True)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(again), again.name, again.passing, again.exit_code) == (str(error), "a.jsonl", True, 3)


def test_the_hash_of_a_piece_is_told_when_it_has_passed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 50)
    pinned = pin([str(tmp_path)], 100)
    told: list[str] = []
    pieces = [piece for task in pinned.tasks for piece in task]
    for piece in pieces:
        list(read_piece(pinned.files[0], piece, Fields(), 100, told.append))
    assert told == [piece.hash for piece in pieces]


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_too_long_for_a_record_is_counted_and_the_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (lines, cut):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    record, long = b'{"text": "a"}', b'{"text": "' + b"x" * 990 + b'"}'
    content = b"\n".join([record, long, record, long * 9, long[:999] + b"\n" + record, long * 2])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for task_bytes in (0, 1, 500, 1500):
        found = read_all(tmp_path, task_bytes=task_bytes)
        assert [d.dropped for d in found] == ["", "too_long", "", "too_long", "bad_json", "", "too_long"], task_bytes
        assert [d.record for d in found] == list(range(7))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_whose_first_line_is_too_long_is_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (lines, cut):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    content = b"x" * 5000 + b'\n{"text": "a"}'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(
        DamagedInput, match=rf"too long to be a record\n.*\n  found: {name}, its first line\n  do: is it JSONL at all"
    ):
        read_all(tmp_path)


def test_ids_that_stand_twice_are_both_kept(tmp_path: Path) -> None:
    """An id names, it does not decide: the same text is dropped by de-duplication, another text is another document."""
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": 7}\n{"text": "two", "id": "7"}\n')
    assert [(d.id, d.text, d.record, d.dropped) for d in read_all(tmp_path)] == [
        ("7", "one", 0, ""),
        ("7", "two", 1, ""),
    ]


def test_every_reason_of_bad_records_is_explained() -> None:
    assert set(BAD_REASONS) <= EXPLAIN.keys()
