"""Documents between two passes over a corpus: one zstandard file a task, read front to back.

A record is three numbers (row, bytes of header and of text; little-endian u32, u32, u64), a JSON header and the text
in UTF-8. The last record has the row END and, for a text's length, the hash of all before it: zstandard's own checksum
would not miss itself in a file that is cut. A file has its name only once it is whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import xxhash
import zstandard

from data_pipeline.document import Document
from fmscale import durable
from fmscale.errors import DataError

END = (1 << 32) - 1
_LENGTHS = struct.Struct("<IIQ")
MAX_DEPTH = 64
"""Of lists and tables in each other, in what is written for people."""
_LEVEL = 1
"""Text to a third at some 300 MB/s a core; higher levels cost more than disks do."""


class TextWriter:
    """Takes documents for the file of `text_writer`."""

    def __init__(self, out: zstandard.ZstdCompressionWriter) -> None:
        self._out, self._hash = out, xxhash.xxh3_64()

    def write(self, document: Document) -> None:
        header = [document.id, document.source, document.meta, document.file, document.record]
        try:
            head = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                "a step left something in a document's fields that has no JSON form",
                expected="meta of texts, numbers, true, false, null, and lists and tables by name of them",
                found=f"{' '.join(str(error).split())}, in record {document.record} of {document.source}",
                do="correct the step: make a text or a number of it",
            ) from error
        text = document.text.encode()
        for part in (_LENGTHS.pack(document.row, len(head), len(text)), head, text):
            self._hash.update(part)
            self._out.write(part)

    def close(self) -> None:
        self._out.write(_LENGTHS.pack(END, 0, self._hash.intdigest()))


@contextlib.contextmanager
def text_writer(path: Path) -> Iterator[TextWriter]:
    """`with text_writer(path) as texts: texts.write(document)`: there when the block ends without an error."""
    with durable.writing(path) as file, _packed(file) as out:
        texts = TextWriter(out)
        yield texts
        texts.close()


def read_texts(path: Path) -> Iterator[Document]:
    """Documents in the order of writing, without their tallies. Raises DataError where the file is damaged or gone."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as packed:
            stream = io.BufferedReader(packed, 1 << 20)
            digest = xxhash.xxh3_64()
            while (lengths := _LENGTHS.unpack(numbers := stream.read(_LENGTHS.size)))[0] != END:
                head, text = stream.read(lengths[1]), stream.read(lengths[2])
                for part in (numbers, head, text):
                    digest.update(part)
                name, source, meta, file_number, record = json.loads(head.decode("utf-8", "surrogatepass"))
                yield Document(name, text.decode(), source, meta, file_number, record, row=lengths[0])
            if lengths[2] != digest.intdigest():
                raise ValueError("its hash is another one")
    except (OSError, zstandard.ZstdError, struct.error, ValueError) as error:
        raise DataError(
            "a file of unfinished work is damaged",
            expected=f"{path}, as it was written",
            found=str(error),
            do="remove that directory and run the command again: it starts over",
        ) from error


@contextlib.contextmanager
def lines_writer(path: Path | None) -> Iterator[Callable[[Document], None]]:
    """Documents to JSON lines (.jsonl.zst), for people: with why they were dropped. There when the block ends.

    None: they are not written. What JSON has no form for (NaN, infinity, things of a step's own) is written as a text.
    """
    if path is None:
        yield lambda document: None
        return
    with durable.writing(path) as file, _packed(file) as out:

        def write(document: Document) -> None:
            fields = {"id": document.id, "dropped": document.dropped, "found": document.found}
            place = {"source": document.source, "record": document.record}
            out.write(_line({**fields, **place, "meta": document.meta, "text": document.text}) + b"\n")

        yield write


def _line(fields: dict[str, Any]) -> bytes:
    """In ASCII, so that half a surrogate in an id is no trouble."""
    try:
        return json.dumps(fields, allow_nan=False, default=str).encode()
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # seldom: JSON of Python's own reads `Infinity`, other readers do not
        return json.dumps(_plain(fields), allow_nan=False).encode()


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict | list | tuple) and depth > MAX_DEPTH:
        return "..."
    if isinstance(value, dict):
        return {str(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    known = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


def _packed(file: IO[bytes]) -> zstandard.ZstdCompressionWriter:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).stream_writer(file, closefd=False)
