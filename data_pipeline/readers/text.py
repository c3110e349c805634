"""Plain text: a file is one document, in the group of the top directory it stands in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_pipeline.archive import inflate
from data_pipeline.damage import DamagedInput
from data_pipeline.document import Document
from data_pipeline.inputs import InputFile, Piece
from data_pipeline.limits import MAX_DOCUMENT_BYTES
from data_pipeline.readers.lines import BOM
from data_pipeline.records import Fields, from_text


def documents(file: InputFile, piece: Piece, blocks: Iterable[bytes], fields: Fields) -> Iterator[Document]:
    """The one document. Raises DamagedInput if it is too long for one."""
    held, size = [], 0 if file.compression else file.bytes
    for block in inflate(file, blocks) if file.compression else blocks:
        size += len(block) if file.compression else 0
        if size > MAX_DOCUMENT_BYTES:
            raise DamagedInput(
                "a file of plain text is too long to be one document",
                name=file.name,
                expected=f"at most {MAX_DOCUMENT_BYTES >> 20} MiB",
                found=f"{file.name}, of {file.bytes:,} bytes" + (" compressed" if file.compression else ""),
                do="split it into several files, or write it as JSONL, one document a line",
            )
        held.append(block)
    data = b"".join(held)
    meta = {fields.group or "group": file.name.split("/")[0]}
    try:
        text = data.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError:
        yield Document(file.name, "", file.name, meta, piece.file, 0, "bad_utf8")
        return
    yield from_text(text, meta, file.name, piece.file, 0)
