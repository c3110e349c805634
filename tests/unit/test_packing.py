"""Packing by the book: rows equal a slow best-fit-decreasing, nothing is lost, and a damaged plan is never read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data_pipeline.best_fit import best_fit
from data_pipeline.pack import open_generation, pack, report
from fmscale.config import Config
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.loader import RowReader
from fmscale.corpus.manifest import Manifest, generation_directory
from fmscale.corpus.order import spec_of
from fmscale.corpus.packing import Packed
from fmscale.corpus.packing_plan import PackingPlan, own_chunks, plan_directory
from fmscale.corpus.replay import replay
from fmscale.corpus.shards import Corpus
from fmscale.corpus.sources import begin_ledger, open_run_data, readable
from fmscale.corpus.steps import StepPlan
from fmscale.corpus.verify import survey
from fmscale.errors import ConfigError, DataError, MachineError
from launcher.cli_data import data_app
from tests.corpora import damage, document_corpus, grow_corpus, make_corpus, run_config

ROW = 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two tasks of documents from 1 to 90 tokens in chunks of 64."""
    rng = np.random.default_rng(5)
    document_corpus(tmp_path / "c", [rng.integers(1, 90, 20).tolist() for _ in range(2)])
    return tmp_path / "c"


# --------------------------------------------------------------------------------------------- the book


class Piece(NamedTuple):
    document: bytes
    tokens: tuple[int, ...]
    next_token: int | None
    """Of the same document."""


def pieces_by_the_book(corpus: Corpus, row_tokens: int, generation: int = 0) -> list[Piece]:
    """Token by token: a piece ends with its document, with the chunks of its task, and after U tokens."""
    pieces: list[Piece] = []
    expected = None  # document and offset in it, were the token the next one of the last piece's document
    for chunk in own_chunks(corpus.up_to(generation)):
        tokens = corpus.tokens(chunk).tolist()
        owners = [(d["id"].tobytes(), int(d["skipped"]) + i) for d in corpus.docs(chunk) for i in range(d["length"])]
        for at, (document, offset) in enumerate(owners[:-1]):
            following = tokens[at + 1] if owners[at + 1][0] == document else None
            if (document, offset) == expected and len(pieces[-1].tokens) < row_tokens:
                pieces[-1] = Piece(document, (*pieces[-1].tokens, tokens[at]), following)
            else:
                pieces.append(Piece(document, (tokens[at],), following))
            expected = (document, offset + 1)
    return pieces


def best_fit_by_the_book(lengths: Sequence[int], capacity: int) -> list[int]:
    room: list[int] = []
    filled_at: list[int] = []
    row_of = [0] * len(lengths)
    for time, piece in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fitting = [row for row in range(len(room)) if room[row] >= lengths[piece]]
        if not fitting:
            fitting = [len(room)]
            room.append(capacity)
            filled_at.append(0)
        row = min(fitting, key=lambda row: (room[row], -filled_at[row]))
        room[row] -= lengths[piece]
        filled_at[row] = time
        row_of[piece] = row
    return row_of


def rows_by_the_book(pieces: list[Piece], row_tokens: int) -> list[list[Piece]]:
    rows: dict[int, list[Piece]] = defaultdict(list)
    for piece, row in zip(pieces, best_fit_by_the_book([len(p.tokens) for p in pieces], row_tokens), strict=True):
        rows[row].append(piece)
    return list(rows.values())  # by their first pieces


def blocks_by_the_book(corpus: Corpus, row_tokens: int, rows_per_block: int) -> list[tuple[list[int], list[int], int]]:
    """What the rows hold, generation after generation, each without what fills no block."""
    found = []
    for generation in range(corpus.manifest.generation + 1):
        rows = rows_by_the_book(pieces_by_the_book(corpus, row_tokens, generation), row_tokens)
        found += [laid_out(row, row_tokens) for row in rows[: len(rows) // rows_per_block * rows_per_block]]
    return found


def laid_out(row: list[Piece], row_tokens: int) -> tuple[list[int], list[int], int]:
    """(tokens [U + 1], where pieces start, tokens that are there)."""
    tokens = [token for piece in row for token in piece.tokens]
    starts = np.cumsum([0, *(len(piece.tokens) for piece in row[:-1])]).tolist()
    last = row[-1].next_token
    if len(tokens) == row_tokens and last is not None:
        tokens.append(last)
    return tokens + [0] * (row_tokens + 1 - len(tokens)), starts, len(tokens)


def read_all(packed: Packed) -> list[tuple[list[int], list[int], int]]:
    out, starts = np.full(packed.row_tokens + 1, -5, np.int32), np.ones(packed.row_tokens + 1, bool)
    rows = []
    for block in range(packed.blocks):
        for row in range(packed.rows_per_block):
            there = packed.read_row(block, row, out, starts)
            rows.append((out.tolist(), np.flatnonzero(starts).tolist(), there))
    return rows


def directory_of(packed: Packed) -> Path:
    """Of the newest plan."""
    return plan_directory(packed.corpus, packed.row_tokens)


def grow(base: Path, tasks: list[list[int]], chunk_tokens: int = 64) -> Corpus:
    """A further generation of the corpus, without a plan."""
    newest = Corpus.open(base).manifest
    number = newest.generation + 1
    document_corpus(generation_directory(base, number), tasks, chunk_tokens, seed=number, parent=newest)
    return Corpus.open(base)


def cuts_by_the_book(corpus: Corpus, tasks: list[list[int]], row_tokens: int) -> tuple[int, int, int]:
    """(documents that begin, those packing cuts, those slicing cuts)."""
    docs = np.concatenate([corpus.docs(chunk) for chunk in range(corpus.chunks)])
    lengths = {doc["id"].tobytes(): tasks[doc["file"]][doc["record"]] for doc in docs}
    sliced: dict[bytes, set[tuple[int, int]]] = defaultdict(set)
    seen: Counter[bytes] = Counter()
    begin: set[bytes] = set()
    for chunk in range(corpus.chunks):
        for doc in corpus.docs(chunk):
            inputs = range(doc["start"], min(doc["start"] + doc["length"], corpus.chunk_tokens))
            key = doc["id"].tobytes()
            rows = {(chunk, at // row_tokens) for at in inputs}
            sliced[key] |= {r if r[1] < corpus.chunk_tokens // row_tokens else (chunk, -1) for r in rows}
            seen[key] += len(inputs)
            begin |= {key} if doc["skipped"] == 0 and len(inputs) else set()
    whole = Counter(piece.document for piece in pieces_by_the_book(corpus, row_tokens))
    packed_cuts = sum(whole[key] > 1 or seen[key] < lengths[key] for key in begin)
    sliced_cuts = sum(
        len(sliced[key]) > 1 or seen[key] < lengths[key] or any(row < 0 for _, row in sliced[key]) for key in begin
    )
    return len(begin), packed_cuts, sliced_cuts


documents = st.lists(
    st.lists(st.integers(1, 12) | st.integers(1, 120), min_size=1, max_size=25), min_size=1, max_size=3
)

# --------------------------------------------------------------------------------------------- laws


@settings(deadline=None)
@given(st.data())
def test_best_fit_is_that_of_the_book(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 40))
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    assert best_fit(np.array(lengths, np.int64), capacity).tolist() == best_fit_by_the_book(lengths, capacity)


@settings(max_examples=25, deadline=None)
@given(tasks=documents, row_tokens=st.integers(1, 32))
def test_rows_and_counts_are_those_of_the_book(tasks: list[list[int]], row_tokens: int) -> None:
    assume(sum(map(sum, tasks)) > 40)
    with TemporaryDirectory() as directory:
        document_corpus(Path(directory) / "c", tasks, chunk_tokens=32)
        corpus = Corpus.open(Path(directory) / "c")
        packed = pack(corpus, row_tokens)
        (plan,) = packed.plans
        pieces = pieces_by_the_book(corpus, row_tokens)
        rows = rows_by_the_book(pieces, row_tokens)
        in_blocks = rows[: plan.blocks * plan.rows_per_block]
        assert read_all(packed) == [laid_out(row, row_tokens) for row in in_blocks]

        assert sum(len(piece.tokens) for piece in pieces) == plan.tokens == corpus.chunks * 32
        left_over = rows[len(in_blocks) :]
        assert plan.left_over_rows == len(left_over) < plan.rows_per_block
        assert plan.left_over_tokens == sum(len(piece.tokens) for row in left_over for piece in row)
        assert plan.padding_tokens == sum(row_tokens - sum(len(p.tokens) for p in row) for row in in_blocks)
        assert (plan.rows, plan.pieces) == (len(rows), len(pieces))
        powers = Counter(str(1 << (len(row) - 1).bit_length()) for row in rows)
        assert plan.rows_by_pieces == dict(sorted(powers.items(), key=lambda item: int(item[0])))
        cut = cuts_by_the_book(corpus, tasks, row_tokens)
        assert (plan.documents, plan.cut_long + plan.cut_at_ends, plan.cut_by_slicing) == cut
        assert plan.documents == corpus.manifest.split("train").documents


@settings(max_examples=15, deadline=None)
@given(tasks=documents, row_tokens=st.integers(1, 32), group_rows=st.integers(1, 20))
def test_groups_cut_nothing_and_lose_nothing(tasks: list[list[int]], row_tokens: int, group_rows: int) -> None:
    assume(sum(map(sum, tasks)) > 40)
    with TemporaryDirectory() as directory:
        document_corpus(Path(directory) / "c", tasks, chunk_tokens=32)
        corpus = Corpus.open(Path(directory) / "c")
        packed = pack(corpus, row_tokens, group_rows=group_rows)
        found: Counter[tuple[int, ...]] = Counter()
        for tokens, starts, there in read_all(packed):
            assert there > row_tokens or sum(tokens[there:]) == 0
            bounds = [*starts, min(there, row_tokens)]
            found.update(tuple(tokens[a:b]) for a, b in pairwise(bounds))
        expected = Counter(piece.tokens for piece in pieces_by_the_book(corpus, row_tokens))
        assert found <= expected
        assert (expected - found).total() == packed.plans[0].pieces - found.total()
        assert sum(len(p) * n for p, n in (expected - found).items()) == packed.plans[0].left_over_tokens
        cut = cuts_by_the_book(corpus, tasks, row_tokens)
        assert (packed.plans[0].documents, packed.plans[0].cut_long + packed.plans[0].cut_at_ends) == cut[:2]


def test_a_document_longer_than_many_groups(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c", chunks=9, chunk_tokens=64)
    corpus = Corpus.open(tmp_path / "c")
    packed = pack(corpus, 24, group_rows=2)
    stream = [*(token for chunk in range(9) for token in corpus.tokens(chunk)[:-1]), corpus.tokens(8)[-1]]
    assert [row for row, _, _ in read_all(packed)] == [stream[at : at + 25] for at in range(0, 576, 24)]
    assert (packed.plans[0].documents, packed.plans[0].cut_long, packed.plans[0].padding_tokens) == (1, 1, 0)


@settings(max_examples=12, deadline=None)
@given(tasks=st.lists(documents, min_size=2, max_size=3), row_tokens=st.integers(1, 32))
def test_generations_are_packed_one_behind_the_other(tasks: list[list[list[int]]], row_tokens: int) -> None:
    assume(all(sum(map(sum, further)) > 40 for further in tasks))
    with TemporaryDirectory() as directory:
        base = Path(directory) / "c"
        document_corpus(base, tasks[0], 32)
        packed = [pack(Corpus.open(base), row_tokens)]
        for further in tasks[1:]:
            packed.append(pack(grow(base, further, 32), row_tokens))
        corpus, newest = packed[-1].corpus, packed[-1]
        assert read_all(newest) == blocks_by_the_book(corpus, row_tokens, packed[0].rows_per_block)
        for generation, then in enumerate(packed):
            view = newest.up_to(generation)
            assert (view.content_hash, view.blocks, view.plans) == (then.content_hash, then.blocks, then.plans)
            assert read_all(then) == read_all(view) == read_all(newest)[: then.blocks * then.rows_per_block]
            assert then.plans[-1].documents == then.manifest.split("train").documents
            assert then.plans[-1].tokens == then.manifest.split("train").chunks * 32
        assert len({then.content_hash for then in packed}) == len(packed)
        found = survey(base)
        assert found.damage == found.foreign == ()


def test_plans_made_later_are_the_same(path: Path, tmp_path: Path) -> None:
    """All generations at once, each when it was added, and the older ones last."""
    shutil.copytree(path, tmp_path / "last")
    pack(Corpus.open(path), ROW)
    for base in (path, tmp_path / "last"):
        grow(base, [[90, 50, 61, 80]])
    pack(grow(path, [[40] * 9]), ROW)
    pack(grow(tmp_path / "last", [[40] * 9]), ROW)
    plans = [sorted(base.glob("packing-*")) for base in (path, tmp_path / "last")]
    names = [f"packing-train-U0000032-g000{generation}" for generation in range(3)]
    assert [[plan.name for plan in some] for some in plans] == [names, names]
    assert all(files(a) == files(b) for a, b in zip(*plans, strict=True))
    before = files(plans[0][0])
    shutil.rmtree(plans[0][0])
    pack(Corpus.open(path), ROW)
    assert files(plans[0][0]) == before


def test_a_generation_of_less_than_a_block_gives_no_rows(tmp_path: Path) -> None:
    document_corpus(tmp_path, [[30] * 300])
    first = pack(Corpus.open(tmp_path), 64)
    assert first.rows_per_block == 2
    few = pack(grow(tmp_path, [[70]]), 64)
    assert (few.blocks, few.plans[1].blocks) == (first.blocks, 0)
    assert (few.plans[1].left_over_rows, few.plans[1].left_over_tokens, few.plans[1].cut_long) == (1, 64, 1)
    assert report(few.plans[1])["blocks"] == "none: fewer than 2 rows, so nothing of this generation is read"
    assert report(few.plans[1])["left over"] == "1 rows, 64 tokens"
    assert few.content_hash != first.content_hash
    assert few.blocks_of(few.corpus.chunks - 1) == []
    more = pack(grow(tmp_path, [[30, 20, 25, 29] * 8]), 64)
    assert read_all(more) == blocks_by_the_book(more.corpus, 64, 2)
    assert more.blocks > first.blocks
    assert survey(tmp_path).damage == ()


def test_a_generation_without_a_chunk_to_train_on(tmp_path: Path) -> None:
    make_corpus(tmp_path, chunks=4)
    first = pack(Corpus.open(tmp_path), ROW)
    grow_corpus(tmp_path, chunks=0, heldout=1)
    packed = pack(Corpus.open(tmp_path), ROW)
    assert read_all(packed) == read_all(first)
    told = report(packed.plans[1])
    assert (told["tokens"], told["padding"], told["pieces per row"]) == ("0 of 0 documents", "0.0000%", "0.00")


@settings(max_examples=12, deadline=None)
@given(tasks=st.lists(documents, min_size=1, max_size=3), row_tokens=st.integers(1, 32), group_rows=st.integers(1, 20))
def test_blocks_of_a_chunk_are_those_that_read_it(
    tasks: list[list[list[int]]], row_tokens: int, group_rows: int
) -> None:
    assume(all(sum(map(sum, further)) > 40 for further in tasks))
    with TemporaryDirectory() as directory:
        document_corpus(Path(directory), tasks[0], 32)
        for further in tasks[1:]:
            grow(Path(directory), further, 32)
        packed = pack(Corpus.open(directory), row_tokens, group_rows=group_rows)
        asked: list[int] = []
        readers: dict[int, list[int]] = {chunk: [] for chunk in range(packed.corpus.chunks)}
        tokens, out = packed.corpus.tokens, np.empty(row_tokens + 1, np.int32)

        def noting(chunk: int) -> npt.NDArray[np.unsignedinteger]:
            asked.append(chunk)
            return tokens(chunk)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed.corpus, "tokens", noting)
            for block in range(packed.blocks):
                asked.clear()
                for row in range(packed.rows_per_block):
                    packed.read_row(block, row, out)
                for chunk in set(asked):
                    readers[chunk].append(block)
        assert {chunk: packed.blocks_of(chunk) for chunk in readers} == readers


def test_small_corpora_have_many_blocks_and_large_ones_large_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    document_corpus(tmp_path / "c", [rng.integers(1, 60, 3000).tolist()], chunk_tokens=1024)
    packed = pack(Corpus.open(tmp_path / "c"), 64)
    assert packed.rows_per_block == 16
    assert 64 <= packed.blocks < 128
    assert (packed.chunks, packed.chunk_tokens) == (packed.blocks, 16 * 64)


def test_the_same_input_gives_the_same_bytes_also_after_a_kill(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tasks = [rng.integers(1, 60, 400).tolist()]
    document_corpus(tmp_path / "a", tasks)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    pack(Corpus.open(tmp_path / "a"), ROW, group_rows=2)
    expected = files(plan_directory(Corpus.open(tmp_path / "a"), ROW))
    directory = plan_directory(Corpus.open(tmp_path / "b"), ROW)
    script = (
        "import sys; from fmscale.corpus.shards import Corpus; from data_pipeline.pack import pack\n"
        f"pack(Corpus.open(sys.argv[1]), {ROW}, lambda done: print(done, flush=True) or input(), group_rows=2)"
    )
    for chunks in (1, 70):
        command = [sys.executable, "-c", script, str(tmp_path / "b")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            print("go on\n" * chunks, end="", file=process.stdin, flush=True)
            for _ in range(chunks + 1):
                assert process.stdout.readline() == "128\n"
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert list(files(directory)) == [name for name in files(directory) if name.endswith(".tmp")] != []
        with pytest.raises(DataError, match="found: an unfinished plan"):
            Packed.open(Corpus.open(tmp_path / "b"), ROW)
    pack(Corpus.open(tmp_path / "b"), ROW, group_rows=2)
    assert files(directory) == expected
    (directory / "plan.json").unlink()  # killed just before the marker
    pack(Corpus.open(tmp_path / "b"), ROW, group_rows=2)
    assert files(directory) == expected


def test_two_builds_at_once_both_end_well(path: Path) -> None:
    script = "import sys; from launcher.cli_data import data_app; data_app(sys.argv[1:])"
    command = [sys.executable, "-c", script, "pack", str(path), "--row-tokens", str(ROW)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert sorted(files(plan_directory(Corpus.open(path), ROW))) == ["index.bin", "plan.bin", "plan.json"]
    assert survey(path).damage == survey(path).foreign == ()


# --------------------------------------------------------------------------------------------- faults


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_a_flipped_or_missing_byte_anywhere_is_refused(tmp_path: Path) -> None:
    document_corpus(tmp_path, [[40, 7, 90, 3, 60, 20, 80]], chunk_tokens=128)
    corpus = Corpus.open(tmp_path)
    packed = pack(corpus, ROW)
    clean = read_all(packed)
    for name, content in files(directory_of(packed)).items():
        file = directory_of(packed) / name
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            with pytest.raises(DataError, match=name):
                Packed.open(corpus, ROW).verify(0)
        for size in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:size])
            with pytest.raises(DataError, match=name):
                Packed.open(corpus, ROW)
        file.write_bytes(content + b"\0")
        with pytest.raises(DataError, match=name):
            Packed.open(corpus, ROW)
        file.write_bytes(content)
    assert read_all(Packed.open(corpus, ROW)) == clean


def test_a_damaged_block_is_refused_when_read_and_listed_by_verify(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    file = directory_of(packed) / "plan.bin"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    opened = Packed.open(Corpus.open(path), ROW)
    out = np.zeros(ROW + 1, np.uint16)
    opened.read_row(0, 0, out)
    message = r"plan\.bin is damaged or missing\n  expected: xxh3_128 \w{32} of bytes \d+ to \d+, block \d+\n  found: "
    with pytest.raises(DataError, match=message + r"\w{32}\n  do: remove the directory .* `fmscale data pack` again"):
        opened.read_row(opened.blocks - 1, 0, out)
    (line,) = survey(path).damage
    assert "plan.bin is damaged" in str(line)
    message = (
        r"a packing plan \(the corpus is whole\) is damaged in 1 place\n(?s:.*)  do: remove the directory .*-g0000 and"
    )
    with pytest.raises(DataError, match=message):
        survey(path).check()
    again = CliRunner().invoke(data_app, ["pack", str(path), "--row-tokens", str(ROW)])
    assert isinstance(again.exception, DataError), "a plan that is there is looked at, not only found"
    assert re.search(message.partition("do: ")[2], str(again.exception))
    assert "nothing to do" not in again.output


def test_a_plan_cut_after_opening_is_refused(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    os.truncate(directory_of(packed) / "plan.bin", 20)
    with pytest.raises(DataError, match=r"plan\.bin is damaged"):
        read_all(packed)


def test_an_index_cut_or_changed_after_opening_is_refused(path: Path) -> None:
    """Its records are read when they are needed: none is believed without the hash of its block."""
    packed = pack(Corpus.open(path), ROW)
    file = directory_of(packed) / "index.bin"
    content = file.read_bytes()
    for place in range(len(content) - 28, len(content)):
        packed = Packed.open(Corpus.open(path), ROW)
        file.write_bytes(bytes([*content[:place], content[place] ^ 0xFF, *content[place + 1 :]]))
        with pytest.raises(DataError, match=r"index\.bin is damaged .*\n  expected: xxh3_128"):
            packed.verify(0)
        file.write_bytes(content)
    os.truncate(file, 27)
    with pytest.raises(DataError, match=r"index\.bin is damaged .*\n.*\n  found: 0 bytes there"):
        packed.blocks_of(0)


@pytest.mark.parametrize("name", ["plan.json", "index.bin", "plan.bin"])
def test_a_file_that_cannot_be_read(path: Path, name: str) -> None:
    file = directory_of(pack(Corpus.open(path), ROW)) / name
    file.unlink()
    file.mkdir() if name == "plan.json" else file.symlink_to(name)
    with pytest.raises(DataError, match=rf"{name} cannot be read\n  expected: a readable file\n.*\n  do: mend its"):
        PackingPlan.load(file) if name == "plan.json" else Packed.open(Corpus.open(path), ROW)


@contextmanager
def as_a_user_who_may_not_write(directory: Path) -> Iterator[None]:
    """Root may write anywhere: it becomes another user."""
    was = os.geteuid()
    directory.chmod(0o555)
    try:
        if was == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(was)
        directory.chmod(0o755)


def test_a_corpus_that_may_not_be_written_is_packed_beside(path: Path) -> None:
    with TemporaryDirectory() as place:  # which any user may enter
        Path(place).chmod(0o777)
        base, copy = Path(place) / "c", Path(place) / "mine"
        shutil.copytree(path, base)
        corpus = Corpus.open(base)
        message = (
            rf"plan {base}/packing-train-U0000032-g0000 cannot be written\n  expected: a corpus directory with room, .*"
            rf"\n  found: Permission denied\n  do: mend that, or .*: `cp -rs --no-preserve=mode {base} D"
        )
        with as_a_user_who_may_not_write(base):
            with pytest.raises(MachineError, match=message):
                pack(corpus, ROW)
            subprocess.run(["cp", "-rs", "--no-preserve=mode", base, copy], check=True)
            packed = pack(Corpus.open(copy), ROW)
        assert not list(base.glob("packing-*"))
        assert packed.content_hash == pack(Corpus.open(base), ROW).content_hash


def test_a_full_disk(path: Path) -> None:
    """A limit on the size of files, which fails a write as a full disk does."""
    script = (
        "import resource, signal, sys; from fmscale.corpus.shards import Corpus; from data_pipeline.pack import pack\n"
        "corpus = Corpus.open(sys.argv[1]); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)); pack(corpus, 32)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert "MachineError: the packing plan" in done.stderr, done.stderr
    assert "found: File too large" in done.stderr
    assert [file.name for file in path.glob("packing-*/*")] == []


def test_files_that_are_missing(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    for name in ("index.bin", "plan.bin"):
        content = (directory_of(packed) / name).read_bytes()
        (directory_of(packed) / name).unlink()
        with pytest.raises(DataError, match=rf"{name} is damaged or missing\n.*\n  found: no such file"):
            Packed.open(Corpus.open(path), ROW)
        (directory_of(packed) / name).write_bytes(content)


def test_a_damaged_chunk_passes_through(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    damage(path, 3)
    with pytest.raises(DataError, match="chunk 3 is damaged: its tokens"):
        read_all(Packed.open(Corpus.open(path), ROW))
    assert packed.blocks


def test_no_plan(path: Path) -> None:
    message = (
        r"has no packing plan for rows of 32 tokens and generation 0\n  expected: .*packing-train-U0000032-g0000/"
        r"plan\.json\n  found: no such directory\n  do: run `fmscale data pack .*/c --row-tokens 32 --generation 0`"
    )
    with pytest.raises(DataError, match=message):
        Packed.open(Corpus.open(path), ROW)


def test_a_plan_for_another_generation_or_length_is_named(path: Path) -> None:
    pack(Corpus.open(path), ROW)
    with pytest.raises(DataError, match=r"rows of 16 tokens.*\n.*\n.*there are packing-train-U0000032-g0000\n"):
        Packed.open(Corpus.open(path), 16)
    document_corpus(path / "gen-0001", [[100]], seed=9, parent=Manifest.load(path))
    found = r"generation 1\n.*\n.*there are packing-train-U0000032-g0000\n  do: run .*--row-tokens 32 --generation 1`"
    with pytest.raises(DataError, match=found):
        Packed.open(Corpus.open(path), ROW)


def test_a_plan_of_another_corpus_is_refused(path: Path, tmp_path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    document_corpus(tmp_path / "d", [[90, 90]], seed=4)
    shutil.copytree(directory_of(packed), tmp_path / "d" / directory_of(packed).name)
    message = (
        r"is not of these chunks and rows\n  expected: content \w{16}\.\.\., train, generation 0, rows of 32\n"
        r"  found: content \w{16}\.\.\., train, generation 0, rows of 32\n  do: remove the directory and run"
    )
    for use in (Packed.open, pack):
        with pytest.raises(DataError, match=message):
            use(Corpus.open(tmp_path / "d"), ROW)
    directory_of(packed).rename(plan_directory(Corpus.open(path), 16))
    with pytest.raises(DataError, match=r"rows of 16\n.*rows of 32\n"):
        Packed.open(Corpus.open(path), 16)


def test_a_generation_without_a_plan_is_named(path: Path) -> None:
    pack(grow(path, [[100]]), ROW)
    pack(grow(path, [[90]]), ROW)
    shutil.rmtree(plan_directory(Corpus.open(path, generation=1), ROW))
    message = (
        r"tokens and generation 1\n  expected: .*-g0001/plan\.json\n.*\n  do: run .*--row-tokens 32 --generation 2`"
    )
    with pytest.raises(DataError, match=message):
        Packed.open(Corpus.open(path), ROW)
    assert Packed.open(Corpus.open(path, generation=0), ROW).blocks
    (fault,) = survey(path).damage  # the plan of generation 2 is of no use
    assert "no packing plan" in str(fault)


def test_damage_of_a_plan_is_told_once(path: Path) -> None:
    packed = pack(grow(path, [[100]]), ROW)
    (directory_of(packed.up_to(0)) / "index.bin").unlink()
    (fault,) = survey(path).damage
    assert "-g0000/index.bin is damaged or missing" in str(fault)


def test_a_generation_beyond_those_opened(path: Path) -> None:
    with pytest.raises(DataError, match="has no generation 1\n"):
        pack(Corpus.open(path), ROW).up_to(1)


def test_plans_of_different_blocks_are_refused(path: Path) -> None:
    packed = pack(grow(path, [[100, 90, 80]]), ROW)
    marker = directory_of(packed) / "plan.json"
    marker.write_bytes(replace(packed.plans[1], rows_per_block=4).render())
    message = (
        r"-g0001 has other blocks than that of generation 0\n  expected: 1 rows to a block\n  found: 4 rows to "
        r"a block\n  do: remove the directory and run `fmscale data pack .* --generation 1` again, or restore the "
    )
    with pytest.raises(DataError, match=message):
        Packed.open(Corpus.open(path), ROW)


def test_a_plan_of_another_version(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.corpus.packing_plan.VERSION", 1)
        raw = packed.plans[0].render()
    (directory_of(packed) / "plan.json").write_bytes(raw)
    with pytest.raises(DataError, match=r"cannot read\n  expected: fmscale-packing version 2\n  found: .* version 1"):
        Packed.open(Corpus.open(path), ROW)


def test_a_plan_json_that_was_changed(path: Path) -> None:
    marker = directory_of(pack(Corpus.open(path), ROW)) / "plan.json"
    whole = marker.read_text()
    for text, found in (
        (whole[:-9], "JSONDecodeError: "),
        ("[]\n", "TypeError: "),
        (
            whole.replace('"rows_per_block": ', '"rows_per_block": 1'),
            r"ValueError: not what its hash \w{16}\.\.\. is of",
        ),
    ):
        marker.write_text(text)
        with pytest.raises(
            DataError,
            match=rf"plan\.json is damaged .*\n  expected: JSON as it was written\n  found: {found}.*\n  do: remove",
        ):
            Packed.open(Corpus.open(path), ROW)


@pytest.mark.parametrize(
    ("row_tokens", "do"),
    [(0, "give the tokens of a row"), (-5, "give the tokens of a row"), (65, "give a --row-tokens of 64 or less")],
)
def test_rows_that_cannot_be_packed(path: Path, row_tokens: int, do: str) -> None:
    message = rf"rows of {row_tokens} tokens cannot .*\n  expected: 1 to 64 tokens.*\n  found: {row_tokens}\n  do: {do}"
    with pytest.raises(ConfigError, match=message):
        pack(Corpus.open(path), row_tokens)
    assert not list(path.glob("packing-*"))


def test_nothing_to_pack(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c", chunks=0)
    with pytest.raises(
        DataError, match="has nothing to pack\n  expected: chunks in its split train, in generation 0\n  found: none"
    ):
        pack(Corpus.open(tmp_path / "c"), ROW)


# --------------------------------------------------------------------------------------------- the command


def test_the_command_packs_once_and_says_what_came_of_it(path: Path, tmp_path: Path) -> None:
    command = ["pack", str(path), "--row-tokens", str(ROW)]
    first = CliRunner().invoke(data_app, command)
    assert first.exit_code == 0, first.output
    (plan,) = Packed.open(Corpus.open(path), ROW).plans
    for name, value in report(plan).items():
        assert f"{name:<22} {value}\n" in first.stdout
    assert f"{plan.cut_by_slicing / plan.documents:.2%}" in first.stdout
    before = files(plan_directory(Corpus.open(path), ROW))
    again = CliRunner().invoke(data_app, command)
    assert again.exit_code == 0
    assert "packing-train-U0000032-g0000 is there already, every byte as written: nothing to do\n" in again.stdout
    assert files(plan_directory(Corpus.open(path), ROW)) == before
    as_json = CliRunner().invoke(data_app, [*command, "--json"])
    assert json.loads(as_json.stdout) == json.loads(before["plan.json"])
    absent = CliRunner().invoke(data_app, ["pack", str(tmp_path / "none"), "--row-tokens", "32"])
    assert isinstance(absent.exception, DataError)
    assert "no finished corpus here" in str(absent.exception)


@pytest.mark.parametrize("generation", [-1, 3])
def test_the_command_names_the_generations_that_there_are(path: Path, tmp_path: Path, generation: int) -> None:
    message = (
        rf"c has no generation {generation}\n  expected: 0, the only one\n  found: --generation {generation}\n  do: "
    )
    with pytest.raises(ConfigError, match=message):
        open_generation(path, generation)
    grow(path, [[90, 80, 70]])
    with pytest.raises(ConfigError, match=rf"has no generation {generation}\n  expected: 0 to 1\n"):
        open_generation(path, generation)
    command = ["pack", str(path), "--row-tokens", str(ROW), "--generation", str(generation)]
    assert isinstance(CliRunner().invoke(data_app, command).exception, ConfigError)
    assert not list(path.glob("packing-*"))
    with pytest.raises(DataError, match="no finished corpus here"):
        open_generation(tmp_path / "none", generation)


def test_the_command_packs_the_generations_that_lack_a_plan(path: Path) -> None:
    command = ["pack", str(path), "--row-tokens", str(ROW)]
    grow(path, [[90, 80, 70]])
    grow(path, [[60, 80]])
    only = CliRunner().invoke(data_app, [*command, "--generation", "0"])
    assert only.exit_code == 0, only.output
    assert [plan.name[-5:] for plan in path.glob("packing-*")] == ["g0000"]
    rest = CliRunner().invoke(data_app, command)
    assert rest.exit_code == 0, rest.output
    assert "g0000 is there already, every byte as written: nothing to do\n" in rest.stdout
    plans = Packed.open(Corpus.open(path), ROW).plans
    names = [f"{path}/packing-train-U0000032-g000{generation}" for generation in range(3)]
    assert [line.split()[1] for line in rest.stdout.splitlines() if line.startswith("plan ")] == names
    assert rest.stdout.count("already") == 1
    as_json = CliRunner().invoke(data_app, [*command, "--json"])
    assert [json.loads(line) for line in as_json.stdout.splitlines()] == [plan.record() for plan in plans]


# --------------------------------------------------------------------------------------------- a run on it


def by_hand(packed: Packed, config: Config, rows: npt.NDArray[np.int64]) -> list[list[int]]:
    """Tokens [U] of rows of the run: the order's places, read one by one."""
    at, out, found = open_run_data(config).order.locate(rows), np.empty(ROW + 1, np.int32), []
    for block, start in zip(at.chunk.tolist(), at.start.tolist(), strict=True):
        packed.read_row(block, start // ROW, out)
        found.append(out[:ROW].tolist())
    return found


def read_by_the_run(config: Config, rows: npt.NDArray[np.int64]) -> list[list[int]]:
    tokens: list[list[int]] = RowReader(open_run_data(config)).read(rows).tokens.tolist()
    return tokens


def each_row_once(packed: Packed, config: Config, rows: npt.NDArray[np.int64]) -> bool:
    at = open_run_data(config).order.locate(rows)
    places = sorted(zip(at.chunk.tolist(), (at.start // ROW).tolist(), strict=True))
    return places == [(block, row) for block in range(packed.blocks) for row in range(packed.rows_per_block)]


def test_a_run_goes_on_over_a_corpus_that_has_grown(tmp_path: Path) -> None:
    base = tmp_path / "web"
    rng = np.random.default_rng(11)
    document_corpus(base, [rng.integers(1, 90, 70).tolist() for _ in range(2)])
    old = pack(Corpus.open(base), ROW)
    assert old.rows_per_block == 2
    config = run_config(tmp_path, {"web": 1.0})
    config = replace(config, data=replace(config.data, packing="best_fit"))
    begin_ledger(config)
    steps = 40  # more than two epochs
    assert steps * 10 > 2 * open_run_data(config).order.rows_per_epoch(0)
    begun = replay(config, 1, steps, 2)

    corpus = grow(base, [rng.integers(1, 90, 60).tolist()])
    assert replay(config, 1, steps, 2) == begun
    later = replace(config, run=replace(config.run, name="later"))
    with pytest.raises(DataError, match=r"generation 1\n(.*\n)*.*`fmscale data pack .* --generation 1`"):
        begin_ledger(later)
    new = pack(corpus, ROW)
    assert replay(config, 1, steps, 2) == begun

    # Step 6 is the first to read the grown corpus.
    spec = spec_of("web", readable(config, corpus), 1)
    payload = {"source": "web", "generation": 1, "chunks": new.blocks, "content_hash": new.content_hash}
    assert (spec.chunks, spec.content_hash) == (new.blocks, new.content_hash)
    ledger = Ledger().append("generation", payload, from_row=50, rows_consumed=50, steps=StepPlan.constant(10, ROW))
    ledger.save(config.run_dir / FILE_NAME)
    edited = replay(config, 1, steps, 2)
    assert edited[:5] == begun[:5]
    assert all(a["batch_hash"] != b["batch_hash"] for a, b in zip(edited[5:], begun[5:], strict=True))
    past, epoch = np.arange(50), np.arange(50, 50 + new.blocks * new.rows_per_block)
    assert read_by_the_run(config, past) == by_hand(old, config, past) == by_hand(new, config, past)
    assert read_by_the_run(config, epoch) == by_hand(new, config, epoch)
    assert each_row_once(new, config, epoch)
    assert each_row_once(new, config, epoch + len(epoch))

    begin_ledger(later)
    (pinned,) = open_run_data(later).order.ledger.entries
    assert (pinned.from_row, pinned.payload) == (0, payload)
    assert read_by_the_run(later, epoch - 50) == by_hand(new, later, epoch - 50)
    assert each_row_once(new, later, epoch - 50)


def test_plan_json_comes_back(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    assert PackingPlan.load(directory_of(packed) / "plan.json") == packed.plans[0]
