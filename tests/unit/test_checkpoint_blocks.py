"""What a reader of a checkpoint hashes, and what it does not touch: blocks, in any layout, of both formats."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fmscale.errors import CheckpointError, MachineError
from fmscale.training import block_file, file_record, verified_file
from fmscale.training.block_file import write_blocks
from fmscale.training.checkpoint_format import KINDS, Commit, DamagedError, check_file
from fmscale.training.checkpoint_reader import CheckpointReader
from fmscale.training.file_record import BlockHasher, FileCheck, FileRecord, hash_file
from fmscale.training.fragment_file import Range
from fmscale.training.verified_file import VerifiedFile
from tests.checkpoints import RANGES, SHAPES, blocks_of, deal, made_format_1, start, store_of, values

Cell = tuple[str, int]
"""(data file, byte)."""


class Written:
    """A checkpoint of a random layout, in blocks of a random size; of format 1 if `data` says so."""

    def __init__(self, data: st.DataObject, run_dir: Path, patch: pytest.MonkeyPatch) -> None:
        world = data.draw(st.integers(1, 4), "world")
        edges = {p: data.draw(st.lists(st.integers(0, len(values(p, "master", 0))), max_size=5)) for p in SHAPES}
        store, term = store_of(run_dir), start(run_dir)
        self.block_bytes = data.draw(st.integers(8, 400), "block_bytes")
        blocks_of(self.block_bytes, patch)
        for rank, part in enumerate(deal(3, world, edges)):
            store.write_rank(3, term, rank, data.draw(st.permutations(part)))
        self.commit = store.commit(3, term, world, 12, None, {}, timeout_s=5)
        self.directory = run_dir / "checkpoints" / self.commit.name
        self.files = sorted(self.directory.glob("*.safetensors"))
        self.sizes = {path.name: path.stat().st_size for path in self.files}
        if data.draw(st.booleans(), "format 1"):
            self.commit, self.block_bytes = made_format_1(self.directory), 1 << 20

    def reader(self) -> CheckpointReader:
        return CheckpointReader(self.directory, self.commit)

    def cells(self, request: Range) -> Iterator[Cell]:
        """The bytes that hold a range, as the JSONs and safetensors' headers say it."""
        param, kind, start, numel = request
        for path in self.files:
            raw = path.read_bytes()
            head = 8 + int.from_bytes(raw[:8], "little")
            tensors = json.loads(raw[8:head])
            for f in json.loads(path.with_suffix(".json").read_bytes())["fragments"]:
                first, stop = max(start, f["start"]), min(start + numel, f["start"] + f["numel"])
                if (f["param"], f["kind"]) == (param, kind) and first < stop:
                    place = head + tensors[kind]["data_offsets"][0] + 4 * (f["offset"] - f["start"])
                    yield from ((path.name, byte) for byte in range(place + 4 * first, place + 4 * stop))

    def blocks(self, requests: list[Range]) -> set[tuple[str, int]]:
        """(file, number) of those that hold any of it."""
        return {(name, byte // self.block_bytes) for request in requests for name, byte in self.cells(request)}

    def rounded_out(self, requests: list[Range]) -> set[Cell]:
        spans = ((name, block * self.block_bytes) for name, block in self.blocks(requests))
        return {(name, at) for name, a in spans for at in range(a, min(self.sizes[name], a + self.block_bytes))}


@st.composite
def requests(draw: st.DrawFn) -> list[Range]:
    found = []
    for param, kind, _, total in draw(st.lists(st.sampled_from(RANGES), min_size=1, max_size=5)):
        begin = draw(st.integers(0, total))
        found.append((param, kind, begin, draw(st.integers(0, total - begin))))
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data(), wanted=requests(), planned=st.booleans())
def test_a_flipped_bit_is_refused_by_whoever_reads_its_block_before_use_and_by_nobody_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, wanted: list[Range], planned: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written = Written(data, tmp_path_factory.mktemp("flip"), patch)
    file = data.draw(st.sampled_from(written.files))
    at = data.draw(st.integers(0, written.sizes[file.name] - 1), "byte")
    refused = {request: (file.name, at) in written.rounded_out([request]) for request in wanted}
    holds_elements = (file.name, at // written.block_bytes) in written.blocks(RANGES)
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
    file.write_bytes(raw)
    with pytest.raises(DamagedError, match=file.name):
        written.reader().verify()
    if not holds_elements:  # but a header: all readers look at it
        with pytest.raises(DamagedError, match=file.name):
            written.reader()
        return
    reader = written.reader()
    if planned and any(refused.values()):
        with pytest.raises(DamagedError, match=file.name):
            reader.verify(wanted)
    elif planned:
        reader.verify(wanted)
    for (param, kind, begin, numel), is_refused in refused.items():
        if not is_refused:
            got = reader.read(param, kind, begin, numel)
            assert torch.equal(got, values(param, kind, 3)[begin : begin + numel])
            continue
        with pytest.raises(DamagedError) as caught:
            reader.read(param, kind, begin, numel)
        first = at // written.block_bytes * written.block_bytes
        last = min(first + written.block_bytes, written.sizes[file.name])
        assert f"bytes {first:,} to {last:,}" in str(caught.value)
        assert f"found: xxh3_128 {xxhash.xxh3_128_hexdigest(raw[first:last])}" in str(caught.value)
        assert str(file) in str(caught.value)


class Watched(io.FileIO):
    """Knows which bytes were read."""

    seen: list[Cell]

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        at = self.tell()
        got = super().readinto(buffer)
        self.seen += [(Path(str(self.name)).name, byte) for byte in range(at, at + (got or 0))]
        return got


@settings(max_examples=30, deadline=None)
@given(data=st.data(), wanted=requests())
def test_a_reader_reads_its_ranges_rounded_out_to_blocks_and_hashes_each_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, wanted: list[Range]
) -> None:
    seen: list[Cell] = []
    advised: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        written = Written(data, tmp_path_factory.mktemp("reads"), patch)
        reader = written.reader()
        reader.close()  # what opening looked at is opened again
        patch.setattr(Watched, "seen", seen, raising=False)
        patch.setattr(verified_file.io, "FileIO", Watched)
        advise = os.posix_fadvise

        def told(descriptor: int, start: int, length: int, advice: int) -> None:
            assert length > 0, "0 would be all the rest of the file"
            advised.append((start, length))
            advise(descriptor, start, length, advice)

        patch.setattr(os, "posix_fadvise", told)
        reader.verify(wanted)
        allowed = written.rounded_out(wanted)
        assert sorted(seen) == sorted(allowed), "each byte of the blocks once, and no other"
        assert {byte for start, length in advised for byte in range(start, start + length)} == {b for _, b in allowed}
        for request in wanted:
            seen.clear()
            reader.read(*request)
            assert sorted(seen) == sorted(written.cells(request)), "the bytes themselves, which have been hashed"
        unplanned = written.reader()
        seen.clear()
        for request in wanted:
            unplanned.read(*request)
        assert set(seen) == allowed
        assert len(seen) == len(allowed) + sum(4 * numel for *_, numel in wanted)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_tensors_lie_where_safetensors_says(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A rank's JSON says it without a look at the file's header."""
    with pytest.MonkeyPatch.context() as patch:
        written = Written(data, tmp_path_factory.mktemp("places"), patch)
    for path, record in zip(written.files, written.reader()._records, strict=True):
        raw = path.read_bytes()
        with safe_open(path, "pt") as file:
            assert sorted(record.starts()) == sorted(file.keys())
            for kind, begin in record.starts().items():
                tensor = file.get_tensor(kind)
                assert raw[begin : begin + tensor.nbytes] == tensor.numpy().tobytes()


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300), block_bytes=st.integers(1, 310), cuts=st.lists(st.integers(0, 300)))
def test_hashes_are_those_of_the_blocks_however_the_bytes_come(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block_bytes: int, cuts: list[int]
) -> None:
    blocks = [content[at : at + block_bytes] for at in range(0, max(1, len(content)), block_bytes)]
    want = tuple(xxhash.xxh3_128_hexdigest(block) for block in blocks)
    record = FileRecord(file="f", bytes=len(content), block_bytes=block_bytes, blocks=want)
    hasher, check = BlockHasher(block_bytes), FileCheck(record)
    for begin, stop in itertools.pairwise([0, *sorted(cuts), len(content)]):
        hasher.update(content[begin:stop])
        check.update(memoryview(content)[begin:stop])
    assert hasher.hashes() == want
    assert check.holds()
    check.update(b"x")
    assert not check.holds()
    path = tmp_path_factory.mktemp("hash") / "f"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_record, "_PIECE_BYTES", 7)
        patch.setattr(file_record, "_AHEAD", 3)
        told: list[int] = []
        assert hash_file(path, record, told.append) == want
        assert sum(told) == len(content)
    fields = json.loads(json.dumps(record.to_json()))
    assert FileRecord.from_json(fields).to_json() == record.to_json()
    assert FileRecord.from_json(fields).blocks == want
    assert ("hash" in fields) == (len(want) == 1)
    with pytest.raises(ValueError, match=f"f of {len(content)} bytes cannot have {len(want) + 1} blocks of"):
        FileRecord(file="f", bytes=len(content), block_bytes=block_bytes, blocks=(*want, "0"))


def five_blocks(tmp_path: Path) -> tuple[Path, FileRecord, bytes]:
    content = bytes(range(50))
    path = tmp_path / "data"
    return path, write_blocks(path, [memoryview(content)], 50, 0, block_bytes=10), content


def test_all_wrong_blocks_of_a_file_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    path, record, content = five_blocks(tmp_path)
    check_file(tmp_path, record)
    damaged = bytearray(content)
    for at in (25, 29, 31, 49):
        damaged[at] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(DamagedError) as caught:
        check_file(tmp_path, record)
    wrong, right = (xxhash.xxh3_128_hexdigest(of[20:30]) for of in (damaged, content))
    assert f"expected: xxh3_128 {right} of bytes 20 to 30, block 2 of 5: {path}" in str(caught.value)
    assert f"found: xxh3_128 {wrong}; 2 more of its blocks are wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (30, "expected: .* of bytes 30 to 40.*found: .*xxh3_128 of nothing; 1 more"),
        (55, "expected: .*: 50 bytes.*found: .*more bytes"),
    ],
)
def test_a_file_that_is_read_back_in_another_length_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, words: str
) -> None:
    read_back = block_file._read_back

    def cut(path: Path, *arguments: object) -> tuple[str, ...]:
        os.truncate(path, length)
        return read_back(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(block_file, "_read_back", cut)
    with pytest.raises(MachineError, match=f"(?s){words}"):
        five_blocks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whole_blocks_too_many_are_told(tmp_path: Path) -> None:
    _, record, _ = five_blocks(tmp_path)
    assert record.wrong((*record.blocks, "more")) == ("more bytes", "50 bytes")
    assert record.wrong(record.blocks) is None


def test_a_file_that_goes_after_it_was_hashed_is_an_error(tmp_path: Path) -> None:
    path, record, content = five_blocks(tmp_path)
    file, out = VerifiedFile(tmp_path, record), bytearray(15)
    file.read_into(8, memoryview(out))
    assert out == content[8:23]
    os.truncate(path, 12)
    with pytest.raises(DamagedError, match="it ends at byte 12, and was longer when it was hashed"):
        file.read_into(8, memoryview(out))
    file.close()
    path.unlink()
    with pytest.raises(DamagedError, match="No such file"):
        file.read_into(8, memoryview(out))
    with pytest.raises(DamagedError, match="No such file"):
        file.verify([(40, 50)])


def two_ranks(run_dir: Path) -> Commit:
    """Of which the second owns nothing."""
    store, term = store_of(run_dir), start(run_dir)
    store.write_rank(1, term, 0, deal(1, 1)[0])
    store.write_rank(1, term, 1, [])
    return store.commit(1, term, 2, 4, None, {})


@pytest.mark.parametrize("how", ["cut", "longer", "missing", "foreign", "a header that nobody reads"])
def test_opening_finds_what_no_range_leads_to(tmp_path: Path, how: str) -> None:
    commit = two_ranks(tmp_path)
    path = tmp_path / "checkpoints" / commit.name / "rank-00001.safetensors"
    raw = path.read_bytes()
    if how == "cut":
        path.write_bytes(raw[:-1])
    elif how == "longer":
        path.write_bytes(raw + b"\0")
    elif how == "missing":
        path.unlink()
    elif how == "foreign":
        path.with_name("rank-00002.safetensors").write_bytes(raw)
    else:
        path.write_bytes(raw[:-1] + b"!")
    with pytest.raises(DamagedError, match=r"rank-0000[12]\.safetensors"):
        store_of(tmp_path).open(commit)


def test_what_does_not_fit_is_no_damage(tmp_path: Path) -> None:
    """A run whose model is another one must not look for an older checkpoint."""
    reader = store_of(tmp_path).open(two_ranks(tmp_path))
    with pytest.raises(CheckpointError, match="does not fit this model") as caught:
        reader.verify([("norm", KINDS[0], 0, 6)])
    assert not isinstance(caught.value, DamagedError)
