"""What a Parquet file says of its row groups, and what their pages will become in memory, before any is unpacked.

A page is unpacked whole, and its header alone says to how many bytes: two bytes in a file can ask for 2 GiB. Headers
stand before each page, so walking from one to the next costs a small read for a page of usually a mebibyte. The
numbers of fields are those of parquet.thrift (FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, PageHeader).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from data_pipeline.damage import too_large
from data_pipeline.limits import MAX_RATIO, RATIO_FREE_BYTES
from data_pipeline.readers.thrift import Reader

MAX_PAGE_BYTES = 1 << 28
"""Of one page in memory. Writers aim at one mebibyte, and exceed it by what a few hundred long texts have."""
MAX_FOOTER_BYTES = 1 << 26
"""It is read whole; that of ten thousand row groups of ten columns has about 15 MiB."""
_MAGIC = b"PAR1"
_WINDOW_BYTES = 1 << 12
_COLUMN = {3: [bytes], 7: int, 9: int, 11: int}
"""path_in_schema, total_compressed_size, data_page_offset, dictionary_page_offset"""
_FOOTER = {4: [{1: [{3: _COLUMN}], 3: int}]}
"""row_groups: columns: meta_data; num_rows"""
_PAGE = {1: int, 2: int, 3: int}
"""type, uncompressed_page_size, compressed_page_size"""


@dataclass(frozen=True)
class Column:
    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class RowGroup:
    rows: int
    columns: tuple[Column, ...]

    @property
    def start(self) -> int:
        return min((column.start for column in self.columns), default=0)


def row_groups(file: BinaryIO) -> list[RowGroup]:
    """As the footer says. Raises ValueError where there is none, or it does not fit the file."""
    size = os.fstat(file.fileno()).st_size
    tail = os.pread(file.fileno(), 8, max(size - 8, 0))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > min(MAX_FOOTER_BYTES, size - 8):
        raise ValueError(f"{size} bytes without a footer at their end")
    footer = os.pread(file.fileno(), length, size - 8 - length)
    return [_row_group(group, size) for group in Reader(lambda at: footer[at:]).struct(_FOOTER).get(4, [])]


def _row_group(group: dict[int, Any], size: int) -> RowGroup:
    columns = []
    for chunk in group.get(1, []):
        said = chunk.get(3, {})
        name = b".".join(said.get(3, [])).decode("utf-8", "replace")
        start = min(said.get(9, -1), said.get(11) or said.get(9, -1))
        stop = start + said.get(7, -1)
        if not 4 <= start <= stop <= size:
            raise ValueError(f"column {name} is said to stand at bytes {start} to {stop} of {size}")
        columns.append(Column(name, start, stop))
    if group.get(3, -1) < 0:
        raise ValueError("a row group without a number of rows")
    return RowGroup(group[3], tuple(columns))


def largest_page(file: BinaryIO, group: RowGroup, name: str) -> int:
    """Bytes in memory of the row group's largest page. Raises DamagedInput if that is too much, ValueError if there is
    something else in its place."""
    largest = 0
    for column in group.columns:
        at = column.start
        while at < column.stop:
            unpacked, packed, first = page_sizes(file, at)
            if unpacked > MAX_PAGE_BYTES or unpacked > max(RATIO_FREE_BYTES, MAX_RATIO * packed):
                raise too_large(
                    name,
                    f"pages of at most {MAX_PAGE_BYTES >> 20} MiB and {MAX_RATIO} times their bytes in the file",
                    f"column {column.name}, byte {at}: a page of {packed:,} bytes becomes {unpacked:,}",
                    "write it again with fewer rows a page or row group, or leave it out of inputs",
                )
            at = first + packed
            if unpacked < 0 or packed < 0 or at > column.stop:
                raise ValueError(f"column {column.name}: a page ends behind its column")
            largest = max(largest, unpacked)
    return largest


def page_sizes(file: BinaryIO, at: int) -> tuple[int, int, int]:
    """(bytes in memory, bytes in the file, place of the first) of the page whose header stands at `at`."""
    reader = Reader(lambda at: os.pread(file.fileno(), _WINDOW_BYTES, at), at)
    header = reader.struct(_PAGE)
    if len(header) < len(_PAGE):
        raise ValueError(f"no page header at byte {at}")
    return header[2], header[3], reader.at
