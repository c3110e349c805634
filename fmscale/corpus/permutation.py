"""Keyed permutations of [0, n) that are computed, not stored: the only source of shuffling in this project.

permute(x, n, key): six rounds of a Feistel network over the smallest even split of bits that holds n, its round
function the upper bits of splitmix64, and cycle walking back into [0, n). Any x costs the same, nothing is remembered,
so order is random access: 10^12 rows take no memory. `derive_key` makes keys of names and numbers by the same mixer.

Why six rounds of a full mixer: four rounds of a weak one and five of an affine one, as other loaders use, fail plain
chi-square and correlation tests; `tests/unit/test_permutation.py` runs those tests on this one. Everything is 64-bit
integer arithmetic written out here, because a library generator's stream may change with its version.
Sources: splitmix64 is Steele, Lea, Flood 2014 (the finaliser of `java.util.SplittableRandom`, variant 13 of Stafford's
mixers); cycle walking is Black, Rogaway 2002.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

ROUNDS = 6
MAX_N = 1 << 62
"""Halves of at most 31 bits: the upper 31 bits of splitmix64 do not depend on its last xor-shift, which is left out."""
MIN_BITS = 6
"""Tiny n are walked inside 64 values: a network on fewer bits reaches the n! orders unevenly (chi-square test)."""
_BLOCK = 16384
"""Elements worked on at once: large enough to hide numpy's cost per call, small enough for a second-level cache."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def splitmix64(x: int) -> int:
    """The 64-bit mixer, a bijection of [0, 2^64): output number 1 of the generator seeded with x."""
    z = (x + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLY_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLY_2) & _MASK
    return z ^ (z >> 31)


def derive_key(*parts: int | str) -> int:
    """A 64-bit key for the sequence `parts`; (1, "a"), ("1", "a") and (1, "a", 0) are unrelated keys.

    Each part is absorbed as a word of its type and byte length, then its bytes as little-endian 64-bit words.
    Integers are in [-2^63, 2^63).
    """
    state = 0
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
            state = splitmix64(state ^ ((1 << 56) | len(data)))
        else:
            data = part.to_bytes(8, "little", signed=True)
            state = splitmix64(state ^ (2 << 56))
        for i in range(0, len(data), 8):
            state = splitmix64(state ^ int.from_bytes(data[i : i + 8], "little"))
    return state


def extend_key(key: int | U64, *numbers: npt.NDArray[np.int64]) -> U64:
    """`derive_key(*parts, *numbers)` for arrays of numbers, where `key` is derive_key(*parts)."""
    state = np.atleast_1d(np.asarray(key, np.uint64))
    for number in numbers:
        state = _splitmix64(state ^ np.uint64(2 << 56))
        state = _splitmix64(state ^ np.atleast_1d(number).astype(np.int64).view(np.uint64))
    return state


def permute(x: npt.ArrayLike, n: int | npt.ArrayLike, key: int | npt.ArrayLike) -> U64:
    """Where each x lands under the permutation of [0, n) that `key` chooses. x [N] with 0 <= x < n <= 2^62.

    n and key are numbers, or arrays [N]: each element then has a permutation of its own (several times slower, unless
    all elements of the arrays are equal).
    """
    return _walk(x, n, key, forward=True)


def invert(y: npt.ArrayLike, n: int | npt.ArrayLike, key: int | npt.ArrayLike) -> U64:
    """The x with permute(x, n, key) == y."""
    return _walk(y, n, key, forward=False)


def _walk(x: npt.ArrayLike, n: int | npt.ArrayLike, key: int | npt.ArrayLike, *, forward: bool) -> U64:
    out = np.array(x, np.uint64, ndmin=1)
    if out.size == 0:
        return out
    limit, keys = np.asarray(n, np.uint64), np.asarray(key, np.uint64)
    assert limit.min() >= 1, f"n is below 1: {limit.min()}"
    assert limit.max() <= MAX_N, f"n is above 2^62: {limit.max()}"
    assert (out < limit).all(), "an index is not below n"
    limit, keys = _one_if_equal(limit), _one_if_equal(keys)
    if limit.ndim or keys.ndim:  # one permutation per element
        limit, keys = np.broadcast_to(limit, out.shape), np.broadcast_to(keys, out.shape)
        _feistel(out, limit, keys, forward)
    elif limit <= 1 << MIN_BITS:  # walks are long here: make them look-ups in one turn of the whole domain
        table = np.arange(1 << MIN_BITS, dtype=np.uint64)
        _feistel(table, limit, keys, forward)
        out = table[out]
        while (outside := out >= limit).any():
            out[outside] = table[out[outside]]
        return out
    else:
        _feistel(out, limit, keys, forward)
    # Values that left [0, n) take another turn; all at once, so that the last few cost one pass, not one a block.
    walking = np.flatnonzero(out >= limit)
    while walking.size:
        some = out[walking]
        own_limit, own_keys = (limit[walking], keys[walking]) if limit.ndim else (limit, keys)
        _feistel(some, own_limit, own_keys, forward)
        out[walking] = some
        walking = walking[some >= own_limit]
    return out


def _one_if_equal(values: U64) -> U64:
    """values [N] as one 0-d value where all are equal: batches mostly stand in one window of one epoch."""
    return values if values.ndim == 0 or (values != values[0]).any() else np.asarray(values[0])


def _feistel(x: U64, n: U64, key: U64, forward: bool) -> None:
    """One turn of the network on every element of x [N], in place, block by block. n, key: 0-d, or [N]."""
    schedule = None if n.ndim else _Rounds(n, key)
    scratch = np.empty((4, min(_BLOCK, x.size)), np.uint64)
    for start in range(0, x.size, _BLOCK):
        block = x[start : start + _BLOCK]
        rounds = schedule or _Rounds(n[start : start + _BLOCK], key[start : start + _BLOCK])
        left, right, mixed, shifted = scratch[:, : block.size]
        np.right_shift(block, rounds.right_bits, out=left)
        np.bitwise_and(block, rounds.right_mask, out=right)
        for i in range(ROUNDS) if forward else reversed(range(ROUNDS)):
            # Halves take turns and are never swapped, so the same steps backwards undo the network.
            source, target, drop = (right, left, rounds.left_drop) if i % 2 == 0 else (left, right, rounds.right_drop)
            np.add(source, rounds.keys[i], out=mixed)
            _mix_upper(mixed, shifted)
            np.right_shift(mixed, drop, out=mixed)
            np.bitwise_xor(target, mixed, out=target)
        np.left_shift(left, rounds.right_bits, out=left)
        np.bitwise_or(left, right, out=block)


class _Rounds:
    """What the rounds need to know of (n, key): widths of the halves, and a key per round. 0-d or [N] arrays."""

    def __init__(self, n: U64, key: U64) -> None:
        bits = np.asarray([_bits(int(n))] if n.ndim == 0 else _bits_of(n), np.uint64)
        left_bits = bits // np.uint64(2)
        self.right_bits = bits - left_bits
        self.right_mask = (np.uint64(1) << self.right_bits) - np.uint64(1)
        self.left_drop, self.right_drop = np.uint64(64) - left_bits, np.uint64(64) - self.right_bits
        keys = np.atleast_1d(key)
        # The golden constant that opens splitmix64 is added here once rather than to every element.
        self.keys = [
            _splitmix64(keys + np.uint64((i + 1) * _GOLDEN & _MASK)) + np.uint64(_GOLDEN) for i in range(ROUNDS)
        ]


def _mix_upper(z: U64, scratch: U64) -> None:
    """splitmix64 after its first addition and before its last xor-shift, in place."""
    np.right_shift(z, np.uint64(30), out=scratch)
    np.bitwise_xor(z, scratch, out=z)
    np.multiply(z, np.uint64(_MULTIPLY_1), out=z)
    np.right_shift(z, np.uint64(27), out=scratch)
    np.bitwise_xor(z, scratch, out=z)
    np.multiply(z, np.uint64(_MULTIPLY_2), out=z)


def _splitmix64(x: U64) -> U64:
    z: U64 = x + np.uint64(_GOLDEN)
    _mix_upper(z, np.empty_like(z))
    z ^= z >> np.uint64(31)
    return z


def _bits(n: int) -> int:
    return max((n - 1).bit_length(), MIN_BITS)


def _bits_of(n: U64) -> U64:
    """`_bits` of every element, without floating point: counts the powers of two below n."""
    powers = np.uint64(1) << np.arange(63, dtype=np.uint64)
    bits: U64 = np.maximum(np.searchsorted(powers, n, side="left"), MIN_BITS).astype(np.uint64)
    return bits
