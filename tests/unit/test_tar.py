"""Tar files of text: what tarfile and webdataset write, we read; a file cut anywhere is found."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.damage import DamagedInput
from data_pipeline.document import Document, text_id
from data_pipeline.read import EXPLAIN
from data_pipeline.readers import tar
from tests.crawl_files import read_all


def made(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read_bytes(data: bytes, name: str = "a.tar") -> list[Document]:
    with TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(data)
        return read_all(Path(folder, name), max_bad_run=10**6)


STEMS = st.text(st.characters(codec="utf-8", exclude_characters="/.\0"), min_size=1, max_size=160)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(STEMS, st.text(max_size=800)), max_size=6),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from(["a.tar", "a.tar.gz", "a.tgz"]),
)  # fmt: skip
def test_what_tarfile_writes_we_read(samples: list[tuple[str, str]], form: int, name: str) -> None:
    names = [f"{'folder/' * (number % 30)}{number}{stem}.txt" for number, (stem, _) in enumerate(samples)]
    try:
        data = made([(name, text.encode()) for name, (_, text) in zip(names, samples, strict=True)], form)
    except ValueError:  # ustar has no room for long names
        return
    found = read_bytes(data if name == "a.tar" else gzip.compress(data), name)
    assert [d.text for d in found] == [text.removeprefix("\ufeff") for _, text in samples]
    assert [d.id for d in found] == [name.removesuffix(".txt") for name in names]
    assert [d.record for d in found] == list(range(len(samples)))


def test_what_webdataset_writes_we_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(5):
            writer.write(
                {"__key__": f"k{number}", "txt": f"text {number}", "json": {"n": number, "id": f"own{number}"}}
            )
        writer.write({"__key__": "only", "json": {"text": "within", "lang": "en"}})
        writer.write({"__key__": "picture", "jpg": b"\xff\xd8", "cls": b"3"})
        writer.write({"__key__": "lines", "jsonl": b'{"text": "a"}\n{"text": "b", "id": "b"}\n'})
    found = read_all(tmp_path / "a.tar")
    assert [(d.id, d.text, d.dropped) for d in found] == [
        *((f"own{number}", f"text {number}", "") for number in range(5)),
        ("only", "within", ""),
        ("a.tar:6", "", "not_text"),
        (text_id("a"), "a", ""),
        ("b", "b", ""),
    ]
    assert found[0].meta == {"n": 0, "id": "own0"}
    assert found[6].found in ("jpg cls", "cls jpg")
    assert [d.record for d in found] == list(range(9))


def test_samples_that_are_none_have_their_reasons() -> None:
    long = json.dumps({"x": "y"}).encode()
    found = read_bytes(
        made(
            [
                ("a.txt", b"caf\xe9"),
                ("b.json", b"{"),
                ("c.json", long),
                ("d.txt", b" \n"),
                ("e.txt", b"text"),
                ("e.json", b"[]"),
                ("f.txt", b"one"),
                ("f.txt", b"two"),
                ("g", b"no extension"),
                ("h.JSON", b'{"text": "upper"}'),
            ]
        )
    )
    reasons = ["bad_utf8", "bad_json", "no_text", "empty", "not_an_object", "", "", "not_text", ""]
    assert [d.dropped for d in found] == reasons
    assert set(reasons) - {""} <= EXPLAIN.keys()


def test_a_member_too_long_for_a_document_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_DOCUMENT_BYTES", 1000)
    found = read_bytes(made([("a.txt", b"x" * 1001), ("b.txt", b"x" * 1000), ("c.jpg", b"x" * 2000)]))
    assert [d.dropped for d in found] == ["too_long", "", "not_text"]


CUT = ("it is empty", "it ends inside a header", "it ends inside a member of", "it lacks the zeros that mark its end")


def test_a_tar_cut_anywhere_is_refused() -> None:
    whole = made([("a.txt", b"some text" * 100), ("b" * 150 + ".txt", b"more text" * 100), ("c.txt", b"")])
    end = whole.rstrip(b"\0")
    after_headers = len(end) + -len(end) % 512
    told = set()
    for cut in [*range(0, after_headers, 64), after_headers]:
        with pytest.raises(
            DamagedInput, match=r"damaged\n  expected: a whole tar file\n  found: a\.tar: near byte"
        ) as error:
            read_bytes(whole[:cut])
        told |= {words for words in CUT if words in str(error.value)}
    assert told == set(CUT)
    assert len(read_bytes(whole[: after_headers + 512])) == 3


def test_two_tars_one_behind_the_other_are_read_whole() -> None:
    assert [d.text for d in read_bytes(made([("a.txt", b"a")]) + made([("b.txt", b"b")]))] == ["a", "b"]


def test_members_that_are_no_files_are_passed_over() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("thing.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert read_bytes(buffer.getvalue()) == []


def header(name: bytes = b"a.txt", size: bytes = b"00000000001", kind: bytes = b"0") -> bytes:
    block = bytearray(
        name.ljust(100, b"\0") + b"0000644\0" * 3 + size.ljust(12, b"\0") + b"0" * 11 + b"\0" + b" " * 8 + kind
    )
    block += bytes(512 - len(block))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header()[:156] + b"5" + header()[157:], "a header's checksum is wrong"),
        (header(size=b"0000000000x") + bytes(1024), "no number where one belongs"),
        (header(kind=b"L", size=b"77777777777"), "a header of 8,589,934,591 bytes for a name"),
        (header(kind=b"x") + b"9".ljust(512, b"\0"), "an extended header that is none"),
        (header(kind=b"S") + bytes(512), "a member of unknown kind b'S'"),
        (header(size=b"\x80" + b"\xff" * 11), "it ends inside a member of"),
        (b"no tar at all" * 100, "no number where one belongs"),
        (b"", "it is empty"),
    ],
)
def test_what_is_no_tar(data: bytes, words: str) -> None:
    with pytest.raises(DamagedInput, match=words):
        read_bytes(data)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=5))
def test_flipped_bytes_never_end_in_anything_else(flips: list[tuple[float, int]]) -> None:
    data = bytearray(made([("a.txt", b"some text"), ("é" * 80 + ".json", b'{"text": "x"}'), ("c.txt", b"text")]))
    for place, bits in flips:
        data[int(place * 4000)] ^= bits
    try:
        found = read_bytes(bytes(data))
    except DamagedInput:
        return
    assert {document.dropped for document in found} - {""} <= EXPLAIN.keys()
