"""The permutation is a bijection for any n, stays the golden one, and is as even as one that was drawn."""

from __future__ import annotations

import json
from itertools import pairwise, permutations
from math import factorial, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.corpus import permutation
from fmscale.corpus.permutation import derive_key, extend_key, invert, permute, splitmix64

GOLDEN = Path(__file__).parents[1] / "golden" / "permutation.jsonl"
KEY = derive_key(0, "web", 0, "chunks")
keys = st.integers(0, 2**64 - 1)


def reference(x: int, n: int, key: int) -> int:
    """The same permutation in plain integers, one value at a time."""
    mask, bits = 2**64 - 1, max((n - 1).bit_length(), 6)
    left_bits, right_bits = bits // 2, bits - bits // 2
    while True:
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for i in range(6):
            round_key = splitmix64((key + (i + 1) * 0x9E3779B97F4A7C15) & mask)
            if i % 2 == 0:
                left ^= splitmix64((right + round_key) & mask) >> (64 - left_bits)
            else:
                right ^= splitmix64((left + round_key) & mask) >> (64 - right_bits)
        x = left << right_bits | right
        if x < n:
            return x


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 4095, 4097, 16384, 16385, 50_000])
def test_a_bijection_for_every_n_and_invert_undoes_it(n: int) -> None:
    x = np.arange(n, dtype=np.uint64)
    y = permute(x, n, KEY)
    assert sorted(y.tolist()) == x.tolist()
    assert (invert(y, n, KEY) == x).all()


@given(st.integers(1, 2**62), st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=20), keys)
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_reference_and_goes_back_at_any_size(n: int, values: list[int], key: int) -> None:
    x = np.array(values, np.uint64) % np.uint64(n)
    y = permute(x, n, key)
    assert y.tolist() == [reference(int(value), n, key) for value in x]
    assert (invert(y, n, key) == x).all()


@given(st.lists(st.tuples(st.integers(1, 2**62), st.integers(0, 2**62), keys), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_arrays_of_n_and_key_give_each_element_its_own_permutation(cases: list[tuple[int, int, int]]) -> None:
    n, x, key = (np.array(column, np.uint64) for column in zip(*((n, x % n, key) for n, x, key in cases), strict=True))
    together = permute(x, n, key)
    assert together.tolist() == [int(permute([a], int(b), int(c))[0]) for a, b, c in zip(x, n, key, strict=True)]
    assert (invert(together, n, key) == x).all()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(5000, dtype=np.uint64)
    whole = permute(x, 5000, KEY)
    monkeypatch.setattr(permutation, "_BLOCK", 64)
    assert (permute(x, 5000, KEY) == whole).all()


def test_no_elements() -> None:
    assert permute(np.zeros(0, np.uint64), 10, KEY).size == 0


def test_an_index_beyond_n_is_an_error_not_a_wrong_answer() -> None:
    with pytest.raises(AssertionError, match="an index is not below n"):
        permute([3], 3, KEY)
    with pytest.raises(AssertionError, match="n is below 1: 0"):
        permute([0], 0, KEY)
    with pytest.raises(AssertionError, match=r"n is above 2\^62"):
        permute([0], 2**62 + 1, KEY)


# Quality. Each test is deterministic; its bounds lie where a permutation that was drawn comes once in thousands.


@pytest.mark.parametrize("n", [2**18, 2**18 + 1, 200_003, 300_000])
def test_consecutive_indices_land_evenly(n: int) -> None:
    """Chi-square of where each run of 4096 consecutive indices falls in 64 equal bins, and its spread over runs."""
    y = permute(np.arange(n, dtype=np.uint64), n, KEY).astype(np.int64)
    runs = (y * 64 // n)[: n // 4096 * 4096].reshape(-1, 4096)
    chi = np.array([((np.bincount(run, minlength=64) - 64.0) ** 2 / 64).sum() for run in runs])
    # 63 degrees of freedom; drawing without replacement lowers the mean by 4096 / n, 1.1 at most here.
    assert abs(chi.mean() - 63) < 4.3 * sqrt(2 * 63 / len(runs)) + 1.1
    assert chi.max() < 63 + 5.5 * sqrt(2 * 63)
    assert chi.min() > 63 - 4.5 * sqrt(2 * 63)


@pytest.mark.parametrize("bits", [16, 17])
def test_no_output_bit_follows_an_input_bit_or_the_xor_of_two(bits: int) -> None:
    x = np.arange(1 << bits, dtype=np.uint64)
    shifts = np.arange(bits, dtype=np.uint64)[:, None]
    inputs = ((x >> shifts) & np.uint64(1)).astype(np.float32) * 2 - 1
    outputs = ((permute(x, 1 << bits, KEY) >> shifts) & np.uint64(1)).astype(np.float32) * 2 - 1
    first, second = np.triu_indices(bits, 1)
    features = np.vstack([inputs, inputs[first] * inputs[second]])
    correlation = np.abs(features @ outputs.T) / len(x)
    assert correlation.max() < 5.5 / sqrt(len(x))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_of_a_tiny_n_is_as_frequent(n: int) -> None:
    orders = [tuple(order) for order in permutations(range(n))]
    draws = 100 * factorial(n)
    key = np.repeat(extend_key(derive_key("tiny"), np.arange(draws)), n)
    y = permute(np.tile(np.arange(n, dtype=np.uint64), draws), np.full(draws * n, n), key).reshape(draws, n)
    index = {order: i for i, order in enumerate(orders)}
    counts = np.bincount([index[tuple(row)] for row in y.tolist()], minlength=len(orders))
    free = len(orders) - 1
    assert ((counts - 100.0) ** 2 / 100).sum() < free + 4.5 * sqrt(2 * free)


def test_neighbouring_keys_give_unrelated_orders() -> None:
    """Fixed points between the orders of keys k and k + 1: Poisson of mean 1 for each pair."""
    n, x = 4096, np.arange(4096, dtype=np.uint64)
    orders = [permute(x, n, KEY + k) for k in range(101)]
    matches = [int((a == b).sum()) for a, b in pairwise(orders)]
    assert 60 < sum(matches) < 145
    assert max(matches) < 9


# Keys.


def test_keys_of_different_parts_differ() -> None:
    parts: list[tuple[int | str, ...]] = [(), (0,), (0, 0), ("",), ("", ""), ("0",), ("a", "b"), ("ab",), ("b", "a")]
    parts += [("a\0",), ("a",), (1, 2), (2, 1), (-1,), (2**63 - 1,), (-(2**63),), ("a" * 8,), ("a" * 9,), ("a", 0)]
    parts += [(seed, "web", epoch, word) for seed in range(20) for epoch in range(20) for word in ("chunks", "window")]
    assert len({derive_key(*some) for some in parts}) == len(parts)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.integers(-(2**63), 2**63 - 1))
def test_keys_extended_by_arrays_are_the_keys_of_all_parts(numbers: list[int], last: int) -> None:
    extended = extend_key(derive_key(7, "web"), np.array(numbers), np.full(len(numbers), last))
    assert extended.tolist() == [derive_key(7, "web", number, last) for number in numbers]


def test_splitmix64_is_the_published_generator() -> None:
    """First outputs for the seed 1234567, from the reference in C by S. Vigna (prng.di.unimi.it/splitmix64.c)."""
    outputs = [splitmix64((1234567 + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def golden() -> str:
    """What the golden file holds: keys, and the first places of some permutations."""
    key_cases: list[list[int | str]] = [
        [],
        [0],
        [-1],
        [0, "web", 0, "chunks"],
        [0, "web", 0, "window", 0],
        [1, "ködel"],
    ]
    sizes = [1, 2, 3, 10, 64, 65, 1000, 2**16, 10**6, 2**31 + 1, 10**12, 2**62]
    lines = [{"parts": parts, "key": f"{derive_key(*parts):016x}"} for parts in key_cases]
    for n in sizes:
        for key in (0, KEY):
            first = permute(np.arange(min(n, 8), dtype=np.uint64), n, key).tolist()
            lines.append({"n": n, "key": f"{key:016x}", "first": first})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def test_golden() -> None:
    """An order once trained on must be this order for ever: a change here needs a new version of the order."""
    assert golden() == GOLDEN.read_text(encoding="utf-8")
