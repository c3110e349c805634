"""JSONL: one object a line, its text in a field of the recipe's choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_pipeline.archive import inflate
from data_pipeline.damage import DamagedInput
from data_pipeline.document import Document
from data_pipeline.inputs import InputFile, Piece
from data_pipeline.limits import MAX_RECORD_BYTES, PIECE_BYTES
from data_pipeline.records import Fields, bad, from_json

BOM = b"\xef\xbb\xbf"


def documents(file: InputFile, piece: Piece, blocks: Iterable[bytes], fields: Fields) -> Iterator[Document]:
    """Every line's. Raises DamagedInput if the first line of the file is too long to be one."""
    if file.compression:
        blocks = inflate(file, blocks)
    elif piece.hash and piece.stop - piece.start <= PIECE_BYTES + MAX_RECORD_BYTES:
        blocks = [b"".join(blocks)]  # small enough to hold, so that its hash is known before its first record
    for record, line in enumerate(lines(blocks), piece.first_record):
        if line is not None:
            line = line.removeprefix(BOM) if record == 0 else line  # a byte order mark at the file's start is no part
            yield from_json(line, file.name, piece.file, record, fields)
        elif record:
            yield bad(file.name, piece.file, record, "too_long")
        else:
            raise DamagedInput(
                "a line is too long to be a record",
                name=file.name,
                expected=f"JSON lines of at most {MAX_RECORD_BYTES >> 20} MiB",
                found=f"{file.name}, its first line",
                do="is it JSONL at all? One document a line; plain text ends in .txt",
            )


def lines(blocks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Lines without their newline; None for one that is too long, which is passed over without being held."""
    held: list[bytes] = []
    held_bytes = 0
    skipping = False
    for block in blocks:
        *whole, rest = block.split(b"\n")
        if whole:
            held.append(whole[0])
            yield None if skipping or held_bytes + len(whole[0]) > MAX_RECORD_BYTES else b"".join(held)
            for line in whole[1:]:
                yield None if len(line) > MAX_RECORD_BYTES else line
            held, held_bytes, skipping = [], 0, False
        held.append(rest)
        held_bytes += len(rest)
        if held_bytes > MAX_RECORD_BYTES:
            held, held_bytes, skipping = [], 0, True
    if skipping or held_bytes:
        yield None if skipping else b"".join(held)
