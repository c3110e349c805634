"""Parquet: a row is a record, its text in a column of the recipe's choice; other columns become `meta`.

A piece is some of the file's row groups, read page by page and a few rows at a time: what pages claim to hold is looked
at before they are unpacked (pages.py), and what rows have given is compared with the bytes they came from, as a value
that stands there once may be meant a million times. A file in a store is copied to a nameless temporary file first, for
Parquet is read from its end.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from data_pipeline.damage import damaged, no_text_column, too_large
from data_pipeline.limits import MAX_RATIO, RATIO_FREE_BYTES
from data_pipeline.optional import require
from data_pipeline.readers.pages import largest_page, row_groups
from data_pipeline.records import Fields, from_values, plain
from fmscale.errors import MachineError

if TYPE_CHECKING:
    from data_pipeline.document import Document
    from data_pipeline.inputs import InputFile, Piece

BATCH_ROWS = 64
BATCH_BYTES = 1 << 26
"""Of a column of a batch at most, or a row's: a value is no longer than its page, though it may stand there once and
be meant many times."""
_FOOTER_LIMIT = 1 << 28
"""Bytes that strings, and items that lists, may have in the footer."""


def row_group_starts(file: BinaryIO) -> list[tuple[int, int]]:
    """(place of its first byte, ordinal of its first row) of each row group, the first at byte 0.

    [(0, 0)] where the file cannot be read as Parquet: its reader will say so.
    """
    starts, row = [(0, 0)], 0
    try:
        groups = row_groups(file)
    except ValueError:
        return starts
    for group, following in pairwise(groups):
        row += group.rows
        starts.append((following.start, row))
    return starts if all(a[0] < b[0] for a, b in pairwise(starts)) else starts[:1]


def documents(file: InputFile, piece: Piece, blocks: Iterable[bytes], fields: Fields) -> Iterator[Document]:
    """Every row's. Raises DamagedInput: no Parquet, pages that would take too much memory, no column of text."""
    with _seekable(file, piece, blocks) as (where, handle):
        try:
            groups = row_groups(handle)
            here = [number for number, group in enumerate(groups) if piece.start <= group.start < piece.stop]
            largest = max((largest_page(handle, groups[number], file.name) for number in here), default=0)
            parquet = _open(where)
            columns = _columns(parquet.schema_arrow, file.name, fields)
            given = 0
            at_once = min(max(BATCH_BYTES // max(largest, 1), 1), BATCH_ROWS)
            rows = parquet.iter_batches(at_once, row_groups=here, columns=columns, use_threads=False)
            for number, values in enumerate(_values(rows), piece.first_record):
                document = from_values(values, file.name, piece.file, number, fields)
                given += len(document.text)
                if given > max(RATIO_FREE_BYTES, MAX_RATIO * (piece.stop - piece.start)):
                    raise too_large(
                        file.name,
                        f"text of at most {MAX_RATIO} times its bytes, once over {RATIO_FREE_BYTES >> 20} MiB",
                        f"{given:,} characters by row {number}, from {piece.stop - piece.start:,} bytes",
                        "leave it out of inputs; if it is text that you trust, drop its duplicates first",
                    )
                yield document
        except (OSError, ValueError, require("pyarrow", "a Parquet input").ArrowException) as error:
            raise damaged(file.name, "a Parquet file", " ".join(str(error).split())[:200]) from error


def _open(where: Any) -> Any:
    """pyarrow's ParquetFile: pages one after another, checksums compared where there are any."""
    parquet = require("pyarrow.parquet", "a Parquet input")
    return parquet.ParquetFile(
        where,
        pre_buffer=False,
        buffer_size=1 << 20,
        page_checksum_verification=True,
        thrift_string_size_limit=_FOOTER_LIMIT,
        thrift_container_size_limit=_FOOTER_LIMIT,
    )


def _columns(schema: Any, name: str, fields: Fields) -> list[str]:
    """Columns to read: all but those that hold bytes (pictures, sounds)."""
    types = require("pyarrow", "a Parquet input").types
    found, has_text = [], False
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        has_text |= is_text and field.name == fields.text
        if is_text or not _holds_bytes(types, kind):
            found.append(field.name)
    if not has_text:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
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
