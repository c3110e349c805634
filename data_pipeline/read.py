"""Bytes of pinned input files -> documents. What cannot be read comes out too, with the reason in `dropped`.

JSONL: one object a line, its text in a field of the recipe's choice. Other files are plain text, one document each.
A piece is hashed again before its first record is used, so input that changed since it was pinned is found. A run of
bad records, or too many of them, is an error: the file is probably not what the recipe takes it for.
"""

from __future__ import annotations

import importlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from data_pipeline.document import Document, text_id
from data_pipeline.inputs import MAX_RECORD_BYTES, InputFile, Piece, too_long
from fmscale.errors import DataError

BAD_REASONS = ("bad_utf8", "bad_json", "not_an_object", "no_text", "lone_surrogate", "no_group")
"""Reasons that speak against the input file, unlike those of a filter."""
_BLOCK_BYTES = 1 << 23
_ARCHIVE_BLOCK_BYTES = 1 << 16
"""Small, because what it inflates to is held at once."""
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
        value = json.loads(line.decode("utf-8"))  # decoded here: json.loads lets surrogates in bytes pass
    except UnicodeDecodeError:
        return bad("bad_utf8")
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


def _plain(file: InputFile, piece: Piece, fields: Fields) -> Iterator[Document]:
    """A file of plain text is one document; its group is the top directory it stands in."""
    data = b"".join(_checked_blocks(file, piece) if not file.compression else _inflated_blocks(file, piece))
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
    held = b""
    at_start = piece.start == 0
    for block in blocks:
        lines = (held + block if held else block).split(b"\n")
        held = lines.pop()
        if len(held) > MAX_RECORD_BYTES:
            raise too_long(file.name, piece.start)
        for line in lines:
            yield line.removeprefix(_BOM) if at_start else line
            at_start = False
    if held:
        yield held.removeprefix(_BOM) if at_start else held


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
    """Decompressed bytes of all members of an archive. Raises DataError on a damaged or short one."""
    for _ in _checked_blocks(file, piece):
        pass  # the archive's own hash, before anything of it is used
    if not file.bytes:
        raise _damaged(file, "it is empty; even an archive of nothing has a header")
    stream, fed = _decompressor(file), False
    try:
        with open(file.path, "rb") as raw:
            while block := raw.read(_ARCHIVE_BLOCK_BYTES):
                while block:
                    yield stream.decompress(block)
                    fed, block = True, b""
                    if stream.eof:
                        block = stream.unused_data.lstrip(b"\0")  # gzip allows zeros after the last member
                        stream, fed = _decompressor(file), False
    except Exception as error:  # zlib and zstandard have their own classes for damage
        raise _damaged(file, str(error)) from error
    if fed:
        raise _damaged(file, f"it ends inside a member, after {file.bytes} bytes")


def _decompressor(file: InputFile) -> Any:
    """Something with `decompress`, `eof` and `unused_data`, for one member."""
    if file.compression == ".gz":
        return zlib.decompressobj(wbits=31)
    try:
        zstandard = importlib.import_module("zstandard")  # optional: Python itself reads .zst from 3.14 on only
    except ImportError:
        raise DataError(
            "a .zst input needs the zstandard package",
            expected="zstandard, which is not among fmscale's own dependencies",
            found=file.name,
            do="pip install zstandard, or recompress the file as .gz",
        ) from None
    return zstandard.ZstdDecompressor().decompressobj()


def _damaged(file: InputFile, found: str) -> DataError:
    return DataError(
        "a compressed input is damaged",
        expected=f"a whole {file.compression} file",
        found=f"{file.name}: {found}",
        do="fetch it again, or leave it out of inputs",
    )


def _changed(file: InputFile, found: str) -> DataError:
    return DataError(
        "an input file changed while the corpus was being prepared",
        expected=f"{file.name} with {file.bytes} bytes and hash {file.hash}",
        found=found,
        do="put the old file back, or run the command again once the inputs are still",
    )
