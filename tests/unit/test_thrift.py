"""What no reader of Parquet's own structs may take for one, and what it says. Whole files: test_parquet.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.readers.pages import page_sizes, row_groups
from data_pipeline.readers.thrift import Reader


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "a struct does not end, at byte 0"),
        (b"\x15\x02", "a struct does not end, at byte 2"),
        (b"\x1c" * 40, "structs nest too deep, at byte 17"),
        (b"\x1b\x00\x00", "no struct at byte 1"),  # a map
        (b"\x15" + b"\xff" * 20, "no number at byte 11"),  # more than 64 bits
    ],
)
def test_bytes_that_are_no_struct(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reader(lambda at: data[at:]).struct({})


def test_a_number_is_read_and_what_is_not_wanted_is_passed_over() -> None:
    """Field 1: the i32 -3; field 2: a string; then the end. 16-bit, 32-bit and 64-bit numbers are zigzag varints."""
    data = b"\x15\x05\x18\x02hi\x00rest"
    reader = Reader(lambda at: data[at:])
    assert reader.struct({1: int}) == {1: -3}
    assert reader.at == 7
    assert Reader(lambda at: data[at:]).struct({1: int, 2: bytes}) == {1: -3, 2: b"hi"}


def test_files_without_footer_or_page(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"x" * 20)
    with path.open("rb") as file, pytest.raises(ValueError, match="20 bytes without a footer at their end"):
        row_groups(file)
    path.write_bytes(b"\x00" * 8)
    with path.open("rb") as file, pytest.raises(ValueError, match="no page header at byte 3"):
        page_sizes(file, 3)
