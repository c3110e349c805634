"""A web page's bytes -> text: whose word about its encoding is believed, and how far.

The WHATWG's order (HTML standard, 13.2.3: byte order mark, HTTP header, the page's own declaration, a guess), with
two corrections for what servers get wrong. Bytes that are valid UTF-8, in more than a few characters, are taken
for it against the word of a one-byte encoding, in which any bytes are valid; and where UTF-8 is declared but most
of what is not ASCII is no UTF-8, the guess decides. A few wrong bytes become U+FFFD, as in a browser.
"""

from __future__ import annotations

import codecs
import re
from types import ModuleType

from data_pipeline.optional import require

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_WIDER = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs", "iso8859-11": "cp874"}
"""Codecs of Python's that hold all of what the WHATWG's encoding of that name holds (encoding standard, 4.2)."""
_SEVERAL_BYTES = {"gb18030", "cp932", "cp949", "big5hkscs", "euc_jp"}
_CHANCE = 3
"""So many characters of Cyrillic or Greek in one byte each may by chance be valid UTF-8 (a capital and a sign)."""
_COMMENT = re.compile(rb"<!--.*?(?:-->|$)", re.DOTALL)
_DECLARATION = re.compile(
    rb"""<meta\s[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:-]+)""", re.IGNORECASE
)
_LOOKED_AT_BYTES = 1 << 13
"""For a declaration. The standard's 1,024, and what a browser would find later and start over for."""
_GUESS_BYTES = 1 << 17


def decode(body: bytes, http_charset: str | None = None) -> tuple[str, str]:
    """(text, name of the encoding that it was taken for).

    http_charset: what the HTTP header declares, any label. Raises ConfigError without resiliparse.
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace"), name
    declared = _known(http_charset) or _declared_inside(body)
    if declared in ("utf-16-le", "utf-16-be", "iso2022_jp"):  # ASCII bytes mean something else in these
        return body.decode(declared, "replace"), declared
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        if text.isascii() or declared in (None, "utf-8", "cp1252"):
            return text, "utf-8"
        if declared not in _SEVERAL_BYTES and _not_ascii(text) > _CHANCE:
            return text, "utf-8"
        try:
            return body.decode(declared), declared  # valid in both: then the declaration decides
        except UnicodeDecodeError:
            return text, "utf-8"
    if declared in (None, "utf-8"):
        text = body.decode("utf-8", "replace")
        if declared and 2 * text.count("\ufffd") <= _not_ascii(text):
            return text, "utf-8"
        declared = _guess(body)
    return body.decode(declared, "replace"), declared


def _not_ascii(text: str) -> int:
    """Characters that are not."""
    return len(text) - len(text.encode("ascii", "ignore"))


def _known(label: str | None) -> str | None:
    """The codec of an encoding's label, None if browsers know none."""
    name = _resiliparse().map_encoding_to_html5(label, fallback_utf8=False) if label else None
    return codecs.lookup(_WIDER.get(name, name)).name if name else None


def _declared_inside(body: bytes) -> str | None:
    found = _DECLARATION.search(_COMMENT.sub(b"", body[:_LOOKED_AT_BYTES]))
    name = _known((found[1] or found[2]).decode("ascii", "replace")) if found else None
    # The page could be read up to its declaration, so it is in no encoding of 16 bits (13.2.3.2, step 15 of the scan).
    return "utf-8" if name and name.startswith("utf-16") else name


def _guess(body: bytes) -> str:
    name = _known(_resiliparse().detect_encoding(body[:_GUESS_BYTES]))
    return name if name and name != "utf-8" else "cp1252"


def _resiliparse() -> ModuleType:
    return require("resiliparse.parse.encoding", "a WARC input")
