"""What the pages of a Parquet file say they will become in memory, read from their headers before any is unpacked.

A page is unpacked whole, and its header alone says to how many bytes: two bytes in a file can ask for 2 GiB. Headers
are structs of Thrift's compact protocol (parquet.thrift, PageHeader: field 2 is the size in memory, field 3 in the
file); they stand before each page, so walking from one to the next costs a small read for a page of usually a
mebibyte.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from data_pipeline.damage import damaged
from data_pipeline.limits import MAX_RATIO, RATIO_FREE_BYTES

MAX_PAGE_BYTES = 1 << 28
"""Of one page in memory. Writers aim at one mebibyte, and exceed it by what a few hundred long texts have."""
_WINDOW_BYTES = 1 << 12


def check_pages(file: BinaryIO, row_group: Any, name: str) -> None:
    """Raise DamagedInput if a page of the row group (pyarrow's metadata) would take too much memory, or is no page."""
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        at = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset:
            at = min(at, column.dictionary_page_offset)
        stop = at + column.total_compressed_size
        while at < stop:
            header = _Header(file.fileno(), at)
            unpacked, packed = header.sizes()
            if unpacked > MAX_PAGE_BYTES or unpacked > max(RATIO_FREE_BYTES, MAX_RATIO * packed):
                raise damaged(
                    name,
                    f"pages of at most {MAX_PAGE_BYTES >> 20} MiB and {MAX_RATIO} times their bytes in the file",
                    f"column {column.path_in_schema}, byte {at}: a page of {packed:,} bytes becomes {unpacked:,}",
                )
            at = header.at + packed
            if unpacked < 0 or packed < 0 or at > stop:
                raise damaged(name, "a Parquet file", f"column {column.path_in_schema}: a page ends behind its column")


class _Header:
    """One struct, read byte by byte from a small window of the file."""

    def __init__(self, descriptor: int, at: int) -> None:
        self.at = at
        self._descriptor = descriptor
        self._window, self._window_at = b"", at

    def sizes(self) -> tuple[int, int]:
        """(bytes in memory, bytes in the file); `at` is then the page's first byte. Raises ValueError: no header."""
        values: dict[int, int] = {}
        field = 0
        while head := self._byte():
            kind = head & 15
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            if kind == 5:
                values[field] = self._zigzag()
            else:
                self._skip(kind)
        if not {1, 2, 3} <= values.keys():
            raise ValueError(f"no page header before byte {self.at}")
        return values[2], values[3]

    def _byte(self) -> int:
        place = self.at - self._window_at
        if not 0 <= place < len(self._window):
            self._window, self._window_at = os.pread(self._descriptor, _WINDOW_BYTES, self.at), self.at
            place = 0
            if not self._window:
                raise ValueError(f"the file ends in a page header, at byte {self.at}")
        self.at += 1
        return self._window[place]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError(f"no number in a page header, at byte {self.at}")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value; by kind as in Thrift's compact protocol."""
        if kind in (1, 2):  # booleans of a struct stand in their field's head
            return
        if depth > 8:
            raise ValueError(f"a page header nests too deep, at byte {self.at}")
        if kind == 3:
            self.at += 1
        elif kind in (4, 5, 6):
            self._varint()
        elif kind == 7:
            self.at += 8
        elif kind == 8:
            length = self._varint()
            self.at += length
        elif kind == 12:
            while head := self._byte():
                if not head >> 4:
                    self._zigzag()
                self._skip(head & 15, depth + 1)
        else:
            raise ValueError(f"no page header at byte {self.at}")  # lists and maps are not in one
