"""Crawl files: what warcio reads, we read; what is cut, miscounted or no WARC at all is found, wherever it is."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from data_pipeline.damage import DamagedInput
from data_pipeline.document import Document
from data_pipeline.read import EXPLAIN, Fields
from tests.crawl_files import http, packed, page, read_all, record, suffix

HTML, TEXT = "Content-Type: text/html", "Content-Type: text/plain"
HOWS = ("plain", "gz", "one.gz", "zst")


def read_bytes(data: bytes, how: str = "plain", name: str = "a.warc") -> list[Document]:
    with TemporaryDirectory() as folder:
        path = Path(folder, name + suffix(how))
        path.write_bytes(data)
        return read_all(path, max_bad_run=10**6)


blocks = st.tuples(
    st.sampled_from(["response", "request", "metadata", "warcinfo", "conversion", "resource", "revisit"]),
    st.text(max_size=60),
    st.sampled_from(["text/html", "text/plain", "image/png", "application/xhtml+xml;charset=UTF-8"]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(blocks, min_size=1, max_size=8), st.sampled_from(HOWS))
def test_what_warcio_reads_is_what_we_read(made: list[tuple[str, str, str]], how: str) -> None:
    records = []
    for number, (kind, text, content_type) in enumerate(made):
        over_http = kind in ("response", "revisit")
        block = http(text.encode(), f"Content-Type: {content_type}") if over_http else text.encode()
        kept_type = "application/http; msgtype=response" if over_http else content_type
        records.append(record(block, kind, number, content_type=kept_type, url=f"https://example.org/{number}"))
    ours = read_bytes(packed(records, how), how)
    theirs = list(_warcio(packed(records, how if how == "gz" else "plain")))
    assert [(d.record, d.id) for d in ours if not d.dropped or d.dropped == "empty"] == [
        (number, name) for number, (name, kind, _, content_type) in enumerate(theirs) if _is_page(kind, content_type)
    ]
    for document, (_, kind, body, content_type) in zip(ours, theirs, strict=True):
        if kind not in ("response", "conversion", "resource"):
            assert (document.dropped, document.found) == ("skipped_record", kind)
        elif content_type == "image/png":
            assert (document.dropped, document.found) == ("not_text", "image/png")
        else:
            assert document.text == body.removeprefix(b"\xef\xbb\xbf").decode() or kind == "conversion"
            assert document.meta["url"] == f"https://example.org/{document.record}"
            assert (document.meta["date"], document.meta["group"]) == ("2024-05-18T01:58:10Z", "example.org")


def _is_page(kind: str, content_type: str) -> bool:
    return kind in ("response", "conversion", "resource") and content_type != "image/png"


def _warcio(data: bytes) -> list[tuple[str, str, bytes, str]]:
    """(id, kind, body, content type) of each record."""
    found = []
    for each in ArchiveIterator(io.BytesIO(data)):
        headers = each.http_headers if each.http_headers else each.rec_headers
        content_type = (headers.get_header("Content-Type") or "").partition(";")[0]
        found.append(
            (each.rec_headers.get_header("WARC-Record-ID"), each.rec_type, each.content_stream().read(), content_type)
        )
    return found


@pytest.mark.parametrize("how", HOWS)
def test_a_file_cut_anywhere_is_refused_or_was_cut_between_records(how: str) -> None:
    records = [page(0, 2), record(b"GET / HTTP/1.1\r\n\r\n", "request", 1), page(2, 2)]
    whole = packed(records, how)
    ends, at = {}, 0
    for number, each in enumerate(records):
        at += len(packed([each], how))
        ends[at] = number + 1
    for cut in range(1, len(whole)):
        found = _damage_or_count(whole[:cut], how)
        if isinstance(found, DamagedInput):
            assert (found.name, found.passing) == ("a.warc" + suffix(how), False)
        elif how == "plain":  # the four bytes behind a record may be missing: nothing of it is
            assert any(end - 4 <= cut <= end and number == found for end, number in ends.items()), cut
        else:
            assert ends.get(cut) == found, cut


def _damage_or_count(data: bytes, how: str) -> DamagedInput | int:
    try:
        return len(read_bytes(data, how))
    except DamagedInput as error:
        return error


@pytest.mark.parametrize("how", ["plain", "gz", "one.gz"])
@pytest.mark.parametrize(
    "length", ["7", "100000", "-5", "many", "", str(1 << 40), "next"], ids=lambda length: length or "none"
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_wrong_content_length_is_found(how: str, length: str, place: int) -> None:
    """Also one that swallows the next record whole, in the usual packing; in others it looks like a long page."""
    records = [page(number) for number in range(4)]
    block = http(b"<p>" + b"ten words of text " * 20)
    said = len(block) + 4 + len(records[place + 1]) - 4 if length == "next" else length
    records[place] = record(block, number=place, length=said)
    if length == "next" and how != "gz":
        assert len(read_bytes(packed(records, how), how)) == 3
        return
    with pytest.raises(DamagedInput, match=r"an input is damaged\n  expected: .*\n  found: a\.warc.*\n  do: fetch"):
        read_bytes(packed(records, how), how)


def test_what_a_wrong_length_is_told() -> None:
    with pytest.raises(
        DamagedInput,
        match=r"expected: 5000 bytes in record 1, as its Content-Length says\n  found: a\.warc: it ends after \d+",
    ):
        read_bytes(page(0) + record(http(b"<p>"), number=1, length=5000))
    with pytest.raises(
        DamagedInput, match=r"a WARC file\n  found: a\.warc: the header of record 1 has no type or no length\n"
    ):
        read_bytes(page(0) + record(http(b"<p>"), number=1, length="many"))
    records = [page(0), record(b"x" * 9, number=1, length=9 + 4 + len(page(2)) - 4), page(2), page(3)]
    with pytest.raises(
        DamagedInput, match=r"end where their gzip members end\n  found: .* record 1 goes on into the next member"
    ):
        read_bytes(packed(records, "gz"), "gz")


@pytest.mark.parametrize(
    "data", [b"hello world\n" * 50, b"\0" * 5000, page(0) + b"some garbage" + page(1), b"\r\n" * 9]
)
def test_what_is_no_warc_file_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedInput, match=r"damaged\n  expected: a WARC file\n  found: a\.warc: (after \d|no record)"):
        read_bytes(data)
    assert read_bytes(b"") == []


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["plain", "gz"]), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_flipped_bytes_never_end_in_anything_else(how: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(packed([page(0), record(http(b"ab", "Content-Encoding: gzip"), number=1), page(2)], how))
    for place, bits in flips:
        data[int(place * (len(data) - 1))] ^= bits
    try:
        found = read_bytes(bytes(data), how)
    except DamagedInput:
        return
    assert {document.dropped for document in found} - {""} <= EXPLAIN.keys()


def test_records_that_hold_no_page_are_counted_as_such() -> None:
    answers = [
        (record(b"software: us\r\n", "warcinfo", content_type="application/warc-fields"), "skipped_record", "warcinfo"),
        (record(b"GET / HTTP/1.1\r\n\r\n", "request"), "skipped_record", "request"),
        (record(b"a: b\r\n", "metadata", content_type="application/warc-fields"), "skipped_record", "metadata"),
        (record(http(b""), "revisit"), "skipped_record", "revisit"),
        (record(b"x", "odd"), "skipped_record", "odd"),
        (record(http(b"Allow: /", TEXT), url="https://a/robots.txt"), "skipped_record", "robots.txt"),
        (record(http(b"<p>gone", status="404 Not Found")), "http_status", 404.0),
        (record(http(b"", status="301 Moved")), "http_status", 301.0),
        (record(http(b"%PDF", "Content-Type: application/pdf")), "not_text", "application/pdf"),
        (record(http(b"\x89PNG", "Server: x")), "not_text", "unknown"),
        (record(b"127.0.0.1", "resource", content_type="text/dns"), "not_text", "text/dns"),
        (record(http(b" \n")), "empty", None),
        (record(b"caf\xe9", "conversion", content_type="text/plain"), "bad_utf8", None),
        (record(http(gzip.compress(b"x")[:-1], f"{HTML}\r\nContent-Encoding: gzip")), "bad_payload", "gzip, cut short"),
        (record(http(b"x", f"{HTML}\r\nContent-Encoding: foo")), "bad_payload", "coding foo"),
        (record(b"no header at all"), "not_text", "unknown"),
    ]  # fmt: skip
    found = read_bytes(b"".join(each for each, _, _ in answers))
    assert [(d.dropped, d.found) for d in found] == [(reason, value) for _, reason, value in answers]
    assert {d.dropped for d in found} <= EXPLAIN.keys()


def test_pages_keep_what_is_known_of_them() -> None:
    truncated = record(
        http(gzip.compress(b"<p>" + b"long " * 500)[:-20], "Content-Type: text/html\r\nContent-Encoding: gzip"),
        number=1,
        headers="WARC-Truncated: length\r\n",
    )
    identified = record(http(b"<p>x", "Server: x"), number=2, headers="WARC-Identified-Payload-Type: text/html\r\n")
    sniffed = record(http(b"\n<!DOCTYPE html><p>x", "Server: x"), number=3, url="https://[bad/")
    found = read_bytes(truncated + identified + sniffed + record(http(b"t", "Content-Type: TEXT/Plain;x=y"), number=4))
    assert [d.id for d in found] == [f"<urn:uuid:{number:08d}>" for number in (1, 2, 3, 4)]
    assert found[0].text.startswith("<p>long long")
    assert found[0].meta["truncated"] == "length"
    assert [d.meta["content_type"] for d in found] == ["text/html"] * 3 + ["text/plain"]
    assert found[2].meta["group"] == "", "its URL has no host"


def test_held_out_groups_are_hosts(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(page(0) + record(http(b"<p>x"), number=1, url="dns:x"))
    found = read_all(tmp_path / "a.warc", Fields(group="site"))
    assert found[0].meta["site"] == "example.org"
    assert found[1].dropped == "no_group"


def test_pages_with_the_same_id_are_both_kept() -> None:
    """Their places tell them apart; an id is the crawler's word, and a second one no reason to lose a page."""
    found = read_bytes(page(7) + page(7, words=3))
    assert [d.id for d in found] == ["<urn:uuid:00000007>"] * 2
    assert [d.record for d in found] == [0, 1]
    assert found[0].text != found[1].text


def test_a_run_of_pages_that_cannot_be_decoded_stops_early(tmp_path: Path) -> None:
    bad = record(http(b"x", "Content-Type: text/html\r\nContent-Encoding: foo"))
    (tmp_path / "a.warc").write_bytes(bad * 4)
    with pytest.raises(DamagedInput, match=r"4 bad records in one go\n  expected: pages that can be decoded\n"):
        read_all(tmp_path / "a.warc", max_bad_run=3)


def test_concatenated_files_of_either_packing_are_read_whole() -> None:
    found = read_bytes(packed([page(0), page(1)], "one.gz") + packed([page(2), page(3)], "gz"), "gz")
    assert Counter(d.dropped for d in found) == {"": 4}
    one_member = packed([page(0)], "gz") + packed([page(1), page(2)], "one.gz") + packed([page(3)], "gz")
    assert len(read_bytes(one_member, "gz")) == 4
    halves = gzip.compress(page(0)[:100]) + gzip.compress(page(0)[100:] + page(1)[:50]) + gzip.compress(page(1)[50:])
    assert len(read_bytes(halves, "gz")) == 2, "members that know nothing of records"
