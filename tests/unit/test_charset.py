"""A page's encoding: whose word counts, over pages that say different things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.readers.charset import decode

RUSSIAN = "Правила этого сайта изменились, прочтите их ещё раз."
CHINESE = "本网站的规则已经更改,请再读一遍。"
GERMAN = "Übung für größere Straßenfahrzeuge"
LABELS = {
    "utf-8": "utf-8",
    "windows-1251": "cp1251",
    "koi8-r": "koi8-r",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "iso-8859-2": "iso8859-2",
    "tis-620": "cp874",
    "iso-2022-jp": "iso2022_jp",
    "utf-16le": "utf-16-le",
}


def _gives_back(character: str, codec: str) -> bool:
    try:
        return character.encode(codec).decode(codec) == character
    except UnicodeError:
        return False


ALPHABETS = {
    codec: [
        chr(code) for code in range(32, 0x10000) if chr(code) not in "<>\ufeff\x7f" and _gives_back(chr(code), codec)
    ]
    for codec in LABELS.values()
}


def page(text: str, meta: str = "", codec: str = "utf-8") -> bytes:
    return f"<html><head>{meta}<title>x</title></head><body><p>{text}</p></body></html>".encode(codec)


@pytest.mark.parametrize(("label", "codec"), LABELS.items())
@given(st.data())
def test_declared_text_comes_back(label: str, codec: str, data: st.DataObject) -> None:
    """In the header, and inside the page too where its declaration can be read at all."""
    text = data.draw(st.lists(st.sampled_from(ALPHABETS[codec]), max_size=40).map("".join))
    expected = page(text).decode()
    assert decode(page(text, codec=codec), label)[0] == expected
    if codec != "utf-16-le":
        for meta in (
            f'<meta charset="{label}">',
            f"<META http-equiv=Content-Type content='text/html; charset={label}'>",
        ):
            assert decode(page(text, meta, codec))[0] == page(text, meta).decode()


@given(st.binary(max_size=300), st.sampled_from([*LABELS, "none such", "utf-7", None]))
def test_any_bytes_become_text_that_utf_8_can_hold(body: bytes, label: str | None) -> None:
    text, name = decode(body, label)
    text.encode("utf-8")
    assert "".encode(name) == b""


META_1251, META_KOI8 = '<meta charset="windows-1251">', '<meta charset="koi8-r">'
BOTH = f"<!-- {META_1251} --> {META_KOI8}"
XML_KOI8 = '<?xml version="1.0" encoding="koi8-r"?>'


@pytest.mark.parametrize(
    ("body", "header", "expected", "encoding"),
    [
        # one says more than the others
        (b"\xef\xbb\xbf" + page(RUSSIAN, META_1251), "koi8-r", page(RUSSIAN, META_1251).decode(), "utf-8"),
        (b"\xff\xfe" + page(RUSSIAN, codec="utf-16-le"), "windows-1251", page(RUSSIAN).decode(), "utf-16-le"),
        (page(RUSSIAN, META_1251, "koi8-r"), "koi8-r", page(RUSSIAN, META_1251).decode(), "koi8-r"),
        (page(RUSSIAN, META_1251, "cp1251"), None, page(RUSSIAN, META_1251).decode(), "cp1251"),
        (page(RUSSIAN, META_1251, "cp1251"), "no such", page(RUSSIAN, META_1251).decode(), "cp1251"),
        (page(RUSSIAN, BOTH, "koi8-r"), None, page(RUSSIAN, BOTH).decode(), "koi8-r"),
        (XML_KOI8.encode() + page(RUSSIAN, "", "koi8-r"), None, XML_KOI8 + page(RUSSIAN).decode(), "koi8-r"),
        # what servers get wrong
        (page(RUSSIAN), "iso-8859-1", page(RUSSIAN).decode(), "utf-8"),
        (page(GERMAN, META_1251), None, page(GERMAN, META_1251).decode(), "utf-8"),
        (page(RUSSIAN * 9, codec="cp1251"), "utf-8", page(RUSSIAN * 9).decode(), "cp1251"),
        (page(GERMAN, codec="latin1"), "utf-8", page(GERMAN).decode(), "cp1252"),
        (page(CHINESE * 9, codec="gbk"), None, page(CHINESE * 9).decode(), "gb18030"),
        (page(RUSSIAN, '<meta charset="utf-16">'), None, page(RUSSIAN, '<meta charset="utf-16">').decode(), "utf-8"),
        # bytes that are valid in both: the declaration decides
        (b"\xc4\xa3", "gbk", "模", "gb18030"),
        (b"\xc4\xa3", None, "ģ", "utf-8"),
        (b"\xc4\xa3", "iso-8859-1", "ģ", "utf-8"),
        (page(CHINESE), "gbk", page(CHINESE).decode(), "utf-8"),
        # a byte too many, and one undefined
        (page(RUSSIAN) + b"\xff", "utf-8", page(RUSSIAN).decode() + "\ufffd", "utf-8"),
        (b"<p>\x81 \x80", "windows-1252", "<p>\ufffd \u20ac", "cp1252"),
        ("Ů\xa0".encode("iso8859-2"), "iso-8859-2", "Ů\xa0", "iso8859-2"),
        (b"plain", None, "plain", "utf-8"),
    ],
)  # fmt: skip
def test_who_is_believed(body: bytes, header: str | None, expected: str, encoding: str) -> None:
    assert decode(body, header) == (expected, encoding)
