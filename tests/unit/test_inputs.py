"""Pinning inputs: pieces tile each file at line ends for any task size; order follows the patterns."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import cut, find, inputs
from data_pipeline.inputs import pin
from fmscale.errors import DataError
from tests.corpora import make_corpus


@settings(deadline=None, max_examples=60)
@given(
    files=st.lists(
        st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")), max_size=12), min_size=1, max_size=4
    ),
    end=st.sampled_from([b"", b"\n"]),
    task_bytes=st.integers(1, 200),
)
def test_pieces_tile_the_files_at_line_ends(files: list[list[bytes]], end: bytes, task_bytes: int) -> None:
    with TemporaryDirectory() as name:
        data = [b"\n".join(lines) + (end if lines else b"") for lines in files]
        for number, content in enumerate(data):
            Path(name, f"{number}.jsonl").write_bytes(content)
        pinned = pin([name], task_bytes)
    assert [file.name for file in pinned.files] == [f"{i}.jsonl" for i in range(len(data))]
    for number, content in enumerate(data):
        pieces = [piece for task in pinned.tasks for piece in task if piece.file == number]
        assert b"".join(content[p.start : p.stop] for p in pieces) == content
        for piece in pieces:
            part = content[piece.start : piece.stop]
            assert part.endswith(b"\n") or piece.stop == len(content)
            assert piece.first_record == content[: piece.start].count(b"\n")
            assert piece.hash == xxhash.xxh3_128_hexdigest(part)
        assert pinned.files[number].hash == xxhash.xxh3_128_hexdigest(content)
    for task in pinned.tasks:
        size = sum(piece.stop - piece.start for piece in task)
        assert len(task) == 1 or size <= task_bytes, "only a single piece may be longer than a task"


def test_order_is_that_of_the_patterns_then_of_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.txt", "a/z.md.gz", "a/sub/y.jsonl", "a/.hidden/x.txt", "a/.x.txt", "a/p.pdf", "a/q"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x\n")
    pinned = pin([str(tmp_path / "b/2.jsonl"), str(tmp_path / "a"), str(tmp_path / "b/*")])
    assert [(f.name, f.kind, f.compression) for f in pinned.files] == [
        ("2.jsonl", "jsonl", ""),
        ("sub/y.jsonl", "jsonl", ""),
        ("z.md.gz", "text", ".gz"),
        ("1.txt", "text", ""),
    ]
    assert pinned.left_out == {".pdf": 1, "no suffix": 1}
    assert inputs.Inputs.from_json(pinned.to_json()) == pinned


def test_a_glob_takes_any_suffix_as_text(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/a.log").write_text("a log")
    (tmp_path / "deep/er/b.log.gz").write_bytes(gzip.compress(b"b"))
    pinned = pin([f"{tmp_path}/**/*.log*"])
    assert [(f.name, f.kind, f.compression) for f in pinned.files] == [
        ("deep/er/a.log", "text", ""),
        ("deep/er/b.log.gz", "text", ".gz"),
    ]


def test_a_linked_directory_is_counted_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "raw/deep").mkdir(parents=True)
    (tmp_path / "raw/a.txt").write_text("a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.txt").write_text("b")
    (tmp_path / "raw/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw/deep/up").symlink_to(tmp_path / "raw")  # following it would never end
    (tmp_path / "raw/c.txt").symlink_to(tmp_path / "elsewhere/b.txt")  # a linked file is a file
    pinned = pin([str(tmp_path / "raw")])
    assert [file.name for file in pinned.files] == ["a.txt", "c.txt"]
    assert pinned.left_out == {"symbolic link to a directory": 2}
    named = pin([str(tmp_path / "raw/link")])
    assert [file.name for file in named.files] == ["b.txt"]


def test_a_corpus_of_ours_below_an_input_is_counted_and_not_read(tmp_path: Path) -> None:
    """Its own list of inputs and what it dropped would come back as input. One that is named is read."""
    make_corpus(tmp_path / "raw/deep/corpus", chunks=2, chunk_tokens=64, seed=1)
    (tmp_path / "raw/deep/corpus/dropped").mkdir()
    for name in ("a.jsonl", "deep/b.jsonl", "deep/corpus/dropped/0.jsonl", "other/manifest.json"):
        (tmp_path / "raw" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "raw" / name).write_text('{"text": "a"}\n')
    for pattern in ("raw", "raw/**/*.jsonl"):
        pinned = pin([str(tmp_path / pattern)])
        assert [file.name for file in pinned.files] == ["a.jsonl", "deep/b.jsonl"]
        assert pinned.left_out["corpus of ours"] == 1
    pinned = pin([str(tmp_path / "raw/deep/corpus/dropped")])
    assert [file.name for file in pinned.files] == ["0.jsonl"]
    with pytest.raises(DataError, match=r"stands in finished corpora(?s:.*)/\*\.jsonl\n  do: where the files of"):
        pin([str(tmp_path / "raw/deep/*/dropped/*.jsonl")])
    assert len(pin([str(tmp_path / "raw/deep/corpus/dropped/*.jsonl")]).files) == 1
    (tmp_path / "raw/deep/b.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds no text\n.*\n  found: .*/deep with 1 corpus of ours"):
        pin([str(tmp_path / "raw/deep")])


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"input file cannot be read\n.*\n  found: .*/a\.txt: No such file"):
        pin([str(tmp_path)])


def test_a_directory_that_cannot_be_listed(tmp_path: Path) -> None:
    """Root may list every directory, so it is taken away between its parent's listing and its own."""
    (tmp_path / "a.txt").write_text("a")
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o000)
    if os.geteuid():
        with pytest.raises(DataError, match=r"input directory cannot be read\n.*\n  found: .*/folder: Permission"):
            pin([str(tmp_path)])
    with pytest.raises(DataError, match=r"input directory cannot be read\n.*\n  found: .*/gone: No such file"):
        find._directory(str(tmp_path / "gone"), Counter())


def test_names_do_not_depend_on_where_the_files_stand(tmp_path: Path) -> None:
    for root in ("here", "elsewhere"):
        (tmp_path / root).mkdir()
        (tmp_path / root / "a.jsonl").write_text('{"text": "a"}\n')
    here, elsewhere = (pin([str(tmp_path / root)]) for root in ("here", "elsewhere"))
    assert [(f.name, f.bytes, f.hash) for f in here.files] == [(f.name, f.bytes, f.hash) for f in elsewhere.files]
    assert here.tasks == elsewhere.tasks


def test_no_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no input is named\n.*\n.*inputs is empty\n.*set inputs"):
        pin([])


def test_an_input_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"matches no file\n.*\n  found: .*/nowhere/\*\.jsonl \(seen from "):
        pin([str(tmp_path / "nowhere/*.jsonl")])


def test_a_directory_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    for name in ("b", "c"):
        (tmp_path / name).symlink_to(tmp_path)
    with pytest.raises(
        DataError, match=r"holds no text\n.*\.jsonl.*\n  found: .* with 1 \.bin, 2 symbolic link to a directory"
    ):
        pin([str(tmp_path)])


def test_an_unreadable_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    if os.geteuid() == 0:  # nothing is unreadable to root: take it away between listing and reading
        monkeypatch.setattr(inputs, "find", lambda patterns: ([find.Found(str(path), "a.jsonl", 3)], {}))
        path.unlink()
    else:
        path.chmod(0)
    with pytest.raises(DataError, match=r"cannot be read\n.*\n  found: .*a\.jsonl: (No such file|Permission denied)"):
        pin([str(tmp_path)])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=9), st.booleans(), st.integers(1, 200))
def test_a_line_that_is_too_long_has_a_piece_of_its_own(lengths: list[int], ended: bool, task_bytes: int) -> None:
    """So that its reader can pass it over in blocks; all others are in pieces that can be held."""
    lines = [bytes([97 + number]) * length for number, length in enumerate(lengths)]
    content = b"\n".join(lines) + b"\n" * ended
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as name:
        patch.setattr(cut, "MAX_RECORD_BYTES", 100)
        patch.setattr(cut, "BLOCK_BYTES", 30)
        Path(name, "a.jsonl").write_bytes(content)
        pinned = pin([name], task_bytes)
    pieces = [piece for task in pinned.tasks for piece in task]
    assert b"".join(content[p.start : p.stop] for p in pieces) == content
    for piece in pieces:
        part = content[piece.start : piece.stop]
        assert piece.first_record == content[: piece.start].count(b"\n")
        assert piece.hash == xxhash.xxh3_128_hexdigest(part)
        assert part.endswith(b"\n") or piece.stop == len(content)
        assert len(part) <= task_bytes + 100 or part.count(b"\n") <= 1


def test_kinds_by_suffix() -> None:
    for name, kind in {
        "a.warc.gz": ("warc", ".gz"),
        "CC-MAIN-1.warc.wet.gz": ("warc", ".gz"),
        "a.warc.zst": ("warc", ".zst"),
        "a.tgz": ("tar", ".gz"),
        "a.TAR.ZST": ("tar", ".zst"),
        "a.parquet": ("parquet", ""),
        "a.parquet.gz": None,
        "a.ndjson.zst": ("jsonl", ".zst"),
        "a.html": None,
    }.items():
        assert find.kind_of(name) == kind, name
