"""What a packing plan says about itself, and how it lies on disk: `plan.json`, the commit marker, and two binary files.

A plan is of the chunks that one generation added to a corpus. As documents do not run across generations, a corpus that
grows needs a further plan, and those before stay as they are.

    CORPUS/packing-train-U0002048-g0000/ plan.json   canonical JSON with a hash of itself, written last
                                         index.bin   BLOCK_DTYPE a block: where it lies, what its bytes hash to
                                         plan.bin    the blocks: rows as lists of pieces

Reading: packed_generation.py, packing.py. Building: `fmscale data pack`. The page with every field: docs/formats.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.corpus.blocks import BlockFile
from fmscale.corpus.shards import Corpus
from fmscale.errors import DataError

FORMAT = "fmscale-packing"
VERSION = 2
"""1: a plan was of all generations up to its own."""
MARKER, PLAN_FILE, INDEX_FILE = "plan.json", "plan.bin", "index.bin"
INDEX_MAGIC, INDEX_VERSION, INDEX_RECORDS = b"fmscale-packing\0", 1, 1024
"""Of index.bin, a `blocks.py` file: what it begins with, and the records of one of its own blocks."""

PIECE_DTYPE = np.dtype(
    [
        ("chunk", "<u4"),  # number in the corpus, over all generations
        ("start", "<u4"),  # of its first token in that chunk
        ("length", "<u4"),  # tokens; where they run past the chunk's end they go on in the next one
    ]
)
BLOCK_DTYPE = np.dtype(
    [
        ("start", "<u8"),  # offset in plan.bin
        ("pieces", "<u4"),
        ("hash", "V16"),  # xxh3_128 (big-endian) of the block's bytes
    ]
)
"""A block in plan.bin: u4 [R + 1], the first piece of each row and the end of the last; then PIECE_DTYPE [pieces]."""


@dataclass(frozen=True, kw_only=True)
class PackingPlan:
    """What plan.json says. Counts are of the split's chunks in one generation; rows left over are among `rows`, in no
    block."""

    content_hash: str
    """Of the corpus up to `generation`."""
    split: str
    generation: int
    row_tokens: int
    """U."""
    rows_per_block: int
    """R: one number for all generations of a corpus."""
    blocks: int
    """None where the generation has fewer than R rows: all are left over."""
    group_chunks: int
    """Chunks, rounded down, among whose documents a row's pieces were chosen."""
    plan_bytes: int
    index: BlockFile
    tokens: int
    """Input tokens: of each chunk all but the last one. Each is in one piece."""
    rows: int
    left_over_rows: int
    left_over_tokens: int
    pieces: int
    rows_by_pieces: Mapping[str, int]
    """Rows by their pieces: "1", "2", "4" for 3 or 4, "8" for 5 to 8 ..."""
    documents: int
    """That begin in these chunks."""
    cut_long: int
    """Documents cut because they are longer than U."""
    cut_at_ends: int
    """Other documents cut: where a task's chunks end, or the generation does."""
    cut_by_slicing: int
    """Documents that concatenate-and-slice would cut, for comparison."""

    @property
    def padding_tokens(self) -> int:
        """In the blocks."""
        return self.blocks * self.block_tokens - (self.tokens - self.left_over_tokens)

    @property
    def block_tokens(self) -> int:
        """Room for input tokens in a block: R * U."""
        return self.rows_per_block * self.row_tokens

    def record(self) -> dict[str, Any]:
        """What plan.json holds."""
        body = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return {**body, "plan_hash": hashlib.sha256(_render(body)).hexdigest()}

    def render(self) -> bytes:
        """The bytes of plan.json."""
        return _render(self.record())

    @staticmethod
    def load(path: Path) -> PackingPlan:
        """Read plan.json. Raises DataError: a byte that is not as written, another version, or no file to be read."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            record = json.loads(raw)
            form, version, said = record.pop("format"), record.pop("version"), record.pop("plan_hash")
            body = {"format": form, "version": version, **record}
            if raw != _render({**body, "plan_hash": hashlib.sha256(_render(body)).hexdigest()}):
                raise ValueError(f"not what its hash {str(said)[:16]}... is of")
            if (form, version) != (FORMAT, VERSION):
                raise DataError(
                    f"{path} is of a format that this version cannot read",
                    expected=f"{FORMAT} version {VERSION}",
                    found=f"{form} version {version}",
                    do="use the fmscale that wrote it, or remove its directory and run `fmscale data pack` again",
                )
            return PackingPlan(**{**record, "index": BlockFile(**record["index"])})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise damaged(path, "JSON as it was written", f"{type(error).__name__}: {error}"[:200]) from error


def own_chunks(corpus: Corpus) -> range:
    """Chunks that the newest generation opened of `corpus` has added."""
    generation = corpus.manifest.generation
    return range(corpus.up_to(generation - 1).chunks if generation else 0, corpus.chunks)


def plan_directory(corpus: Corpus, row_tokens: int) -> Path:
    """Where the plan of the newest generation opened of `corpus` lies, for rows of `row_tokens`."""
    return corpus.path / f"packing-{corpus.split}-U{row_tokens:07d}-g{corpus.manifest.generation:04d}"


def damaged(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"the packing plan's {path} is damaged or missing",
        expected=expected,
        found=found,
        do=remedy(path.parent),
    )


def remedy(directory: Path) -> str:
    return f"remove the directory {directory} and run `fmscale data pack` again: it makes the same bytes"


def unreadable(path: Path, error: OSError) -> DataError:
    """Nothing says that its bytes are damaged, unless there is no such file."""
    if isinstance(error, FileNotFoundError):
        return damaged(path, "a file", "no such file")
    return DataError(
        f"the packing plan's {path} cannot be read",
        expected="a readable file",
        found=error.strerror or str(error),
        do="mend its permissions, the mount, or the limit of open files; then run the command again",
    )


def _render(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()
