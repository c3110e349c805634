"""Raw input made to hurt: refused or counted, and never more memory than a stated limit.

Each file is read in a process of its own, whose peak of resident memory is taken from the kernel.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.inputs import pin
from data_pipeline.read import Fields, read_piece
from data_pipeline.readers import text
from fmscale.errors import DataError
from tests.crawl_files import http, packed, page, record

MIB = 1 << 20
BOMB_MIB, WORST_RECORD_MIB = 512, 1536
"""Resident memory, interpreter and numpy included, that docs/data.md states."""

READ = """
import json, sys
from collections import Counter
from data_pipeline.inputs import pin
from data_pipeline.read import Fields, read_piece
from fmscale.errors import DataError

counts, error = Counter(), ""
try:
    pinned = pin([sys.argv[1]])
    for task in pinned.tasks:
        for piece in task:
            for document in read_piece(pinned.files[piece.file], piece, Fields(), 100):
                counts[document.dropped or "read"] += 1
except DataError as caught:
    error = str(caught)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"counts": counts, "error": error, "peak_mib": int(peak.split()[1]) / 1024}))
"""


def read_apart(path: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def gzip_bomb(piece: bytes, times: int) -> bytes:
    """One gzip member of `times` copies of `piece`, at the cost of compressing one; it has no checksum at its end."""
    packer = zlib.compressobj(9, wbits=-15)
    repeated = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + repeated * times


def zstandard_bomb(gib: int, window_log: int = 20, content_size: bool = False) -> bytes:
    """One frame of repeated blocks: four bytes for each 128 KiB of zeros."""
    window = bytes([(window_log - 10) << 3])
    size = (gib << 30).to_bytes(8, "little") if content_size else b""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + bytes([0xC0 if content_size else 0]) + window + size + block * (gib << 13)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "members.jsonl.gz", "lines.jsonl.gz"])
def test_a_gzip_bomb_is_refused_before_it_takes_memory(tmp_path: Path, name: str) -> None:
    """3 MB that make 3 GiB: without a line's end, as members, as lines of JSON."""
    zeros = bytes(32 * MIB)
    bomb = {
        "members.jsonl.gz": lambda: gzip.compress(zeros) * 96,
        "lines.jsonl.gz": lambda: gzip_bomb(b'{"text": "a"}\n' * (32 * MIB // 14), 96),
    }.get(name, lambda: gzip_bomb(zeros, 96))()
    assert len(bomb) < 20 * MIB
    (tmp_path / name).write_bytes(bomb)
    answer = read_apart(tmp_path / name)
    assert answer["error"].startswith(
        ("a compressed input inflates to far more than text does\n", "a line is too long")
    )
    assert name in answer["error"]
    assert answer["peak_mib"] < BOMB_MIB


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.zst", "sized.jsonl.zst"])
def test_a_zstandard_bomb_is_refused_before_it_takes_memory(tmp_path: Path, name: str) -> None:
    """98 KB that make 3 GiB."""
    pytest.importorskip("zstandard")
    (tmp_path / name).write_bytes(zstandard_bomb(3, content_size=name.startswith("sized")))
    answer = read_apart(tmp_path / name)
    assert answer["error"].startswith(
        ("a compressed input inflates to far more than text does\n", "a line is too long")
    )
    assert answer["peak_mib"] < BOMB_MIB


def test_a_zstandard_frame_that_asks_for_gigabytes_of_window_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard_bomb(3, window_log=31))
    answer = read_apart(tmp_path / "a.jsonl.zst")
    assert "a compressed input is damaged\n" in answer["error"]
    assert "memory" in answer["error"]
    assert answer["peak_mib"] < BOMB_MIB


def test_what_a_bomb_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip_bomb(b'{"text": "a"}\n' * MIB, 8))
    pinned = pin([str(tmp_path / "a.jsonl.gz")])
    message = (
        r"^a compressed input inflates to far more than text does\n"
        r"  expected: at most 200 times its bytes, once it is more than 8 MiB\n"
        r"  found: a\.jsonl\.gz: its first [\d,]+ bytes make [\d,]+\n"
        r"  do: leave it out of inputs; .*decompress it first$"
    )
    with pytest.raises(DataError, match=message):
        list(read_piece(pinned.files[0], pinned.tasks[0][0], Fields(), 100))


def test_text_that_shrinks_well_is_no_bomb(tmp_path: Path) -> None:
    """Whatever its ratio up to 8 MiB; and beyond, what shrinks to a 60th, as hardly any text does."""
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "%s"}\n' % (b"a" * 8000) * 1000))
    lines = (b'{"text": "%08x%s"}\n' % (i * 2654435761 % 2**32, b"a" * 1200) for i in range(12_000))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    assert (tmp_path / "a.jsonl.gz").stat().st_size < 8_000_000 / 200
    assert (tmp_path / "b.jsonl.gz").stat().st_size < 14_000_000 / 60
    pinned = pin([str(tmp_path)])
    read_of = [read_piece(pinned.files[piece.file], piece, Fields(), 100) for task in pinned.tasks for piece in task]
    assert sum(1 for documents in read_of for document in documents if not document.dropped) == 13_000


def hole(path: Path, before: bytes, gigabytes: float, after: bytes) -> None:
    """A file with zeros in its middle that take no room on the disk."""
    with path.open("wb") as file:
        file.write(before)
        file.seek(int(gigabytes * (1 << 30)), 1)
        file.write(after)


def test_a_line_of_a_gigabyte_is_passed_over(tmp_path: Path) -> None:
    good = b'{"text": "a"}\n'
    hole(tmp_path / "a.jsonl", good + b'{"text": "', 1, b'"}\n' + good)
    answer = read_apart(tmp_path / "a.jsonl")
    assert answer["counts"] == {"read": 2, "too_long": 1}
    assert answer["peak_mib"] < BOMB_MIB


def test_a_file_that_is_one_long_line_is_refused(tmp_path: Path) -> None:
    hole(tmp_path / "a.jsonl", b'{"text": "', 0.3, b"x")
    answer = read_apart(tmp_path / "a.jsonl")
    assert answer["error"].startswith("a line is too long to be a record\n  expected: JSON lines of at most 64 MiB")
    assert answer["peak_mib"] < BOMB_MIB


def test_a_crawled_record_of_a_gigabyte_is_passed_over(tmp_path: Path) -> None:
    head, tail = record(http(b"|"), number=1, length=(1 << 30) + len(http(b"||"))).split(b"|")
    hole(tmp_path / "a.warc", page(0) + head + b"|", 1, b"|" + tail + page(2))
    answer = read_apart(tmp_path / "a.warc")
    assert answer["error"] == ""
    assert answer["counts"] == {"read": 2, "too_long": 1}
    assert answer["peak_mib"] < BOMB_MIB


def test_a_crawled_page_that_unpacks_to_gigabytes_is_passed_over(tmp_path: Path) -> None:
    """What its server sent may be a bomb in a file that is none."""
    body = gzip_bomb(bytes(8 * MIB), 128)
    bomb = record(http(body, "Content-Type: text/html\r\nContent-Encoding: gzip"), number=1)
    (tmp_path / "a.warc.gz").write_bytes(packed([page(0), bomb, page(2)], "gz"))
    answer = read_apart(tmp_path / "a.warc.gz")
    assert answer["counts"] == {"read": 2, "too_long": 1}
    assert answer["peak_mib"] < BOMB_MIB


def test_a_long_member_is_passed_over(tmp_path: Path) -> None:
    """Of a tar; its size stands in its header."""
    header = tar_header(b"a.txt", 1 << 29)
    hole(tmp_path / "a.tar", header, 0.5, tar_header(b"b.txt", 1) + b"b".ljust(512, b"\0") + bytes(1024))
    answer = read_apart(tmp_path / "a.tar")
    assert answer["counts"] == {"too_long": 1, "read": 1}
    assert answer["peak_mib"] < BOMB_MIB


def tar_header(name: bytes, size: int) -> bytes:
    block = bytearray(
        name.ljust(100, b"\0") + b"0000644\0" * 3 + b"%011o\0" % size + b"0" * 11 + b"\0" + b" " * 8 + b"0"
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block.ljust(512, b"\0"))


def test_a_tar_of_zeros_is_a_bomb_too(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_header(b"a.jpg", 3 << 30)) + gzip_bomb(bytes(32 * MIB), 96))
    answer = read_apart(tmp_path / "a.tar.gz")
    assert answer["error"].startswith("a compressed input inflates to far more than text does\n")
    assert answer["peak_mib"] < BOMB_MIB


def test_a_cell_of_hundreds_of_megabytes_is_refused(tmp_path: Path) -> None:
    """Of a Parquet file: its page is never unpacked."""
    write = (
        "import sys, pyarrow as pa, pyarrow.parquet as pq\n"
        "table = pa.table({'text': ['a' * (17 << 24), 'b']})\n"
        "pq.write_table(table, sys.argv[1], compression='zstd', write_statistics=False, use_dictionary=False)"
    )
    subprocess.run([sys.executable, "-c", write, str(tmp_path / "a.parquet")], check=True)
    answer = read_apart(tmp_path / "a.parquet")
    assert "expected: pages of at most 256 MiB and 200 times their bytes in the file\n" in answer["error"]
    assert answer["peak_mib"] < BOMB_MIB


def test_a_value_that_is_meant_a_million_times(tmp_path: Path) -> None:
    """It stands in its Parquet file once: 8 MiB that make 8 TiB."""
    words = pa.DictionaryArray.from_arrays(np.zeros(1 << 20, np.int32), ["ab" * (4 * MIB)])
    pq.write_table(pa.table({"text": words}), tmp_path / "a.parquet")
    answer = read_apart(tmp_path / "a.parquet")
    assert answer["error"].startswith("an input would take too much memory\n")
    assert answer["peak_mib"] < BOMB_MIB


def test_a_text_too_long_to_be_a_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_DOCUMENT_BYTES", MIB)
    (tmp_path / "a.txt").write_bytes(b"a" * (MIB + 1))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"a" * (MIB + 1)))
    (tmp_path / "c.txt").write_bytes(b"a" * MIB)
    pinned = pin([str(tmp_path / name) for name in ("a.txt", "b.txt.gz", "c.txt")])
    found = []
    for file, message in zip(
        pinned.files, (r"a\.txt, of 1,048,577 bytes", r"b\.txt\.gz, .* compressed", ""), strict=True
    ):
        piece = next(p for task in pinned.tasks for p in task if pinned.files[p.file] is file)
        if message:
            with pytest.raises(
                DataError, match=rf"too long to be one document\n.* 1 MiB\n  found: {message}\n  do: split"
            ):
                list(read_piece(file, piece, Fields(), 100))
        else:
            found = list(read_piece(file, piece, Fields(), 100))
    assert len(found[0].text) == MIB


BAD = [
    (b"[" * MIB, "bad_json"),
    (b'{"text": ' * MIB, "bad_json"),
    (b'{"text": "' + b"\0" + b'"}', "bad_json"),
    (b"\0" * 1000, "bad_json"),
    (b'{"text": "\\u0000"}', ""),
    (b'{"text": "\xff\xfe"}', "bad_utf8"),
    (b'{"text": "\xed\xa0\x80"}', "bad_utf8"),
    (b'{"text": "\xc0\xaf"}', "bad_utf8"),
    (b'{"text": "a", "text": "b"}', "duplicate_key"),
    (b'{"text": "a", "t\\u0065xt": "b"}', "duplicate_key"),
    (b'{"id": 1, "text": "a", "id": 1}', "duplicate_key"),
    (b'{"text": "a", "meta": {"k": [{"x": 1, "x": 2}]}}', "duplicate_key"),
    (b'{"text": "a", "meta": [{"x": 1}, {"x": 2}]}', ""),
    (b"{}", "no_text"),
    (b'{"text": "' + b"a" * MIB + b'"}', ""),
    (b'{"text": 1e999999}', "no_text"),
    (b"1" * 100_000, "bad_json"),
]


def test_bad_records_are_counted_with_their_reasons_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line for line, _ in BAD))
    pinned = pin([str(tmp_path / "a.jsonl")], task_bytes=1 << 30)
    (piece,) = (piece for task in pinned.tasks for piece in task)
    found = list(read_piece(pinned.files[0], piece, Fields(), 100))
    assert [document.dropped for document in found] == [reason for _, reason in BAD]
    assert found[4].text == "\0"


def test_a_run_of_bad_records_names_the_first_reason_it_stops_at(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "text": "b"}\n' * 102)
    answer = read_apart(tmp_path / "a.jsonl")
    assert "101 bad records in one go\n" in answer["error"]
    assert "duplicate_key (an object says the same key twice" in answer["error"]


def test_a_line_of_more_values_than_memory_is_for_is_passed_over(tmp_path: Path) -> None:
    """They are counted outside strings: a text of commas is a text."""
    items = b"[]," * (3 * MIB)
    commas = b"1,2,3," * (3 * MIB)
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a", "x": [' + items + b'0]}\n{"text": "' + commas + b'", "y": "\\",[[["}\n{"text": "b"}\n'
    )
    answer = read_apart(tmp_path / "a.jsonl")
    assert answer["counts"] == {"too_many_values": 1, "read": 2}
    assert answer["peak_mib"] < BOMB_MIB


@pytest.mark.slow
@pytest.mark.parametrize("item", [b"[],", b"{},", b'{"a":1},', b'"ab",', b"0.1,", b'[{"a":[]}],'])
def test_the_worst_line_stays_below_its_limit(tmp_path: Path, item: bytes) -> None:
    """As many objects of the largest kinds as a line may hold, and as long as it may be."""
    items = item * ((2 * MIB - 9) // item.count(b","))
    filler = b"x" * (62 * MIB - len(items))
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "' + filler + "é😀".encode() + b'", "x": [' + items + b"0]}\n")
    answer = read_apart(tmp_path / "a.jsonl")
    assert answer["counts"] == {"read": 1}
    assert answer["peak_mib"] < WORST_RECORD_MIB


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.warc", "a.warc.gz", "a.parquet", "a.tar", "a.jsonl"])
def test_the_longest_documents_stay_below_the_limit(tmp_path: Path, name: str) -> None:
    """Some of 63 MiB, with a character that makes Python keep four bytes for each."""
    words = "".join(f"{number:x} " for number in range(9 * MIB))
    longest = words[: 63 * MIB - 4] + "😀"
    data = longest.encode()
    if name.startswith("a.txt"):
        content = data
    elif name.startswith("a.warc"):
        content = b"".join(record(http(data, "Content-Type: text/html"), number=number) for number in range(2))
    elif name == "a.tar":
        padded = data + bytes(-len(data) % 512)
        content = b"".join(tar_header(b"%d.txt" % number, len(data)) + padded for number in range(2)) + bytes(1024)
    elif name == "a.jsonl":
        content = (b'{"text": "' + data + b'"}\n') * 2
    else:
        pq.write_table(pa.table({"text": [longest[number:] for number in range(4)]}), tmp_path / name)
        content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    answer = read_apart(tmp_path / name)
    assert answer["error"] == ""
    assert answer["counts"] == {"read": {"a.txt": 1, "a.txt.gz": 1, "a.parquet": 4}.get(name, 2)}
    assert answer["peak_mib"] < WORST_RECORD_MIB
