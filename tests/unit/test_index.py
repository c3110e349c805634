"""The index of a corpus reads as it was written, block by block; no byte is used before its hash was checked."""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.corpus import blocks as blocks_module
from fmscale.corpus import generation as generation_module
from fmscale.corpus import index as index_module
from fmscale.corpus import shards as shards_module
from fmscale.corpus.blocks import BlockFile, Blocks, write_blocks
from fmscale.corpus.index import (
    BLOCK_RECORDS,
    CHUNK_DTYPE,
    SHARD_DTYPE,
    Index,
    content_hash,
    read_index,
    shard_name,
    write_index,
)
from fmscale.corpus.inputs import read_inputs, write_inputs
from fmscale.corpus.manifest import MARKER, Manifest
from fmscale.corpus.shards import Corpus, DamagedChunk
from fmscale.corpus.verify import survey
from fmscale.errors import DataError
from tests.corpora import make_corpus
from tests.word_corpora import GOLDEN

MAGIC = b"fmscale-test\0\0\0\0"


def index_of(directory: Path, train: Sequence[int], heldout: Sequence[int], seed: int = 0) -> tuple[Index, Any, Any]:
    """An index of shards with these numbers of chunks, all else at random; and what it was written from."""
    rng = np.random.default_rng(seed)
    chunks = [*train, *heldout]
    records = np.frombuffer(rng.bytes(sum(chunks) * CHUNK_DTYPE.itemsize), CHUNK_DTYPE).copy()
    records["shard"] = np.repeat(np.arange(len(chunks)), chunks)
    shards = np.zeros(len(chunks), SHARD_DTYPE)
    shards["bytes"] = rng.integers(0, 1 << 40, len(chunks))
    shards["end"] = np.concatenate([np.cumsum(train), np.cumsum(heldout)])
    manifest = Manifest.load(GOLDEN)
    splits = {
        "train": replace(manifest.split("train"), chunks=sum(train), first_chunk=0, shards=len(train), first_shard=0),
        "heldout": replace(
            manifest.split("heldout"),
            chunks=sum(heldout),
            first_chunk=sum(train),
            shards=len(heldout),
            first_shard=len(train),
        ),
    }
    written = replace(
        manifest, content_hash=content_hash([records]), index=write_index(directory, records, shards), splits=splits
    )
    return read_index(directory, written), records, shards


@pytest.mark.parametrize(
    ("train", "heldout"),
    [
        ([3], [2]),
        ([BLOCK_RECORDS], [1]),
        ([100, 100, 100], [100, 57]),  # a block boundary inside a shard, and inside a split
        ([128] * 6, []),
        ([1] * 700, [1] * 333),
        ([BLOCK_RECORDS - 1], [1]),
    ],
)
def test_any_record_and_shard_reads_as_it_was_written(tmp_path: Path, train: list[int], heldout: list[int]) -> None:
    index, records, shards = index_of(tmp_path, train, heldout)
    assert index.content_hash() == content_hash([records])
    for name, own, first_chunk, first_shard in (("train", train, 0, 0), ("heldout", heldout, sum(train), len(train))):
        split = index.split(name)
        for chunk in np.random.default_rng(1).permutation(sum(own)).tolist():
            assert split.chunk(chunk) == tuple(
                value.tobytes() if isinstance(value, np.void) else value.item()
                for value in records[first_chunk + chunk]
            )
            assert split.shard_of(chunk) == int(records[first_chunk + chunk]["shard"]) - first_shard
        assert len(split.shards) == len(own)
        assert [shard.chunks for shard in split.shards] == own
        assert [shard.end for shard in split.shards] == np.cumsum(own).tolist()
        assert [shard.file for shard in split.shards] == [shard_name(name, i) for i in range(len(own))]
        assert [shard.bytes for shard in split.shards] == shards["bytes"][first_shard:][: len(own)].tolist()
        with pytest.raises(IndexError):
            split.shards[len(own)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 24), st.integers(0, 2**32))
def test_a_block_file_is_its_sections_one_after_another(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], block_bytes: int, seed: int
) -> None:
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("blocks") / "file"
    sections = [np.frombuffer(rng.bytes(size), np.uint8) for size in sizes]
    blocks = Blocks(path, write_blocks(path, sections, block_bytes, MAGIC, 1), MAGIC, 1)
    body = b"".join(section.tobytes() for section in sections)
    assert b"".join(blocks.read(number) for number in range(len(blocks))) == body
    for offset in rng.permutation(len(body)).tolist():
        block, inside = blocks.at(offset)
        assert block[inside] == body[offset]
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def one_file(directory: Path) -> tuple[Path, BlockFile, bytes]:
    path, body = directory / "file", np.random.default_rng(0).bytes(300)
    return path, write_blocks(path, [np.frombuffer(body, np.uint8)], 64, MAGIC, 1), body


def write(path: Path, data: bytes) -> None:
    """In place: emptying a file first can take ten times as long."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def test_a_flipped_byte_is_found_before_its_block_is_used_and_no_other_block_suffers(tmp_path: Path) -> None:
    path, file, body = one_file(tmp_path)
    clean = path.read_bytes()
    for place in range(len(clean)):
        write(path, clean[:place] + bytes([clean[place] ^ 1 << place % 8]) + clean[place + 1 :])
        if place < file.head_bytes:
            with pytest.raises(DataError, match=r"file is damaged or missing\n  expected: 412 bytes, sha256 "):
                Blocks(path, file, MAGIC, 1)
            continue
        blocks, bad = Blocks(path, file, MAGIC, 1), (place - file.head_bytes) // 64
        for number in range(len(blocks)):
            if number != bad:
                assert blocks.read(number) == body[number * 64 : number * 64 + 64]
        with pytest.raises(DataError, match=rf"expected: xxh3_128 \w+ of bytes {file.head_bytes + bad * 64} to "):
            blocks.at(place - file.head_bytes)


def test_a_file_of_another_size_is_refused_and_one_cut_later_is_an_error(tmp_path: Path) -> None:
    path, file, _ = one_file(tmp_path)
    clean = path.read_bytes()
    for size in range(len(clean)):
        write(path, clean[:size])
        with pytest.raises(DataError, match=rf"expected: 412 bytes, .*\n  found: {size} bytes\n"):
            Blocks(path, file, MAGIC, 1)
    write(path, clean)
    blocks = Blocks(path, file, MAGIC, 1)
    first = blocks.at(0)
    with path.open("r+b") as handle:
        handle.truncate(file.head_bytes + 100)
    assert blocks.at(0) == first, "what was read is a copy"
    with pytest.raises(DataError, match=r"found: 36 bytes there"):
        blocks.at(64)
    path.unlink()
    with pytest.raises(DataError, match="found: no such file"):
        Blocks(path, file, MAGIC, 1)
    path.mkdir()
    with pytest.raises(DataError, match="cannot be read\n  expected: a readable file\n  found: Is a directory"):
        Blocks(path, file, MAGIC, 1)


def test_memory_holds_a_bounded_number_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "_KEPT", 3)
    path, file, body = one_file(tmp_path)
    blocks = Blocks(path, file, MAGIC, 1)
    for offset in [*range(0, 300, 7), *range(299, 0, -7)]:
        block, inside = blocks.at(offset)
        assert block[inside] == body[offset]
        assert len(blocks._kept) <= 3


def test_an_index_of_19_million_chunks_opens_as_fast_as_one_of_12(tmp_path: Path) -> None:
    """1.6 GB, all of them a hole but the head: whoever read it whole would take a second and more."""
    chunks, shards = 19_531_250, 152_588
    body = chunks * CHUNK_DTYPE.itemsize + shards * SHARD_DTYPE.itemsize
    block_bytes = BLOCK_RECORDS * CHUNK_DTYPE.itemsize
    size = write_blocks(tmp_path / "part", [np.zeros(block_bytes, np.uint8)], block_bytes, b"fmscale-index\0\0\0", 2)
    head = bytearray((tmp_path / "part").read_bytes()[: size.head_bytes])
    head[24:32] = body.to_bytes(8, "little")
    head += head[-16:] * (-(-body // block_bytes) - 1)  # every block is zeros, as the first one
    with (tmp_path / "index.bin").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + body)
    said = BlockFile(
        file="index.bin",
        bytes=len(head) + body,
        head_bytes=len(head),
        sha256=hashlib.sha256(head).hexdigest(),
    )
    golden = Manifest.load(GOLDEN)
    train = replace(golden.split("train"), chunks=chunks, shards=shards)
    empty = replace(golden.split("heldout"), chunks=0, shards=0, first_chunk=chunks, first_shard=shards)
    manifest = replace(golden, index=said, splits={"train": train, "heldout": empty})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    index = read_index(tmp_path, manifest)
    assert index.split("train").chunk(chunks // 2).end == 0
    assert time.process_time() - started < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 16 << 10


def test_an_index_of_other_counts_than_the_manifests_is_refused(tmp_path: Path) -> None:
    index_of(tmp_path, [5, 5], [2])
    golden = Manifest.load(GOLDEN)
    shards = np.zeros(1, SHARD_DTYPE)
    written = replace(golden, index=write_index(tmp_path, np.zeros(3, CHUNK_DTYPE), shards))
    with pytest.raises(DataError, match=r"is damaged or missing\n  expected: 22 chunks in 2 shards"):
        read_index(tmp_path, written)


# --------------------------------------------------------------------------------------- shards, generations, inputs


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of one-chunk shards, more than are looked at when it is opened."""
    monkeypatch.setattr("fmscale.corpus.writer.SHARD_CHUNKS", 1)
    monkeypatch.setattr(generation_module, "CHECKED_AT_ONCE", 8)
    monkeypatch.setattr(index_module, "CHECKED_AT_ONCE", 8)
    make_corpus(tmp_path / "many", chunks=9, heldout=2, chunk_tokens=64)
    return tmp_path / "many"


def test_of_many_shards_each_is_checked_when_it_is_first_used(many: Path) -> None:
    whole = {path: path.read_bytes() for path in many.glob("train-*.tar")}
    cut, grown, dirty, gone = (many / shard_name("train", number) for number in (1, 2, 3, 4))
    cut.write_bytes(whole[cut][:-1])
    grown.write_bytes(whole[grown] + b"\0")
    dirty.write_bytes(whole[dirty][:-1] + b"x")
    gone.unlink()
    opened, lenient = Corpus.open(many), Corpus.open(many, lenient=True)
    for chunk in (1, 2):
        with pytest.raises(DataError, match=rf"train-0000{chunk}.tar is cut short, overgrown or missing"):
            opened.tokens(chunk)
    with pytest.raises(DataError, match=r"train-00003.tar is damaged at its end"):
        opened.docs(3)
    for chunk in (0, 5, 6, 7, 8):
        assert opened.tokens(chunk).tolist() == lenient.tokens(chunk).tolist()
    for chunk in (1, 2, 3):  # what is lost of these holds no chunk
        assert len(lenient.tokens(chunk)) == 65
    with pytest.raises(DamagedChunk, match=r"chunk 4 is damaged: its shard .* is cut short or missing"):
        lenient.tokens(4)
    with pytest.raises(DamagedChunk, match=r"train-00004.tar is cut short or missing\n.*\n  found: no such file"):
        opened.tokens(4)
    assert len(survey(many).damage) == 4
    with pytest.raises(DataError, match="train-00001"):
        Corpus.open(many, verify_all=True)


def test_of_few_shards_all_are_checked_at_opening(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_module, "CHECKED_AT_ONCE", 9)
    (many / shard_name("train", 8)).unlink()
    with pytest.raises(DataError, match=r"train-00008.tar is cut short, overgrown or missing"):
        Corpus.open(many)
    assert Corpus.open(many, "heldout").chunks == 2


def test_opening_reads_no_more_of_a_corpus_with_many_shards(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    path_open = Path.open

    def watched(path: Path, *arguments: Any, **named: Any) -> Any:
        opened.append(path.name)
        return path_open(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(os, "scandir", None)
    monkeypatch.setattr(os, "listdir", None)
    Corpus.open(many)
    assert sorted(opened) == ["index.bin", "manifest.json", "tokenizer.model"]


def test_a_generation_is_found_beyond_one_that_is_missing(tmp_path: Path) -> None:
    make_corpus(tmp_path, chunks=2)
    far = tmp_path / f"gen-{shards_module._LOOK_BEYOND:04d}"
    far.mkdir()
    (far / MARKER).write_text("{}")
    with pytest.raises(DataError, match=r"no finished corpus here\n  expected: .*gen-0001"):
        Corpus.open(tmp_path)


def test_inputs_are_read_as_they_were_written_or_refused(tmp_path: Path) -> None:
    inputs = [{"path": "b/\u00fc \udcff.txt", "bytes": 3, "hash": "x"}, {"path": "a\nb", "bytes": 0, "hash": ""}]
    manifest = replace(Manifest.load(GOLDEN), inputs=write_inputs(tmp_path, inputs))
    assert read_inputs(tmp_path, manifest) == inputs
    path = tmp_path / manifest.inputs.file
    clean = path.read_bytes()
    for place in range(len(clean)):
        path.write_bytes(clean[:place] + bytes([clean[place] ^ 1]) + clean[place + 1 :])
        with pytest.raises(DataError, match=r"inputs.jsonl is damaged or missing"):
            read_inputs(tmp_path, manifest)
    path.unlink()
    with pytest.raises(DataError, match=r"inputs.jsonl is damaged or missing\n.*\n  found: no such file"):
        read_inputs(tmp_path, manifest)


def test_a_lost_list_of_inputs_stops_no_reader_and_is_found(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, chunks=2)
    (tmp_path / manifest.inputs.file).write_text("{}\n")
    assert Corpus.open(tmp_path, verify_all=True).chunks == 2
    (damage,) = survey(tmp_path).damage
    assert "inputs.jsonl is damaged" in str(damage)
