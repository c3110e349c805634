"""Laws that any loader, and any position of a run, must keep; the tests of several parts hold theirs to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from fmscale.corpus.batch import Batch, batch_hash, combine, hash_hex
from fmscale.corpus.steps import Step
from fmscale.topology import PADDING

WORLDS = (1, 2, 3, 4, 8)


def same(a: Batch, b: Batch) -> bool:
    """Equal to the bit, kinds of numbers included."""
    pairs = [(a.rows, b.rows), (a.tokens, b.tokens), (a.labels, b.labels), (a.positions, b.positions)]
    return a.targets == b.targets and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def restore_at_every_step(batches: Callable[[int], Iterator[Batch]], global_batch: int, steps: int) -> None:
    """Going on from the row of any step gives what the uninterrupted run would have had from there on.

    batches: first row -> the batches from there on (a new loader for each call).
    """
    undisturbed = list(islice(batches(0), steps))
    assert len({batch_hash(batch) for batch in undisturbed}) == steps, "the batches do not differ: nothing is tested"
    for step in range(steps):
        resumed = list(islice(batches(step * global_batch), steps - step))
        assert all(map(same, resumed, undisturbed[step:])), f"resumed at step {step}, other batches came"


def same_global_batches(
    batches: Callable[[int, int], Iterator[Batch]], steps: int, worlds: Sequence[int] = WORLDS
) -> list[int]:
    """For any number of ranks: each step trains the same rows with the same contents, each row once, and as many
    targets in all. Returns the batch hash of each step.

    batches: (ranks, rank) -> the batches of this rank.
    """
    reference: list[tuple[dict[int, bytes], int, int]] | None = None
    for world in worlds:
        ranks = [list(islice(batches(world, rank), steps)) for rank in range(world)]
        found = []
        for shares in zip(*ranks, strict=True):
            assert len({len(share.rows) for share in shares}) == 1, "ranks with unequal numbers of micro-batches"
            rows: dict[int, bytes] = {}
            for share in shares:
                for row, one in zip(share.rows.tolist(), share.micro_batches(1), strict=True):
                    if row != PADDING:
                        assert row not in rows, f"row {row} was handed out twice to {world} ranks"
                        rows[row] = one.tokens.tobytes() + one.labels.tobytes() + one.positions.tobytes()
            targets = sum(share.targets for share in shares)
            found.append((rows, targets, combine(batch_hash(share) for share in shares)))
        reference = reference or found
        for step, (mine, theirs) in enumerate(zip(found, reference, strict=True)):
            assert mine == theirs, f"step {step} differs between {worlds[0]} and {world} ranks"
    assert reference is not None
    return [digest for _, _, digest in reference]


class TokenStream(NamedTuple):
    """What a run trains, in two ways: equal if and only if every row was there once, in its step, with its tokens."""

    hashes: list[str]
    """Batch hash of each step: 32 hex digits, as in metrics.jsonl."""
    sha256: str
    """Over the tokens and labels of all rows, one row after the other."""


def token_stream(steps: Iterable[Step], shares: Iterable[Sequence[Batch]]) -> TokenStream:
    """Put together what all ranks were handed at each step: exactly the step's rows, once, at its sequence length.

    shares: for each step, each rank's batch.
    """
    hashes, stream = [], hashlib.sha256()
    for step, batches in zip(steps, shares, strict=True):
        assert len({batch.tokens.shape for batch in batches}) == 1, f"step {step.number}: shares of unequal shape"
        assert batches[0].tokens.shape[1] == step.seq_len, f"step {step.number}: not its sequence length"
        rows = np.concatenate([batch.rows for batch in batches])
        real = rows != PADDING
        expected = np.arange(step.first_row, step.first_row + step.rows)
        assert np.array_equal(rows[real], expected), f"step {step.number}: rows {rows[real]}, not {expected}"
        for part in ("tokens", "labels"):
            joined = np.concatenate([getattr(batch, part) for batch in batches])
            stream.update(joined.reshape(len(rows), -1)[real].tobytes())
        hashes.append(hash_hex(combine(batch_hash(batch) for batch in batches)))
    return TokenStream(hashes, stream.hexdigest())
