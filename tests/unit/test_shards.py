"""What was written is read, or refused before its first use: every byte, every cut, every missing file."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import pickle
import re
import shutil
import socket
import tarfile
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import webdataset

from fmscale.corpus import generation as generation_module
from fmscale.corpus import manifest as manifest_module
from fmscale.corpus import writer as writer_module
from fmscale.corpus.chunks import DOC_DTYPE, Stream, cut_chunks, make_docs
from fmscale.corpus.index import FILE as INDEX
from fmscale.corpus.loader import RankPlan, RowReader
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.rows import read_rows
from fmscale.corpus.shards import Corpus, DamagedChunk
from fmscale.corpus.sources import open_run_data
from fmscale.corpus.verify import inspect, survey, verify
from fmscale.corpus.writer import Part, publish, write_parts
from fmscale.errors import DataError
from tests.corpora import make_corpus, run_config
from tests.word_corpora import GOLDEN, corpus, golden, shards_of, stream, text, texts, tokenizer


def read_all(path: Path) -> list[np.ndarray[Any, Any]]:
    """Every token and document record of both splits."""
    found = []
    for split in ("train", "heldout"):
        opened = Corpus.open(path, split)
        found += [read(chunk) for chunk in range(opened.chunks) for read in (opened.tokens, opened.docs)]
    return found


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two training chunks in one shard, one held-out chunk."""
    path = tmp_path / "small"
    corpus(path, texts(1, first=1), texts(1, first=101), chunk_tokens=32, tasks=1)
    return path


def test_golden_bytes(tmp_path: Path) -> None:
    golden(tmp_path)
    assert files(tmp_path) == files(GOLDEN)


def test_golden_reads() -> None:
    opened = Corpus.open(GOLDEN)
    tail = tokenizer().decode(opened.tokens(0))
    assert text(0).startswith(tail[:40])
    assert opened.manifest.generation == 1
    assert opened.chunks == 22
    assert verify(GOLDEN).chunks == 27


def test_tokens_and_documents_come_back(tmp_path: Path) -> None:
    documents = texts(30)
    manifest = corpus(tmp_path, documents, chunk_tokens=64, tasks=6)
    opened = Corpus.open(tmp_path, verify_all=True)
    expected = [cut_chunks(stream(documents[5 * task : 5 * task + 5], task), 64) for task in range(6)]
    whole = [chunk for chunks, _ in expected for chunk in chunks]
    for number, (tokens, docs) in enumerate(whole):
        assert opened.tokens(number).tolist() == tokens.tolist()
        assert opened.docs(number).tobytes() == docs.tobytes()
    assert opened.chunks > len(whole)  # and then the tails
    split = manifest.split("train")
    total = sum(len(stream(documents[5 * task : 5 * task + 5]).tokens) for task in range(6))
    assert split.tokens + split.tokens_left_over == total
    assert split.tokens == split.chunks * 64
    begun = sum(
        int(((opened.docs(i)["skipped"] == 0) & (opened.docs(i)["start"] < 64)).sum()) for i in range(split.chunks)
    )
    assert split.documents == begun
    assert split.documents <= 30
    assert not opened.tokens(0).flags.writeable


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    corpus(tmp_path / "a", texts(20), texts(5, first=50))
    corpus(tmp_path / "b", texts(20), texts(5, first=50))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_plain_webdataset_client_reads_it(small: Path) -> None:
    opened = Corpus.open(small)
    samples = list(webdataset.WebDataset(str(small / "train-00000.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["train-00000-000000", "train-00000-000001"]
    for number, sample in enumerate(samples):
        assert sample["tokens.npy"].tolist() == opened.tokens(number).tolist()
        assert sample["docs.npy"].tobytes() == opened.docs(number).tobytes()
    with tarfile.open(small / "train-00000.tar", "r:") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.uname, member.gname, member.pax_headers) == (0, 0, "", "", {})


@pytest.mark.parametrize("file", ["manifest.json", INDEX, "tokenizer.model", "train-00000.tar"])
def test_a_flipped_byte_anywhere_is_refused(small: Path, file: str) -> None:
    assert Corpus.open(small).chunks == 2
    clean = (small / file).read_bytes()
    stride = 37 if file == "tokenizer.model" else 1
    used = len(clean.rstrip(b"\0"))
    places = [*range(0, used, stride), *range(used, len(clean), 61), len(clean) - 1]
    damaged = bytearray(clean)
    with (small / file).open("r+b", buffering=0) as handle:
        for place in places:
            damaged[place] ^= 1 << place % 8
            handle.seek(place)
            handle.write(damaged[place : place + 1])
            with pytest.raises(DataError) as caught:
                read_all(small)
            assert file in str(caught.value)
            damaged[place] = clean[place]
            handle.seek(place)
            handle.write(damaged[place : place + 1])
    read_all(small)


@pytest.mark.parametrize("file", ["train-00000.tar", INDEX, "tokenizer.model", "manifest.json"])
def test_a_file_cut_short_is_refused(small: Path, file: str) -> None:
    clean = (small / file).read_bytes()
    for size in [*range(0, len(clean), 512), len(clean) - 1]:
        (small / file).write_bytes(clean[:size])
        with pytest.raises(DataError) as caught:
            Corpus.open(small)
        assert file in str(caught.value)
    (small / file).write_bytes(clean + b"\0")
    with pytest.raises(DataError, match=file):
        Corpus.open(small)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("manifest.json", "no finished corpus here\n  expected: .*manifest.json.*\n  found: a directory without"),
        (INDEX, "index.bin is damaged or missing\n.*\n  found: no such file"),
        ("tokenizer.model", "tokenizer.model is damaged or missing\n.*\n  found: no such file"),
        ("train-00000.tar", "train-00000.tar is cut short, overgrown or missing\n.*\n  found: no such file"),
    ],
)
def test_a_missing_file_is_refused(small: Path, file: str, message: str) -> None:
    (small / file).unlink()
    with pytest.raises(DataError, match=message):
        Corpus.open(small)


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        Corpus.open(tmp_path / "nowhere")


def test_no_such_split(small: Path) -> None:
    with pytest.raises(DataError, match="no split `test`\n  expected: train or heldout"):
        Corpus.open(small, "test")


def test_swapped_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_CHUNKS", 2)
    corpus(tmp_path, texts(30), chunk_tokens=64)
    a, b = (tmp_path / shard.file for shard in shards_of(tmp_path)[:2])
    assert a.stat().st_size == b.stat().st_size
    a.rename(tmp_path / "aside")
    b.rename(a)
    (tmp_path / "aside").rename(b)
    opened = Corpus.open(tmp_path)
    with pytest.raises(DataError, match=r"chunk 0 is damaged: its tokens, bytes \d+ to \d+ of .*train-00000.tar"):
        opened.tokens(0)
    with pytest.raises(DataError, match="chunk 2 is damaged: its docs"):
        opened.docs(2)
    opened.tokens(4)
    with pytest.raises(DataError, match="chunk 0 is damaged"):
        Corpus.open(tmp_path, verify_all=True)
    assert len(survey(tmp_path).damage) == 4


def test_a_shard_cut_after_opening_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_module, "LOOK_AGAIN_S", 0.0)
    shard = small / "train-00000.tar"
    opened, untouched = Corpus.open(small), Corpus.open(small)
    before = opened.tokens(0).tolist()
    whole = shard.read_bytes()
    end = whole.rindex(opened.tokens(1).tobytes())
    for size in (end + 8, end, 512, 0):
        with shard.open("r+b") as file:
            file.truncate(size)
        for corpus_of in (opened, untouched):  # mapped and verified before the cut; neither
            with pytest.raises(DamagedChunk, match=r"train-00000.tar is cut short or missing\n.*\n  found: \d+ bytes"):
                corpus_of.tokens(1)
    with pytest.raises(DamagedChunk, match="cut short or missing"):
        opened.docs(0)
    shard.write_bytes(whole)
    assert opened.tokens(0).tolist() == untouched.tokens(0).tolist() == before
    shard.unlink()
    assert opened.tokens(0).tolist() == before, "a mapping outlives the name of its file"


def test_a_file_cut_between_its_size_and_its_use_is_no_kill(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Corpus.open(small)
    populate = generation_module.Generation._populate

    def cut_first(*arguments: Any) -> None:
        (small / "train-00000.tar").write_bytes(b"")
        populate(*arguments)

    monkeypatch.setattr(generation_module.Generation, "_populate", cut_first)
    with pytest.raises(DamagedChunk, match="found: 0 bytes: Bad address"):
        opened.tokens(0)


def test_a_sector_that_cannot_be_read_costs_its_chunk(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad_sector(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.EIO, "as a disk that wears out says")

    opened = Corpus.open(small)
    monkeypatch.setattr(mmap, "mmap", bad_sector)
    with pytest.raises(
        DamagedChunk, match=r"train-00000.tar is cut short or missing\n.*\n  found: Input/output error\n"
    ):
        opened.tokens(0)


def lost(opened: Corpus) -> list[int]:
    """Chunks that are refused, each with its own name on it."""
    missing = []
    for chunk in range(opened.chunks):
        try:
            opened.tokens(chunk)
            opened.docs(chunk)
        except DamagedChunk as error:
            missing.append((error.split, error.chunk, error.corpus))
    chunks = [chunk for _, chunk, _ in missing]
    assert missing == [(opened.split, chunk, opened.path) for chunk in chunks]
    return chunks


def test_a_lenient_opening_loses_the_chunks_that_are_lost_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SHARD_CHUNKS", 4)
    first = corpus(tmp_path, texts(30), texts(4, first=50))
    grown = corpus(tmp_path / "gen-0001", texts(20, first=90), parent=first)
    chunks = [manifest.split("train").chunks for manifest in (first, grown)]
    assert lost(Corpus.open(tmp_path, lenient=True)) == []
    shard = tmp_path / "gen-0001" / "train-00000.tar"
    whole = shard.read_bytes()
    reference = Corpus.open(tmp_path)
    ends = [whole.index(reference.tokens(chunks[0] + i).tobytes()) for i in range(4)]
    ends = [end + 2 * 65 + -(end + 2 * 65) % 512 for end in ends]
    for size in range(0, len(whole) + 513, 256):
        shard.write_bytes(whole[:size] + bytes(max(0, size - len(whole))))
        if size != len(whole):
            with pytest.raises(DataError, match="cut short, overgrown or missing"):
                Corpus.open(tmp_path)
        held = sum(end <= size for end in ends)
        assert lost(Corpus.open(tmp_path, lenient=True)) == list(range(chunks[0] + held, chunks[0] + 4)), size
    shard.write_bytes(whole[:-1] + b"x")
    with pytest.raises(DataError, match="damaged at its end"):
        Corpus.open(tmp_path)
    assert lost(Corpus.open(tmp_path, lenient=True)) == []
    shard.unlink()
    assert lost(Corpus.open(tmp_path, lenient=True)) == list(range(chunks[0], chunks[0] + 4))
    assert lost(Corpus.open(tmp_path, "heldout", lenient=True)) == []
    with pytest.raises(DamagedChunk, match=f"chunk {chunks[0]} is damaged"):
        Corpus.open(tmp_path, lenient=True, verify_all=True)
    shard.mkdir()
    with pytest.raises(DataError, match=r"train-00000.tar cannot be read\n.*\n  found: Is a directory") as caught:
        Corpus.open(tmp_path, lenient=True).tokens(chunks[0])
    assert not isinstance(caught.value, DamagedChunk), "nothing is known to be lost"
    with pytest.raises(DataError, match="cannot be read"):
        Corpus.open(tmp_path)
    for name in ("manifest.json", INDEX, "tokenizer.model"):
        path = tmp_path / "gen-0001" / name
        clean = path.read_bytes()
        path.write_bytes(clean[:-1])
        with pytest.raises(DataError, match=name):
            Corpus.open(tmp_path, lenient=True)
        path.write_bytes(clean)


def test_a_damaged_chunk_crosses_processes_with_all_that_it_says(small: Path) -> None:
    shard = small / "heldout-00000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedChunk) as caught:
        Corpus.open(small, "heldout").docs(0)
    error = caught.value
    error.add_note("while a batch was read")
    for again in (pickle.loads(pickle.dumps(error)), ray.cloudpickle.loads(ray.cloudpickle.dumps(error)), copy(error)):  # noqa: S301
        assert type(again) is DamagedChunk
        assert (again.split, again.chunk, again.corpus, again.shard) == ("heldout", 0, small, shard)
        assert str(again) == str(error)
        assert again.__notes__ == ["while a batch was read"]
        assert again.exit_code == 3
    lines = str(error).split("\n")
    assert len(lines) <= 6
    assert lines[0].startswith("chunk 0 is damaged: its docs, bytes 0 to ")
    assert lines[0].endswith(str(shard))
    assert "restore the shard from a copy" in lines[-1]
    assert "data.bad_chunks=quarantine" not in lines[-1], "no order reads held-out text, so nothing replaces it"


def test_arrays_outlive_their_mapping_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_CHUNKS", 1)
    monkeypatch.setattr(generation_module, "_MAPPED_SHARDS", 2)
    corpus(tmp_path, texts(20), chunk_tokens=32)
    opened = Corpus.open(tmp_path)
    assert opened.manifest.split("train").shards > 6
    held = [opened.tokens(chunk) for chunk in range(opened.chunks)]
    copies = [tokens.tolist() for tokens in held]
    assert copies == [opened.tokens(chunk).tolist() for chunk in range(opened.chunks)]


def test_a_shard_that_became_another_file_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_CHUNKS", 2)
    monkeypatch.setattr(generation_module, "_MAPPED_SHARDS", 1)
    corpus(tmp_path, texts(20), chunk_tokens=32)
    opened = Corpus.open(tmp_path, verify_all=True)
    held, shard = opened.tokens(1), tmp_path / "train-00000.tar"
    damaged = shard.read_bytes().replace(held.tobytes(), bytes(held.nbytes))
    (tmp_path / "aside").write_bytes(damaged)
    (tmp_path / "aside").rename(shard)
    assert opened.tokens(1).tolist() == held.tolist(), "still the file that was verified"
    opened.tokens(2)  # its shard takes the other one's place
    opened.tokens(0)
    with pytest.raises(DamagedChunk, match="chunk 1 is damaged"):
        opened.tokens(1)


def test_a_wide_vocabulary_is_uint32_from_the_writer_to_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "wide"
    manifest = make_corpus(path, chunks=3, pieces=80_000)
    assert (manifest.token_dtype, manifest.vocab_size) == ("uint32", 80_000)
    opened = Corpus.open(path, verify_all=True)
    stream = np.concatenate([opened.tokens(chunk)[:-1] for chunk in range(3)])
    assert stream.dtype == np.uint32
    assert stream.max() > 65_535, "no token that needs more than two bytes"
    assert verify(path).tokens == 3 * 256 + 3 * 64
    config = run_config(tmp_path, {"wide": 1.0})
    data = open_run_data(config)
    rows = np.arange(3 * 8)
    batch = RowReader(data).read(rows)
    at = data.order.locate(rows)
    assert (batch.tokens[np.argsort(at.chunk * 256 + at.start)].ravel() == stream).all()
    # Readers are asked for as many bytes as they will answer with.
    ask = next(RankPlan(config, data, 0).train(0))
    answer = read_rows([opened], ask.places, 32)
    assert answer.tokens.nbytes == len(ask.places.chunk) * RankPlan(config, data, 0).row_bytes == 10 * 33 * 4
    samples = list(webdataset.WebDataset(str(path / "train-00000.tar"), shardshuffle=False).decode())
    assert all(sample["tokens.npy"].dtype == np.uint32 for sample in samples)
    assert (np.concatenate([sample["tokens.npy"][:-1] for sample in samples]) == stream).all()
    assert manifest_module.token_dtype(65536) == np.uint16
    assert manifest_module.token_dtype(65537) == np.uint32


# ------------------------------------------------------------------------------------------------ publishing


def publish_parts(directory: Path, parts: list[Part], **changed: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "tokenizer": tokenizer(),
        "chunk_tokens": {"train": 32, "heldout": 32},
        "left_over": {"train": 5, "heldout": 0},
        "recipe": {},
        "counts": {},
        "inputs": [],
    }
    return publish(directory, parts, **{**arguments, **changed})


def test_a_corpus_is_published_once(small: Path) -> None:
    before = files(small)
    with pytest.raises(DataError, match="there is a finished corpus already"):
        corpus(small, texts(9))
    assert {name: data for name, data in files(small).items() if not name.startswith(".")} == before


def test_of_two_publishers_one_wins(tmp_path: Path) -> None:
    class Rival(list[Any]):
        """Publishes between our look at the marker and our own publishing."""

        def __iter__(self) -> Any:
            (tmp_path / "manifest.json").write_text("the rival's")
            return super().__iter__()

    parts = write_parts(tmp_path, "train", "0", cut_chunks(stream(texts(3)), 32)[0])
    with pytest.raises(DataError, match="there is a finished corpus already"):
        publish_parts(tmp_path, parts, inputs=Rival())
    assert (tmp_path / "manifest.json").read_text() == "the rival's"


def test_a_publish_that_was_killed_is_done_again(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, "train", "0", cut_chunks(stream(texts(3)), 32)[0])
    (tmp_path / "train-00000.tar").write_bytes(b"half a link of another order")
    (tmp_path / "train-00007.tar").write_bytes(b"of a publish with more parts")
    (tmp_path / "index.bin").write_bytes(b"old")
    again = [Part.from_json(part.to_json(), tmp_path) for part in parts]
    assert [part.records.tolist() for part in again] == [part.records.tolist() for part in parts]
    publish_parts(tmp_path, again)
    assert survey(tmp_path).damage == ()


def test_no_chunk_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a single chunk.*\n  expected: 33 tokens for train.*\n  found: 5 tokens"):
        publish_parts(tmp_path, [])


def test_task_names_must_fit_keys(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"`a.b` cannot stand in a key"):
        write_parts(tmp_path, "train", "a.b", [])
    assert write_parts(tmp_path, "train", "0", []) == []
    assert list(tmp_path.iterdir()) == []


def test_a_field_of_the_recipe_may_have_the_name_of_the_manifests_hash(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, "train", "0", cut_chunks(stream(texts(3)), 32)[0])
    manifest = publish_parts(tmp_path, parts, counts={"manifest_hash": "x"}, inputs=[{"manifest_hash": "x"}])
    assert Manifest.load(tmp_path) == manifest
    assert Manifest.load(tmp_path).manifest_hash == manifest.manifest_hash


def test_a_manifest_is_loaded_without_rendering_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are hashed as they lie there."""

    def render(body: Any) -> bytes:
        raise AssertionError("rendered")

    monkeypatch.setattr(manifest_module, "_render", render)
    assert len(Manifest.load(small).manifest_hash) == 64


def test_a_part_is_written_under_a_name_of_this_host_and_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of two hosts may have the same number, and write the same part of a task at the same time."""
    seen: dict[str, list[str]] = {}
    chunks = cut_chunks(stream(texts(3)), 32)[0]
    for host in ("north", "south"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)

        def watched(host: str = host) -> Any:
            seen[host] = [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
            yield from chunks

        write_parts(tmp_path, "train", "0", watched())
    assert len(seen["north"]) == len(seen["south"]) == 1
    assert seen["north"] != seen["south"]
    assert [path.name for path in tmp_path.iterdir()] == ["train-0.000.tar"]


def test_a_manifest_that_was_changed_is_refused(small: Path) -> None:
    marker = small / "manifest.json"
    whole = marker.read_text()
    said = Manifest.load(small).manifest_hash
    lacking = {key: value for key, value in json.loads(whole).items() if key not in ("splits", "manifest_hash")}
    hashed = {**lacking, "manifest_hash": hashlib.sha256(manifest_module._render(lacking)).hexdigest()}
    for changed, expected, found in (
        (whole[:-9], "JSON as it was written", "JSONDecodeError: "),
        ("[]\n", "JSON as it was written", "TypeError: "),
        (whole.replace('"generation": 0', '"generation": 1'), f"manifest_hash {said[:16]}...", r"\w{16}\.\.\."),
        (manifest_module._render(hashed).decode(), "JSON as it was written", "KeyError: 'splits'"),
    ):
        marker.write_text(changed)
        with pytest.raises(
            DataError,
            match=rf"manifest\.json is damaged\n  expected: {re.escape(expected)}\n  found: {found}.*\n  do: restore",
        ):
            Manifest.load(small)


@pytest.mark.parametrize(("field", "value"), [("version", 1), ("format", "other-corpus")])
def test_other_formats_are_refused(small: Path, field: str, value: Any) -> None:
    record = json.loads((small / "manifest.json").read_text())
    record[field] = value
    (small / "manifest.json").write_bytes(manifest_module._render(record))
    with pytest.raises(DataError, match=f"format that this version cannot read\n.*version 2\n  found: .*{value}"):
        Manifest.load(small)


def test_other_index_versions_are_refused(small: Path) -> None:
    data = bytearray((small / INDEX).read_bytes())
    data[16] = 1
    (small / INDEX).write_bytes(data)
    record = json.loads((small / "manifest.json").read_text())
    record["index"]["sha256"] = hashlib.sha256(data[: record["index"]["head_bytes"]]).hexdigest()
    del record["manifest_hash"]
    record["manifest_hash"] = hashlib.sha256(manifest_module._render(record)).hexdigest()
    (small / "manifest.json").write_bytes(manifest_module._render(record))
    with pytest.raises(DataError, match=r"expected: fmscale-index version 2\n  found: fmscale-index version 1"):
        Corpus.open(small)


# ----------------------------------------------------------------------------------------------- generations


def test_generations_read_as_one_sequence(tmp_path: Path) -> None:
    first = corpus(tmp_path, texts(12), texts(3, first=50))
    alone = Corpus.open(tmp_path)
    second = corpus(tmp_path / "gen-0001", texts(9, first=20), texts(3, first=60), parent=first)
    corpus(tmp_path / "gen-0002", texts(5, first=30), parent=second)
    (tmp_path / "gen-0003").mkdir()  # being written: no marker, so not there
    chain = Corpus.open(tmp_path)
    assert chain.manifest.generation == 2
    counts = [
        Manifest.load(path).split("train").chunks for path in (tmp_path, tmp_path / "gen-0001", tmp_path / "gen-0002")
    ]
    assert chain.chunks == sum(counts)
    assert [chain.tokens(i).tolist() for i in range(counts[0])] == [alone.tokens(i).tolist() for i in range(counts[0])]
    later = Corpus.open(tmp_path / "gen-0001")
    assert chain.tokens(counts[0]).tolist() == later.tokens(0).tolist()
    assert chain.docs(counts[0] + counts[1] - 1).tobytes() == later.docs(counts[1] - 1).tobytes()
    base = Corpus.open(tmp_path, generation=0)
    assert (base.chunks, base.content_hash) == (counts[0], alone.content_hash)
    assert chain.content_hash != base.content_hash
    assert Corpus.open(tmp_path, "heldout").chunks == sum(
        Manifest.load(path).split("heldout").chunks for path in (tmp_path, tmp_path / "gen-0001")
    )
    report = verify(tmp_path)
    assert (report.generations, report.foreign) == (3, ("gen-0003",))
    assert inspect(tmp_path)["splits"]["train"]["chunks"] == sum(counts)


def test_a_generation_must_fit(tmp_path: Path) -> None:
    first = corpus(tmp_path, texts(12))
    with pytest.raises(DataError, match=r"its chunk_tokens does not fit\n  expected: .*64.*\n  found: .*32"):
        corpus(tmp_path / "gen-0001", texts(9), chunk_tokens=32, parent=first)
    corpus(tmp_path / "gen-0001", texts(9), parent=first)
    other = corpus(tmp_path / "other", texts(12, first=1))
    corpus(tmp_path / "other" / "gen-0001", texts(9), parent=other)
    shutil.copytree(tmp_path / "gen-0001", tmp_path / "aside")
    shutil.copytree(tmp_path / "other" / "gen-0001", tmp_path / "gen-0001", dirs_exist_ok=True)
    with pytest.raises(DataError, match=f"its parent does not fit\n  expected: {first.manifest_hash}"):
        Corpus.open(tmp_path)
    shutil.rmtree(tmp_path / "gen-0001")
    (tmp_path / "aside").rename(tmp_path / "gen-0002")
    with pytest.raises(DataError, match=r"no finished corpus here\n  expected: .*gen-0001"):
        Corpus.open(tmp_path)
    corpus(tmp_path / "gen-0001", texts(3), parent=first)
    with pytest.raises(DataError, match="gen-0002 is no further generation of the corpus: its generation does not fit"):
        Corpus.open(tmp_path)


# -------------------------------------------------------------------------------------------- survey, inspect


def test_survey_names_all_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_CHUNKS", 2)
    corpus(tmp_path, texts(30), texts(4, first=50))
    shards = shards_of(tmp_path)
    sizes: list[int] = []
    assert survey(tmp_path, sizes.append).damage == ()
    assert sizes == [shard.bytes for shard in shards]
    (tmp_path / "train-00001.tar").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"?")
    (tmp_path / "train-00099.tar").write_bytes(b"a stranger")
    data = bytearray((tmp_path / "heldout-00000.tar").read_bytes())
    data[600] ^= 1
    (tmp_path / "heldout-00000.tar").write_bytes(data)
    report = survey(tmp_path)
    assert len(report.damage) == 3
    for name, line in zip(("tokenizer.model", "train-00001.tar", "heldout-00000.tar"), report.damage, strict=True):
        assert name in str(line)
        assert "\n" not in str(line)
    assert report.foreign == ("train-00099.tar",)
    assert report.chunks == sum(shard.chunks for shard in shards) - 3
    assert "3 places damaged" in str(report)
    with pytest.raises(DataError, match=r"damaged in 3 places\n  expected: .*\n  found: .*tokenizer.model"):
        verify(tmp_path)


def chunk(tokens: list[int], lengths: list[int]) -> Stream:
    return Stream(np.array(tokens, np.uint16), make_docs(lengths, [(0, i) for i in range(len(lengths))], 0, 0))


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([chunk([9, 2, 9, 9, 9], [2, 2])], "its documents do not tile its 5 tokens"),
        ([chunk([9, 9, 9, 9, 600], [5])], "token 600 is outside the vocabulary of 512"),
        ([chunk([9, 9, 9, 9, 9], [2, 3])], "a document does not end in EOS"),
        ([chunk([9, 9, 9, 9, 9], [5]), chunk([8, 9, 9, 9, 9], [5])], "begins with token 8, not with 9"),
    ],
)
def test_survey_finds_what_was_written_wrong(tmp_path: Path, chunks: list[Stream], message: str) -> None:
    publish_parts(tmp_path, write_parts(tmp_path, "train", "0", chunks), chunk_tokens={"train": 4, "heldout": 4})
    assert message in str(survey(tmp_path).damage[0])


def test_survey_finds_parts_in_disorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_CHUNKS", 1)
    parts = write_parts(tmp_path, "train", "0", cut_chunks(stream(texts(4)), 32)[0])
    other = write_parts(tmp_path, "train", "1", cut_chunks(stream(texts(4)), 32)[0])
    publish_parts(tmp_path / "a", [parts[0], parts[2], *other[1:]])
    assert [str(line).split(": ")[1] for line in survey(tmp_path / "a").damage] == [
        "chunk 2 of train-0 stands after 0",
        "its task train-1 begins with chunk 1",
    ]


def test_inspect_is_plain_json(small: Path) -> None:
    found = json.loads(json.dumps(inspect(small)))
    assert found["splits"]["train"] == {
        "chunk_tokens": 32,
        "chunks": 2,
        "tokens": 64,
        "documents": 1,
        "tokens_left_over": Manifest.load(small).split("train").tokens_left_over,
    }
    assert text(1).startswith(found["first_document"]["text"])
    assert found["vocab_size"] == 512
    assert DOC_DTYPE.itemsize == 44
