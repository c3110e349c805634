"""Bytes of pinned input files -> documents. What cannot be read comes out too, with the reason in `dropped`.

JSONL: one object a line, its text in a field of the recipe's choice. Other files are plain text, one document each.
A piece is hashed again before its first record is used, so input that changed since it was pinned is found. A run of
bad records, or too many of them, is an error: the file is probably not what the recipe takes it for.

Input is not trusted: what a record, a text or an archive may take of memory is limited, however small the file that
asks for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from data_pipeline.archive import inflate
from data_pipeline.document import Document, text_id
from data_pipeline.inputs import MAX_RECORD_BYTES, InputFile, Piece, too_long
from fmscale.errors import DataError

BAD_REASONS = ("bad_utf8", "bad_json", "duplicate_key", "not_an_object", "no_text", "lone_surrogate", "no_group")
"""Reasons that speak against the input file, unlike those of a filter."""
MAX_TEXT_BYTES = 1 << 30
"""A longer file of plain text is no document."""
_BLOCK_BYTES = 1 << 23
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Fields:
    """Which fields of a JSON record mean what."""

    text: str = "text"
    id: str = "id"
    group: str = ""
    """Required in each record where it is set."""


def read_piece(file: InputFile, piece: Piece, fields: Fields, max_bad_run: int) -> Iterator[Document]:
    """Every record of `piece`, bad ones with `dropped` set.

    Raises DataError: bytes that are not the pinned ones, a damaged archive, more than `max_bad_run` bad records in
    one go.
    """
    bad_run = 0
    for document in _jsonl(file, piece, fields) if file.kind == "jsonl" else _plain(file, piece, fields):
        bad_run = bad_run + 1 if document.dropped in BAD_REASONS else 0
        if bad_run > max_bad_run:
            raise DataError(
                f"{bad_run} bad records in one go",
                expected=f"JSON objects, one a line, with a string in `{fields.text}`",
                found=f"{file.name}, record {document.record}: {document.dropped} ({EXPLAIN[document.dropped]})",
                do="set text_field (and group_field) to the input's own names, or leave the file out of inputs",
            )
        yield document


def check_bad_share(dropped: Counter[str], records: int, max_share: float, max_run: int) -> None:
    """Raise DataError if bad records are more than `max_share` of all and more than `max_run`."""
    bad = {reason: dropped[reason] for reason in BAD_REASONS if dropped[reason]}
    if sum(bad.values()) > max(max_share * records, max_run):
        raise DataError(
            "too many bad records",
            expected=f"at most {max_share:.2%} of {records} records (max_bad_share) or {max_run} (max_bad_run)",
            found=", ".join(f"{reason} {count}" for reason, count in bad.items()),
            do="mend the input; or raise max_bad_share, if this loss is acceptable",
        )


EXPLAIN = {
    "bad_utf8": "the bytes are no UTF-8",
    "bad_json": "the line is no JSON",
    "duplicate_key": "an object says the same key twice, so one of its values would be lost",
    "not_an_object": "the line is JSON, but no object",
    "no_text": "the text field is missing or no string",
    "lone_surrogate": "half of a surrogate pair, which no UTF-8 text can hold",
    "no_group": "the group field is missing",
    "empty": "nothing but white space",
    "blank_line": "a line without a record",
    "duplicate": "the same text stood earlier in the input",
    "heldout_duplicate": "held out, but the same text is in training",
    "heldout_overlap": "held out, but shares an n-gram of words with training text",
    "heldout_too_short": "held out, but has fewer words than an n-gram, so overlap cannot be judged",
}
"""Every reason of ours, in words; a step of a user's own brings its own reasons."""


def _jsonl(file: InputFile, piece: Piece, fields: Fields) -> Iterator[Document]:
    for record, line in enumerate(_lines(file, piece), piece.first_record):
        yield _record(line, file.name, piece.file, record, fields)


def _record(line: bytes, source: str, file: int, record: int, fields: Fields) -> Document:
    def bad(reason: str) -> Document:
        return Document(f"{source}:{record}", "", source, {}, file, record, reason)

    if not line.strip():
        return bad("blank_line")
    try:
        value = _JSON.decode(line.decode("utf-8"))  # decoded here: json.loads lets surrogates in bytes pass
    except UnicodeDecodeError:
        return bad("bad_utf8")
    except _DuplicateKey:
        return bad("duplicate_key")
    except (ValueError, RecursionError):
        return bad("bad_json")
    if not isinstance(value, dict):
        return bad("not_an_object")
    text = value.pop(fields.text, None)
    if not isinstance(text, str):
        return bad("no_text")
    if fields.group and not isinstance(value.get(fields.group), str | int):
        return bad("no_group")
    if not _encodable(text):
        return bad("lone_surrogate")
    given = value.get(fields.id)
    name = str(given) if isinstance(given, str | int) and given != "" else text_id(text)
    return Document(name, text, source, value, file, record, "" if text.strip() else "empty")


class _DuplicateKey(Exception):
    """Not an error of ours to show: `_record` makes a reason of it."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _DuplicateKey
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def _plain(file: InputFile, piece: Piece, fields: Fields) -> Iterator[Document]:
    """A file of plain text is one document; its group is the top directory it stands in."""
    blocks, size = [], 0 if file.compression else file.bytes
    for block in _inflated_blocks(file, piece) if file.compression else _checked_blocks(file, piece):
        size += len(block) if file.compression else 0
        if size > MAX_TEXT_BYTES:
            raise DataError(
                "a file of plain text is too long to be one document",
                expected=f"at most {MAX_TEXT_BYTES >> 20} MiB",
                found=f"{file.name}, of {file.bytes:,} bytes" + (" compressed" if file.compression else ""),
                do="split it into several files, or write it as JSONL, one document a line",
            )
        blocks.append(block)
    data = b"".join(blocks)
    meta = {fields.group or "group": file.name.split("/")[0]}
    try:
        text = data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError:
        yield Document(file.name, "", file.name, meta, piece.file, 0, "bad_utf8")
        return
    yield Document(text_id(text), text, file.name, meta, piece.file, 0, "" if text.strip() else "empty")


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _lines(file: InputFile, piece: Piece) -> Iterator[bytes]:
    """Lines without their newline; a byte order mark at the file's start is no part of the first one."""
    # A plain piece is small enough to hold whole, so that its hash is known before its first record.
    blocks = _inflated_blocks(file, piece) if file.compression else iter([b"".join(_checked_blocks(file, piece))])
    held: list[bytes] = []
    held_bytes = 0
    at_start = piece.start == 0
    for block in blocks:
        held.append(block)
        held_bytes += len(block)
        if b"\n" not in block:
            if held_bytes > MAX_RECORD_BYTES:
                raise too_long(file.name, piece.start)
            continue
        lines = b"".join(held).split(b"\n")
        held = [lines.pop()]
        held_bytes = len(held[0])
        for line in lines:
            yield line.removeprefix(_BOM) if at_start else line
            at_start = False
    if held_bytes:
        rest = b"".join(held)
        yield rest.removeprefix(_BOM) if at_start else rest


def _checked_blocks(file: InputFile, piece: Piece) -> Iterator[bytes]:
    """The piece's raw bytes. Raises DataError after the last one if they are not the pinned ones."""
    digest = xxhash.xxh3_128()
    left = piece.stop - piece.start
    try:
        with open(file.path, "rb") as raw:
            raw.seek(piece.start)
            while left and (block := raw.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
                yield block
    except OSError as error:
        raise _changed(file, error.strerror or str(error)) from error
    if left or digest.hexdigest() != piece.hash:
        raise _changed(file, f"other bytes at {piece.start} to {piece.stop}")


def _inflated_blocks(file: InputFile, piece: Piece) -> Iterator[bytes]:
    for _ in _checked_blocks(file, piece):
        pass  # the archive's own hash, before anything of it is used
    yield from inflate(file)


def _changed(file: InputFile, found: str) -> DataError:
    return DataError(
        "an input file changed while the corpus was being prepared",
        expected=f"{file.name} with {file.bytes} bytes and hash {file.hash}",
        found=found,
        do="put the old file back, or run the command again once the inputs are still",
    )
