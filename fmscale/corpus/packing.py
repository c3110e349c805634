"""Rows of whole documents: a committed plan of best-fit packing, and the rows it describes.

    packed = Packed.open(Corpus.open("data/web"), row_tokens=2048)     # made by `fmscale data pack`
    packed.read_row(block=7, row=3, out_tokens)                        # how many tokens there are; PAD behind them

A row is up to U tokens of pieces one after another, a piece being a document or a part of one that is longer than U; if
the row is full and its last document goes on, the token that follows stands behind, as a label. R rows are a block: to
the order of rows, a plan is a source of `chunks` blocks of R * U tokens. Files and fields: docs/formats.md.
What is read is verified first: the index at opening, a block of the plan when it is read, chunks as `Corpus` does it.
Choose concatenate-and-slice, which needs no plan and has no padding, where documents are much longer than rows.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale.corpus.batch import PAD
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.packing_plan import (
    BLOCK_DTYPE,
    INDEX_FILE,
    MARKER,
    PIECE_DTYPE,
    PLAN_FILE,
    PackingPlan,
    damaged,
    plan_directory,
)
from fmscale.corpus.shards import Corpus
from fmscale.errors import DataError

_BLOCKS = 256
"""Blocks of the plan that are kept in memory: some tens of KB each, more than windows have as a rule."""


class Packed:
    """The rows of a plan. Safe for several threads; hand paths, not the object, to another process."""

    def __init__(self, corpus: Corpus, directory: Path, plan: PackingPlan) -> None:
        self.plan, self.directory = plan, directory
        self.row_tokens, self.rows_per_block, self.blocks = plan.row_tokens, plan.rows_per_block, plan.blocks
        self.chunks = plan.blocks
        """The order's name for blocks."""
        self.chunk_tokens = plan.block_tokens
        identity = (corpus.content_hash, plan.row_tokens, plan.rows_per_block, plan.index_sha256)
        self.content_hash = hashlib.sha256(" ".join(map(str, identity)).encode()).hexdigest()
        """Equal if and only if the rows are: of the corpus and the plan together."""
        self.corpus = corpus
        index = _map(directory / INDEX_FILE, plan.blocks * BLOCK_DTYPE.itemsize)
        if (found := hashlib.sha256(index).hexdigest()) != plan.index_sha256:
            raise damaged(directory / INDEX_FILE, f"sha256 {plan.index_sha256[:16]}...", f"sha256 {found[:16]}...")
        self._index = np.frombuffer(index, BLOCK_DTYPE)
        _check_size(directory / PLAN_FILE, plan.plan_bytes)
        self._plan = (directory / PLAN_FILE).open("rb", buffering=0)
        self._opened: dict[int, tuple[npt.NDArray[np.uint32], npt.NDArray[np.void]]] = {}

    @staticmethod
    def open(corpus: Corpus, row_tokens: int) -> Packed:
        """The plan for `corpus`, up to the generation to which it was opened, and rows of `row_tokens`.

        Raises DataError: no such plan, one of other chunks than these, a damaged one.
        """
        directory, generation = plan_directory(corpus, row_tokens), corpus.manifest.generation
        command = f"`fmscale data pack {corpus.path} --row-tokens {row_tokens} --generation {generation}`"
        marker = directory / MARKER
        if not marker.is_file():
            others = sorted(path.parent.name for path in corpus.path.glob(f"packing-{corpus.split}-*/{MARKER}"))
            found = "an unfinished plan" if directory.is_dir() else "no such directory"
            raise DataError(
                f"{corpus.path} has no packing plan for rows of {row_tokens} tokens and generation {generation}",
                expected=str(marker),
                found=f"{found}; there are {', '.join(others[:4])}" if others else found,
                do=f"run {command}",
            )
        plan = PackingPlan.load(marker)
        mine = (corpus.content_hash, corpus.split, generation, row_tokens)
        theirs = (plan.content_hash, plan.split, plan.generation, plan.row_tokens)
        if mine != theirs:
            raise DataError(
                f"the packing plan {directory} is not of these chunks and rows",
                expected="content {:.16}..., {}, generation {}, rows of {}".format(*mine),
                found="content {:.16}..., {}, generation {}, rows of {}".format(*theirs),
                do=f"remove the directory and run {command} again, or restore the corpus that it is of",
            )
        return Packed(corpus, directory, plan)

    def up_to(self, generation: int) -> Packed:
        """The rows as they were at `generation` of the corpus. Raises DataError if there is no plan for that."""
        part = self.corpus.up_to(generation)
        return self if generation == self.plan.generation else Packed.open(part, self.row_tokens)

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
        bounds, pieces = self._opened.get(block) or self._open_block(block)
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

    def verify(self) -> None:
        """Hash every block of the plan. Raises DataError at the first that is not as it was written."""
        for block in range(self.blocks):
            self._open_block(block)

    def _open_block(self, block: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.void]]:
        assert 0 <= block < self.blocks, f"block {block} of {self.blocks}"
        record = self._index[block]
        start, count, rows = int(record["start"]), int(record["pieces"]), self.rows_per_block
        size = 4 * (rows + 1) + count * PIECE_DTYPE.itemsize
        # Read, not mapped: a file that is cut while it is mapped kills its readers. So each reading is hashed.
        raw = os.pread(self._plan.fileno(), size, start)
        expected, found = record["hash"].tobytes(), xxhash.xxh3_128_digest(raw)
        if found != expected:
            what = f"xxh3_128 {expected.hex()} of bytes {start} to {start + size}, block {block}"
            raise damaged(self.directory / PLAN_FILE, what, found.hex())
        opened = np.frombuffer(raw, "<u4", rows + 1), np.frombuffer(raw, PIECE_DTYPE, count, 4 * (rows + 1))
        if len(self._opened) >= _BLOCKS:
            self._opened = {}
        self._opened[block] = opened
        return opened


def _map(path: Path, size: int) -> mmap.mmap:
    """The file's bytes. Raises DataError unless it has `size` of them."""
    _check_size(path, size)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_size(path: Path, size: int) -> None:
    found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
    if found != f"{size} bytes":
        raise damaged(path, f"{size} bytes", found)
