"""Tar files as webdataset writes them (POSIX ustar and pax, GNU long names): members of one key are one sample.

    0001.txt  0001.json          -> one document: the text of .txt, the id and meta of .json
    0002.json                    -> one document: its text in the recipe's text field
    0003.jsonl                   -> a document a line
    0004.jpg                     -> counted as no text

The key is the path up to the first dot of its last part; a sample's members stand together. Headers are read here, not
by tarfile: that takes a file cut between two members for whole, and long names for whatever memory they ask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from data_pipeline.archive import inflate
from data_pipeline.damage import DamagedInput, damaged
from data_pipeline.document import Document
from data_pipeline.inputs import InputFile, Piece
from data_pipeline.limits import MAX_DOCUMENT_BYTES
from data_pipeline.readers.lines import BOM
from data_pipeline.records import Fields, bad, from_json, from_values, parse

TEXT = ("txt", "text", "md", "rst")
JSON, JSONL = ("json",), ("jsonl", "ndjson")
_BLOCK = 512
_MAX_NAME_BYTES = 1 << 20
"""Of a header that holds a long name."""

Member = tuple[str, bytes | None]
"""(name, content; None of one that is no text by its name, or too long)"""


def documents(file: InputFile, piece: Piece, blocks: Iterable[bytes], fields: Fields) -> Iterator[Document]:
    """Every sample's. Raises DamagedInput: cut short, a header whose checksum is wrong, no mark of the end."""
    number = 0
    for key, sample in _samples(_members(_Bytes(inflate(file, blocks) if file.compression else blocks, file.name))):
        for document in _documents(key, sample, file.name, piece.file, number, fields):
            yield document
            number += 1


def _documents(
    key: str, sample: dict[str, bytes | None], source: str, file: int, number: int, fields: Fields
) -> Iterator[Document]:
    known = {extension: content for extension, content in sample.items() if _is_known(extension)}
    if None in known.values():
        yield bad(source, file, number, "too_long")
        return
    text = next((known[e] for e in TEXT if e in known), None)
    described = next((known[e] for e in JSON if e in known), None)
    lines = next((known[e] for e in JSONL if e in known), None)
    if text is not None:
        yield _from_pair(key, text, described, source, file, number, fields)
    elif described is not None:
        yield from_json(described, source, file, number, fields, key)
    elif lines is None:
        yield bad(source, file, number, "not_text", " ".join(sample)[:100])
    if lines is not None:
        held = lines.removesuffix(b"\n")
        for ordinal, line in enumerate(held.split(b"\n"), number + (text is not None or described is not None)):
            yield from_json(line, source, file, ordinal, fields)


def _from_pair(
    key: str, text: bytes, described: bytes | None, source: str, file: int, number: int, fields: Fields
) -> Document:
    value = parse(described) if described is not None else {}
    if isinstance(value, str):
        return bad(source, file, number, value)
    try:
        value[fields.text] = text.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError:
        return bad(source, file, number, "bad_utf8")
    return from_values(value, source, file, number, fields, key)


def _samples(members: Iterable[Member]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """(key, {extension: content}) of neighbouring members with one key."""
    key, sample = "", dict[str, bytes | None]()
    for name, content in members:
        own_key, extension = _key_and_extension(name)
        if sample and (own_key != key or extension in sample):
            yield key, sample
            sample = {}
        key = own_key
        sample[extension] = content
    if sample:
        yield key, sample


def _key_and_extension(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _is_known(extension: str) -> bool:
    return extension in TEXT + JSON + JSONL


class _Bytes:
    """The file's bytes in order, as many as are asked for."""

    def __init__(self, blocks: Iterable[bytes], name: str) -> None:
        self._blocks, self._block = iter(blocks), memoryview(b"")
        self.name, self.at = name, 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end."""
        return b"".join(self.pass_by(size))

    def pass_by(self, size: int) -> Iterator[memoryview]:
        while size:
            while not self._block:
                block = next(self._blocks, None)
                if block is None:
                    return
                self._block = memoryview(block)
            part, self._block = self._block[:size], self._block[size:]
            size -= len(part)
            self.at += len(part)
            yield part


def _members(data: _Bytes) -> Iterator[Member]:
    """Every regular file, with its content if it may be text. Others (directories, links) hold no bytes."""
    long_name: str | None = None
    long_size: int | None = None
    ended = False
    while header := data.take(_BLOCK):
        if len(header) < _BLOCK:
            raise _damaged(data, "it ends inside a header")
        if not header.strip(b"\0"):
            ended = True  # two such blocks and padding; another tar may have been put behind
            continue
        ended = False
        kind = header[156:157]
        if _number(header[148:156], data) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise _damaged(data, "a header's checksum is wrong")
        size = _number(header[124:136], data)
        if kind in (b"L", b"K", b"x", b"g"):
            if size > _MAX_NAME_BYTES:
                raise _damaged(data, f"a header of {size:,} bytes for a name")
            body = _content(data, size)
            if kind == b"L":
                long_name = body.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                pax = _pax(body, data)
                long_name = pax.get("path", long_name)
                long_size = int(pax["size"]) if pax.get("size", "").isdecimal() else long_size
            continue
        name, size = long_name or _name(header), size if long_size is None else long_size
        long_name = long_size = None
        if kind in (b"0", b"\0", b"7"):
            wanted = _is_known(_key_and_extension(name)[1]) and size <= MAX_DOCUMENT_BYTES
            content = _content(data, size, wanted)
            yield name, content if wanted else None
        elif kind not in (b"1", b"2", b"3", b"4", b"5", b"6"):
            raise _damaged(data, f"a member of unknown kind {kind!r}")
    if not ended:
        raise _damaged(data, "it lacks the zeros that mark its end" if data.at else "it is empty")


def _content(data: _Bytes, size: int, wanted: bool = True) -> bytes:
    """A member's content, or nothing if it is not `wanted`; with its padding it is passed."""
    before = data.at
    content = data.take(size) if wanted else b""
    for _ in data.pass_by(before + size + -size % _BLOCK - data.at):
        pass
    if data.at - before < size:
        raise _damaged(data, f"it ends inside a member of {size:,} bytes")
    return content


def _number(field: bytes, data: _Bytes) -> int:
    """An octal number, or GNU's base 256 where the first bit is set."""
    if field[0] & 128:
        return int.from_bytes(bytes([field[0] & 127]) + field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise _damaged(data, "a header has no number where one belongs")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    ustar = header[257:263] == b"ustar\0" and prefix
    return (prefix + b"/" + name if ustar else name).decode("utf-8", "replace")


def _pax(body: bytes, data: _Bytes) -> dict[str, str]:
    """Records of an extended header: LENGTH KEY=VALUE and a newline, LENGTH counting all of it (POSIX, pax)."""
    values: dict[str, str] = {}
    while body.strip(b"\0"):
        length = body.partition(b" ")[0]
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(body):
            raise _damaged(data, "an extended header that is none")
        key, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        values[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        body = body[int(length) :]
    return values


def _damaged(data: _Bytes, found: str) -> DamagedInput:
    return damaged(data.name, "a whole tar file", f"near byte {data.at:,}, {found}")
