"""Batches shift labels by one, keep padding out of everything, and their hash sees every change and no arrangement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fmscale.corpus.batch import IGNORE, PAD, Batch, batch_hash, batch_of, combine, hash_hex, row_hashes
from fmscale.topology import PADDING, rank_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "batch_hash.jsonl"


def made(rows: list[int], seq_len: int = 4, dtype: Any = np.uint16) -> Batch:
    """Row r holds the tokens 100 r, 100 r + 1 ..."""
    real = [row for row in rows if row != PADDING]
    tokens = np.array([[100 * row + i for i in range(seq_len + 1)] for row in real], dtype).reshape(-1, seq_len + 1)
    return batch_of(np.array(rows), tokens, targets=len(real) * seq_len)


def test_labels_are_the_next_tokens_and_padding_has_none() -> None:
    batch = made([7, PADDING, 3])
    assert batch.tokens.tolist() == [[700, 701, 702, 703], [0, 0, 0, 0], [300, 301, 302, 303]]
    assert batch.labels.tolist() == [[701, 702, 703, 704], [IGNORE] * 4, [301, 302, 303, 304]]
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 3
    assert (batch.labels != IGNORE).sum() == batch.targets == 8
    assert {array.dtype.name for array in (batch.tokens, batch.labels, batch.positions)} == {"int32"}
    assert batch.rows.dtype == np.int64


def test_large_vocabularies_keep_their_ids() -> None:
    assert made([999], dtype=np.uint32).tokens[0, 0] == 99900


def test_as_many_tokens_as_rows_or_an_error() -> None:
    with pytest.raises(AssertionError, match="tokens of 1 rows for 2"):
        batch_of(np.array([1, 2]), np.zeros((1, 5), np.uint16), 8)


def test_micro_batches_are_the_batch_in_pieces() -> None:
    batch = made([4, 5, 6, 7, PADDING, PADDING])
    micro = batch.micro_batches(2)
    assert [part.rows.tolist() for part in micro] == [[4, 5], [6, 7], [PADDING, PADDING]]
    assert {part.targets for part in micro} == {batch.targets}
    assert (np.concatenate([part.labels for part in micro]) == batch.labels).all()
    with pytest.raises(AssertionError, match="6 rows are no whole micro-batches of 4"):
        batch.micro_batches(4)


def test_a_row_hash_is_xxh3_of_the_documented_bytes() -> None:
    batch = made([7, PADDING])
    record = np.int64(7).tobytes() + b"".join(
        np.array(values, "<i4").tobytes() for values in ([700, 701, 702, 703], [701, 702, 703, 704], [0, 1, 2, 3])
    )
    assert row_hashes(batch) == [xxhash.xxh3_128_intdigest(record)]


@st.composite
def raw_rows(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `batch_of`: up to 4 rows of up to 3 pieces with anything in them, padding rows between them."""
    pieces, seq_len, real = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 4))
    width = pieces * seq_len
    rows = draw(st.permutations([*range(10, 10 + real), *[PADDING] * draw(st.integers(0 if real else 1, 2))]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    documents = draw(st.booleans())
    return {
        "rows": np.array(rows),
        "row_tokens": rng.integers(1, 1000, (real, width + 1), dtype=np.uint16),
        "seq_len": draw(st.sampled_from([seq_len, None])),
        "starts": rng.random((real, width + 1)) < 0.4 if documents or draw(st.booleans()) else None,
        "lengths": rng.integers(0, width + 2, real) if draw(st.booleans()) else None,
        "documents": documents,
    }


def token_by_token(
    rows: Any, row_tokens: Any, seq_len: int | None, starts: Any, lengths: Any, documents: bool
) -> list[Any]:
    """Of each row: its tokens, labels and positions, as the words of `batch_of` say it."""
    width, numbers, result = row_tokens.shape[1] - 1, iter(range(len(row_tokens))), []
    for row in rows:
        n = next(numbers) if row != PADDING else None
        there = 0 if n is None else width + 1 if lengths is None else lengths[n]
        tokens, labels, positions = [], [], []
        for i in range(width):
            begins, next_begins = (documents and n is not None and starts[n, j] for j in (i, i + 1))
            tokens.append(int(row_tokens[n, i]) if i < there else PAD)
            labels.append(int(row_tokens[n, i + 1]) if i + 1 < there and not next_begins else IGNORE)
            positions.append(0 if begins or i % (seq_len or width) == 0 else positions[-1] + 1)
        result.append([tokens, labels, positions])
    return result


@given(raw_rows())
def test_a_batch_is_what_token_by_token_makes_of_it(raw: dict[str, Any]) -> None:
    batch = batch_of(**raw)
    expected = token_by_token(**raw)
    rows = len(raw["rows"])
    for i, array in enumerate((batch.tokens, batch.labels, batch.positions)):
        assert array.dtype == np.int32
        assert array.shape[1] == (raw["seq_len"] or raw["row_tokens"].shape[1] - 1)
        assert array.reshape(rows, -1).tolist() == [row[i] for row in expected]
        assert not array.flags.writeable, "it may share memory with the others, and with other batches"
    assert batch.pieces == batch.tokens.shape[0] // rows
    assert batch.targets == (batch.labels != IGNORE).sum(), "its own targets"
    assert batch_of(**raw, targets=99).targets == 99


@given(raw_rows(), st.integers(1, 3))
def test_micro_batches_take_rows_with_all_their_sequences(raw: dict[str, Any], micro_batch: int) -> None:
    raw["rows"] = np.concatenate([raw["rows"], np.full(-len(raw["rows"]) % micro_batch, PADDING)])
    batch = batch_of(**raw)
    parts = batch.micro_batches(micro_batch)
    assert {(len(part.rows), part.pieces, part.targets) for part in parts} == {
        (micro_batch, batch.pieces, batch.targets)
    }
    for name in ("rows", "tokens", "labels", "positions"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(batch, name))
    assert combine(map(batch_hash, parts)) == batch_hash(batch)


def test_a_row_in_pieces_keeps_all_its_tokens_and_labels() -> None:
    tokens = np.array([[10, 11, 12, 13, 14]], np.uint16)
    batch = batch_of(np.array([7]), tokens, seq_len=2)
    assert batch.tokens.tolist() == [[10, 11], [12, 13]]
    assert batch.labels.tolist() == [[11, 12], [13, 14]]
    assert batch.positions.tolist() == [[0, 1], [0, 1]]
    record = np.int64(7).tobytes() + b"".join(
        np.array(values, "<i4").tobytes() for values in ([10, 11, 12, 13], [11, 12, 13, 14], [0, 1, 0, 1])
    )
    assert row_hashes(batch) == [xxhash.xxh3_128_intdigest(record)]


def test_what_does_not_fit_together_is_an_error() -> None:
    tokens = np.zeros((1, 5), np.uint16)
    with pytest.raises(AssertionError, match="rows of 4 tokens are no whole sequences of 3"):
        batch_of(np.array([1]), tokens, seq_len=3)
    with pytest.raises(AssertionError, match="documents are bounded by their starts, which are missing"):
        batch_of(np.array([1]), tokens, documents=True)


@given(
    first=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    pieces=st.sampled_from([1, 2, 4]),
    micro_batch=st.integers(1, 4),
)
def test_shares_of_any_number_of_ranks_are_the_global_batch(
    first: int, rows: int, pieces: int, micro_batch: int
) -> None:
    """Also where ranks do not divide the rows: hashes and targets add up to those of the batch in one."""

    def share(numbers: Any) -> Batch:
        real = numbers[numbers != PADDING]
        return batch_of(numbers, ((real[:, None] + np.arange(9)) % 997).astype(np.uint16), seq_len=8 // pieces)

    whole = share(np.arange(first, first + rows))
    for dp in (1, 2, 3, 4, 5, 7, 8, 16):
        shares = [share(rank_rows(first, rows, dp, rank, micro_batch)) for rank in range(dp)]
        assert combine(map(batch_hash, shares)) == batch_hash(whole), f"{dp} ranks"
        assert sum(part.targets for part in shares) == whole.targets == rows * 8
        assert len({part.tokens.shape for part in shares}) == 1, "ranks with unequal numbers of micro-batches"


@given(st.permutations(range(12)), st.integers(1, 11), st.integers(0, 5))
def test_the_hash_does_not_see_how_rows_are_spread(rows: list[int], cut: int, padding: int) -> None:
    shares = [made(rows[:cut] + [PADDING] * padding), made(rows[cut:])]
    assert combine(map(batch_hash, shares)) == batch_hash(made(list(range(12))))


def test_the_hash_sees_every_change() -> None:
    batch = made([7, 3, 9])
    hashes = {batch_hash(batch), batch_hash(made([7, 3])), batch_hash(made([7, 3, 9, 9])), batch_hash(made([7, 3, 8]))}
    for name in ("tokens", "labels", "positions"):
        for place in np.ndindex(3, 4):
            changed = getattr(batch, name).copy()
            changed[place] += 1
            hashes.add(batch_hash(replace(batch, **{name: changed})))
    assert len(hashes) == 4 + 3 * 12


def test_ranks_that_hold_each_others_tokens_are_seen() -> None:
    """Rows say what a rank was to train, tokens what it did: crossed, the sum differs."""
    first, second = made([0, 1]), made([2, 3])
    crossed = [replace(first, rows=second.rows), replace(second, rows=first.rows)]
    assert combine(map(batch_hash, crossed)) != combine(map(batch_hash, [first, second]))


def test_hex_is_fixed_width() -> None:
    assert hash_hex(255) == "0" * 30 + "ff"
    assert combine([2**128 - 1, 2]) == 1


def golden() -> str:
    cases = [[0], [7], [0, 1, 2], [PADDING], [2**40]]
    lines = []
    for rows in cases:
        tokens = np.array(
            [[(row * 31 + i * 7) % 50_000 for i in range(9)] for row in rows if row != PADDING], np.uint16
        )
        batch = batch_of(np.array(rows), tokens.reshape(-1, 9), 8 * len(rows))
        lines.append({"rows": rows, "seq_len": 8, "batch_hash": hash_hex(batch_hash(batch))})
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_golden() -> None:
    """Hashes of runs long gone must stay comparable."""
    assert golden() == GOLDEN.read_text()
