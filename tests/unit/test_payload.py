"""Bodies of HTTP answers as crawlers store them: coded, decoded already, cut short, or made to hurt."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable

import pytest
import zstandard
from fastwarc.stream_io import BrotliWriter
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.readers.payload import BadPayload, TooLong, decoded

LIMIT = 1 << 20


def brotli(data: bytes) -> bytes:
    buffer = io.BytesIO()
    writer = BrotliWriter(buffer)
    writer.write(data)
    writer.close()  # `finish` alone writes nothing
    return buffer.getvalue()


def chunks(data: bytes) -> bytes:
    parts = [data[at : at + 7] for at in range(0, len(data), 7)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:]),
    "deflate": zlib.compress,
    "br": brotli,
    "zstd": zstandard.compress,
    "identity": lambda data: data,
    "utf-8": lambda data: data,
}


@given(st.binary(min_size=1, max_size=300), st.lists(st.sampled_from(list(CODINGS)), max_size=2), st.booleans())
def test_codings_are_undone_in_their_order(text: bytes, codings: list[str], chunked: bool) -> None:
    data = text = b"<html>" + text
    for coding in codings:
        data = CODINGS[coding](data)
    headers = {"content-encoding": ", ".join(codings).upper()}
    if chunked:
        data, headers["transfer-encoding"] = chunks(data), "chunked"
    assert decoded(data, headers, LIMIT, cut_short=False) == text


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_header_that_was_kept_after_decoding(coding: str) -> None:
    html = b"<html><body>already decoded</body></html>"
    assert decoded(html, {"content-encoding": coding, "transfer-encoding": "chunked"}, LIMIT, False) == html


def test_deflate_without_its_header() -> None:
    assert (
        decoded(raw_deflate(b"<p>some text" * 9), {"content-encoding": "deflate"}, LIMIT, False) == b"<p>some text" * 9
    )


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_body_cut_short_is_bad_unless_the_crawler_says_so(coding: str) -> None:
    text = bytes(range(256)) * 40
    data = CODINGS[coding](text)[:-6]
    with pytest.raises(BadPayload, match="cut short"):
        decoded(data, {"content-encoding": coding}, LIMIT, cut_short=False)
    assert text.startswith(decoded(data, {"content-encoding": coding}, LIMIT, cut_short=True))


@pytest.mark.parametrize(
    ("data", "headers", "words"),
    [
        (b"\x1f\x8bnot gzip at all", {"content-encoding": "gzip"}, "unknown compression"),
        (zstandard.compress(b"abc" * 99)[:8] + b"x" * 9, {"content-encoding": "zstd"}, "zstd: "),
        (b"\xff\xff\xff\xff", {"content-encoding": "br"}, "br: "),
        (b"5\r\nabc", {"transfer-encoding": "chunked"}, "chunked: "),
        (b"x", {"content-encoding": "sdch"}, "coding sdch"),
    ],
)
def test_what_cannot_be_decoded(data: bytes, headers: dict[str, str], words: str) -> None:
    with pytest.raises(BadPayload, match=words):
        decoded(data, headers, LIMIT, cut_short=False)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd", "identity"])
def test_a_body_may_have_its_limit_and_no_byte_more(coding: str) -> None:
    data = CODINGS[coding](bytes(LIMIT))
    assert len(decoded(data, {"content-encoding": coding}, LIMIT, False)) == LIMIT
    with pytest.raises(TooLong):
        decoded(CODINGS[coding](bytes(LIMIT + 1)), {"content-encoding": coding}, LIMIT, False)
    with pytest.raises(TooLong):
        decoded(raw_deflate(bytes(LIMIT + 1)), {"content-encoding": "deflate"}, LIMIT, False)
