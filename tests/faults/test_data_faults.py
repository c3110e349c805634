"""Damage to a corpus: whatever is done to its files, no token that was not written comes out of a loader.

Each fault is done to real files and read through the path of a run: `open_run_data`, `read_rows`. The law is that of
`read_or_refused`: a chunk comes as it was written, or it is refused under its own name.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmscale.config import Config
from fmscale.corpus import generation
from fmscale.corpus import manifest as manifest_module
from fmscale.corpus.chunks import Stream, cut_chunks, make_docs
from fmscale.corpus.index import CHUNK_DTYPE, SHARD_DTYPE, content_hash, region_hash, write_index
from fmscale.corpus.index import FILE as INDEX
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.rows import Places, read_rows
from fmscale.corpus.shards import Corpus, DamagedChunk, open_splits
from fmscale.corpus.sources import RunData, open_run_data
from fmscale.corpus.verify import survey
from fmscale.corpus.writer import publish, write_parts
from fmscale.errors import DataError
from tests.corpora import make_corpus, run_config, vocabulary

CHUNKS, CHUNK, ROW = 11, 256, 32
SHARD = "train-00000.tar"
Rows = dict[tuple[str, int], tuple[Any, Any]]
"""Tokens and document starts by split and chunk."""


def publish_tokens(directory: Path, tokens: list[int]) -> None:
    """A train split of these tokens, in documents of 50."""
    words = vocabulary(460)
    docs = make_docs([50] * (len(tokens) // 50) + [len(tokens) % 50], [(0, 0)] * (len(tokens) // 50 + 1), 0, 0)
    chunks, _ = cut_chunks(Stream(np.array(tokens, words.dtype), docs), CHUNK)
    work = directory / ".work"
    work.mkdir(parents=True)
    publish(
        directory,
        write_parts(work, "train", "00000", chunks),
        tokenizer=words,
        chunk_tokens={"train": CHUNK, "heldout": CHUNK},
        left_over={"train": 0, "heldout": 0},
        recipe={},
        counts={},
        inputs=[],
    )
    shutil.rmtree(work)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean")
    make_corpus(root / "web", chunks=CHUNKS, chunk_tokens=CHUNK, seed=1)
    make_corpus(root / "books", chunks=CHUNKS, chunk_tokens=CHUNK, seed=2)
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """A copy of both corpora, to be damaged."""
    for name in ("web", "books"):
        shutil.copytree(clean / name, tmp_path / name)
    return tmp_path


def config_of(root: Path, *names: str, **changes: Any) -> Config:
    config = run_config(root, {name: 1.0 / len(names) for name in names}, seq_len=ROW)
    return replace(config, data=replace(config.data, **changes))


def rows_of(data: RunData, source: int, split: str, chunk: int) -> tuple[Any, Any]:
    corpora = data.corpora(split)
    count = corpora[source].chunk_tokens // ROW
    places = Places(np.full(count, source, np.int32), np.full(count, chunk), np.arange(count) * ROW)
    found = read_rows(corpora, places, ROW, documents=True)
    starts = found.document_starts()
    assert starts is not None
    return found.tokens.tolist(), starts.tolist()


def every_chunk(data: RunData, source: int = 0) -> Iterator[tuple[str, int]]:
    for split in ("train", "heldout"):
        yield from ((split, chunk) for chunk in range(data.corpora(split)[source].chunks))


def read_all(root: Path, *names: str) -> list[Rows]:
    data = open_run_data(config_of(root, *names))
    return [{at: rows_of(data, s, *at) for at in every_chunk(data, s)} for s in range(len(names))]


@pytest.fixture(scope="module")
def written(clean: Path) -> Rows:
    """Of the corpus `web`."""
    return read_all(clean, "web")[0]


def read_or_refused(data: RunData, written: Rows, source: int = 0) -> set[tuple[str, int]]:
    """The chunks that are refused, each under its own name; each of the others is read, and is as it was written."""
    refused = set()
    for at in every_chunk(data, source):
        try:
            rows = rows_of(data, source, *at)
        except DamagedChunk as error:
            assert (error.split, error.chunk) == at  # noqa: PT017
            assert error.place == (source, at[1])  # noqa: PT017
            refused.add(at)
        else:
            assert rows == written[at], f"wrong tokens of {at}"
    return refused


def regions(corpus: Path) -> list[tuple[int, int]]:
    """[start, end) of each train chunk in the only train shard."""
    records = records_of(corpus)[:CHUNKS]
    return [(int(record["start"]), int(record["end"])) for record in records]


# ------------------------------------------------------------------------------------------- cut, lost, emptied


def test_a_shard_cut_anywhere_is_refused_and_what_is_whole_of_it_is_read(root: Path, written: Rows) -> None:
    """At every block of the tar, in the middle of blocks, and at the bytes around the ends of chunks."""
    shard = root / "web" / SHARD
    whole = shard.read_bytes()
    chunks = regions(root / "web")
    sizes = {*range(0, len(whole), 512), *range(100, len(whole), 1536), len(whole) - 1, len(whole) - 1024}
    sizes |= {end + by for _, end in chunks for by in (-1, 1)}
    strict, lenient = config_of(root, "web"), config_of(root, "web", bad_chunks="quarantine")
    for size in sorted(sizes):
        shard.write_bytes(whole[:size])
        with pytest.raises(DataError, match=f"{SHARD} is cut short, overgrown or missing") as caught:
            open_run_data(strict)
        assert f"expected: {len(whole)} bytes\n  found: {size} bytes" in str(caught.value)
        lost = {("train", chunk) for chunk, (_, end) in enumerate(chunks) if end > size}
        assert read_or_refused(open_run_data(lenient), written) == lost, size


@pytest.mark.parametrize(
    "fault", ["missing", "empty", "no end blocks", "half an end block", "a byte more", "a tar more"]
)
def test_a_shard_of_another_length_is_refused_at_the_opening(root: Path, written: Rows, fault: str) -> None:
    shard = root / "web" / SHARD
    whole = shard.read_bytes()
    used = regions(root / "web")[-1][1]
    content = {
        "empty": b"",
        "no end blocks": whole[:used],
        "half an end block": whole[: used + 256],
        "a byte more": whole + b"\0",
        "a tar more": whole + whole,
    }
    shard.unlink()
    if fault in content:
        shard.write_bytes(content[fault])
    with pytest.raises(DataError, match=f"{SHARD} is cut short, overgrown or missing"):
        open_run_data(config_of(root, "web"))
    lost = {at for at in written if at[0] == "train"} if fault in ("missing", "empty") else set()
    assert read_or_refused(open_run_data(config_of(root, "web", bad_chunks="quarantine")), written) == lost


def test_a_shard_cut_while_it_is_read_is_an_error_and_no_kill(
    root: Path, written: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "LOOK_AGAIN_S", 0.0)
    shard = root / "web" / SHARD
    data = open_run_data(config_of(root, "web"))
    assert read_or_refused(data, written) == set()
    with shard.open("r+b") as file:
        file.truncate(size := regions(root / "web")[4][1])
    lost = {("train", chunk) for chunk, (_, end) in enumerate(regions(root / "web")) if end > size}
    assert read_or_refused(data, written) == lost


# -------------------------------------------------------------------------------------------------------- flips


def flips(root: Path, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """File, place and mask: spread over the four kinds of files of a corpus, the shards getting half."""
    rng = random.Random(seed)
    files = [SHARD, SHARD, SHARD, "heldout-00000.tar", INDEX, "manifest.json", "tokenizer.model", INDEX]
    for number in range(count):
        path = root / "web" / files[number % len(files)]
        yield path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8)


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def every_flip_is_found(root: Path, written: Rows, count: int, seed: int) -> None:
    config = config_of(root, "web")
    for path, place, mask in flips(root, count, seed):
        flip(path, place, mask)
        try:
            data = open_run_data(config)
        except DataError as error:
            assert path.name in str(error), (place, mask)  # noqa: PT017
        else:
            assert path.suffix == ".tar", f"opened with a flip in {path.name} at {place}"
            assert len(read_or_refused(data, written)) == 1, f"{path.name} at {place}: one chunk holds the byte"
        flip(path, place, mask)
    assert read_or_refused(open_run_data(config), written) == set()


def test_of_1000_flipped_bits_every_one_is_found(root: Path, written: Rows) -> None:
    every_flip_is_found(root, written, 1000, seed=3)


@pytest.mark.slow
def test_of_10000_flipped_bits_every_one_is_found(root: Path, written: Rows) -> None:
    every_flip_is_found(root, written, 10_000, seed=4)


# ----------------------------------------------------------------------------------------- other files, same names


def test_shards_that_were_swapped_are_refused_in_both_corpora(root: Path) -> None:
    assert (root / "web" / SHARD).stat().st_size == (root / "books" / SHARD).stat().st_size
    (root / "web" / SHARD).rename(root / "aside")
    (root / "books" / SHARD).rename(root / "web" / SHARD)
    (root / "aside").rename(root / "books" / SHARD)
    data = open_run_data(config_of(root, "web", "books"))
    for source in (0, 1):
        for chunk in range(CHUNKS):
            with pytest.raises(DamagedChunk, match=f"chunk {chunk} is damaged") as caught:
                rows_of(data, source, "train", chunk)
            assert caught.value.corpus == root / data.order.sources[source].name


def test_sources_whose_shards_have_the_same_names_are_not_mixed_up(root: Path, clean: Path) -> None:
    apart = {name: read_all(clean, name)[0] for name in ("web", "books")}
    data = open_run_data(config_of(root, "web", "books"))
    names = [source.name for source in data.order.sources]
    for source, name in enumerate(names):
        assert read_or_refused(data, apart[name], source) == set()
    flip(root / "books" / SHARD, 600, 1)
    data = open_run_data(config_of(root, "web", "books"))
    assert read_or_refused(data, apart["web"], names.index("web")) == set()
    assert read_or_refused(data, apart["books"], names.index("books")) == {("train", 0)}


def test_a_stale_shard_of_the_same_name_and_size_is_refused_where_it_differs(tmp_path: Path) -> None:
    rng = random.Random(0)
    tokens = [rng.randrange(3, 460) for _ in range(CHUNKS * CHUNK + 1)]
    publish_tokens(tmp_path / "old", tokens)
    tokens[700] ^= 1
    publish_tokens(tmp_path / "new", tokens)
    written = read_all(tmp_path, "new")[0]
    shutil.copyfile(tmp_path / "old" / SHARD, tmp_path / "new" / "aside")
    assert (tmp_path / "new" / "aside").stat().st_size == (tmp_path / "new" / SHARD).stat().st_size
    (tmp_path / "new" / "aside").rename(tmp_path / "new" / SHARD)
    assert read_or_refused(open_run_data(config_of(tmp_path, "new")), written) == {("train", 2)}


def test_a_shard_of_the_same_name_of_another_directory_is_refused(root: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "longer", chunks=CHUNKS + 1, chunk_tokens=CHUNK, seed=1)
    shutil.copyfile(tmp_path / "longer" / SHARD, root / "web" / SHARD)
    with pytest.raises(DataError, match=f"web/{SHARD} is cut short, overgrown or missing"):
        open_run_data(config_of(root, "web"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([INDEX], "index.bin is damaged or missing"),
        (["manifest.json"], "index.bin is damaged or missing"),
        ([INDEX, "manifest.json"], "chunk 0 is damaged"),
        (["tokenizer.model"], "tokenizer.model is damaged or missing"),
    ],
)
def test_files_of_another_corpus_are_refused(root: Path, names: list[str], message: str) -> None:
    make_corpus(root / "other", chunks=CHUNKS, chunk_tokens=CHUNK, seed=9, pieces=470)
    for name in names:
        shutil.copyfile(root / ("other" if name == "tokenizer.model" else "books") / name, root / "web" / name)
    with pytest.raises(DataError, match=message):
        read_all(root, "web")


# ---------------------------------------------------------------------------------- consistent with each other


def rewrite(corpus: Path, records: Any, **changes: Any) -> None:
    """Index and manifest made anew around these records, as a tool would that means well or ill."""
    shards = np.frombuffer(index_body(corpus), SHARD_DTYPE, offset=records.nbytes)
    record = {**json.loads((corpus / "manifest.json").read_text()), **changes}
    record["index"] = asdict(write_index(corpus, records, shards))
    del record["manifest_hash"]
    record["manifest_hash"] = hashlib.sha256(manifest_module._render(record)).hexdigest()
    (corpus / "manifest.json").write_bytes(manifest_module._render(record))


def records_of(corpus: Path) -> Any:
    chunks = sum(split.chunks for split in Manifest.load(corpus).splits.values())
    return np.frombuffer(index_body(corpus), CHUNK_DTYPE, chunks).copy()


def index_body(corpus: Path) -> bytes:
    return (corpus / INDEX).read_bytes()[Manifest.load(corpus).index.head_bytes :]


def test_reordered_chunks_are_refused_by_the_content_hash_and_then_by_the_run(root: Path) -> None:
    config = config_of(root, "web")
    began_with = open_run_data(config).order.fingerprint()
    records = records_of(root / "web")
    records[[2, 5]] = records[[5, 2]]
    rewrite(root / "web", records)
    with pytest.raises(DataError, match=r"index.bin is damaged or missing\n  expected: chunks with content_hash"):
        open_run_data(config)
    with pytest.raises(DataError, match="other ones, or reordered"):
        survey(root / "web")
    rewrite(root / "web", records, content_hash=content_hash([records]))
    assert open_run_data(config).order.fingerprint() != began_with, "another corpus: no checkpoint of the run fits it"
    assert "stands after" in str(survey(root / "web").damage[0])


def test_a_member_that_claims_8_gib_is_refused_or_never_believed(root: Path, written: Rows) -> None:
    """A reader goes by the index: the size in a tar header is hashed, and asked by nobody."""
    shard = root / "web" / SHARD
    records = records_of(root / "web")
    record = records[3]
    at = int(record["tokens_start"])
    header = bytearray(shard.read_bytes()[at : at + 512])
    header[124:136] = b"\x80" + (8 << 30).to_bytes(11, "big")  # GNU's form of sizes from 8 GiB on
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with shard.open("r+b") as file:
        file.seek(at)
        file.write(header)
    assert read_or_refused(open_run_data(config_of(root, "web")), written) == {("train", 3)}
    whole = shard.read_bytes()
    record["tokens_hash"] = np.void(region_hash(whole[at : int(record["end"])]))
    rewrite(root / "web", records, content_hash=content_hash([records]))
    assert read_or_refused(open_run_data(config_of(root, "web")), written) == set()
    assert Corpus.open(root / "web").tokens(3).nbytes == 2 * (CHUNK + 1)


def read_both(opened: Corpus, chunk: int) -> None:
    opened.tokens(chunk)
    opened.docs(chunk)


def test_an_index_that_points_outside_its_members_is_refused(root: Path) -> None:
    """Nothing is handed out that was not hashed, even where index and manifest agree."""
    outside = r"do not hold what its index record says\n  expected: its array inside\n  found: bytes \d+ to \d+\n"
    for field, value in (("tokens_data", 0), ("docs_data", 1 << 20), ("documents", 1 << 20), ("end", 1 << 40)):
        shutil.rmtree(root / "web")
        make_corpus(root / "web", chunks=CHUNKS, chunk_tokens=CHUNK, seed=1)
        records = records_of(root / "web")
        records[3][field] = value
        rewrite(root / "web", records, content_hash=content_hash([records]))
        opened = open_splits(root / "web", lenient=True)["train"]
        with pytest.raises(DamagedChunk, match=rf"chunk 3 is damaged: .*{outside}"):
            read_both(opened, 3)
