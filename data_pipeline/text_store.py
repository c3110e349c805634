"""Documents between two passes over a corpus: one zstandard file a task, read front to back.

A record is three numbers (row, bytes of header and of text; little-endian u32, u32, u64), a JSON header and the text
in UTF-8. The last record has the row END and, for a text's length, the hash of all before it: zstandard's own checksum
would not miss itself in a file that is cut. A file has its name only once it is whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import xxhash
import zstandard

from data_pipeline.document import Document
from fmscale import durable
from fmscale.errors import DataError

END = (1 << 32) - 1
_LENGTHS = struct.Struct("<IIQ")
_LEVEL = 1
"""Text to a third at some 300 MB/s a core; higher levels cost more than disks do."""


class TextWriter:
    """Takes documents for the file of `text_writer`."""

    def __init__(self, out: zstandard.ZstdCompressionWriter) -> None:
        self._out, self._hash = out, xxhash.xxh3_64()

    def write(self, document: Document) -> None:
        header = [document.id, document.source, document.meta, document.file, document.record]
        head, text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass"), document.text.encode()
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

    None: they are not written.
    """
    if path is None:
        yield lambda document: None
        return
    with durable.writing(path) as file, _packed(file) as out:

        def write(document: Document) -> None:
            fields = {"id": document.id, "dropped": document.dropped, "found": document.found}
            place = {"source": document.source, "record": document.record}
            line = json.dumps({**fields, **place, "meta": document.meta, "text": document.text})
            out.write(line.encode() + b"\n")  # ASCII, so that half a surrogate in an id is no trouble

        yield write


def _packed(file: IO[bytes]) -> zstandard.ZstdCompressionWriter:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).stream_writer(file, closefd=False)
