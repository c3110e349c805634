"""Build packing plans: pieces of documents, best-fit into rows, rows into blocks, published by plan.json.

Each generation of a corpus has its own plan: the documents that it added, in rows and blocks of their own.
Rows are filled within groups of successive chunks, GROUP_ROWS at least: a block's rows are then read from few chunks,
and memory holds one group, whatever the corpus' size. A row is as early in the plan as its first piece in the corpus.
Only document tables are read. A killed build is done again and ends in the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.best_fit import best_fit
from data_pipeline.pieces import Spans, groups_of_pieces
from fmscale import durable
from fmscale.corpus.blocks import write_blocks
from fmscale.corpus.manifest import MARKER as MANIFEST
from fmscale.corpus.manifest import Manifest, generation_directory
from fmscale.corpus.packing import Packed
from fmscale.corpus.packing_plan import (
    BLOCK_DTYPE,
    INDEX_FILE,
    INDEX_MAGIC,
    INDEX_RECORDS,
    INDEX_VERSION,
    MARKER,
    PIECE_DTYPE,
    PLAN_FILE,
    PackingPlan,
    own_chunks,
    plan_directory,
)
from fmscale.corpus.shards import Corpus
from fmscale.errors import ConfigError, DataError, MachineError

GROUP_ROWS = 2048
"""Padding against spread: see the table in docs/formats.md."""
BLOCK_TOKENS = 1 << 20
MIN_BLOCKS = 64
"""Small corpora have blocks of fewer rows, so that there are this many to shuffle."""

I64 = npt.NDArray[np.int64]


def pack(
    corpus: Corpus,
    row_tokens: int,
    advance: Callable[[int], None] = lambda token_bytes: None,
    group_rows: int = GROUP_ROWS,
) -> Packed:
    """The rows of `row_tokens` tokens of `corpus`: plans that its generations lack are built and published first.

    advance: told the bytes of each chunk's tokens when it has been dealt with. group_rows: the plans depend
    on it; other values than the default are for tests and measurements.
    Raises ConfigError: rows longer than chunks. DataError: no chunk in generation 0, a plan there that is damaged or of
    another corpus. MachineError: a corpus directory that cannot be written, a full disk.
    """
    if not 1 <= row_tokens <= corpus.chunk_tokens:
        most = corpus.chunk_tokens
        raise ConfigError(
            f"rows of {row_tokens} tokens cannot be packed from the corpus {corpus.path}",
            expected=f"1 to {most} tokens, the length of its chunks",
            found=str(row_tokens),
            do=f"give a --row-tokens of {most} or less, or prepare the corpus with a larger chunk_tokens"
            if row_tokens > most
            else "give the tokens of a row, data.seq_len of the runs to come, as --row-tokens",
        )
    if not corpus.up_to(0).chunks:
        raise DataError(
            f"the corpus {corpus.path} has nothing to pack",
            expected=f"chunks in its split {corpus.split}, in generation 0",
            found="none: its text is shorter than a chunk",
            do="prepare it from more text, or with a smaller chunk_tokens",
        )
    for part in unplanned(corpus, row_tokens):
        _publish(part, row_tokens, advance, group_rows)
    return Packed.open(corpus, row_tokens)


def open_generation(path: Path, generation: int | None) -> Corpus:
    """The training text up to a generation, or all. Raises ConfigError if the corpus has no such one, DataError as
    `Corpus.open` does."""
    if generation and not (generation_directory(path, generation) / MANIFEST).exists():
        Manifest.load(path)  # which says so if there is no corpus
        newest = next(number for number in count() if not (generation_directory(path, number + 1) / MANIFEST).exists())
        raise ConfigError(
            f"the corpus {path} has no generation {generation}",
            expected=f"0 to {newest}" if newest else "0, the only one",
            found=f"--generation {generation}",
            do="name one that is there, or leave --generation out to pack all",
        )
    return Corpus.open(path, generation=generation)


def unplanned(corpus: Corpus, row_tokens: int) -> list[Corpus]:
    """For each generation that has no plan for rows of `row_tokens`, the corpus up to it."""
    parts = [corpus.up_to(generation) for generation in range(corpus.manifest.generation + 1)]
    return [part for part in parts if not (plan_directory(part, row_tokens) / MARKER).exists()]


def report(plan: PackingPlan) -> dict[str, str]:
    """What a plan is like, in words for a table."""
    cut = plan.cut_long + plan.cut_at_ends
    by_pieces = sorted((int(most), rows) for most, rows in plan.rows_by_pieces.items())
    sizes = "; ".join(f"{rows:,} of {_span(most)}" for most, rows in by_pieces)
    return {
        "tokens": f"{plan.tokens:,} of {plan.documents:,} documents",
        "rows": f"{plan.rows:,} of {plan.row_tokens:,} tokens",
        "pieces per row": f"{plan.pieces / max(plan.rows, 1):.2f}" + (f" (rows: {sizes})" if sizes else ""),
        "blocks": f"{plan.blocks:,} of {plan.rows_per_block:,} rows"
        if plan.blocks
        else f"none: fewer than {plan.rows_per_block:,} rows, so nothing of this generation is read",
        "left over": f"{plan.left_over_rows:,} rows, {plan.left_over_tokens:,} tokens",
        "padding": f"{plan.padding_tokens / max(plan.blocks * plan.block_tokens, 1):.4%}",
        "documents cut": f"{cut / max(plan.documents, 1):.2%}: {plan.cut_long:,} longer than a row, "
        f"{plan.cut_at_ends:,} where a task's chunks end",
        "cut by slicing": f"{plan.cut_by_slicing / max(plan.documents, 1):.2%} (concatenate-and-slice, to compare)",
    }


def _span(most: int) -> str:
    """Key of `rows_by_pieces`, for people: 1, 2, 3-4, 5-8 ..."""
    return str(most) if most <= 2 else f"{most // 2 + 1}-{most}"


def fill_rows(pieces: Spans, row_tokens: int) -> tuple[Spans, I64]:
    """(pieces row after row, pieces of each row [rows]): rows by their first piece's position, pieces by theirs.

    The last piece of a full row is longer by the token that follows, if its document goes on.
    """
    row = best_fit(pieces["length"], row_tokens)
    first = np.unique(row, return_index=True)[1]
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    row = rank[row]
    in_rows = pieces[np.argsort(row, kind="stable")]
    counts = np.bincount(row)
    last = np.cumsum(counts) - 1
    full = np.add.reduceat(in_rows["length"], last + 1 - counts) == row_tokens
    in_rows["length"][last] += full & in_rows["goes_on"][last]
    return in_rows, counts


def _publish(part: Corpus, row_tokens: int, advance: Callable[[int], None], group_rows: int) -> None:
    """Build and publish the plan of the newest generation of `part`; those before have theirs."""
    directory, generation = plan_directory(part, row_tokens), part.manifest.generation
    if generation:
        rows_per_block = Packed.open(part.up_to(generation - 1), row_tokens).rows_per_block
    else:
        rows = part.chunks * part.chunk_tokens // row_tokens
        rows_per_block = _power_of_two(min(BLOCK_TOKENS // row_tokens, rows // MIN_BLOCKS))
    try:
        directory.mkdir(exist_ok=True)
        durable.fsync_directory(part.path)
        plan = _build(part, row_tokens, rows_per_block, directory, advance, group_rows)
        durable.publish_new(directory / MARKER, plan.render())
        for left_behind in directory.glob(".*.tmp"):  # by builds that were killed
            left_behind.unlink(missing_ok=True)
    except OSError as error:
        if (directory / MARKER).exists():  # another process published the same, and cleared away our files
            return
        raise MachineError(
            f"the packing plan {directory} cannot be written",
            expected="a corpus directory with room, in which this user may write",
            found=error.strerror or str(error),
            do=f"mend that, or pack links to it: `cp -rs --no-preserve=mode {part.path.resolve()} DIRECTORY`",
        ) from error


def _build(
    part: Corpus,
    row_tokens: int,
    rows_per_block: int,
    directory: Path,
    advance: Callable[[int], None],
    group_rows: int,
) -> PackingPlan:
    chunks = own_chunks(part)
    groups = max(1, len(chunks) // -(-group_rows * row_tokens // part.chunk_tokens)) if chunks else 0
    counts = Counter(dict.fromkeys(("pieces", "rows", "documents", "cut_long", "cut_at_ends", "cut_by_slicing"), 0))
    by_pieces: Counter[int] = Counter()
    with durable.writing(directory / PLAN_FILE) as file:
        blocks = _Blocks(file, rows_per_block)
        for pieces in groups_of_pieces(part, chunks, row_tokens, groups, advance, counts):
            in_rows, row_pieces = fill_rows(pieces, row_tokens)
            counts["pieces"] += len(in_rows)
            counts["rows"] += len(row_pieces)
            by_pieces.update(np.ceil(np.log2(row_pieces)).astype(np.int64).tolist())
            blocks.add(_as_stored(in_rows, part.chunk_tokens), row_pieces)
    records = np.array(blocks.index, BLOCK_DTYPE)
    block_bytes = INDEX_RECORDS * BLOCK_DTYPE.itemsize
    return PackingPlan(
        content_hash=part.content_hash,
        split=part.split,
        generation=part.manifest.generation,
        row_tokens=row_tokens,
        rows_per_block=rows_per_block,
        blocks=len(blocks.index),
        group_chunks=len(chunks) // max(groups, 1),
        plan_bytes=blocks.bytes,
        index=write_blocks(directory / INDEX_FILE, [records], block_bytes, INDEX_MAGIC, INDEX_VERSION),
        tokens=len(chunks) * part.chunk_tokens,
        left_over_rows=len(blocks.row_pieces),
        left_over_tokens=blocks.left_over_tokens(row_tokens),
        rows_by_pieces={str(1 << power): by_pieces[power] for power in sorted(by_pieces)},
        **counts,
    )


class _Blocks:
    """Writes rows to a file by whole blocks."""

    def __init__(self, file: IO[bytes], rows_per_block: int) -> None:
        self._file, self._rows_per_block = file, rows_per_block
        self.index: list[tuple[int, int, bytes]] = []
        self.bytes = 0
        self.pieces = np.empty(0, PIECE_DTYPE)
        """Of the rows that fill no block yet."""
        self.row_pieces = np.empty(0, np.int64)
        """How many each of these rows has."""

    def add(self, pieces: npt.NDArray[np.void], row_pieces: I64) -> None:
        pieces, row_pieces = np.concatenate([self.pieces, pieces]), np.concatenate([self.row_pieces, row_pieces])
        bounds = np.concatenate([[0], np.cumsum(row_pieces)])
        whole = len(row_pieces) // self._rows_per_block * self._rows_per_block
        for row in range(0, whole, self._rows_per_block):
            own = bounds[row : row + self._rows_per_block + 1]
            block = (own - own[0]).astype("<u4").tobytes() + pieces[own[0] : own[-1]].tobytes()
            self.index.append((self.bytes, int(own[-1] - own[0]), xxhash.xxh3_128_digest(block)))
            self.bytes += self._file.write(block)
        self.pieces, self.row_pieces = pieces[bounds[whole] :], row_pieces[whole:]

    def left_over_tokens(self, row_tokens: int) -> int:
        """Input tokens of the rows that fill no block."""
        if not len(self.row_pieces):
            return 0
        tokens = np.add.reduceat(self.pieces["length"].astype(np.int64), np.cumsum(self.row_pieces) - self.row_pieces)
        return int(np.minimum(tokens, row_tokens).sum())  # one more is a label


def _as_stored(pieces: Spans, chunk_tokens: int) -> npt.NDArray[np.void]:
    """PIECE_DTYPE of pieces at positions."""
    stored = np.empty(len(pieces), PIECE_DTYPE)
    stored["chunk"], stored["start"] = np.divmod(pieces["start"], chunk_tokens)
    stored["length"] = pieces["length"]
    return stored


def _power_of_two(at_most: int) -> int:
    return 1 << max(1, at_most).bit_length() - 1
