"""Rows of whole documents: committed plans of best-fit packing, and the rows they describe.

    packed = Packed.open(Corpus.open("data/web"), row_tokens=2048)     # made by `fmscale data pack`
    packed.read_row(block=7, row=3, out_tokens)                        # how many tokens there are; PAD behind them

A row is up to U tokens of pieces one after another, a piece being a document or a part of one that is longer than U; if
the row is full and its last document goes on, the token that follows stands behind, as a label. R rows are a block: to
the order of rows, a packed corpus is a source of `chunks` blocks of R * U tokens. Each generation of the corpus has a
plan of its own, and its blocks stand behind those of the generations before, which keep their numbers.
What is read is verified first: the index at opening, a block of the plan when it is read, chunks as `Corpus` does it.
Files and fields: docs/formats.md. Choose concatenate-and-slice, which needs no plan and has no padding, where documents
are much longer than rows.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmscale.corpus.batch import PAD
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.packed_generation import PackedGeneration
from fmscale.corpus.packing_plan import MARKER, PackingPlan, plan_directory
from fmscale.corpus.shards import Corpus
from fmscale.errors import DataError


class Packed:
    """The rows of the plans. Safe for several threads; hand paths, not the object, to another process."""

    def __init__(self, corpus: Corpus, generations: Sequence[PackedGeneration]) -> None:
        """generations: of `corpus`, all, with one number of rows to a block."""
        first = generations[0].plan
        self.corpus = corpus
        self.row_tokens, self.rows_per_block = first.row_tokens, first.rows_per_block
        self.chunk_tokens = first.block_tokens
        self._generations = generations
        self._ends = list(accumulate(generation.plan.blocks for generation in generations))
        self.blocks = self._ends[-1]
        self.chunks = self.blocks
        """The order's name for blocks."""
        identity = (corpus.content_hash, first.row_tokens, first.rows_per_block, *(p.index.sha256 for p in self.plans))
        self.content_hash = hashlib.sha256(" ".join(map(str, identity)).encode()).hexdigest()
        """Equal if and only if the rows are: of the corpus and the plans together."""

    @staticmethod
    def open(corpus: Corpus, row_tokens: int) -> Packed:
        """The plans of every generation to which `corpus` was opened, for rows of `row_tokens`.

        Raises DataError: a generation without a plan, a plan of other chunks than these, a damaged one.
        """
        parts = [corpus.up_to(generation) for generation in range(corpus.manifest.generation + 1)]
        command = f"`fmscale data pack {corpus.path} --row-tokens {row_tokens} --generation {len(parts) - 1}`"
        opened: list[PackedGeneration] = []
        for part in parts:
            plan = _load(part, row_tokens, command)
            directory = plan_directory(part, row_tokens)
            if opened and plan.rows_per_block != opened[0].plan.rows_per_block:
                raise DataError(
                    f"the packing plan {directory} has other blocks than that of generation 0",
                    expected=f"{opened[0].plan.rows_per_block} rows to a block",
                    found=f"{plan.rows_per_block} rows to a block",
                    do=f"remove the directory and run {command} again, or restore the plan of generation 0",
                )
            opened.append(PackedGeneration(directory, plan))
        return Packed(corpus, opened)

    def up_to(self, generation: int) -> Packed:
        """The rows as they were at `generation` of the corpus: nothing is opened or read again.

        Raises DataError if this one does not go that far.
        """
        return Packed(self.corpus.up_to(generation), self._generations[: generation + 1])

    @property
    def plans(self) -> tuple[PackingPlan, ...]:
        """Of each generation."""
        return tuple(generation.plan for generation in self._generations)

    @property
    def path(self) -> Path:
        return self.corpus.path

    @property
    def manifest(self) -> Manifest:
        return self.corpus.manifest

    @property
    def vocab_size(self) -> int:
        return self.corpus.vocab_size

    @property
    def tokenizer_path(self) -> Path:
        return self.corpus.tokenizer_path

    @property
    def read_s(self) -> float:
        return self.corpus.read_s

    @property
    def verify_s(self) -> float:
        return self.corpus.verify_s

    def read_row(
        self,
        block: int,
        row: int,
        out_tokens: npt.NDArray[np.integer[Any]],
        out_starts: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Fill out_tokens [U + 1] with a row, PAD behind it; out_starts [U + 1] is True at the start of each piece.

        Returns n <= U + 1, the tokens that are there: token i is an input if i < U, token i + 1 its label if i + 1 < n.
        Raises DataError if a byte of the plan, or of a chunk that the row needs, is not as it was written.
        """
        assert 0 <= block < self.blocks, f"block {block} of {self.blocks}"
        which = bisect_right(self._ends, block)
        generation = self._generations[which]
        bounds, pieces = generation.block(block - self._ends[which] + generation.plan.blocks)
        first, last = bounds[row : row + 2].tolist()
        if out_starts is not None:
            out_starts[:] = False
        at = 0
        chunks: dict[int, npt.NDArray[np.unsignedinteger]] = {}  # of this row: whoever keeps one longer misses a cut
        for chunk, start, length in pieces[first:last].tolist():
            if out_starts is not None:
                out_starts[at] = True
            end = at + length
            while True:
                tokens = chunks.get(chunk)
                if tokens is None:
                    tokens = chunks[chunk] = self.corpus.tokens(chunk)
                part = tokens[start : start + end - at]  # ends with the chunk, whose last token is the next one's first
                out_tokens[at : at + len(part)] = part
                at += len(part)
                if at == end:
                    break
                chunk, start = chunk + 1, 1
        out_tokens[at:] = PAD
        return at

    def blocks_of(self, chunk: int) -> list[int]:
        """Blocks that read any token of a chunk of the corpus, rising: those that are lost where the chunk is.

        By the plan alone. Costs a look at some 2 log2(blocks) blocks, and at those of a group or two of chunks (64
        blocks or more in a small corpus, some ten in a large one), tens of µs each. Raises DataError for a
        damaged block of the plan.
        """
        assert 0 <= chunk < self.corpus.chunks, f"chunk {chunk} of {self.corpus.chunks}"
        which = next(g for g in range(len(self._generations)) if chunk < self.corpus.up_to(g).chunks)
        generation = self._generations[which]
        before = self._ends[which] - generation.plan.blocks
        return [before + number for number in generation.blocks_of(chunk, self.corpus.chunk_tokens)]

    def verify(self, generation: int) -> None:
        """Hash every block of a generation's plan. Raises DataError at the first that is not as it was written."""
        self._generations[generation].verify()


def _load(part: Corpus, row_tokens: int, command: str) -> PackingPlan:
    """plan.json of the newest generation of `part`. Raises DataError: none, or one that is not of these chunks."""
    directory, generation = plan_directory(part, row_tokens), part.manifest.generation
    marker = directory / MARKER
    if not marker.is_file():
        others = sorted(path.parent.name for path in part.path.glob(f"packing-{part.split}-*/{MARKER}"))
        found = "an unfinished plan" if directory.is_dir() else "no such directory"
        raise DataError(
            f"{part.path} has no packing plan for rows of {row_tokens} tokens and generation {generation}",
            expected=str(marker),
            found=f"{found}; there are {', '.join(others[:4])}" if others else found,
            do=f"run {command}",
        )
    plan = PackingPlan.load(marker)
    mine = (part.content_hash, part.split, generation, row_tokens)
    theirs = (plan.content_hash, plan.split, plan.generation, plan.row_tokens)
    if mine != theirs:
        raise DataError(
            f"the packing plan {directory} is not of these chunks and rows",
            expected="content {:.16}..., {}, generation {}, rows of {}".format(*mine),
            found="content {:.16}..., {}, generation {}, rows of {}".format(*theirs),
            do=f"remove the directory and run {command} again, or restore the corpus that it is of",
        )
    return plan
