"""Parquet: a row is a record, its text in a column of the recipe's choice; other columns become `meta`.

A piece is some of the file's row groups, read a few rows at a time. Columns of strings are read as dictionaries, so
that a value which a file repeats a million times stands in memory once; what pages claim to hold is looked at before
they are unpacked (pages.py), and what rows have given is compared with the bytes they came from. A file in a store is
copied to a nameless temporary file first, as Parquet is read from its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from data_pipeline.damage import damaged, no_text_column
from data_pipeline.limits import MAX_RATIO, RATIO_FREE_BYTES
from data_pipeline.optional import require
from data_pipeline.readers.pages import check_pages
from data_pipeline.records import Fields, from_values, plain
from fmscale.errors import MachineError

if TYPE_CHECKING:
    from data_pipeline.document import Document
    from data_pipeline.inputs import InputFile, Piece

BATCH_ROWS = 64
_FOOTER_LIMIT = 1 << 28
"""Bytes that strings, and items that lists, may have in the footer."""


def row_group_starts(path: str) -> list[tuple[int, int]]:
    """(place of its first byte, ordinal of its first row) of each row group, the first at byte 0.

    [(0, 0)] where the file cannot be read as Parquet: its reader will say so.
    """
    try:
        metadata = _open(path).metadata
    except (OSError, ValueError):
        return [(0, 0)]
    starts, row = [], 0
    for number in range(metadata.num_row_groups):
        starts.append((_start(metadata.row_group(number)), row))
        row += metadata.row_group(number).num_rows
    rising = all(0 < a[0] < b[0] < os.path.getsize(path) for a, b in pairwise(starts))
    return [(0, 0), *starts[1:]] if rising else [(0, 0)]


def documents(file: InputFile, piece: Piece, blocks: Iterable[bytes], fields: Fields) -> Iterator[Document]:
    """Every row's. Raises DamagedInput: no Parquet, pages that would take too much memory, no column of text."""
    with _seekable(file, piece, blocks) as (where, handle):
        try:
            parquet = _open(where)
            groups = _groups_of(parquet.metadata, piece)
            columns = _columns(parquet, file.name, fields)
            for group in groups:
                check_pages(handle, parquet.metadata.row_group(group), file.name)
            parquet = _open(where, dictionaries=[name for name, is_text in columns.items() if is_text])
            given = 0
            rows = parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(columns), use_threads=False)
            for number, values in enumerate(_values(rows), piece.first_record):
                document = from_values(values, file.name, piece.file, number, fields)
                given += len(document.text)
                if given > max(RATIO_FREE_BYTES, MAX_RATIO * (piece.stop - piece.start)):
                    raise damaged(
                        file.name,
                        f"text of at most {MAX_RATIO} times its bytes, once over {RATIO_FREE_BYTES >> 20} MiB",
                        f"{given:,} characters by row {number}, from {piece.stop - piece.start:,} bytes",
                    )
                yield document
        except (OSError, ValueError, require("pyarrow", "a Parquet input").ArrowException) as error:
            raise damaged(file.name, "a Parquet file", " ".join(str(error).split())[:200]) from error


def _open(where: Any, dictionaries: list[str] | None = None) -> Any:
    """pyarrow's ParquetFile: pages one after another, checksums compared where there are any."""
    parquet = require("pyarrow.parquet", "a Parquet input")
    return parquet.ParquetFile(
        where,
        read_dictionary=dictionaries,
        pre_buffer=False,
        buffer_size=1 << 20,
        page_checksum_verification=True,
        thrift_string_size_limit=_FOOTER_LIMIT,
        thrift_container_size_limit=_FOOTER_LIMIT,
    )


def _start(row_group: Any) -> int:
    places = []
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        places.append(column.data_page_offset)
        if column.has_dictionary_page and column.dictionary_page_offset:
            places.append(column.dictionary_page_offset)
    return min(places, default=0)


def _groups_of(metadata: Any, piece: Piece) -> list[int]:
    starts = [_start(metadata.row_group(number)) for number in range(metadata.num_row_groups)]
    return [number for number, start in enumerate(starts) if piece.start <= start < piece.stop]


def _columns(parquet: Any, name: str, fields: Fields) -> dict[str, bool]:
    """Columns to read -> whether they hold strings. Those of bytes (pictures, sounds) stay unread."""
    types = require("pyarrow", "a Parquet input").types
    found: dict[str, bool] = {}
    for field in parquet.schema_arrow:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        if is_text or not _holds_bytes(types, field.type):
            found[field.name] = is_text
    if not found.get(fields.text):
        columns = ", ".join(f"{field.name}: {field.type}" for field in parquet.schema_arrow)
        raise no_text_column(name, "Parquet file", fields.text, columns[:300] or "no columns")
    return found


def _holds_bytes(types: Any, kind: Any) -> bool:
    if types.is_nested(kind):
        return any(_holds_bytes(types, kind.field(number).type) for number in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _values(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Each row's values by column, as JSON knows them; nulls are left out."""
    for batch in batches:
        names, columns = batch.schema.names, [_column(column) for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield {name: value for name, value in zip(names, row, strict=True) if value is not None}


def _column(column: Any) -> list[Any]:
    pyarrow = require("pyarrow", "a Parquet input")
    if pyarrow.types.is_dictionary(column.type):
        places = column.indices.unique().drop_null()  # the dictionary may be long; equal values stay one object
        words = dict(zip(places.to_pylist(), column.dictionary.take(places).to_pylist(), strict=True))
        return [words.get(place) for place in column.indices.to_pylist()]
    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)  # Python knows no nanoseconds
    return [plain(value) for value in column.to_pylist()]


@contextlib.contextmanager
def _seekable(file: InputFile, piece: Piece, blocks: Iterable[bytes]) -> Iterator[tuple[Any, BinaryIO]]:
    """(what pyarrow opens, the same as a file), after all of `blocks` has passed."""
    if file.is_local:
        for _ in blocks:
            pass  # the bytes' own hash, before anything of them is used
        with open(file.path, "rb") as handle:
            yield file.path, handle
        return
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < file.bytes:
        raise _no_space(file, folder, f"{free:,} free")
    with tempfile.TemporaryFile() as spool:  # it has no name: whatever ends this process frees it
        try:
            for block in blocks:
                spool.write(block)
            spool.flush()
        except OSError as error:
            raise _no_space(file, folder, str(error)) from error
        yield spool, spool


def _no_space(file: InputFile, folder: str, found: str) -> MachineError:
    return MachineError(
        "no space for the temporary copy of an input",
        expected=f"{file.bytes:,} bytes for {file.name}",
        found=f"{folder}: {found}",
        do="set TMPDIR to a larger place, or use fewer workers",
    )
