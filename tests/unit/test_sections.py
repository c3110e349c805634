"""Files of sections: what is read is what was written, and any damage is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sections import Reader, Sections, create
from fmscale.errors import DataError

KIND = "test-sections-1"
PARTS = [np.arange(5, dtype="<u8"), np.empty(0, np.uint8), np.arange(3, dtype="<u4"), b"\x40" * 64]
# The last is of 64 bytes: one flipped bit in its entry would make it empty.


def write(path: Path) -> list[bytes]:
    with create(path, KIND) as file:
        for part in PARTS:
            file.add(part)
    return [bytes(part) if isinstance(part, bytes) else part.tobytes() for part in PARTS]


def read(path: Path) -> list[bytes]:
    sections = Sections(path, KIND)
    return [sections[number].read() for number in range(len(sections))]


def test_sections_come_back_whole_or_in_pieces(tmp_path: Path) -> None:
    expected = write(tmp_path / "file")
    assert read(tmp_path / "file") == expected
    reader = Reader(Sections(tmp_path / "file", KIND)[3])
    pieces = []
    while reader.left:
        pieces.append(reader.take(10))
    assert [len(piece) for piece in pieces] == [10] * 6 + [4]
    assert b"".join(pieces) == expected[3]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_flip_in_any_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    write(tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged or missing"):
            read(tmp_path / "file")
        (tmp_path / "file").write_bytes(whole[:at])
        with pytest.raises(DataError, match="is damaged or missing"):
            read(tmp_path / "file")


def test_damage_is_found_in_pieces_too(tmp_path: Path) -> None:
    write(tmp_path / "file")
    damaged = bytearray((tmp_path / "file").read_bytes())
    damaged[60] ^= 1
    (tmp_path / "file").write_bytes(damaged)
    reader = Reader(Sections(tmp_path / "file", KIND)[3])
    reader.take(60)
    with pytest.raises(DataError, match=r"xxh3_128 [0-9a-f]{32} of bytes 52 to 116(.|\n)*remove it"):
        reader.take(10)


def test_an_entry_that_points_out_of_the_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "file")
    damaged = bytearray((tmp_path / "file").read_bytes())
    entry = damaged.rindex((64).to_bytes(8, "little"))  # the size of the last section, behind its begin
    damaged[entry] = 65
    (tmp_path / "file").write_bytes(damaged)
    with pytest.raises(DataError, match="expected: section 3 below byte 116\n  found: 65 bytes at 52\n"):
        Sections(tmp_path / "file", KIND)[3]


def test_another_kind_and_no_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "file")
    with pytest.raises(DataError, match="a file of test-sections-2 that ends as it was written"):
        Sections(tmp_path / "file", "test-sections-2")
    with pytest.raises(DataError, match=r"a file of test-sections-1(.|\n)*No such file"):
        Sections(tmp_path / "other", KIND)
    sections = Sections(tmp_path / "file", KIND)
    first = sections[0]
    (tmp_path / "file").unlink()
    with pytest.raises(DataError, match=r"a readable file(.|\n)*No such file"):
        sections[0]
    with pytest.raises(DataError, match=r"a readable file(.|\n)*No such file"):
        first.read()


def test_a_file_that_shrinks_is_found(tmp_path: Path) -> None:
    write(tmp_path / "file")
    sections = Sections(tmp_path / "file", KIND)
    first = sections[0]
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(DataError, match="5 of 40 bytes"):
        first.read()
    with pytest.raises(DataError, match=r"expected: the entry of section 0\n  found: 0 of its 32 bytes"):
        sections[0]


def test_nothing_appears_if_writing_fails(tmp_path: Path) -> None:
    def half() -> None:
        with create(tmp_path / "file", KIND) as file:
            file.add(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(tmp_path.iterdir()) == []
