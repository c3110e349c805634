"""Parquet files: rows as pyarrow wrote them, in pieces of row groups; bombs and damage are found before they cost."""

from __future__ import annotations

import datetime
import decimal
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.damage import DamagedInput
from data_pipeline.document import text_id
from data_pipeline.inputs import pin
from data_pipeline.read import EXPLAIN, Fields
from data_pipeline.readers import pages
from tests.crawl_files import read_all

TEXTS = st.one_of(st.none(), st.text(max_size=30), st.sampled_from(["same", "text", "again"]))


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.tuples(TEXTS, st.one_of(st.none(), st.integers(0, 9))), min_size=1, max_size=60),
    group_rows=st.integers(1, 20),
    task_bytes=st.integers(1, 3000),
    dictionary=st.booleans(),
    version=st.sampled_from(["1.0", "2.0"]),
    codec=st.sampled_from(["none", "snappy", "zstd", "gzip"]),
)
def test_rows_come_back_whatever_the_pieces(
    rows: list[tuple[str | None, int | None]],
    group_rows: int,
    task_bytes: int,
    dictionary: bool,
    version: str,
    codec: str,
) -> None:
    texts, numbers = [text for text, _ in rows], [number for _, number in rows]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        pq.write_table(
            pa.table({"text": pa.array(texts, pa.string()), "n": pa.array(numbers, pa.int64())}),
            path,
            row_group_size=group_rows,
            use_dictionary=dictionary,
            data_page_version=version,
            compression=codec,
        )
        pinned = pin([str(path)], task_bytes)
        pieces = [piece for task in pinned.tasks for piece in task]
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])], "they tile the file"
        assert pieces[-1].stop == pinned.files[0].bytes == path.stat().st_size
        assert len(pieces) <= -(-len(rows) // group_rows)
        if task_bytes == 1:
            assert len(pieces) == -(-len(rows) // group_rows)
        found = read_all(path, max_bad_run=10**6, task_bytes=task_bytes)
    assert [d.record for d in found] == list(range(len(rows)))
    for document, (text, n) in zip(found, rows, strict=True):
        if text is None:
            assert document.dropped == "no_text"
        else:
            assert (document.text, document.id) == (text, text_id(text))
            assert document.meta == ({} if n is None else {"n": n})
            assert document.dropped == ("" if text.strip() else "empty")


def test_other_columns_become_what_json_can_say(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 18, 1, 58, 10, 123456, tzinfo=datetime.UTC)
    columns: dict[str, Any] = {
        "text": ["one", "two"],
        "id": ["a", "b"],
        "score": [0.5, None],
        "when": pa.array([when, None], pa.timestamp("ns", "UTC")),
        "day": [when.date(), None],
        "price": [decimal.Decimal("1.50"), None],
        "picture": [b"\x89PNG", b""],
        "tags": [["x", "y"], []],
        "where": [{"host": "a.org", "raw": b"x"}, None],
        "deep": [{"k": [{"n": 1}]}, None],
        "took": pa.array([5, None], pa.duration("s")),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = read_all(tmp_path / "a.parquet", Fields(group="id"))
    assert first.meta == {
        "id": "a",
        "score": 0.5,
        "when": "2024-05-18T01:58:10.123456+00:00",
        "day": "2024-05-18",
        "price": "1.50",
        "tags": ["x", "y"],
        "deep": {"k": [{"n": 1}]},
        "took": "0:00:05",
    }
    assert (first.id, second.id, second.meta) == ("a", "b", {"id": "b", "tags": []})


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.list_(pa.string()), None])
def test_a_file_without_the_text_column(tmp_path: Path, kind: pa.DataType | None) -> None:
    columns = {"body": pa.array(["x"])} | ({"text": pa.array([None], kind)} if kind else {})
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(
        DamagedInput,
        match=r"no such text\n  expected: a column `text` of strings\n  found: a\.parquet with body: string",
    ):
        read_all(tmp_path)
    assert [d.text for d in read_all(tmp_path, Fields(text="body"))] == ["x"]


def test_a_large_string_column_and_views_are_text_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["x", "y"], pa.large_string())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array(["x", "x"]).dictionary_encode()}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": pa.array(["v", "w" * 99], pa.string_view())}), tmp_path / "c.parquet")
    assert [d.text for d in read_all(tmp_path)] == ["x", "y", "x", "x", "v", "w" * 99]


def write(path: Path, texts: list[str], **options: Any) -> None:
    pq.write_table(pa.table({"text": texts}), path, **options)


@pytest.mark.parametrize("cut", [0, 3, 100, 1000, -9, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "a.parquet", [f"text {number}" for number in range(900)])
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:cut])
    with pytest.raises(DamagedInput, match=r"damaged\n  expected: a Parquet file\n  found: a\.parquet: "):
        read_all(tmp_path)


def plain_file(path: Path, text: str) -> bytes:
    """One page with one text."""
    write(path, [text], compression="none", use_dictionary=False, write_statistics=False)
    return path.read_bytes()


def test_what_a_footer_or_a_page_says_wrong_is_told(tmp_path: Path) -> None:
    long, whole = (plain_file(tmp_path / "a.parquet", text) for text in ("a" * 5000, "a"))
    footer, rows = (
        long.index(b"a" * 5000) + 5000,
        whole.rindex(b"\x16\x02"),
    )  # the group's field 3, 1 as a zigzag number
    assert whole[4] == 0x15, "a page's type, then its two sizes: numbers of a byte each"
    for damaged, found in (
        (long[:4] + long[footer:], rf"column text is said to stand at bytes 4 to {footer} of {len(long) - footer + 4}"),
        (whole[:rows] + b"\x16\x01" + whole[rows + 2 :], "a row group without a number of rows"),
        (whole[:9] + b"\x7e" + whole[10:], "column text: a page ends behind its column"),
        (whole[:4] + bytes(20) + whole[24:], "no page header at byte 4"),
        (whole[:-1], rf"{len(whole) - 1} bytes without a footer at their end"),
    ):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(DamagedInput, match=rf"expected: a Parquet file\n  found: a\.parquet: {found}\n"):
            read_all(tmp_path)


ELSEWHERE = """
import resource, signal, sys, fsspec
from dataclasses import replace
from data_pipeline.inputs import pin
from data_pipeline.read import Fields, read_piece
fsspec.filesystem("memory").pipe_file("/a.parquet", open(sys.argv[1], "rb").read())
pinned = pin(["memory://a.parquet"])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
file = replace(pinned.files[0], bytes=int(sys.argv[2])) if sys.argv[2:] else pinned.files[0]
list(read_piece(file, pinned.tasks[0][0], Fields(), 0))
"""
"""A limit on the size of files fails a write as a full disk does."""


@pytest.mark.parametrize(("size", "found"), [([], "File too large"), ([str(1 << 60)], "free")])
def test_without_room_for_the_copy_of_a_file_from_elsewhere(tmp_path: Path, size: list[str], found: str) -> None:
    write(tmp_path / "a.parquet", [f"text {number}" for number in range(900)])
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "a.parquet"), *size]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    expected = int(size[0]) if size else (tmp_path / "a.parquet").stat().st_size
    assert re.search(
        rf"MachineError: no space for the temporary copy of an input\n  expected: {expected:,} bytes for a\.parquet\n"
        rf"  found: {tmp_path}: .*{found}.*\n  do: set TMPDIR to a larger place",
        done.stderr,
    ), done.stderr


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=3), st.booleans())
def test_flipped_bytes_never_end_in_anything_else(flips: list[tuple[float, int]], dictionary: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        write(path, [f"text {number}" for number in range(50)], use_dictionary=dictionary, row_group_size=20)
        data = bytearray(path.read_bytes())
        for place, bits in flips:
            data[int(place * (len(data) - 1))] ^= bits
        path.write_bytes(data)
        try:
            found = read_all(path, max_bad_run=10**6)
        except DamagedInput:
            return
        assert {document.dropped for document in found} - {""} <= EXPLAIN.keys()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("statistics", [True, False])
def test_page_headers_are_read_as_they_were_written(tmp_path: Path, version: str, statistics: bool) -> None:
    """Walking from header to header ends exactly at each column's end, and the sizes add up to what the footer says."""
    columns = {"text": [f"{number} " * 50 for number in range(2000)], "n": list(range(2000))}
    pq.write_table(
        pa.table(columns), tmp_path / "a.parquet", data_page_size=2000, data_page_version=version,
        write_statistics=statistics, write_page_checksum=statistics, dictionary_pagesize_limit=5000,
    )  # fmt: skip
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    with open(tmp_path / "a.parquet", "rb") as file:
        (group,) = pages.row_groups(file)
        assert group.rows == metadata.num_rows
        for number, column in enumerate(group.columns):
            said = metadata.row_group(0).column(number)
            assert (column.name, column.start) == (said.path_in_schema, said.dictionary_page_offset)
            assert column.stop - column.start == said.total_compressed_size
            at, unpacked_bytes, count = column.start, 0, 0
            while at < column.stop:
                unpacked, packed, first = pages.page_sizes(file, at)
                unpacked_bytes += unpacked + first - at
                at, count = first + packed, count + 1
            assert at == column.stop
            assert unpacked_bytes == said.total_uncompressed_size
            assert count > 2


def test_pages_that_would_take_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", ["x" * (9 << 20)], compression="zstd", use_dictionary=False)
    with pytest.raises(
        DamagedInput,
        match=r"take too much memory\n  expected: pages of at most 256 MiB and 200 times .*\n"
        r"  found: a\.parquet: column text, byte \d+: a page of [\d,]+ bytes becomes 9,437,\d+",
    ):
        read_all(tmp_path)
    write(tmp_path / "a.parquet", ["abcdefg" * 9999], compression="none", use_dictionary=False)
    assert len(read_all(tmp_path)) == 1
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 50_000)
    with pytest.raises(DamagedInput, match="a page of"):
        read_all(tmp_path)


def test_one_text_repeated_without_end_is_a_bomb(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["ab" * 50_000] * 300, row_group_size=300)
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    with pytest.raises(
        DamagedInput,
        match=r"memory\n  expected: text of at most 200 times its bytes, once over 8 MiB\n  found: .*row 8\d, from",
    ):
        read_all(tmp_path)


def test_many_rows_repeat_few_words(tmp_path: Path) -> None:
    """As columns of languages and hosts do; only the text counts."""
    table = pa.table({"text": [f"text {number}" for number in range(5000)], "lang": ["en", "de"] * 2500})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read_all(tmp_path)
    assert [d.meta["lang"] for d in found] == ["en", "de"] * 2500
