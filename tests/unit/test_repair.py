"""The repair report names what is lost, all of it, and no more than it can know."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from fmscale.corpus import writer
from fmscale.corpus.repair import repair_report, summary
from fmscale.corpus.shards import Corpus, DamagedChunk
from fmscale.corpus.verify import number_ranges, survey
from tests.word_corpora import corpus, texts

INPUTS = ("a.jsonl", "b.jsonl.gz", "c.txt")
CHUNK = 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks and their tails in shards of four chunks; held-out text; a further generation."""
    path = tmp_path_factory.mktemp("corpora") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_CHUNKS", 4)
        base = corpus(path, texts(60), texts(6, first=100), chunk_tokens=CHUNK, tasks=3, inputs=INPUTS)
        corpus(path / "gen-0001", texts(20, first=200), chunk_tokens=CHUNK, tasks=1, parent=base, inputs=INPUTS[:1])
    return path


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "damaged")
    return tmp_path / "damaged"


def report_of(path: Path) -> dict[str, Any]:
    """As a person gets it: through JSON."""
    report: dict[str, Any] = json.loads(json.dumps(repair_report(path, survey(path))))
    return report


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def place_of(path: Path, piece: bytes) -> int:
    return path.read_bytes().index(piece)


def test_a_corpus_without_damage_needs_no_repair(whole: Path) -> None:
    report = report_of(whole)
    assert (report["files"], report["chunks"], report["order_edits"], report["tokens_lost"]) == ([], [], [], 0)
    assert list(summary(report)) == []


def test_damaged_tokens_cost_documents_that_are_known(damaged: Path) -> None:
    docs, tokens = Corpus.open(damaged).docs(5).copy(), Corpus.open(damaged).tokens(5).tobytes()
    shard = damaged / "train-00001.tar"
    flip(shard, place := place_of(shard, tokens))
    report = report_of(damaged)
    (file,) = report["files"]
    (chunk,) = report["chunks"]
    assert (file["file"], chunk["file"]) == ("train-00001.tar", "train-00001.tar")
    assert file["expected_bytes"] == file["found_bytes"] == shard.stat().st_size
    ((begin, end),) = file["wrong_bytes"]
    assert begin <= place < end
    assert chunk["wrong"] == [{"member": "tokens", "bytes": [begin, end], "xxh3_128": chunk["wrong"][0]["xxh3_128"]}]
    assert (chunk["split"], chunk["chunk"], chunk["tokens_lost"]) == ("train", 5, CHUNK)
    assert [(d["input"], d["record"], d["tokens"], d["skipped"]) for d in chunk["documents"]] == [
        (INPUTS[d["file"]], d["record"], d["length"], d["skipped"]) for d in docs
    ]
    assert chunk["documents"][0]["id"] == "".join(f"{half:016x}" for half in docs["id"][0].tolist())
    assert chunk["inputs"] == report["inputs_to_prepare_again"] == ["a.jsonl"]
    assert chunk["order_edit"] == "fmscale order edit RUN quarantine SOURCE 5"
    lines = list(summary(report))
    assert lines[0] == f"lost: train chunks 5: 64 tokens; parts of {len(docs)} known documents"
    assert lines[2] == "  a.jsonl"
    assert lines[-1] == "  fmscale order edit RUN quarantine SOURCE 5"


def test_a_lost_document_table_is_bounded_by_its_neighbours(damaged: Path) -> None:
    opened = Corpus.open(damaged)
    docs = [opened.docs(chunk).copy() for chunk in range(8)]
    shard = damaged / "train-00001.tar"
    for chunk in (5, 6):
        flip(shard, place_of(shard, docs[chunk].tobytes()))
    five, six = report_of(damaged)["chunks"]
    assert five["tokens_lost"] == 0, "the tokens are there; only a run that reads document tables misses anything"
    assert five["documents"] is None
    assert five["documents_between"] == six["documents_between"]
    first, last = five["documents_between"]
    assert (first["record"], last["record"]) == (docs[4][-1]["record"], docs[7][0]["record"])
    assert five["inputs"] == ["a.jsonl"]


def test_held_out_chunks_are_no_matter_of_the_order(damaged: Path) -> None:
    (damaged / "heldout-00000.tar").unlink()
    report = report_of(damaged)
    assert {chunk["split"] for chunk in report["chunks"]} == {"heldout"}
    assert report["order_edits"] == []
    assert report["files"][0]["found_bytes"] is None
    assert report["chunks_of_unknown_inputs"] == len(report["chunks"])
    assert f"and {len(report['chunks'])} chunks of which the documents are unknown" in next(summary(report))


def test_files_without_chunks_are_named(damaged: Path) -> None:
    flip(damaged / "tokenizer.model", 100)
    shard = damaged / "train-00000.tar"
    flip(shard, size := shard.stat().st_size - 7)
    with (damaged / "train-00001.tar").open("ab") as file:
        file.write(bytes(100))
    report = report_of(damaged)
    assert [file["file"] for file in report["files"]] == ["tokenizer.model", "train-00000.tar", "train-00001.tar"]
    assert report["files"][1]["wrong_bytes"] == [[size, size + 1]]
    expected = report["files"][2]["expected_bytes"]
    assert report["files"][2]["wrong_bytes"] == [[expected, expected + 100]]
    assert report["chunks"] == []


def test_what_was_written_wrong_is_lost_though_its_bytes_hold(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmscale.corpus.verify._written_wrong", lambda part, *_: "" if part.first == 0 else "no good")
    report = report_of(damaged)
    assert report["chunks"][0]["wrong"] == []
    assert report["chunks"][0]["tokens_lost"] == CHUNK
    assert report["chunks"][0]["what"].endswith(": no good")


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_is_told_whole_and_truly(whole: Path, damaged: Path, seed: int) -> None:
    """Shards are flipped, overwritten, cut and lost at random: what is said covers what is so."""
    rng = random.Random(seed)
    shards = sorted(path for path in damaged.rglob("*.tar"))
    for shard in rng.sample(shards, rng.randint(1, 4)):
        data = bytearray(shard.read_bytes())
        begin = rng.randrange(len(data))
        kind = rng.choice(["flip", "overwrite", "cut", "lost"])
        if kind == "lost":
            shard.unlink()
            continue
        if kind == "overwrite":
            end = min(len(data), begin + rng.randrange(1, 5000))
            data[begin:end] = rng.randbytes(end - begin)
        if kind == "flip":
            data[begin] ^= 1 << rng.randrange(8)
        shard.write_bytes(data[:begin] if kind == "cut" else data)
    report = report_of(damaged)
    files = {file["file"]: file for file in report["files"]}
    for shard in shards:
        name = str(shard.relative_to(damaged))
        before, after = (whole / name).read_bytes(), shard.read_bytes() if shard.exists() else b""
        differ = [i for i in range(len(before)) if i >= len(after) or before[i] != after[i]]
        said = files[name]["wrong_bytes"] if name in files else []
        assert all(any(begin <= i < end for begin, end in said) for i in differ)
        assert bool(differ) == (name in files)
        assert not differ or files[name]["found_bytes"] == (len(after) if shard.exists() else None)
    for split in ("train", "heldout"):
        truth, now = Corpus.open(whole, split), Corpus.open(damaged, split, lenient=True)
        refused = []
        for chunk in range(now.chunks):
            try:
                now.tokens(chunk), now.docs(chunk)
            except DamagedChunk:
                refused.append(chunk)
        entries = [entry for entry in report["chunks"] if entry["split"] == split]
        assert [entry["chunk"] for entry in entries] == refused
        for entry in entries:
            docs = [(int(d["file"]), int(d["record"])) for d in truth.docs(entry["chunk"])]
            if entry["documents"] is not None:
                assert [(d["file"], d["record"]) for d in entry["documents"]] == docs
            elif entry["documents_between"]:
                first, last = ((d["file"], d["record"]) for d in entry["documents_between"])
                assert all(first <= place <= last for place in docs)
            if entry["inputs"] is not None:
                names = INPUTS if entry["chunk"] < truth._ends[0] else INPUTS[:1]
                assert {names[file] for file, _ in docs if file < len(names)} <= set(entry["inputs"])
        assert sum(entry["tokens_lost"] for entry in entries) <= CHUNK * len(entries)


def test_number_ranges() -> None:
    assert number_ranges([3]) == "3"
    assert number_ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"
