"""One record, whatever file it comes from -> Document: its text, its id, its group; or the reason why it is none."""

from __future__ import annotations

import datetime
import decimal
import json
import re
from dataclasses import dataclass
from typing import Any

from data_pipeline.document import Document, text_id
from data_pipeline.limits import MAX_DOCUMENT_BYTES, MAX_VALUES

BAD_REASONS = (
    "bad_utf8",
    "bad_json",
    "too_many_values",
    "duplicate_key",
    "not_an_object",
    "no_text",
    "too_long",
    "lone_surrogate",
    "no_group",
    "bad_payload",
)
"""Reasons that speak against the input file, unlike those of a filter."""


@dataclass(frozen=True)
class Fields:
    """Which fields of a record mean what."""

    text: str = "text"
    id: str = "id"
    group: str = ""
    """Required in each record where it is set; of a file of plain text, its top directory; of a page, its host."""


def bad(source: str, file: int, record: int, reason: str, found: float | str | None = None) -> Document:
    return Document(f"{source}:{record}", "", source, {}, file, record, reason, found)


def from_json(line: bytes, source: str, file: int, record: int, fields: Fields, key: str = "") -> Document:
    """A JSON object's. key: the id of one that has none of its own."""
    if not line.strip():
        return bad(source, file, record, "blank_line")
    value = parse(line)
    if isinstance(value, str):
        return bad(source, file, record, value)
    return from_values(value, source, file, record, fields, key)


def parse(line: bytes) -> dict[str, Any] | str:
    """The object, or the reason why there is none."""
    if _is_crowded(line):
        return "too_many_values"
    try:
        value = _JSON.decode(line.decode("utf-8"))  # decoded here: json.loads lets surrogates in bytes pass
    except UnicodeDecodeError:
        return "bad_utf8"
    except _DuplicateKey:
        return "duplicate_key"
    except (ValueError, RecursionError):
        return "bad_json"
    return value if isinstance(value, dict) else "not_an_object"


def from_values(value: dict[str, Any], source: str, file: int, record: int, fields: Fields, key: str = "") -> Document:
    """Of named values, its text among them, which is taken out; the others become `meta`."""
    text = value.pop(fields.text, None)
    if not isinstance(text, str):
        return bad(source, file, record, "no_text")
    if fields.group and not isinstance(value.get(fields.group), str | int):
        return bad(source, file, record, "no_group")
    if not _is_encodable(text):
        return bad(source, file, record, "lone_surrogate")
    return from_text(text, value, source, file, record, value.get(fields.id), key)


def from_text(
    text: str, meta: dict[str, Any], source: str, file: int, record: int, given: Any = None, key: str = ""
) -> Document:
    """Of a text that UTF-8 can hold. Its id: `given` if that is a string or a whole number, else `key`, else a hash."""
    if len(text) > MAX_DOCUMENT_BYTES // 4 and (size := len(text.encode("utf-8"))) > MAX_DOCUMENT_BYTES:
        return bad(source, file, record, "too_long", size)
    name = str(given) if isinstance(given, str | int) and given != "" else key or text_id(text)
    return Document(name, text, source, meta, file, record, "" if text and not text.isspace() else "empty")


def plain(value: Any) -> Any:
    """A value of a table as JSON can say it; one that is neither text, number, time nor made of these is None."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal | datetime.timedelta) else None


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _is_crowded(line: bytes) -> bool:
    """Whether it holds so many values that they, as objects, would take memory out of all proportion."""
    if len(line) <= MAX_VALUES or line.count(b",") <= MAX_VALUES:
        return False
    return _STRING.sub(b"", line).count(b",") > MAX_VALUES


class _DuplicateKey(Exception):
    """Not an error of ours to show: `parse` makes a reason of it."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _DuplicateKey
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_unique)
