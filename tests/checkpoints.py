"""Small checkpoints for tests: a model of four parameters, cut over any number of ranks."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from fmscale.durable import canonical_json
from fmscale.observe.terms import digest
from fmscale.training import parts
from fmscale.training.block_file import write_blocks
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import KINDS, MARKER, Commit, read_commit
from fmscale.training.fragment_file import Range
from fmscale.training.lease import Lease

SHAPES: dict[str, tuple[int, ...]] = {"embedding": (7, 3), "norm": (5,), "scalar": (), "head": (2, 3, 4)}


RANGES: list[Range] = [(param, kind, 0, int(np.prod(SHAPES[param], dtype=int))) for param in SHAPES for kind in KINDS]
"""All of it."""


@dataclass(frozen=True)
class Piece:
    """The fields of the engines' Fragment."""

    param: str
    kind: str
    start: int
    tensor: torch.Tensor
    shape: tuple[int, ...]


def values(param: str, kind: str, step: int) -> torch.Tensor:
    """The flat content of a parameter or moment at a step: any bit pattern may occur but NaN's."""
    seed = [step, *param.encode(), *kind.encode()]
    numel = int(np.prod(SHAPES[param], dtype=int))
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(numel).astype(np.float32))


def pieces(step: int, cuts: dict[str, Sequence[int]] | None = None) -> Iterator[Piece]:
    """Every element once; `cuts` are the positions at which a parameter is divided."""
    for param, shape in SHAPES.items():
        for kind in KINDS:
            whole = values(param, kind, step)
            edges = [0, *sorted((cuts or {}).get(param, [])), len(whole)]
            for start, stop in itertools.pairwise(edges):
                yield Piece(param, kind, start, whole[start:stop], shape)


def deal(step: int, world: int, cuts: dict[str, Sequence[int]] | None = None) -> list[list[Piece]]:
    """The pieces of each rank."""
    ranks: list[list[Piece]] = [[] for _ in range(world)]
    for i, piece in enumerate(pieces(step, cuts)):
        ranks[i % world].append(piece)
    return ranks


def ranges_of(reader: int, readers: int) -> list[Range]:
    """What falls to one of `readers` ranks that share each parameter evenly, as ZeRO 3's do."""
    cuts = [(param, kind, *(numel * r // readers for r in (reader, reader + 1))) for param, kind, _, numel in RANGES]
    return [(param, kind, start, stop - start) for param, kind, start, stop in cuts if start < stop]


def store_of(run_dir: Path) -> CheckpointStore:
    return CheckpointStore(run_dir / "checkpoints")


def save(
    run_dir: Path,
    step: int,
    term: int,
    parent: str | None,
    world: int = 2,
    store: CheckpointStore | None = None,
    **state: Any,
) -> Commit:
    """Write and commit the checkpoint of `step`, in `store` if that is not the run's own."""
    store = store or store_of(run_dir)
    for rank, part in enumerate(deal(step, world, {"embedding": [5, 11]})):
        store.write_rank(step, term, rank, part)
    state = {"engine": "test", "step": step, **state}
    return store.commit(step, term, world, 4 * step, parent, state, timeout_s=5)


def start(run_dir: Path, parent: Commit | None = None) -> int:
    return Lease(run_dir).open_term(parent)


def two_checkpoints(run_dir: Path) -> tuple[Commit, Commit]:
    """Steps 10 and 20 of term 1."""
    term = start(run_dir)
    old = save(run_dir, 10, term, None)
    return old, save(run_dir, 20, term, old.name)


def blocks_of(size: int, patch: pytest.MonkeyPatch) -> None:
    """Data files that are written from now on have a hash for each `size` bytes."""
    patch.setattr(parts, "write_blocks", functools.partial(write_blocks, block_bytes=size))


def made_format_1(directory: Path) -> Commit:
    """The checkpoint as a program wrote it that knew format 1 only: one hash for each data file."""
    marker, ranks = directory / MARKER, []
    for path in sorted(directory.glob("rank-*.json")):
        data = path.with_suffix(".safetensors")
        fields = {**json.loads(path.read_bytes()), "version": 1, "data": _one_hash(data)}
        path.write_bytes(canonical_json(fields))
        ranks.append(_one_hash(path))
    fields = {**json.loads(marker.read_bytes()), "version": 1, "ranks": ranks}
    del fields["commit_hash"]
    marker.write_bytes(canonical_json({**fields, "commit_hash": digest(fields)}))
    return read_commit(directory)


def _one_hash(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"file": path.name, "bytes": len(content), "hash": xxhash.xxh3_128_hexdigest(content)}


def assert_holds(run_dir: Path, commit: Commit) -> None:
    """Every element of the checkpoint is, to the bit, what was saved at its step."""
    reader = store_of(run_dir).open(commit)
    for param in SHAPES:
        for kind in KINDS:
            want = values(param, kind, commit.step)
            got = reader.read(param, kind, 0, len(want))
            assert torch.equal(got.view(torch.int32), want.view(torch.int32)), (commit.name, param, kind)
