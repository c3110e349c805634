"""Thrift's compact protocol, as far as a Parquet file's footer and page headers use it: only what is asked for.

pyarrow gives the same numbers, but aborts the whole process where a footer contradicts itself in what nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Wanted = Mapping[int, Any]
"""Field number -> int, bytes, a Wanted (a struct), or a list of one of these (a list of such)."""

_MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class Reader:
    """Reads from place `at` on; `at` is then the place behind. Raises ValueError on bytes that are no such struct."""

    def __init__(self, window: Callable[[int], bytes], at: int = 0) -> None:
        """window: some bytes from a place on, none behind the last one."""
        self.at = at
        self._read_window = window
        self._window, self._window_at = b"", at

    def struct(self, wanted: Wanted, depth: int = 0) -> dict[int, Any]:
        """The wanted fields that are there."""
        values: dict[int, Any] = {}
        field = 0
        if depth > _MAX_DEPTH:
            raise ValueError(f"structs nest too deep, at byte {self.at}")
        while head := self._byte():
            kind = head & 15
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            if kind in (_TRUE, _FALSE):  # the field's head is all there is of it
                continue
            value = self._value(kind, wanted.get(field), depth)
            if value is not None:
                values[field] = value
        return values

    def _value(self, kind: int, wanted: Any, depth: int) -> Any:
        """None where it is not wanted, or of another kind than wanted."""
        if kind in (_I16, _I32, _I64):
            number = self._zigzag()
            return number if wanted is int else None
        if kind == _BINARY:
            length = self._varint()
            start, self.at = self.at, self.at + length
            return self._bytes(start, length) if wanted is bytes else None
        if kind == _STRUCT:
            fields = self.struct(wanted if isinstance(wanted, Mapping) else {}, depth + 1)
            return fields if isinstance(wanted, Mapping) else None
        if kind in (_LIST, _SET):
            head = self._byte()
            length = head >> 4 if head >> 4 < 15 else self._varint()
            inner = wanted[0] if isinstance(wanted, list) else None
            items = []
            for _ in range(length):
                item = self._value(head & 15, inner, depth + 1)
                if item is not None:
                    items.append(item)
            return items if isinstance(wanted, list) else None
        if kind in (_TRUE, _FALSE, _BYTE):
            self._byte()
        elif kind == _DOUBLE:
            for _ in range(8):
                self._byte()
        else:  # a map: there is none in these files
            raise ValueError(f"no struct at byte {self.at}")
        return None

    def _byte(self) -> int:
        place = self.at - self._window_at
        if not 0 <= place < len(self._window):
            self._window, self._window_at, place = self._read_window(self.at), self.at, 0
            if not self._window:
                raise ValueError(f"a struct does not end, at byte {self.at}")
        self.at += 1
        return self._window[place]

    def _bytes(self, start: int, length: int) -> bytes:
        place = start - self._window_at
        parts = self._window[place : place + length]
        while len(parts) < length and (more := self._read_window(start + len(parts))):
            parts += more[: length - len(parts)]
        return parts

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError(f"no number at byte {self.at}")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
