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

from fmscale.corpus.batch import IGNORE, Batch, batch_hash, batch_of, combine, hash_hex, row_hashes
from fmscale.topology import PADDING

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
