"""Packing by the book: rows equal a slow best-fit-decreasing, nothing is lost, and a damaged plan is never read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data_pipeline.best_fit import best_fit
from data_pipeline.pack import pack, report
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.packing import Packed
from fmscale.corpus.packing_plan import PackingPlan, plan_directory
from fmscale.corpus.shards import Corpus
from fmscale.corpus.verify import survey
from fmscale.errors import DataError
from launcher.cli_data import data_app
from tests.corpora import damage, document_corpus, make_corpus

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


def pieces_by_the_book(corpus: Corpus, row_tokens: int) -> list[Piece]:
    """Token by token: a piece ends with its document, with the chunks of its task, and after U tokens."""
    pieces: list[Piece] = []
    expected = None  # document and offset in it, were the token the next one of the last piece's document
    for chunk in range(corpus.chunks):
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
        plan = packed.plan
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
        assert (expected - found).total() == packed.plan.pieces - found.total()
        assert sum(len(p) * n for p, n in (expected - found).items()) == packed.plan.left_over_tokens
        cut = cuts_by_the_book(corpus, tasks, row_tokens)
        assert (packed.plan.documents, packed.plan.cut_long + packed.plan.cut_at_ends) == cut[:2]


def test_a_document_longer_than_many_groups(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c", chunks=9, chunk_tokens=64)
    corpus = Corpus.open(tmp_path / "c")
    packed = pack(corpus, 24, group_rows=2)
    stream = [*(token for chunk in range(9) for token in corpus.tokens(chunk)[:-1]), corpus.tokens(8)[-1]]
    assert [row for row, _, _ in read_all(packed)] == [stream[at : at + 25] for at in range(0, 576, 24)]
    assert (packed.plan.documents, packed.plan.cut_long, packed.plan.padding_tokens) == (1, 1, 0)


def test_a_generation_is_packed_behind_the_other(tmp_path: Path) -> None:
    base = tmp_path / "c"
    tasks = [[20, 9, 50], [70, 3, 3, 30]]
    parent = document_corpus(base, tasks, 32)
    alone = read_all(pack(Corpus.open(base), 16))
    document_corpus(base / "gen-0001", tasks, 32, seed=1, parent=parent)
    corpus = Corpus.open(base)
    both = pack(corpus, 16)
    rows = rows_by_the_book(pieces_by_the_book(corpus, 16), 16)
    assert read_all(both) == [laid_out(row, 16) for row in rows][: both.blocks * both.rows_per_block]
    old = Packed.open(Corpus.open(base, generation=0), 16)
    assert read_all(old) == alone
    assert old.content_hash != both.content_hash
    assert {line.split("-")[0] for line in survey(base).foreign} == set()


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
    for name, content in files(packed.directory).items():
        file = packed.directory / name
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            with pytest.raises(DataError, match=name):
                Packed.open(corpus, ROW).verify()
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
    file = packed.directory / "plan.bin"
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


def test_a_plan_cut_after_opening_is_refused(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    os.truncate(packed.directory / "plan.bin", 20)
    with pytest.raises(DataError, match=r"plan\.bin is damaged"):
        read_all(packed)


def test_files_that_are_missing(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    for name in ("index.bin", "plan.bin"):
        content = (packed.directory / name).read_bytes()
        (packed.directory / name).unlink()
        with pytest.raises(DataError, match=rf"{name} is damaged or missing\n.*\n  found: no such file"):
            Packed.open(Corpus.open(path), ROW)
        (packed.directory / name).write_bytes(content)


def test_a_damaged_chunk_passes_through(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    damage(path, 3)
    with pytest.raises(DataError, match="chunk 3 is damaged: its tokens"):
        read_all(Packed.open(Corpus.open(path), ROW))
    assert packed.plan.blocks


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
    shutil.copytree(packed.directory, tmp_path / "d" / packed.directory.name)
    message = (
        r"is not of these chunks and rows\n  expected: content \w{16}\.\.\., train, generation 0, rows of 32\n"
        r"  found: content \w{16}\.\.\., train, generation 0, rows of 32\n  do: remove the directory and run"
    )
    for use in (Packed.open, pack):
        with pytest.raises(DataError, match=message):
            use(Corpus.open(tmp_path / "d"), ROW)
    packed.directory.rename(plan_directory(Corpus.open(path), 16))
    with pytest.raises(DataError, match=r"rows of 16\n.*rows of 32\n"):
        Packed.open(Corpus.open(path), 16)


def test_a_plan_of_another_version(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmscale.corpus.packing_plan.VERSION", 2)
        raw = packed.plan.render()
    (packed.directory / "plan.json").write_bytes(raw)
    with pytest.raises(DataError, match=r"cannot read\n  expected: fmscale-packing version 1\n  found: .* version 2"):
        Packed.open(Corpus.open(path), ROW)


@pytest.mark.parametrize("row_tokens", [0, 65])
def test_rows_that_cannot_be_packed(path: Path, row_tokens: int) -> None:
    message = rf"rows of {row_tokens} tokens cannot .*\n  expected: 1 to 64 tokens.*\n  found: {row_tokens}\n  do: give"
    with pytest.raises(DataError, match=message):
        pack(Corpus.open(path), row_tokens)
    assert not list(path.glob("packing-*"))


def test_nothing_to_pack(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c", chunks=0)
    with pytest.raises(DataError, match="has nothing to pack\n  expected: chunks in its split train\n  found: none"):
        pack(Corpus.open(tmp_path / "c"), ROW)


# --------------------------------------------------------------------------------------------- the command


def test_the_command_packs_once_and_says_what_came_of_it(path: Path, tmp_path: Path) -> None:
    command = ["pack", str(path), "--row-tokens", str(ROW)]
    first = CliRunner().invoke(data_app, command)
    assert first.exit_code == 0, first.output
    plan = Packed.open(Corpus.open(path), ROW).plan
    for name, value in report(plan).items():
        assert f"{name:<22} {value}\n" in first.stdout
    assert f"{plan.cut_by_slicing / plan.documents:.2%}" in first.stdout
    before = files(plan_directory(Corpus.open(path), ROW))
    again = CliRunner().invoke(data_app, command)
    assert again.exit_code == 0
    assert "packing-train-U0000032-g0000 is there already: nothing to do\n" in again.stdout
    assert files(plan_directory(Corpus.open(path), ROW)) == before
    as_json = CliRunner().invoke(data_app, [*command, "--json"])
    assert json.loads(as_json.stdout) == json.loads(before["plan.json"])
    absent = CliRunner().invoke(data_app, ["pack", str(tmp_path / "none"), "--row-tokens", "32"])
    assert isinstance(absent.exception, DataError)
    assert "no finished corpus here" in str(absent.exception)


def test_plan_json_comes_back(path: Path) -> None:
    packed = pack(Corpus.open(path), ROW)
    assert PackingPlan.load(packed.directory / "plan.json") == packed.plan
